"""Digests that identify weights."""

import hashlib

import torch
from transformers import PreTrainedModel


def tensor_digest(*tensors: torch.Tensor) -> str:
    """Compute the SHA-256 of the tensors' dtypes, shapes and bits."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(f"{tensor.dtype} {list(tensor.shape)} ".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def weights_digest(model: PreTrainedModel) -> str:
    """Compute the SHA-256 of a model's parameters in the order of their names, each tied matrix once."""
    return tensor_digest(*(weight for _, weight in sorted(model.named_parameters())))

"""Weights for interleaved and for concatenated sinusoidal positions.

The paper (section 3.5) and this package interleave sines and cosines: dimension 2i is a sine, 2i+1 a cosine. MarianMT
and fairseq concatenate them: all sines, then all cosines. Permuting the residual stream converts one into the other:
the input columns of every weight that reads the stream, and the output rows of every weight that writes it. Norms and
dot products do not depend on the order of the dimensions.
"""

import copy
from typing import cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UserError

# Weights by the end of their names. The residual stream is the last dimension of those that read it, ...
READ = (
    "shared.weight",
    "embed_tokens.weight",
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "fc1.weight",
    "lm_head.weight",
)


# ... and the first dimension of those that write it.
WRITE = (
    "out_proj.weight",
    "out_proj.bias",
    "fc2.weight",
    "fc2.bias",
    "layer_norm.weight",
    "layer_norm.bias",
)


def interleave(weights: dict[str, torch.Tensor], d_model: int) -> dict[str, torch.Tensor]:
    """Permute weights of a model with concatenated positions, named as ours, for interleaved positions."""
    # d_model 6: [0, 3, 1, 4, 2, 5]; sine 0, cosine 0, sine 1, ...
    return _permute(weights, torch.arange(d_model).view(2, -1).t().flatten())


def deinterleave(weights: dict[str, torch.Tensor], d_model: int) -> dict[str, torch.Tensor]:
    """Permute our weights for concatenated positions; the inverse of `interleave`."""
    # d_model 6: [0, 2, 4, 1, 3, 5]; all sines, then all cosines
    return _permute(weights, torch.arange(d_model).view(-1, 2).t().flatten())


def _permute(weights: dict[str, torch.Tensor], order: torch.Tensor) -> dict[str, torch.Tensor]:
    """Permute the residual stream: dimension i becomes what dimension order[i] was; order is int64, [d_model]."""
    permuted = {}
    for name, weight in weights.items():
        index = order.to(weight.device)
        if name.endswith(READ):
            weight = weight[:, index]
        elif name.endswith(WRITE):
            weight = weight[index]
        permuted[name] = weight
    return permuted


def check_model_class(model: PreTrainedModel, model_class: type[PreTrainedModel]) -> None:
    """Refuse a model of another class, with adapters or with quantized weights.

    The config's model type and the names of the weights decide, not `isinstance`: code from the Hub has classes of its
    own, and adapters would be lost silently.

    Raises:
        UserError: The model is not a plain `model_class`.
    """
    config = getattr(model, "config", None)
    config_class = cast(type[PreTrainedConfig], model_class.config_class)
    fits = False
    if config is not None and getattr(config, "model_type", None) == config_class.model_type:
        with torch.device("meta"):
            fits = model_class(copy.deepcopy(config)).state_dict().keys() == model.state_dict().keys()
    if not fits:
        untied = not getattr(config, "tie_word_embeddings", True)
        if untied and isinstance(getattr(model.base_model, "shared", None), torch.nn.Embedding):
            raise UserError(
                "the model's matrices were untied after it was made, as PEFT does when it merges a new output layer; "
                "save it with save_pretrained(), load it, and convert that"
            )
        raise UserError(
            f"a {type(model).__name__} can't be converted: it must be a {model_class.__name__}, without quantization "
            "and with its adapters merged"
        )


def float32_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the model to the CPU in float32 and eval mode, with SDPA attention, which every engine can trace."""
    copied = copy.deepcopy(model).to("cpu", torch.float32).eval()  # type: ignore[arg-type] # wraps() loses its types
    copied.config.dtype = torch.float32
    copied.set_attn_implementation("sdpa")
    return copied

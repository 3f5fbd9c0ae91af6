"""Checkpoints under FSDP that equal those of a single process."""

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import Seq2SeqTrainer
from transformers.utils import SAFE_WEIGHTS_NAME

from ..modeling_vanilla_transformer import VanillaTransformerModel


class FSDPSeq2SeqTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer whose folders are the same with and without FSDP.

    Without FSDP it is the stock trainer. The stock trainer, as of transformers 5.23, has three faults under FSDP:
    - It saves the name and the code of the class that FSDP derives from the model's class.
    - It saves a tied matrix once under each of its names.
    - It can't load a checkpoint, or the best model, where matrices are tied.
    And accelerate groups the input embedding with the output layer, while FSDP wants all places of a tied matrix in one
    group: under FSDP the embeddings of both stacks are one module.
    """

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """Wrap the model; before FSDP does, make tied embeddings one module."""
        if self.is_fsdp_enabled and not isinstance(model, FSDPModule):
            for part in list(model.modules()):
                if isinstance(part, VanillaTransformerModel) and part.shared is not None:
                    embedding: Any = part.encoder.embed_tokens  # typed as any module, since users may replace it
                    part.shared = part.decoder.embed_tokens = embedding
        return super()._wrap_model(model, *args, **kwargs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save the model under its own class, each matrix once."""
        model: Any = self.model  # mypy takes a PreTrainedModel that is also an FSDPModule for impossible
        if not isinstance(model, FSDPModule):
            super()._save(output_dir, state_dict)
            return
        sharded_class = type(model)
        model.__class__ = sharded_class.__bases__[1]  # bases = (FSDPModule, the model's own class)
        try:
            super()._save(output_dir, _without_tied_copies(model, state_dict or {}))
        finally:
            model.__class__ = sharded_class

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint; under FSDP from `model.safetensors`."""
        sharded: Any = self.model if model is None else model
        if not isinstance(sharded, FSDPModule):
            super()._load_from_checkpoint(resume_from_checkpoint, sharded)
            return
        weights: Any = _without_tied_copies(sharded, load_file(Path(resume_from_checkpoint, SAFE_WEIGHTS_NAME)))
        # Not strict, as the tied copies are missing; they are tied to what is loaded.
        set_model_state_dict(
            cast(nn.Module, sharded), weights, options=StateDictOptions(full_state_dict=True, strict=False)
        )

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint; under FSDP in the same way as when resuming."""
        model: Any = self.model
        checkpoint = self.state.best_model_checkpoint
        if isinstance(model, FSDPModule) and checkpoint is not None:
            self._load_from_checkpoint(checkpoint)
        else:
            super()._load_best_model()


def _without_tied_copies(model: Any, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out the further names of tied matrices; FSDP gathers a tied matrix once under each name."""
    return {name: weight for name, weight in weights.items() if name not in model.all_tied_weights_keys}

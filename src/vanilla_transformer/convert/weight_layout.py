"""Weights between models whose positions are sines and cosines in turn, and those with all sines before all cosines.

The first is the paper (section 3.5) and ours, the second MarianMT and fairseq. The elements of the residual stream
change places, and with them the columns of what reads from it and the rows of what writes into it. Sums over them, in
norms and products, stay what they are.
"""

import copy

import torch
from transformers import PreTrainedModel

from ..errors import UserError

# Weights by the end of their names: those that read the residual stream have it last, those that write it first.
READ = (
    "shared.weight",
    "embed_tokens.weight",
    "q_proj.weight",
    "k_proj.weight",
    "v_proj.weight",
    "fc1.weight",
    "lm_head.weight",
)


WRITE = (
    "out_proj.weight",
    "out_proj.bias",
    "fc2.weight",
    "fc2.bias",
    "layer_norm.weight",
    "layer_norm.bias",
)


def in_turn(weights: dict[str, torch.Tensor], d_model: int) -> dict[str, torch.Tensor]:
    """Weights of a model with all sines before all cosines, by our names, for sines and cosines in turn."""
    return _in_order(weights, torch.arange(d_model).view(2, -1).t().flatten())


def one_after_the_other(weights: dict[str, torch.Tensor], d_model: int) -> dict[str, torch.Tensor]:
    """Our weights for all sines before all cosines; undoes `in_turn`."""
    return _in_order(weights, torch.arange(d_model).view(-1, 2).t().flatten())


def _in_order(weights: dict[str, torch.Tensor], order: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights for a residual stream whose place i holds what was in place order[i], int64, [d_model]."""
    reordered = {}
    for name, weight in weights.items():
        place = order.to(weight.device)
        if name.endswith(READ):
            weight = weight[:, place]
        elif name.endswith(WRITE):
            weight = weight[place]
        reordered[name] = weight
    return reordered


def check_is(model: PreTrainedModel, model_class: type[PreTrainedModel]) -> None:
    """Refuse what is no model of the class, by its config and the names of its weights: code from the Hub has classes
    of its own, and adapters would be lost without a word.

    Raises:
        UserError: Another kind of model, or one with adapters or quantized weights.
    """
    config = getattr(model, "config", None)
    fits = getattr(config, "model_type", None) == model_class.config_class.model_type
    if fits:
        with torch.device("meta"):
            fits = model_class(copy.deepcopy(config)).state_dict().keys() == model.state_dict().keys()
    if not fits:
        raise UserError(
            f"a {type(model).__name__} can't be converted: it must be a {model_class.__name__}, without quantization "
            "and with its adapters merged"
        )


def float32_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU in eval mode, with the attention that every engine can trace."""
    copied = copy.deepcopy(model).to("cpu", torch.float32).eval()
    copied.config.dtype = torch.float32
    copied.set_attn_implementation("sdpa")
    return copied

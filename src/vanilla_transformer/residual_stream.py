"""Weights between models whose positions are sines and cosines in turn, and those with all sines before all cosines.

The first is the paper (section 3.5) and ours, the second MarianMT and fairseq. The elements of the residual stream
change places, and with them the columns of what reads from it and the rows of what writes into it. Sums over them, in
norms and products, stay what they are.
"""

import torch

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

"""Weights for interleaved and for concatenated sinusoidal positions.

The paper (section 3.5) and this package interleave sines and cosines: dimension 2i is a sine, 2i+1 a cosine. MarianMT
and fairseq concatenate them: all sines, then all cosines. Permuting the residual stream converts one into the other:
the input columns of every weight that reads the stream, and the output rows of every weight that writes it. Norms and
dot products do not depend on the order of the dimensions.
"""

import copy
from typing import Any, cast

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import UserError
from ..eval_mode_vanilla_transformer import eval_mode

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
    """Refuse a model of another class, with adapters, with quantized weights, or with code of its own.

    The config's model type and the names of the weights decide, not `isinstance`: code from the Hub has classes of its
    own, and adapters would be lost silently. So would be a hook or a `forward` of its own: what the model computes is
    compared with what the class computes with its weights.

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
    if plain_copy(model, model_class) is None:
        raise UserError(
            f"the model computes something else than a plain {model_class.__name__} with its weights (it has a hook, a "
            "module or a forward of its own, for example), which would be lost; convert it without that"
        )


@torch.inference_mode()
def plain_copy(model: PreTrainedModel, model_class: type[PreTrainedModel]) -> PreTrainedModel | None:
    """Make a model of the same weights whose code is that of the class alone.

    Returns:
        The copy, on the same device, in the same dtype and in eval mode; None if the model's logits differ from it: it
        is modified.
    """
    plain: Any = model_class(copy.deepcopy(model.config)).eval()
    weights = model.state_dict()
    if {name: weight.shape for name, weight in weights.items()} != {
        name: weight.shape for name, weight in plain.state_dict().items()
    } or any(weight.is_meta for weight in weights.values()):
        return None
    try:
        plain.load_state_dict(weights)
    except RuntimeError:  # weights of a kind of their own, as quantized ones are
        return None
    plain.to(model.device, model.dtype)
    with eval_mode(model):
        is_same = torch.allclose(sample_logits(model), sample_logits(plain), atol=1e-3)
    return plain if is_same else None


def sample_logits(model: Any) -> torch.Tensor:
    """Compute the logits of eight sentences of random tokens, always the same, float32, [8, length, vocabulary]."""
    length = min(20, getattr(model.config, "max_position_embeddings", 20))
    random = torch.Generator().manual_seed(0)
    source, target = (
        torch.randint(model.config.vocab_size, (8, length), generator=random).to(model.device) for _ in range(2)
    )
    mask = torch.ones_like(source)
    return model(input_ids=source, attention_mask=mask, decoder_input_ids=target).logits.float()


def float32_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy the model to the CPU in float32 and eval mode, with SDPA attention, which every engine can trace."""
    copied = copy.deepcopy(model).to("cpu", torch.float32).eval()  # type: ignore[arg-type] # wraps() loses its types
    copied.config.dtype = torch.float32
    copied.set_attn_implementation("sdpa")
    return copied

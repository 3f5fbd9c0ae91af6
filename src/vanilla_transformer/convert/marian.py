"""Conversion to and from transformers' own MarianMT."""

import copy

from transformers import MarianConfig, MarianMTModel, PreTrainedModel

from ..base_vanilla_transformer import LIMIT_BY_SOURCE
from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..errors import UserError
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .weight_layout import check_model_class, deinterleave, interleave

SHARED_FIELDS = (
    "vocab_size",
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "encoder_attention_heads",
    "decoder_attention_heads",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "activation_function",
    "scale_embedding",
    "use_cache",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "decoder_start_token_id",
)


# What the original architecture says in Marian's fields. Those that MarianConfig does not have come with checkpoints.
ORIGINAL_FIELDS = {
    "activation_function": "relu",
    "normalize_before": False,
    "normalize_embedding": False,
    "add_final_layer_norm": False,
    "static_position_embeddings": True,
    "encoder_layerdrop": 0,
    "decoder_layerdrop": 0,
}


# What only Marian has: a bias of the output layer, which is zero here, and the tables of positions.
MARIAN_CONSTANTS = (
    "final_logits_bias",
    "model.encoder.embed_positions.weight",
    "model.decoder.embed_positions.weight",
)


def to_marian(model: PreTrainedModel, max_position_embeddings: int = 1024) -> MarianMTModel:
    """The same model as transformers' own MarianMT, which needs neither this package nor code from the Hub.

    `to_marian(model).save_pretrained(folder)` writes a folder that plain transformers loads. Logits are the same
    up to rounding. MarianMT has a table of positions and counts them from the first place, padded or not: it can't read
    more tokens than the table has (it raises IndexError), and sources must be padded on the right. It knows no limit
    that goes by the source's length; a generation config without any is given the table's length.

    Args:
        model: A `VanillaTransformerForConditionalGeneration`.
        max_position_embeddings: How many tokens a source or a target may have.

    Returns:
        The model in eval mode, of the same dtype and on the same device.

    Raises:
        UserError: Another kind of model, or one with fairseq's positions.
    """
    check_model_class(model, VanillaTransformerForConditionalGeneration)
    config = model.config
    if config.position_convention != "paper":
        raise UserError(
            f"the model's position_convention is {config.position_convention!r}, but MarianMT has the paper's "
            "positions only; export to CTranslate2 or ONNX"
        )
    marian = MarianMTModel(
        MarianConfig(
            **{field: getattr(config, field) for field in SHARED_FIELDS},
            share_encoder_decoder_embeddings=config.tie_word_embeddings,
            max_position_embeddings=max_position_embeddings,
            forced_eos_token_id=None,
        )
    )
    constants = {name: weight for name, weight in marian.state_dict().items() if name in MARIAN_CONSTANTS}
    marian.load_state_dict(deinterleave(model.state_dict(), config.d_model) | constants)
    marian.generation_config = copy.deepcopy(model.generation_config)
    limits = marian.generation_config
    if limits.max_length in (None, LIMIT_BY_SOURCE):
        limits.max_length = max_position_embeddings if limits.max_new_tokens is None else None
    return marian.to(model.device, model.dtype).eval()  # type: ignore[arg-type] # PreTrainedModel.to has no usable types


def from_marian(marian: MarianMTModel) -> VanillaTransformerForConditionalGeneration:
    """A MarianMT of the paper's architecture as our model: post-norm, ReLU, sinusoidal positions.

    Logits are the same up to rounding, for sources that are padded on the right. A Marian without `bos_token_id` is
    given its `decoder_start_token_id` for it.

    Args:
        marian: A MarianMT, such as `MarianMTModel.from_pretrained(folder)`.

    Returns:
        The model in eval mode, of the same dtype, on the same device and with the same generation config.

    Raises:
        UserError: Another kind of model, or another architecture; the sentence names the field.
        ValueError: Token ids that the config refuses.
    """
    check_model_class(marian, MarianMTModel)
    config = marian.config
    for field, value in (ORIGINAL_FIELDS | {"decoder_vocab_size": config.vocab_size}).items():
        if getattr(config, field, value) != value:
            raise UserError(
                f"the Marian model's {field} is {getattr(config, field)!r}, but only {value!r} is the architecture of "
                "this package"
            )
    if config.share_encoder_decoder_embeddings != config.tie_word_embeddings:
        raise UserError(
            f"the Marian model's share_encoder_decoder_embeddings is {config.share_encoder_decoder_embeddings} and its "
            f"tie_word_embeddings is {config.tie_word_embeddings}; the three matrices must be one, or three"
        )
    if marian.final_logits_bias.any():
        raise UserError("the Marian model's final_logits_bias is not zero, but our output layer has no bias")
    fields = {field: getattr(config, field) for field in SHARED_FIELDS}
    if fields["bos_token_id"] is None:
        fields["bos_token_id"] = fields["decoder_start_token_id"]
    model = VanillaTransformerForConditionalGeneration(VanillaTransformerConfig(**fields))
    weights = {name: weight for name, weight in marian.state_dict().items() if name not in MARIAN_CONSTANTS}
    model.load_state_dict(interleave(weights, config.d_model))
    model.generation_config = copy.deepcopy(marian.generation_config)
    return model.to(marian.device, marian.dtype).eval()  # type: ignore[arg-type] # see to_marian

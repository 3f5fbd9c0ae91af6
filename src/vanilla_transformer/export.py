"""The model for other engines: transformers' own MarianMT, CTranslate2 and ONNX.

A function here writes or returns the model; `tokenizer.save_pretrained(folder)` puts the tokenizer beside it.
"""

import copy
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
import transformers
from transformers import GenerationConfig, MarianConfig, MarianMTModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.versions import require_version

from .configuration_vanilla_transformer import VanillaTransformerConfig
from .errors import UserError, check_not_in_use, require
from .modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from .residual_stream import in_turn, one_after_the_other

# MarianMT

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

    `export.to_marian(model).save_pretrained(folder)` writes a folder that plain transformers loads. Logits are the same
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
    _check_is(model, VanillaTransformerForConditionalGeneration)
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
    marian.load_state_dict(one_after_the_other(model.state_dict(), config.d_model) | constants)
    marian.generation_config = copy.deepcopy(model.generation_config)
    if marian.generation_config.max_length is None and marian.generation_config.max_new_tokens is None:
        marian.generation_config.max_length = max_position_embeddings
    return marian.to(model.device, model.dtype).eval()


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
    _check_is(marian, MarianMTModel)
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
    model.load_state_dict(in_turn(weights, config.d_model))
    model.generation_config = copy.deepcopy(marian.generation_config)
    return model.to(marian.device, marian.dtype).eval()


# CTranslate2


def to_ctranslate2(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    quantization: str | None = None,
) -> None:
    """Write the model for CTranslate2, a fast engine in C++: `ctranslate2.Translator(folder)`.

    It takes and gives tokens, with `</s>` at the source's end as the tokenizer puts it there:
    `tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"])`. It has 1,024 positions and cuts longer
    sources.

    Nothing of the generation config goes with the model: CTranslate2's own defaults are beams of 2, a length penalty of
    1 and 256 tokens at most. It divides a log-probability by length^length_penalty, as transformers does and the paper
    does not, and stops after `beam_size * patience` hypotheses. With `patience=2` and `min_decoding_length=0` it writes
    what `generate()` writes, but for rare sentences where one of the two stops too early.

    Args:
        model: A `VanillaTransformerForConditionalGeneration`.
        tokenizer: Its tokenizer, which gives the tokens their names.
        folder: Where to write, new or empty.
        quantization: "int8" or another of CTranslate2's types; by default float32.

    Raises:
        UserError: CTranslate2 is not installed or can't represent the model, or the folder is in use.
    """
    _check_is(model, VanillaTransformerForConditionalGeneration)
    check_not_in_use(folder, "export")
    types = require("ctranslate2", extra="ct2").specs.model_spec.ACCEPTED_MODEL_TYPES
    if quantization is not None and quantization not in types:
        raise UserError(f"quantization is {quantization!r}; CTranslate2 has {', '.join(types)}")
    from .ctranslate2_loader import VanillaTransformerLoader

    with torch.no_grad():
        spec = VanillaTransformerLoader()(_float32_copy(model), tokenizer)  # a copy: quantization works in place
    spec.validate()
    spec.optimize(quantization)
    Path(folder).mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))


# ONNX

# Versions with the exporter that this is written for; the rest of the package does with older ones.
ONNX_NEEDS = ("torch>=2.11", "transformers>=5.23")


def to_onnx(model: PreTrainedModel, folder: str | Path) -> None:
    """Write the model as ONNX, in float32, by transformers' own exporter (which calls itself experimental).

    There are three graphs: `encoder.onnx`; `prefill.onnx`, which reads the start of a target and makes the cache; and
    `decode.onnx`, which reads one more token and the cache. Batch and lengths are free.
    `transformers.exporters.ExportedModel.from_pretrained(folder).runners` runs them in ONNX Runtime, each with the
    arguments and outputs of the module it comes from.

    Args:
        model: A `VanillaTransformerForConditionalGeneration`.
        folder: Where to write, new or empty.

    Raises:
        UserError: Another kind of model, the folder is in use, or what the exporter needs is missing or too old.
    """
    _check_is(model, VanillaTransformerForConditionalGeneration)
    check_not_in_use(folder, "export")
    try:
        for requirement in ONNX_NEEDS:
            require_version(requirement)
    except ImportError as error:
        raise UserError(
            f"the export to ONNX needs {' and '.join(ONNX_NEEDS)}, but here are torch {torch.__version__} and "
            f"transformers {transformers.__version__}; install newer ones"
        ) from error
    require("onnx", extra="onnx")
    passes = require("onnx_ir.passes.common", extra="onnx")
    with _quiet():
        exported = _exported_to_onnx(_float32_copy(model))
    for component in exported.components.values():
        passes.ClearMetadataAndDocStringPass()(component.program)  # each node's place in the source code, with paths
    exported.save_pretrained(folder)


def _exported_to_onnx(model: PreTrainedModel) -> "transformers.exporters.ExportedModel":
    """The three graphs of `to_onnx`."""
    from transformers.exporters import ExportedModel, OnnxConfig, OnnxExporter  # not in all versions

    exporter = OnnxExporter()
    settings = OnnxConfig(dynamic=True)
    # More than one row, and more than one token in each: a size that is 1 while it is traced stays 1.
    source = {"input_ids": torch.full((2, 5), model.config.eos_token_id), "attention_mask": torch.ones(2, 5).long()}
    start = torch.full((2, 3), model.config.decoder_start_token_id)
    encoder = exporter.export(model.get_encoder(), dict(source), settings)
    search = GenerationConfig.from_model_config(model.config)
    search.use_cache = True
    decoder = exporter.export_for_generation(
        model, source | {"decoder_input_ids": start}, settings, generation_config=search
    )
    components = {"encoder": encoder.components["model"], **decoder.components}
    return ExportedModel(components, exporter.export_format, model.config, model.generation_config)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and onnxscript report about themselves: some 60 lines that no one here can act on."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def _check_is(model: PreTrainedModel, model_class: type[PreTrainedModel]) -> None:
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


def _float32_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy on the CPU in eval mode, with the attention that every engine can trace."""
    copied = copy.deepcopy(model).to("cpu", torch.float32).eval()
    copied.config.dtype = torch.float32
    copied.set_attn_implementation("sdpa")
    return copied

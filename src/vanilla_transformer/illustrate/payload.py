"""What the page's script computes with: weights, config, settings of the search, and tokenizer.

The page computes what `modeling_vanilla_transformer.py`, `gnmt_beam_search` and the tokenizer do, in JavaScript. What
it can't compute is refused here, by the field's name: it would show other numbers than the model's.
"""

import json
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..base_vanilla_transformer import TOKENS_BEYOND_SOURCE
from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..convert.weight_layout import plain_copy, sample_logits
from ..data.normal_form import normal_form
from ..data.tokenization import PIECES
from ..errors import UserError
from ..generation_vanilla_transformer import PAPER_DECODING, search_settings
from ..inference.settings import new_tokens_limit
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration

Payload = dict[str, Any]

MAX_WEIGHT_BYTES = 64_000_000
# Half precision is enough if it moves no logit by more than this: half of the 1e-3 that the page may be wrong by, as
# only some sentences are measured.
FLOAT16_TOLERANCE = 5e-4
# The functions of page/engine/activations.js.
ACTIVATIONS = (
    "relu",
    "relu2",
    "relu6",
    "leaky_relu",
    "gelu",
    "gelu_python",
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "quick_gelu",
    "silu",
    "swish",
    "sigmoid",
    "tanh",
    "linear",
)

# Fields of a generation config that the page obeys, and those that change nothing in a search for one sentence.
OBEYED = {
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "num_beams",
    "pad_token_id",
}
WITHOUT_EFFECT = {
    "_from_model_config",
    "cache_implementation",
    "disable_compile",
    "early_stopping",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "return_dict_in_generate",
    "temperature",
    "top_k",
    "top_p",
    "transformers_version",
    "use_cache",
}
NEUTRAL_AT_1 = {"encoder_repetition_penalty", "num_beam_groups", "repetition_penalty"}

# The pattern of `ByteLevel(use_regex=True)`, GPT-2's.
_BYTE_LEVEL_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def make_payload(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[Payload, bytes]:
    """Collect what the page's engine needs.

    Args:
        model: The model, on any device and in any dtype.
        tokenizer: Its tokenizer.

    Returns:
        What the engine's `loadModel` and `Tokenizer` read: "config", "generation", "dtype" and "tensors" of the
        weights, "tokenizer", and the number of parameters as "model"; it can be written as JSON. And the bytes of the
        weights, little-endian.

    Raises:
        UserError: As in `check_supported`.
    """
    dtype = check_supported(model, tokenizer)
    tensors, weights = _pack(model, dtype)
    payload = {
        "config": {name: getattr(model.config, name) for name in VanillaTransformerConfig.__annotations__},
        "generation": _generation(model.generation_config),
        "dtype": str(dtype).removeprefix("torch."),
        "tensors": tensors,
        "tokenizer": _tokenizer(tokenizer),
        "model": {"parameters": model.num_parameters()},
    }
    return payload, weights


def check_supported(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.dtype:
    """Refuse what the page can't compute.

    Args:
        model: Any model.
        tokenizer: Its tokenizer.

    Returns:
        The dtype that the weights have in the page: float16 if that is accurate enough, else float32.

    Raises:
        UserError: The model is of another kind, modified or too large for a page, or its config, its generation config
            or its tokenizer has a setting that the page does not know.
    """
    if type(model) is not VanillaTransformerForConditionalGeneration:
        raise UserError(
            f"the model is a {type(model).__name__} of {type(model).__module__}; the page can compute the package's "
            "own VanillaTransformerForConditionalGeneration only"
        )
    activation = model.config.activation_function
    if activation not in ACTIVATIONS:
        raise UserError(
            f"activation_function is {activation!r}, which the page can't compute; it can compute "
            f"{', '.join(ACTIVATIONS)}"
        )
    _check_generation(model.generation_config)
    _check_tokenizer(tokenizer)
    _check_size(model, torch.float16)
    plain = _plain_copy(model)
    dtype = torch.float16 if _float16_error(plain) <= FLOAT16_TOLERANCE else torch.float32
    _check_size(model, dtype)
    return dtype


# Weights


def _check_size(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Refuse a model that is too large in this dtype.

    Raises:
        UserError: With its size.
    """
    size = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    if size > MAX_WEIGHT_BYTES:
        raise UserError(
            f"the model's weights are {size / 1e6:,.1f} MB in {str(dtype).removeprefix('torch.')}, and a page takes "
            f"{MAX_WEIGHT_BYTES / 1e6:g} MB at most; use a smaller model"
        )


@torch.inference_mode()
def _plain_copy(model: PreTrainedModel) -> VanillaTransformerForConditionalGeneration:
    """Make a model of the same weights, in float32 on the CPU, and check that its code is all there is.

    Raises:
        UserError: Adapters, hooks, quantization or the like make it another model.
    """
    plain: Any = plain_copy(model, VanillaTransformerForConditionalGeneration)
    if plain is None:
        raise UserError(
            "the model is modified (by an adapter, a hook or quantization, for example), and the page computes what "
            "the package's code does with the weights; save it without the modification, and use that"
        )
    return plain.to("cpu", torch.float32)


@torch.inference_mode()
def _float16_error(model: torch.nn.Module) -> float:
    """Measure how far any logit of the sample moves when the weights are rounded to float16; they stay rounded."""
    logits = sample_logits(model)
    for weight in model.parameters():
        weight.copy_(weight.half())
    error = (sample_logits(model) - logits).abs().max()
    return float(error.nan_to_num(torch.inf))  # beyond float16's range there are infinities, and their NaN


def _pack(model: PreTrainedModel, dtype: torch.dtype) -> tuple[dict[str, dict[str, Any]], bytes]:
    """Put all weights after each other, a matrix that is tied once.

    Returns:
        Shape and offset (in elements) by name, and the bytes.
    """
    tensors: dict[str, dict[str, Any]] = {}
    parts, offset = [], 0
    for name, weight in model.named_parameters():
        tensors[name.removeprefix("model.")] = {"shape": list(weight.shape), "offset": offset}
        values = weight.detach().to("cpu", dtype).contiguous().numpy()
        parts.append(values.astype(values.dtype.newbyteorder("<")).tobytes())
        offset += weight.numel()
    return tensors, b"".join(parts)


# Settings of the search


def _check_generation(defaults: GenerationConfig) -> None:
    """Refuse settings that the page's search does not know.

    Raises:
        UserError: With the name of the field.
    """
    for name, value in defaults.to_diff_dict().items():
        neutral = not value or (value == 1 and name in NEUTRAL_AT_1)
        if not neutral and name not in OBEYED | WITHOUT_EFFECT:
            raise UserError(
                f"{name} is {value!r} in the model's generation config, which the page's search does not obey; set it "
                "to None"
            )
    if defaults.decoder_start_token_id is None and defaults.bos_token_id is None:
        raise UserError("the model's generation config has no decoder_start_token_id; set it")


def _generation(defaults: GenerationConfig) -> Payload:
    """Give the settings of the search as `generate()` understands them."""
    eos, start = defaults.eos_token_id, defaults.decoder_start_token_id
    settings = search_settings(defaults.num_beams, defaults.length_penalty)
    return {
        "eos_token_id": [] if eos is None else eos if isinstance(eos, list) else [eos],
        "pad_token_id": defaults.pad_token_id,
        "decoder_start_token_id": defaults.bos_token_id if start is None else start,
        "max_new_tokens": new_tokens_limit(defaults),
        "tokens_beyond_source": TOKENS_BEYOND_SOURCE,
        "num_beams": settings["num_beams"],
        "length_penalty": (PAPER_DECODING if settings["length_penalty"] is None else settings)["length_penalty"],
    }


# Tokenizer


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that is not byte-level BPE as `train_tokenizer` makes it, or GPT-2's.

    Raises:
        UserError: With the part of tokenizer.json, or the setting.
    """
    if not tokenizer.is_fast:
        raise UserError(f"the tokenizer is a {type(tokenizer).__name__} without tokenizer.json, which the page needs")
    tokenizer("")  # undoes padding and truncation that were left switched on
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model = content["model"]
    if model["type"] != "BPE" or (content["decoder"] or {}).get("type") != "ByteLevel":
        raise UserError(
            f"the tokenizer is not byte-level BPE (its model is {model['type']}), and the page knows no other; use one "
            "from train_tokenizer"
        )
    for field in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"):
        if model.get(field):
            raise UserError(f"{field} is {model[field]!r} in tokenizer.json, which the page does not obey")
    if content["normalizer"] is not None:
        raise UserError(
            f"the tokenizer has a normalizer ({content['normalizer']['type']}), which the page does not obey"
        )
    if _pattern(content["pre_tokenizer"]) is None:
        raise UserError(
            "the tokenizer's pre_tokenizer is neither that of train_tokenizer nor GPT-2's, and the page knows no other"
        )
    missing = set(pre_tokenizers.ByteLevel.alphabet()) - model["vocab"].keys()
    if missing:
        raise UserError(
            f"the tokenizer's vocabulary has no token for the byte {min(missing)!r}, which the page relies on"
        )
    for token in content["added_tokens"]:
        if token["single_word"] and not (token["special"] and tokenizer.split_special_tokens):
            raise UserError(
                f"single_word is set for the added token {token['content']!r}, which the page does not obey"
            )
    ids, bare = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    if ids != bare + tokenizer("")["input_ids"]:
        raise UserError("the tokenizer adds tokens before a text, and the page knows those after it only")
    if tokenizer.clean_up_tokenization_spaces:
        raise UserError(
            "clean_up_tokenization_spaces is True in the tokenizer, which the page does not obey; set it to False"
        )


def _pattern(pre_tokenizer: Payload | None) -> str | None:
    """Give the pattern that cuts a text into pieces; None if it is not one that the page knows."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if pre_tokenizer == byte_level | {"use_regex": True}:
        return _BYTE_LEVEL_PIECES
    split = {"type": "Split", "pattern": {"Regex": PIECES}, "behavior": "Isolated", "invert": False}
    own = {"type": "Sequence", "pretokenizers": [split, byte_level | {"use_regex": False}]}
    return PIECES if pre_tokenizer == own else None


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> Payload:
    """Read tokenizer.json, and add as "page" what it leaves to the libraries.

    Returns:
        tokenizer.json with "page": the "pattern" of pieces and the "characters" of its classes, "added_tokens" in the
        two groups in which they are looked for (the id is None where the content is text), the "normal_form" of
        sources, the ids "appended" to a text, and those "skipped" in decoding.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    groups: tuple[list, list] = ([], [])
    for token in content["added_tokens"]:
        is_text = token["special"] and tokenizer.split_special_tokens
        groups[token["normalized"]].append(token | {"id": None if is_text else token["id"]})
    added = [token["id"] for token in content["added_tokens"]]
    content["page"] = {
        "pattern": _pattern(content["pre_tokenizer"]),
        "characters": character_classes(),
        "added_tokens": groups,
        "normal_form": normal_form(tokenizer),
        "appended": tokenizer("")["input_ids"],
        "skipped": [index for index in added if not tokenizer.decode([index], skip_special_tokens=True)],
    }
    return content


@lru_cache(maxsize=1)
def character_classes() -> dict[str, list[int]]:
    r"""List the characters of the classes that a tokenizer's pattern has, as its regular expressions know them.

    Returns:
        For \p{L}, \p{M}, \p{N} and \s, named L, M, N and s, the code points [first, last, first, last, ...].
    """
    # The other planes have no characters, or private ones. Chunks, as the library counts from a text's beginning.
    points = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]
    chunks = ["".join(map(chr, points[start : start + 10_000])) for start in range(0, len(points), 10_000)]
    classes = {}
    for name, others in {"L": r"\P{L}+", "M": r"\P{M}+", "N": r"\P{N}+", "s": r"\S+"}.items():
        without_others = pre_tokenizers.Split(Regex(others), "removed")
        ends: list[int] = []
        for chunk in chunks:
            for run, _ in without_others.pre_tokenize_str(chunk):
                for point in map(ord, run):
                    if ends and ends[-1] == point - 1:
                        ends[-1] = point
                    else:
                        ends += [point, point]
        classes[name] = ends
    return classes

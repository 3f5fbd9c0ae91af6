"""What the page's script computes with: weights, config, settings of the search, and tokenizer.

The page computes what `modeling_vanilla_transformer.py` and `gnmt_beam_search` do, in JavaScript. What it can't compute
is refused here, with the field's name: a page that shows other numbers than the model's would be worse than none.
"""

import json
from functools import lru_cache
from typing import Any

import torch
from tokenizers import Regex, pre_tokenizers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..base_vanilla_transformer import LIMIT_BY_SOURCE, TOKENS_BEYOND_SOURCE
from ..data.normal_form import normal_form
from ..errors import UserError

Payload = dict[str, Any]
MAX_WEIGHT_BYTES = 64 * 1024 * 1024


def make_payload(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[Payload, bytes]:
    """Collect what the page's engine needs."""
    check_supported(model, tokenizer)
    dtype = torch.float32
    tensors, weights = _pack(model, dtype)
    payload = {
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "generation": _generation(model.generation_config),
        "dtype": str(dtype).removeprefix("torch."),
        "tensors": tensors,
        "tokenizer": _tokenizer(tokenizer),
        "model": {"parameters": model.num_parameters()},
    }
    return payload, weights


def check_supported(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse what the page can't compute."""


def _pack(model: PreTrainedModel, dtype: torch.dtype) -> tuple[dict[str, dict[str, Any]], bytes]:
    """Put all weights after each other, each matrix once.

    Returns:
        Shape and offset (in elements) by name, and the bytes.
    """
    tensors: dict[str, dict[str, Any]] = {}
    parts, offset = [], 0
    for name, weight in model.named_parameters():
        tensors[name.removeprefix("model.")] = {"shape": list(weight.shape), "offset": offset}
        parts.append(weight.detach().to("cpu", dtype).contiguous().numpy().tobytes())
        offset += weight.numel()
    return tensors, b"".join(parts)


def _generation(defaults: GenerationConfig) -> Payload:
    eos = defaults.eos_token_id
    return {
        "eos_token_id": [] if eos is None else eos if isinstance(eos, list) else [eos],
        "pad_token_id": defaults.pad_token_id,
        "decoder_start_token_id": defaults.decoder_start_token_id,
        "max_new_tokens": defaults.max_new_tokens
        if defaults.max_new_tokens is not None
        else None
        if defaults.max_length in (None, LIMIT_BY_SOURCE)
        else defaults.max_length - 1,
        "tokens_beyond_source": TOKENS_BEYOND_SOURCE,
    }


def _tokenizer(tokenizer: PreTrainedTokenizerBase) -> Payload:
    """Read tokenizer.json, and add as "page" what it leaves to the library."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    splits = tokenizer.split_special_tokens
    phases: list[list] = [[], []]
    for token in content["added_tokens"]:
        phases[token["normalized"]].append([token["content"], None if splits and token["special"] else token["id"]])
    content["page"] = {
        "pattern": content["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"],
        "characters": _character_classes(),
        "added_tokens": phases,
        "normal_form": normal_form(tokenizer),
        "appended": tokenizer("")["input_ids"],
        "skipped": sorted(tokenizer.all_special_ids),
    }
    return content


@lru_cache(maxsize=1)
def _character_classes() -> dict[str, list[int]]:
    """List the characters of the classes that patterns have, as the library's regular expressions know them.

    Returns:
        For L, M, N and s the code points [first, last, first, last, ...].
    """
    # The other planes have no characters, or private ones. Chunks, for the library counts from a text's beginning.
    points = [*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000)]
    chunks = ["".join(map(chr, points[start : start + 10_000])) for start in range(0, len(points), 10_000)]
    classes = {}
    for name, pattern in {"L": r"\P{L}+", "M": r"\P{M}+", "N": r"\P{N}+", "s": r"\S+"}.items():
        remove_others = pre_tokenizers.Split(Regex(pattern), "removed")
        ends: list[int] = []
        for chunk in chunks:
            for run, _ in remove_others.pre_tokenize_str(chunk):
                for point in map(ord, run):
                    if ends and ends[-1] == point - 1:
                        ends[-1] = point
                    else:
                        ends += [point, point]
        classes[name] = ends
    return classes

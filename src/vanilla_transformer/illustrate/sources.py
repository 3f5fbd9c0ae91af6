"""The source text of the functions that compute the formulas of the page, as they are installed."""

import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import base_vanilla_transformer as base
from .. import generation_vanilla_transformer as generation
from .. import modeling_vanilla_transformer as modeling
from ..data import tokenization

# What the page calls a formula, and what computes it.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "bpe": tokenization.train_tokenizer,
    "embedding": modeling.embed,
    "positions": modeling.sinusoidal_positions,
    "attention": modeling.scaled_dot_product_attention,
    "softmax": modeling.scaled_dot_product_attention,
    "multiHead": modeling.VanillaTransformerAttention.forward,
    "feedForward": modeling.feed_forward,
    "residual": modeling.VanillaTransformerEncoderLayer.forward,
    "layerNorm": modeling.VanillaTransformerEncoderLayer.__init__,
    "mask": modeling.VanillaTransformerDecoder.forward,
    "encoderAttention": modeling.VanillaTransformerDecoderLayer.forward,
    "output": modeling.VanillaTransformerForConditionalGeneration.forward,
    "greedy": generation.gnmt_beam_search,
    "beamSearch": generation.BeamSearch.advance,
    "lengthPenalty": generation.gnmt_length_penalty,
    "loss": modeling.cross_entropy,
}


def collect_sources() -> dict[str, dict[str, str | int]]:
    """Read the source of each function of `FUNCTIONS`.

    Returns:
        For each key "file", the module's path in the package; "name", the qualified name; "line", that of the first
        line, from 1; and "code", without the indentation of a class.
    """
    return {key: describe(function) for key, function in FUNCTIONS.items()}


def describe(function: Callable[..., Any]) -> dict[str, str | int]:
    """Read the source of a function, see `collect_sources`."""
    function = inspect.unwrap(function)
    lines, line = inspect.getsourcelines(function)
    package = Path(base.__file__).parent
    return {
        "file": Path(inspect.getfile(function)).relative_to(package).as_posix(),
        "name": function.__qualname__,
        "line": line,
        "code": textwrap.dedent("".join(lines)).rstrip(),
    }

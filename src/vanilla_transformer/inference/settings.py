"""Settings of a translation, and what each may be."""

import math
from typing import Any

from transformers import GenerationConfig

from ..base_vanilla_transformer import LIMIT_BY_SOURCE
from ..errors import UserError

BATCH_TOKENS = 1024
MAX_SOURCE_LENGTH = 1024
TOO_LONG = ("cut", "refuse")

MAX_BEAMS = 1000
MAX_LENGTH_PENALTY = 10.0  # ((5 + 1,000) / 6)^10 still is a float32
MAX_NEW_TOKENS = 1_000_000


def check_settings(
    *,
    num_beams: int | None = None,
    num_return_sequences: int = 1,
    length_penalty: float | None = None,
    max_new_tokens: int | None = None,
    batch_tokens: int = BATCH_TOKENS,
    max_source_length: int = MAX_SOURCE_LENGTH,
    too_long: str = "cut",
) -> None:
    """Refuse settings that no translation can have. `translate_windows` says what they mean; None is not given.

    Raises:
        UserError: With name, value and what is allowed.
    """
    _check_integer("num_beams", num_beams, 1, MAX_BEAMS)
    _check_integer("num_return_sequences", num_return_sequences, 1, MAX_BEAMS)
    _check_integer("max_new_tokens", max_new_tokens, 1, MAX_NEW_TOKENS)
    _check_integer("batch_tokens", batch_tokens, 1)
    _check_integer("max_source_length", max_source_length, 2)
    _check_exponent("length_penalty", length_penalty)
    if too_long not in TOO_LONG:
        raise UserError(f'too_long is {too_long!r}; it must be "cut" or "refuse"')


def check_normalization(normalize: float | None) -> None:
    """Refuse an exponent of the length that no search can have; None is not given.

    Raises:
        UserError: With name, value and what is allowed.
    """
    _check_exponent("normalize", normalize)


def _check_exponent(name: str, value: float | None) -> None:
    """Refuse an exponent of the length that is out of range; None is not given."""
    if value is not None and not (is_finite_number(value) and abs(value) <= MAX_LENGTH_PENALTY):
        raise UserError(f"{name} is {value}; it must be from -{MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}")


def new_tokens_limit(config: GenerationConfig) -> int | None:
    """Return how many tokens a generation config lets a translation have; None if it does not limit it by a number."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    return None if config.max_length in (None, LIMIT_BY_SOURCE) else config.max_length - 1  # without the start token


def is_integer(value: Any) -> bool:
    """Return whether a value is an integer and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite_number(value: Any) -> bool:
    """Return whether a value is an integer or a finite float."""
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Refuse a value that is given and is not an integer within the limits."""
    if value is None or (is_integer(value) and least <= value <= (value if most is None else most)):
        return
    allowed = f"at least {least}" if most is None else f"from {least} to {most:,}"
    raise UserError(f"{name} is {value}; it must be {allowed}")

"""Settings of a translation, and what each may be."""

import math
from typing import Any

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
    if length_penalty is not None and not (
        is_finite_number(length_penalty) and abs(length_penalty) <= MAX_LENGTH_PENALTY
    ):
        raise UserError(
            f"length_penalty is {length_penalty}; it must be from -{MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}"
        )
    if too_long not in TOO_LONG:
        raise UserError(f'too_long is {too_long!r}; it must be "cut" or "refuse"')


def check_normalization(normalize: float | None) -> None:
    """Refuse an exponent of the length that no search can have; None is not given.

    Raises:
        UserError: With name, value and what is allowed.
    """
    if normalize is not None and not (is_finite_number(normalize) and abs(normalize) <= MAX_LENGTH_PENALTY):
        raise UserError(f"normalize is {normalize}; it must be from -{MAX_LENGTH_PENALTY:g} to {MAX_LENGTH_PENALTY:g}")


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

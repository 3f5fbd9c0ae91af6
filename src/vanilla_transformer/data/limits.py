"""Limits on the length and the number of sentence pairs."""

from typing import NamedTuple, TypeVar

from datasets import Dataset, IterableDataset

from ..errors import UserError

DatasetType = TypeVar("DatasetType", Dataset, IterableDataset)


class LengthLimits(NamedTuple):
    """Limits on the lengths of a pair, in tokens with `</s>`.

    Attributes:
        max_source_length: The most tokens that a source sentence may have.
        max_target_length: The most tokens that a target sentence may have.
        max_length_ratio: The most times that one side may be as long as the other.
    """

    max_source_length: int
    max_target_length: int
    max_length_ratio: float

    def check(self) -> "LengthLimits":
        """Return the limits themselves.

        Raises:
            UserError: A limit that no pair or not even a pair of equal lengths could meet.
        """
        check_count("max_source_length", self.max_source_length, minimum=2)  # a token and </s>
        check_count("max_target_length", self.max_target_length, minimum=2)
        if not self.max_length_ratio >= 1:  # NaN is no number of at least 1
            raise UserError(f"max_length_ratio is {self.max_length_ratio}; it must be a number of at least 1")
        return self


def check_count(name: str, value: int, minimum: int = 1, maximum: int | None = None) -> None:
    """Refuse a number that is no integer in a range.

    Args:
        name: Of the field, for the message.
        value: Of the field.
        minimum: The smallest allowed value.
        maximum: The largest allowed value; None for no bound.

    Raises:
        UserError: With name, value and what is allowed.
    """
    if not isinstance(value, int) or value < minimum or (maximum is not None and value > maximum):
        allowed = f"of at least {minimum:,}" if maximum is None else f"from {minimum:,} to {maximum:,}"
        raise UserError(f"{name} is {value}; it must be an integer {allowed}")


def take_pairs(pairs: DatasetType, max_samples: int | None, name: str = "max_samples") -> DatasetType:
    """Return the first `max_samples` pairs, or all if there are fewer or it is None.

    Args:
        pairs: A data set, also a streamed one.
        max_samples: The most pairs.
        name: Of the field `max_samples`, for the message.

    Raises:
        UserError: `max_samples` is below 1.
    """
    if max_samples is None:
        return pairs
    check_count(name, max_samples)
    if isinstance(pairs, IterableDataset):
        return pairs.take(max_samples)
    return pairs.select(range(min(max_samples, len(pairs))))

"""Sentence pairs in the cache of the datasets library: written once, memory-mapped, found again by a key."""

from collections.abc import Callable, Iterator
from typing import Any

from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from ..errors import UserError

CACHE_VERSION = 1  # raise it when the same input leads to other pairs or ids: old caches are not found then
PAIR_FEATURES = Features({"source": Value("string"), "target": Value("string")})

PairRow = dict[str, str]  # a row of a data set with `PAIR_FEATURES`


def cache_key(*parts: Any) -> str:
    """Derive a cache key from `parts` and `CACHE_VERSION`."""
    return Hasher.hash((CACHE_VERSION, parts))


def cache_pairs(reader: Callable[..., Iterator[PairRow]], key: str, **arguments: Any) -> Dataset:
    """Return the pairs that `reader(**arguments)` yields, from the cache if they are there under `key`.

    Args:
        reader: A generator function; it must yield at least one pair.
        key: From `cache_key`; must change whenever the pairs do.
        **arguments: For `reader`.

    Raises:
        UserError: Raised by the reader.
    """
    try:
        return Dataset.from_generator(reader, PAIR_FEATURES, gen_kwargs=arguments, fingerprint=key)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise

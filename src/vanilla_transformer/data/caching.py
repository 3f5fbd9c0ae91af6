"""Sentence pairs in the cache of the datasets library: written once, memory-mapped, found again by a key."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import xxhash
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher

from ..errors import UserError

CACHE_VERSION = 2  # raise it when the same input leads to other pairs or ids: old caches are not found then
PAIR_FEATURES = Features({"source": Value("string"), "target": Value("string")})

_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

PairRow = dict[str, str]  # a row of a data set with `PAIR_FEATURES`


def cache_key(*parts: Any) -> str:
    """Derive a cache key from `parts` and `CACHE_VERSION`."""
    return Hasher.hash((CACHE_VERSION, parts))


def check_regular(path: str | os.PathLike) -> None:
    """Refuse a path that is not a file which can be read more than once.

    Raises:
        UserError: There is nothing, a folder, a pipe or a device.
    """
    if not os.path.isfile(path):
        reason = "not a regular file" if os.path.exists(path) else "no such file"
        raise UserError(f"{path} can't be read: {reason}; check the path")


def file_digest(path: str | os.PathLike) -> str:
    """Return a digest of a file's content; reads about 4 GB a second.

    Raises:
        UserError: It is no regular file, or can't be read.
    """
    check_regular(path)
    digest = xxhash.xxh3_128()
    try:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}; check the path and the file") from None
    return digest.hexdigest()


@contextmanager
def cache_errors() -> Iterator[None]:
    """Turn what the datasets library raises when it writes its cache into a sentence.

    Raises:
        UserError: Raised while pairs were read, or the cache can't be written.
    """
    try:
        yield
    except (DatasetGenerationError, OSError) as error:
        cause = error.__cause__ if isinstance(error, DatasetGenerationError) else error
        if isinstance(cause, UserError):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno in _WRITE_ERRORS:
            raise UserError(
                f"can't write the data cache {datasets.config.HF_DATASETS_CACHE}: {cause.strerror or cause}; free some "
                "space, or set HF_DATASETS_CACHE to another folder"
            ) from error
        raise


def cache_pairs(reader: Callable[..., Iterator[PairRow]], key: str, **arguments: Any) -> Dataset:
    """Return the pairs that `reader(**arguments)` yields, from the cache if they are there under `key`.

    Args:
        reader: A generator function; it must yield at least one pair.
        key: From `cache_key`; must change whenever the pairs do.
        **arguments: For `reader`.

    Raises:
        UserError: Raised by the reader, or the cache can't be written.
    """
    with cache_errors():
        return Dataset.from_generator(reader, PAIR_FEATURES, gen_kwargs=arguments, fingerprint=key)

"""Several corpora to train on: which languages each has, and its share of an epoch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import IterableDataset, interleave_datasets

from ..errors import UserError

_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, are spread evenly however many there are


@dataclass(frozen=True)
class Corpus:
    """Where a corpus is, and its languages.

    Attributes:
        file: Prefix, file or Hub id, as in `load_pairs`; None for the embedded numbers.
        config_name: Configuration of a Hub data set.
        source_lang: Language of the source sentences.
        target_lang: Language of the target sentences.
    """

    file: str | None
    config_name: str | None
    source_lang: str
    target_lang: str

    def __str__(self) -> str:
        """Describe the corpus, as in "data/train (en to de)"."""
        name = " ".join(filter(None, (self.file or "numbers", self.config_name)))
        return f"{name} ({self.source_lang} to {self.target_lang})"


def broadcast(options: dict[str, Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Give each corpus its values: an option has one value, for all corpora, or as many as there are corpora.

    Args:
        options: The values of each option, by name; an empty list is None for all corpora.

    Returns:
        For each corpus one value of each option, in the order of the options.

    Raises:
        UserError: Two options have several values, and not equally many.
    """
    count = max(1, *map(len, options.values()))
    several = [(name, len(values)) for name, values in options.items() if len(values) > 1]
    if len({number for _, number in several}) > 1:
        counts = ", ".join(f"{name} has {number} values" for name, number in several)
        raise UserError(f"{counts}; give one for all corpora, or as many of each as there are corpora")
    rows = [list(values) * count if len(values) == 1 else list(values) or [None] * count for values in options.values()]
    return list(zip(*rows, strict=True))


def list_corpora(
    files: Sequence[str], config_names: Sequence[str], source_langs: Sequence[str], target_langs: Sequence[str],
    *, file_option: str,
) -> list[Corpus]:  # fmt: skip
    """List the corpora that options name, as in `broadcast`.

    Args:
        files: Prefixes, files or Hub ids; none for the embedded numbers.
        config_names: Configurations of Hub data sets.
        source_langs: Source languages.
        target_langs: Target languages.
        file_option: Name of the option that gave `files`, for errors.

    Raises:
        UserError: The numbers of values do not go together, or a corpus has one language twice.
    """
    options = {
        file_option: files,
        "dataset_config_name": config_names,
        "source_lang": source_langs,
        "target_lang": target_langs,
    }
    corpora = [Corpus(*values) for values in broadcast(options)]
    for corpus in corpora:
        if corpus.source_lang == corpus.target_lang:
            raise UserError(f"source_lang and target_lang are both {corpus.source_lang}; they must differ")
    return corpora


class Mixture:
    """The share of each corpus in an epoch of training.

    An epoch has as many pairs as all corpora together, and each corpus its weight's share of them, rounded to whole
    pairs: of 600 and 400 pairs with weights 1 and 3, an epoch has 250 and 750. A corpus of 400 pairs of which an epoch
    has 750 is in it once whole, and 350 of its pairs a second time. Which these are changes from epoch to epoch, so
    that over the epochs every pair of a corpus is seen equally often.

    Args:
        sizes: Number of pairs of each corpus, whose rows follow one another.
        weights: Weight of each corpus.

    Raises:
        UserError: A weight is no finite number above 0, there are more weights than corpora or fewer, or so few pairs
            that a corpus has none in an epoch.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float]) -> None:
        check_weights(weights, len(sizes))
        self.sizes = list(sizes)
        self.weights = list(weights)
        exact = sum(sizes) * np.array(weights, dtype=np.float64) / sum(weights)
        self.counts = np.floor(exact).astype(np.int64)  # pairs of each corpus in an epoch, int64 of shape [corpora]
        remainders = exact - self.counts
        self.counts[np.argsort(-remainders, kind="stable")[: sum(sizes) - int(self.counts.sum())]] += 1
        if not self.counts.all():
            index = int(self.counts.argmin())
            raise UserError(
                f"train_weights are {' '.join(map(str, weights))}: of corpus {index + 1} an epoch of {sum(sizes):,} "
                "pairs would have none; raise its weight, or leave it out"
            )

    def __str__(self) -> str:
        """Describe the mixture, as in "250 of 600 and 750 of 400 pairs"."""
        parts = [f"{count:,} of {size:,}" for count, size in zip(self.counts.tolist(), self.sizes, strict=True)]
        return f"{', '.join(parts[:-1])} and {parts[-1]} pairs"


class EpochRows:
    """Which rows of a data set an epoch takes, by a `Mixture`.

    A place of the epoch holds in each epoch another row of about the same length, so that batches which are planned
    for the places, by the longest row that each may hold, are right for every epoch. A corpus with more pairs than
    places gives every n-th row in the order of length, from another first row in each epoch.

    Args:
        mixture: The sizes of the corpora and their places in an epoch.
        order: All rows in the order of length, int64 of shape [rows].
        seed: Decides the first row of the first epoch.
    """

    def __init__(self, mixture: Mixture, order: np.ndarray, seed: int) -> None:
        self._parts = []
        ends = np.cumsum(mixture.sizes)
        for size, count, end in zip(mixture.sizes, mixture.counts.tolist(), ends.tolist(), strict=True):
            whole = np.tile(np.arange(end - size, end), count // size)
            by_length = order[(order >= end - size) & (order < end)]
            self._parts.append((whole, by_length, count % size))
        self._first = np.random.default_rng(seed).random(len(self._parts))

    def longest(self, lengths: np.ndarray) -> np.ndarray:
        """Return the greatest length that each place may hold, int64 of shape [places].

        Args:
            lengths: The length of each row, int64 of shape [rows].
        """
        bounds = []
        for whole, by_length, places in self._parts:
            bounds.append(lengths[whole])
            if places:
                # 5 rows in 2 places: the first holds row 0, 1 or 2, the second 2, 3 or 4.
                ends = np.stack([_starts(len(by_length), places), _ends(len(by_length), places)], axis=1)
                bounds.append(np.maximum.reduceat(np.append(lengths[by_length], 0), ends.ravel())[::2])
        return np.concatenate(bounds)

    def rows(self, epoch: int) -> np.ndarray:
        """Return the row in each place, int64 of shape [places]."""
        chosen = []
        for first, (whole, by_length, places) in zip(self._first, self._parts, strict=True):
            size = len(by_length)
            chosen.append(whole)
            if places:
                offset = (first + epoch * _GOLDEN) % 1
                positions = ((np.arange(places) + offset) * size / places).astype(np.int64)
                chosen.append(by_length[np.minimum(positions, _ends(size, places) - 1)])  # the last bits may be rounded
        return np.concatenate(chosen)


def _starts(size: int, places: int) -> np.ndarray:
    """Return the first of `size` rows that each place may hold, int64 of shape [places]."""
    return np.arange(places) * size // places


def _ends(size: int, places: int) -> np.ndarray:
    """Return the row after the last that each place may hold, int64 of shape [places]."""
    return -(-np.arange(1, places + 1) * size // places)


def check_weights(weights: Sequence[float], corpora: int) -> None:
    """Refuse weights that do not fit the corpora.

    Raises:
        UserError: With the weights and what is allowed.
    """
    shown = f"train_weights are {' '.join(map(str, weights))}"
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"{shown}; each must be a number above 0")
    if corpora == 1:
        raise UserError(f"{shown}, but there is one corpus, which has all of an epoch; leave them out")
    if len(weights) != corpora:
        raise UserError(f"{shown}, but there are {corpora} corpora; give one weight for each")


def interleave(streams: Sequence[IterableDataset], weights: Sequence[float], seed: int) -> IterableDataset:
    """Draw each pair from one of several streams, with a probability that is its weight's share.

    A stream that ends begins anew; the whole ends when each has ended once.

    Args:
        streams: Pairs of each corpus.
        weights: Weight of each corpus.
        seed: Decides which pair comes from which stream.

    Raises:
        UserError: As in `Mixture`.
    """
    check_weights(weights, len(streams))
    shares = [weight / sum(weights) for weight in weights]
    return interleave_datasets(list(streams), shares, seed, stopping_strategy="all_exhausted")

"""BPE-dropout (Provilkov et al. 2020, arXiv 1910.13267): each sentence is segmented anew in each epoch.

`tokenizers` has BPE-dropout too, but draws from a generator of each thread that can't be seeded. Here the random
numbers are a function of the seed, the epoch and the sentence, so that neither the order of the sentences nor the
number of processes, workers or interruptions of a run changes a segmentation.
"""

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from tokenizers import Tokenizer
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from .batching import TokenBatchSampler, token_lengths
from .corpora import Mixture

# The columns of a pair's ids, and of the symbols that they are merged from.
SYMBOL_COLUMNS = {"input_ids": "source_symbols", "labels": "target_symbols"}
READ_AT_ONCE = 5_000  # sentences that are segmented together: their symbols fit into a processor's cache

Rows: TypeAlias = tuple[np.ndarray, np.ndarray]  # all rows' integers one after the other, and the length of each row
PairKey: TypeAlias = tuple[int, int]  # a pair's row, and the epoch of its segmentation, or `UNDROPPED`
UNDROPPED = -1  # in the place of an epoch: the segmentation without dropout

_NO_MERGE = np.iinfo(np.int64).max
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(values: np.ndarray) -> np.ndarray:
    """Return a hash of each number, uint64: the output function of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def sentence_keys(seed: int, epoch: int, numbers: np.ndarray, side: int) -> np.ndarray:
    """Return what the random numbers of each sentence begin from, uint64 of shape [sentences].

    Args:
        seed: Seed of the run.
        epoch: Number of the epoch.
        numbers: Numbers of the sentences in the data, integers of shape [sentences].
        side: 0 for sources, 1 for targets.
    """
    run = _mix(np.array([seed], dtype=np.uint64) + _GOLDEN)
    epoch_keys = _mix(run + np.array([epoch * 2 + side], dtype=np.uint64) * _GOLDEN)
    return _mix(epoch_keys + numbers.astype(np.uint64) * _GOLDEN)


class BpeDropout:
    """BPE that drops merges at random.

    A word is first split into its symbols, the characters or bytes that no merge has made. In each step every merge
    that is possible is dropped with a probability, and of the others the first by the tokenizer's order is applied, at
    its leftmost place; a step in which no merge is left ends the word (algorithm 1 of the paper).

    Args:
        tokenizer: A tokenizer whose model is BPE. It does not change.
        probability: Of dropping a merge, from 0 to 1. The paper has 0.1.

    Raises:
        UserError: The tokenizer is no BPE or has no merges, or the probability is out of range.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, probability: float) -> None:
        if not 0 <= probability <= 1:
            raise UserError(f"bpe_dropout is {probability}; it must be a number from 0 to 1")
        backend: Tokenizer | None = getattr(tokenizer, "backend_tokenizer", None)
        description: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"model": {}}
        model: dict[str, Any] = description["model"]
        kind = model.get("type", type(tokenizer).__name__)
        if kind != "BPE" or not model["merges"]:
            found = f"{kind} without merges" if kind == "BPE" else kind
            raise UserError(
                f"bpe_dropout is {probability}, but the tokenizer is {found}: only the merges of a BPE tokenizer can "
                "be dropped; leave out bpe_dropout, or take another tokenizer"
            )
        self.probability = probability
        self._threshold = np.uint64(probability * 2**53)
        # With every merge dropped, the backend itself splits a text into symbols, whatever its normalizer,
        # pre-tokenizer and added tokens are.
        self._splitter = Tokenizer.from_str(json.dumps(description | {"model": model | {"dropout": 1.0}}))
        self._splitter.no_padding()
        self._splitter.no_truncation()
        self._encode_special_tokens = bool(getattr(tokenizer, "split_special_tokens", False))
        prefix = len(model["continuing_subword_prefix"] or "")
        ids = model["vocab"]
        merges = [
            (ids[left], ids[right], ids[left + right[prefix:]]) for left, right in map(_two_symbols, model["merges"])
        ]
        lefts, rights, merged = np.array(merges, dtype=np.int64).T
        self._types = max(ids.values()) + 1
        pairs = lefts * self._types + rights
        order = np.argsort(pairs)
        self._pairs, self._ranks, self._merged = pairs[order], order, merged[order]

    def split(self, texts: Sequence[str]) -> list[list[int]]:
        """Split texts into symbols.

        Returns:
            For each text the ids of its symbols, with what the tokenizer adds, such as `</s>`. The first symbol of each
            word is -1 - id; no merge crosses the beginning of a word.
        """
        self._splitter.encode_special_tokens = self._encode_special_tokens  # a pickle does not keep it
        rows = []
        for encoding in self._splitter.encode_batch(list(texts)):
            words = [None, *encoding.word_ids]
            rows.append(
                [
                    token if word is not None and word == before else -1 - token
                    for token, word, before in zip(encoding.ids, words[1:], words, strict=False)
                ]
            )
        return rows

    def segment(self, symbols: Rows, keys: np.ndarray) -> Rows:
        """Merge symbols at random.

        Args:
            symbols: Rows of `split`.
            keys: Of `sentence_keys`, uint64 of shape [rows].

        Returns:
            The ids of each row.
        """
        flat, lengths = symbols
        if not len(flat):
            return flat, lengths
        is_first = flat < 0
        result = np.where(is_first, -1 - flat, flat).astype(np.int64)
        remains = np.ones(len(flat), dtype=bool)  # whether the symbol at this place is not yet part of the one before
        rows = np.repeat(np.arange(len(lengths)), lengths)
        places = np.arange(len(flat)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        noise = _mix(keys[rows] + (places + 1).astype(np.uint64) * _GOLDEN)

        # The words that may still change: their symbols one after the other, and where each word begins.
        ids, slots = result.copy(), np.arange(len(flat))
        starts = np.flatnonzero(is_first)
        is_last = np.append(is_first[1:], True)
        ranks, merged = self._find_merges(ids[:-1], ids[1:])
        ranks, merged = np.append(ranks, _NO_MERGE), np.append(merged, 0)
        ranks[is_last] = _NO_MERGE
        step = 0
        while len(ids):
            step += 1
            possible = np.flatnonzero(ranks != _NO_MERGE)
            draws = _mix(noise[possible] + np.full(1, step, dtype=np.uint64) * _GOLDEN) >> np.uint64(11)
            possible = possible[draws >= self._threshold]
            # The lowest rank of a word wins, and the leftmost place of that rank.
            order = np.full(len(ids), _NO_MERGE)
            order[possible] = (ranks[possible] << 32) + possible
            best = np.minimum.reduceat(order, starts)
            goes_on = best != _NO_MERGE
            left = best[goes_on] & 0xFFFFFFFF
            result[slots[left]] = ids[left] = merged[left]
            remains[slots[left + 1]] = False

            word_lengths = np.diff(starts, append=len(ids))
            kept = np.repeat(goes_on, word_lengths)
            kept[left + 1] = False
            ranks[left] = ranks[left + 1]  # what follows the second symbol now follows the merged one
            left = np.cumsum(kept)[left] - 1
            ids, slots, noise, ranks, merged = ids[kept], slots[kept], noise[kept], ranks[kept], merged[kept]
            word_lengths = word_lengths[goes_on] - 1
            starts = np.cumsum(word_lengths) - word_lengths
            ends = starts + word_lengths
            for changed in (left[left + 1 < ends], left[left > starts] - 1):
                ranks[changed], merged[changed] = self._find_merges(ids[changed], ids[changed + 1])
            ranks[left[left + 1 == ends]] = _NO_MERGE
        return result[remains], np.bincount(rows[remains], minlength=len(lengths))

    def _find_merges(self, lefts: np.ndarray, rights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rank of the merge of each two symbols, or `_NO_MERGE`, and the symbol that it makes."""
        pairs = lefts * self._types + rights
        found = np.minimum(np.searchsorted(self._pairs, pairs), len(self._pairs) - 1)
        return np.where(self._pairs[found] == pairs, self._ranks[found], _NO_MERGE), self._merged[found]


def _two_symbols(merge: Any) -> tuple[str, str]:
    """Return the two symbols of a merge, which older files write as one string with a space."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def as_rows(lists: Sequence[Sequence[int]]) -> Rows:
    """Return lists of integers as one array, and their lengths."""
    lengths = np.array([len(row) for row in lists], dtype=np.int64)
    return np.fromiter((item for row in lists for item in row), dtype=np.int64, count=int(lengths.sum())), lengths


def as_lists(rows: Rows) -> list[list[int]]:
    """Return rows as lists."""
    flat, lengths = rows
    return [row.tolist() for row in np.split(flat, np.cumsum(lengths)[:-1])] if len(lengths) else []


class BpeDropoutPairs(TorchDataset):
    """Encoded pairs that are segmented anew in each epoch.

    A pair keeps the segmentation without dropout in an epoch in which a side would be longer than its limit.

    Args:
        pairs: Of `encode_pairs` with `dropout`.
        dropout: The same as was given to `encode_pairs`, or with another probability.
        max_source_length: As in `LengthLimits`.
        max_target_length: As in `LengthLimits`.
        seed: Seed of the dropout.

    Raises:
        UserError: The pairs have no symbols.
    """

    def __init__(
        self, pairs: Dataset, dropout: BpeDropout, *, max_source_length: int, max_target_length: int, seed: int = 0
    ) -> None:
        if missing := {*SYMBOL_COLUMNS, *SYMBOL_COLUMNS.values()} - set(pairs.column_names):
            raise UserError(f"the data set has no column {min(missing)!r}; make it by encode_pairs with dropout")
        self.pairs = pairs
        self.dropout = dropout
        self.seed = seed
        self.limits = {"input_ids": max_source_length, "labels": max_target_length}

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __getitems__(self, keys: list[PairKey]) -> list[dict[str, list[int]]]:
        """Return pairs as "input_ids" and "labels"."""
        table = self.pairs.with_format("arrow")[[row for row, _ in keys]]
        rows, epochs = np.array(keys, dtype=np.int64).T
        is_dropped = epochs != UNDROPPED
        columns = {}
        for column in SYMBOL_COLUMNS:
            lists = table[column].to_pylist()
            for epoch in np.unique(epochs[is_dropped]):
                places = np.flatnonzero(epochs == epoch)
                segmented = self._segment(table.take(pa.array(places)), column, int(epoch), rows[places])
                for place, ids in zip(places, as_lists(segmented), strict=True):
                    lists[place] = ids
            columns[column] = lists
        return [dict(zip(columns, pair, strict=True)) for pair in zip(*columns.values(), strict=True)]

    def _segment(self, table: pa.Table, column: str, epoch: int, rows: np.ndarray) -> Rows:
        """Segment one side of some pairs for an epoch.

        Args:
            table: The pairs.
            column: "input_ids" or "labels".
            epoch: Number of the epoch.
            rows: The pairs' numbers in the data.
        """
        symbols = table[SYMBOL_COLUMNS[column]].combine_chunks()
        lengths = pc.list_value_length(symbols).to_numpy().astype(np.int64)
        keys = sentence_keys(self.seed, epoch, rows, side=list(SYMBOL_COLUMNS).index(column))
        return self.dropout.segment((pc.list_flatten(symbols).to_numpy(), lengths), keys)

    def undropped_lengths(self) -> dict[str, np.ndarray]:
        """Return the lengths without dropout, for each side int64 of shape [pairs]."""
        return {column: token_lengths(self.pairs, column) for column in SYMBOL_COLUMNS}

    def lengths(self, epoch: int) -> dict[str, np.ndarray]:
        """Return the lengths in an epoch, for each side int64 of shape [pairs]; also those over the limits."""
        parts: dict[str, list[np.ndarray]] = {column: [] for column in SYMBOL_COLUMNS}
        start = 0
        for table in self.pairs.with_format("arrow").iter(batch_size=READ_AT_ONCE):
            rows = np.arange(start, start + len(table))
            for column, lengths in parts.items():
                lengths.append(self._segment(table, column, epoch, rows)[1])
            start += len(table)
        return {column: np.concatenate(lengths) for column, lengths in parts.items()}


class BpeDropoutBatchSampler(Sampler[list[PairKey]]):
    """Batches by token budget of pairs that are segmented anew in each epoch.

    Each epoch has its own plan, by its own lengths, and all have the same number of batches: a little more than the
    first needs. An epoch that would need more than that is not segmented anew, which is next to impossible.

    Args:
        pairs: The pairs.
        max_tokens: As in `TokenBatchSampler`, as are the next ones.
        seed: Seed of the shuffling.
        num_processes: Processes that take the batches in turn.
        mixture: The share of each corpus in an epoch.

    Raises:
        UserError: As in `TokenBatchSampler`.
    """

    def __init__(
        self,
        pairs: BpeDropoutPairs,
        max_tokens: int,
        seed: int = 0,
        num_processes: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        self.pairs = pairs
        self.epoch = 0
        self._settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "seed": seed,
            "num_processes": num_processes,
            "mixture": mixture,
        }
        self._undropped = pairs.undropped_lengths()
        undropped = self._plan(self._undropped)
        self._settings["mixture"] = undropped.rows  # chosen by the lengths that are the same in all epochs
        needed = len(undropped)
        lengths, self._first_epochs = self._lengths(0)
        self._first = self._plan(lengths)
        # The number of tokens differs by 1 in 1,000 between epochs of 10,000 sentences.
        spare = math.ceil(len(self._first) * 1.01) + 2
        limit = len(pairs) // num_processes * num_processes
        self._settings["num_batches"] = max(needed, len(self._first), min(spare, limit))
        self._first = self._plan(lengths)

    def _plan(self, lengths: dict[str, np.ndarray]) -> TokenBatchSampler:
        """Return the batches for the lengths of the pairs."""
        return TokenBatchSampler(lengths["input_ids"], lengths["labels"], **self._settings)

    def _lengths(self, epoch: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the lengths in an epoch, and for each pair the epoch of its segmentation, which may be `UNDROPPED`."""
        lengths = self.pairs.lengths(epoch)
        is_long = np.zeros(len(self.pairs), dtype=bool)
        for column, limit in self.pairs.limits.items():
            is_long |= lengths[column] > min(limit, self._settings["max_tokens"])
        lengths = {column: np.where(is_long, self._undropped[column], lengths[column]) for column in lengths}
        return lengths, np.where(is_long, UNDROPPED, epoch)

    @property
    def padding(self) -> float:
        """Share of the tokens of the first epoch's batches that is padding, source and target together."""
        return self._first.padding

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of an epoch, of all processes."""
        return len(self._first)

    def __iter__(self) -> Iterator[list[PairKey]]:
        """Yield the batches of the epoch."""
        sampler, epochs = self._first, self._first_epochs
        if self.epoch > 0:
            lengths, epochs = self._lengths(self.epoch)
            sampler = self._plan(lengths)
        if len(sampler) > len(self):
            epochs = np.full(len(self.pairs), UNDROPPED)
            sampler = self._plan(self._undropped)
        sampler.set_epoch(self.epoch)
        for batch in sampler:
            yield list(zip(batch, epochs[batch].tolist(), strict=True))

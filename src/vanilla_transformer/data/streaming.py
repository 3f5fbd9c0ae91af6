"""Batches from streamed data, for more sentence pairs than memory or cache can hold."""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypedDict

import numpy as np
from datasets import IterableDataset
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import PreTrainedTokenizerFast

from ..errors import UserError
from ..language_tags_vanilla_transformer import tag_sources
from .batching import TokenBatchSampler
from .bpe_dropout import SYMBOL_COLUMNS, BpeDropout, as_lists, as_rows, sentence_keys
from .caching import PAIR_FEATURES
from .corpora import interleave
from .encoding import KEPT, DropReport, encode_batch
from .limits import LengthLimits, check_count
from .sources import check_target_lang
from .tokenization import check_added_tokens, check_appends_eos

READ_AT_ONCE = 1_000  # pairs that are tokenized together

Pair = dict[str, list[int]]  # "input_ids" and "labels"


class StreamState(TypedDict):
    """What was read and batched before a shuffle buffer is filled; ready for JSON.

    Attributes:
        epoch: How often all pairs were read.
        batches: Batches made.
        dropped: Pairs kept and dropped, as in `DropReport`.
        tokens: Source and target tokens of all batches.
        places: The same with padding.
        reader: State of the data set within the epoch, None at its beginning.
    """

    epoch: int
    batches: int
    dropped: list[int]
    tokens: int
    places: int
    reader: dict[str, Any] | None


class StreamPosition(TypedDict):
    """Where training stands in a stream; ready for JSON.

    Attributes:
        taken: Batches of all processes that were trained on.
        buffer: The state before the buffer that the next batch comes from.
    """

    taken: int
    buffer: StreamState


class TokenStream(TorchIterableDataset):
    """Endless batches by token budget, from a shuffle buffer that is filled again and again.

    What fills the buffer is batched by `TokenBatchSampler`: pairs of similar length together, batches in random order.
    After the last pair comes the first again. The batches depend on the pairs, the limits and the seed alone, so that
    `position` and `resume` continue a run with the batches it would have seen.

    Args:
        pairs: Columns "source" and "target", as `load_pairs(..., streaming=True)` gives; or a list of such corpora.
        tokenizer: A tokenizer that appends its end-of-sentence token.
        max_tokens: The budget of a batch: so many source and so many target tokens, padding counted.
        max_source_length: As in `LengthLimits`.
        max_target_length: As in `LengthLimits`.
        max_length_ratio: As in `LengthLimits`.
        buffer_size: Pairs in the shuffle buffer.
        seed: Seed of the shuffling.
        process_index: Number of this process.
        num_processes: Processes that take the batches in turn. Each reads all pairs.
        dropout: Segments each pair anew whenever it is read, or None. A pair of which a side would be longer than its
            limit keeps the segmentation without dropout.
        weights: Weight of each corpus, as in `interleave`; needed for several.
        target_langs: Target language of each corpus, whose tag is put before each source as in `encode_pairs`. None
            for a tokenizer without tags.

    Raises:
        UserError: A budget that a sentence of the greatest length would exceed, a limit, buffer or number of processes
            out of range, or a tokenizer that appends no end-of-sentence token or splits an added one.
    """

    def __init__(
        self,
        pairs: IterableDataset | Sequence[IterableDataset],
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_tokens: int,
        max_source_length: int,
        max_target_length: int,
        max_length_ratio: float,
        buffer_size: int,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        dropout: BpeDropout | None = None,
        weights: Sequence[float] | None = None,
        target_langs: Sequence[str] | None = None,
    ) -> None:
        limits = LengthLimits(max_source_length, max_target_length, max_length_ratio).check()
        check_count("buffer_size", buffer_size)
        check_count("num_processes", num_processes)
        check_count("process_index", process_index, minimum=0, maximum=num_processes - 1)
        check_appends_eos(tokenizer)
        check_added_tokens(tokenizer)
        longest = max(max_source_length, max_target_length)
        if longest > max_tokens:
            raise UserError(
                f"sentences may have {longest} tokens, but a batch may hold {max_tokens}; raise the token budget or "
                "lower the length limit"
            )
        corpora = [pairs] if isinstance(pairs, IterableDataset) else list(pairs)
        if target_langs is not None:
            corpora = [_tag_stream(corpus, tokenizer, lang) for corpus, lang in zip(corpora, target_langs, strict=True)]
        self.pairs = corpora[0] if len(corpora) == 1 else interleave(corpora, weights or (), seed)
        self.weights = weights
        self.tokenizer = tokenizer
        self.limits = limits
        self.max_tokens = max_tokens
        self.buffer_size = buffer_size
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.dropout = dropout
        self._start: StreamState = {
            "epoch": 0, "batches": 0, "dropped": [0] * 4, "tokens": 0, "places": 0, "reader": None
        }  # fmt: skip
        self._buffers: deque[StreamState] = deque()  # before each buffer that may not be trained on yet
        self._now = self._start
        self._taken = 0  # batches of all processes that the resumed run was trained on

    @property
    def report(self) -> DropReport:
        """Pairs kept and dropped so far, each counted as often as it was read."""
        return DropReport(*self._now["dropped"])

    @property
    def padding(self) -> float:
        """Share of the tokens of the batches made so far that is padding, source and target together."""
        return 1 - self._now["tokens"] / self._now["places"] if self._now["places"] else 0.0

    def position(self, taken: int) -> StreamPosition:
        """Return the position of a run that has trained on the first `taken` batches of all processes.

        Batches that were made ahead of that do not count.
        """
        while len(self._buffers) > 1 and self._buffers[1]["batches"] <= taken:
            self._buffers.popleft()
        return {"taken": taken, "buffer": self._buffers[0] if self._buffers else self._start}

    def resume(self, position: StreamPosition) -> None:
        """Start at the position of another stream of the same pairs and settings.

        Raises:
            UserError: It is no position.
        """
        try:
            taken, buffer = position["taken"], position["buffer"]
            valid = isinstance(taken, int) and taken >= buffer["batches"] and buffer.keys() == self._start.keys()
        except (AttributeError, KeyError, TypeError):
            valid = False
        if not valid:
            raise UserError(f"{str(position)[:80]!r} is no position in a stream; resume from another checkpoint")
        self._start, self._taken = buffer, taken

    def __iter__(self) -> Iterator[list[Pair]]:
        """Yield this process's batches, without end."""
        self._now = self._start
        self._buffers.clear()
        while True:
            reader = new_reader(self.pairs, self._now["epoch"])
            if self._now["reader"] is not None:
                reader.load_state_dict(self._now["reader"])
            rows = iter(reader)
            while True:
                before = self._now
                self._buffers.append(before)
                buffer, dropped = self._fill(rows)
                self._now = {
                    **before,
                    "dropped": [sum(counts) for counts in zip(before["dropped"], dropped, strict=True)],
                    "reader": reader.state_dict(),
                }
                if not buffer:
                    break
                sampler = TokenBatchSampler(
                    np.array([len(pair["input_ids"]) for pair in buffer]),
                    np.array([len(pair["labels"]) for pair in buffer]),
                    self.max_tokens,
                    seed=self.seed + before["batches"],
                )
                self._now = {
                    **self._now,
                    "batches": before["batches"] + len(sampler),
                    "tokens": before["tokens"] + sampler.tokens,
                    "places": before["places"] + sampler.places,
                }
                for number, indices in enumerate(sampler, start=before["batches"]):
                    if number >= self._taken and number % self.num_processes == self.process_index:
                        yield [buffer[index] for index in indices]
            self.report.check()
            self._now = {**self._now, "epoch": self._now["epoch"] + 1, "reader": None}

    def _fill(self, rows: Iterator[dict[str, str]]) -> tuple[list[Pair], list[int]]:
        """Return the next pairs to keep (none at the end), and counts of kept and dropped pairs as in `DropReport`."""
        buffer: list[Pair] = []
        dropped = np.zeros(4, dtype=np.int64)
        while len(buffer) < self.buffer_size and (
            read := list(islice(rows, min(READ_AT_ONCE, self.buffer_size - len(buffer))))
        ):
            columns = {side: [row[side] for row in read] for side in ("source", "target")}
            encoded = encode_batch(columns, self.tokenizer, self.limits, self.dropout)
            if self.dropout is not None:
                self._segment(encoded, self.dropout, first=sum(self._now["dropped"]) + int(dropped.sum()))
            dropped += np.bincount(encoded["dropped"], minlength=4)
            buffer += [
                {"input_ids": encoded["input_ids"][row], "labels": encoded["labels"][row]}
                for row, reason in enumerate(encoded["dropped"])
                if reason == KEPT
            ]
        return buffer, dropped.tolist()

    def _segment(self, encoded: dict[str, list], dropout: BpeDropout, first: int) -> None:
        """Segment pairs anew, in place.

        Args:
            encoded: Of `encode_batch`.
            dropout: Segments them.
            first: Number of the first pair, counted from the beginning of the run, over all epochs.
        """
        kept = np.flatnonzero(np.array(encoded["dropped"]) == KEPT)
        segmented = {}
        for side, (column, symbols) in enumerate(SYMBOL_COLUMNS.items()):
            keys = sentence_keys(self.seed, 0, first + kept, side)
            segmented[column] = as_lists(dropout.segment(as_rows([encoded[symbols][row] for row in kept]), keys))
        for row, source, target in zip(kept, *segmented.values(), strict=True):
            if len(source) <= self.limits.max_source_length and len(target) <= self.limits.max_target_length:
                encoded["input_ids"][row], encoded["labels"][row] = source, target


def new_reader(pairs: IterableDataset, epoch: int) -> IterableDataset:
    """Copy a data set, to read it from the beginning of an epoch.

    The copy is deep: of others `datasets` shares the state of reading, so that a second reader moves the first one on.
    """
    reader = copy.deepcopy(pairs)
    reader.set_epoch(epoch)
    return reader


def _tag_stream(pairs: IterableDataset, tokenizer: PreTrainedTokenizerFast, target_lang: str) -> IterableDataset:
    """Put the tag of the target language before each source that has none.

    Raises:
        UserError: The tokenizer has no such tag.
    """
    check_target_lang(tokenizer, target_lang)

    def tag(row: dict[str, str]) -> dict[str, str]:
        return row | {"source": tag_sources(tokenizer, [row["source"]], target_lang)[0]}

    return pairs.map(tag, features=PAIR_FEATURES)

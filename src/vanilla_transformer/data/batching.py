"""Batches by token budget (section 5.1): sentence pairs of similar length together."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import DataCollatorForSeq2Seq, PreTrainedTokenizerBase

from ..errors import UserError
from ..modeling_vanilla_transformer import shift_right
from .corpora import EpochRows, Mixture
from .limits import check_count

# Pairs are ordered by target length in steps of this many tokens, and by source length within a step. Measured on
# Multi30k with 4,096-token batches, 3 wastes least: docs/decisions.md has the table.
TARGET_LENGTH_STEP = 3


class TokenBatchSampler(Sampler[list[int]]):
    """Batches of at most `max_tokens` source and `max_tokens` target tokens, padding counted.

    Every pair is in exactly one batch of an epoch, or as often as the mixture says. In each epoch, pairs of equal
    lengths are shuffled among each other, and so are the batches. Both depend on `seed` and epoch alone, so an
    interrupted epoch can be repeated, and the number of batches is the same in all epochs.

    Args:
        source_lengths: Tokens of each source, `</s>` counted, int64 of shape [pairs].
        target_lengths: The same for the targets.
        max_tokens: The budget of either side.
        seed: Seed of the shuffling.
        num_processes: Processes that take the batches in turn. The largest batches are halved until the number of
            batches is a multiple of it, so that each process has equally many.
        mixture: The share of each corpus in an epoch, or the rows that it gives; None for each pair once.

    Attributes:
        rows: Which rows each epoch has; None for all.
        tokens: Number of source and target tokens of the first epoch.
        places: The same with padding.

    Raises:
        UserError: A sentence that is longer than the budget, or fewer pairs than processes.
    """

    def __init__(
        self,
        source_lengths: np.ndarray,
        target_lengths: np.ndarray,
        max_tokens: int,
        seed: int = 0,
        num_processes: int = 1,
        num_batches: int = 1,
        mixture: Mixture | EpochRows | None = None,
    ) -> None:
        check_count("max_tokens", max_tokens)
        check_count("num_processes", num_processes)
        if len(source_lengths) < num_processes:
            raise UserError(f"{len(source_lengths)} pairs can't be shared among {num_processes} processes; use fewer")
        longest = max(source_lengths.max(), target_lengths.max())
        if longest > max_tokens:
            raise UserError(
                f"a sentence has {longest} tokens, but a batch may hold {max_tokens}; raise the token budget or lower "
                "the length limit"
            )
        self.max_tokens = max_tokens
        self.seed = seed
        self.epoch = 0
        if isinstance(mixture, Mixture):
            mixture = EpochRows(mixture, _order_by_length(source_lengths, target_lengths), seed)
        self.rows = mixture
        of_rows = lengths = source_lengths, target_lengths
        if self.rows is not None:
            lengths = self.rows.longest(source_lengths), self.rows.longest(target_lengths)
        self.source_lengths, self.target_lengths = lengths  # of each pair of an epoch, or the most that it may have
        order = _order_by_length(*lengths)  # that of an epoch but for pairs of equal lengths
        self.ends = self._batch_ends(np.maximum(*lengths)[order])
        while len(self.ends) < num_batches or len(self.ends) % num_processes:
            sizes = np.diff(self.ends, prepend=0)
            largest = sizes.argmax()
            self.ends = np.insert(self.ends, largest, self.ends[largest] - sizes[largest] // 2)
        self.tokens = self.places = 0
        starts, sizes = np.append(0, self.ends[:-1]), np.diff(self.ends, prepend=0)
        for side in of_rows:
            epoch = side if self.rows is None else side[self.rows.rows(0)]
            self.tokens += int(epoch.sum())
            self.places += int((sizes * np.maximum.reduceat(epoch[order], starts)).sum())

    def _order(self, random: np.random.Generator) -> np.ndarray:
        """Return the pairs of an epoch sorted by length, equal lengths shuffled, int64 of shape [pairs]."""
        ranks = random.permutation(len(self.source_lengths))
        return _order_by_length(self.source_lengths, self.target_lengths, ranks)

    def _batch_ends(self, pair_lengths: np.ndarray) -> np.ndarray:
        """Return where each batch ends in the order of an epoch, int64 of shape [batches]; the same for all epochs.

        Args:
            pair_lengths: The longer side of each pair, in that order, int64 of shape [pairs].
        """
        ends = [0]
        while ends[-1] < len(pair_lengths):
            # No batch has more pairs than fit at the length of its first.
            candidates = pair_lengths[ends[-1] :][: self.max_tokens // max(1, pair_lengths[ends[-1]])]
            places = np.maximum.accumulate(candidates) * np.arange(1, len(candidates) + 1)
            ends.append(ends[-1] + int(np.searchsorted(places, self.max_tokens, side="right")))
        return np.array(ends[1:])

    @property
    def padding(self) -> float:
        """Share of the batches' tokens that is padding, source and target together."""
        return 1 - self.tokens / self.places

    def set_epoch(self, epoch: int) -> None:
        """Select the epoch of the next iteration; the Trainer calls this."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of an epoch, of all processes."""
        return len(self.ends)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the epoch as indices of pairs."""
        random = np.random.default_rng((self.seed, self.epoch))
        order = self._order(random)
        if self.rows is not None:
            order = self.rows.rows(self.epoch)[order]
        batches = np.split(order, self.ends[:-1])
        for index in random.permutation(len(batches)):
            yield batches[index].tolist()


def _order_by_length(
    source_lengths: np.ndarray, target_lengths: np.ndarray, ranks: np.ndarray | None = None
) -> np.ndarray:
    """Return the indices of pairs sorted by length, int64 of shape [pairs].

    Args:
        source_lengths: As in `TokenBatchSampler`.
        target_lengths: As in `TokenBatchSampler`.
        ranks: The order of pairs of equal lengths, int64 of shape [pairs]; by default as they come.
    """
    # 16 bits are sorted by radix, in time that grows as the number of pairs.
    largest = max(source_lengths.max(initial=0), target_lengths.max(initial=0))
    dtype: Any = np.int16 if largest <= np.iinfo(np.int16).max else np.int64
    source, target = source_lengths.astype(dtype), target_lengths.astype(dtype)
    before = None
    if ranks is not None:
        before = np.empty_like(ranks)
        before[ranks] = np.arange(len(ranks))  # the pairs in their order; sorting keeps it where lengths are equal
        source, target = source[before], target[before]
    step = target // TARGET_LENGTH_STEP
    # Source lengths rise in one step and fall in the next, so that a batch across two steps has similar lengths:
    # targets of 3 to 5 tokens, sources of 9, 5, 2; then targets of 6 to 8 tokens, sources of 3, 6, 9.
    order = np.lexsort((target, np.where(step % 2 == 0, source, -source), step))
    return order if before is None else before[order]


def token_lengths(dataset: Dataset, column: str) -> np.ndarray:
    """Return the number of tokens of each row, int64 of shape [rows], without making lists of the tokens.

    Args:
        dataset: A data set whose `column` holds lists of ids.
        column: "input_ids" or "labels".
    """
    lengths = pc.list_value_length(dataset.data.column(column)).to_numpy().astype(np.int64)
    # The rows that were selected; iterating over batches of them would take 10 seconds for a million.
    selected = dataset._indices
    return lengths if selected is None else lengths[selected.column(0).to_numpy()]


class TranslationCollator:
    """Pad examples into a batch that includes `decoder_input_ids`.

    The library's own collator returns `decoder_input_ids` only if it holds the model. Without them the Trainer's label
    smoothing fails, as it passes no labels to the model.

    Args:
        tokenizer: Gives the padding token.
        decoder_start_token_id: First id of the decoder's input.
        pad_to_multiple_of: Pad lengths to a multiple of this.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, decoder_start_token_id: int, pad_to_multiple_of: int | None = None
    ) -> None:
        self.pad_token_id = tokenizer.pad_token_id
        self.decoder_start_token_id = decoder_start_token_id
        self._pad = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=pad_to_multiple_of)

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            features: Examples with "input_ids" and "labels"; other columns are ignored.

        Returns:
            int64 tensors: "input_ids" and "attention_mask" of shape [batch, source length], "labels" (padded with -100)
            and "decoder_input_ids" of shape [batch, target length].
        """
        batch = self._pad([{name: feature[name] for name in ("input_ids", "labels")} for feature in features])
        decoder_input_ids = shift_right(batch["labels"], self.pad_token_id, self.decoder_start_token_id)
        return {**batch, "decoder_input_ids": decoder_input_ids}

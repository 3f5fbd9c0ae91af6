"""Batches by token budget: the budget holds, nothing is lost, and the same seed and epoch give the same plan."""

import numpy as np
import pytest
from datasets import Dataset

from vanilla_transformer.data.batching import TokenBatchSampler, token_lengths
from vanilla_transformer.errors import UserError

BUDGET = 512


@pytest.fixture
def lengths() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    source = random.integers(3, 40, size=2_000)
    return source, np.clip(source + random.integers(-5, 6, size=2_000), 3, None)


def batches_of(lengths: tuple[np.ndarray, np.ndarray], epoch: int = 0, seed: int = 0) -> list[list[int]]:
    sampler = TokenBatchSampler(*lengths, max_tokens=BUDGET, seed=seed)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_no_batch_exceeds_the_budget_on_either_side_padding_counted(lengths):
    for batch in batches_of(lengths):
        for side in lengths:
            assert len(batch) * side[batch].max() <= BUDGET


def test_every_pair_is_in_one_batch_of_an_epoch(lengths):
    for epoch in (0, 1, 7):
        assert sorted(np.concatenate(batches_of(lengths, epoch))) == list(range(2_000))


def test_epochs_differ_in_order_and_composition_but_not_in_number(lengths):
    first, second = batches_of(lengths, epoch=0), batches_of(lengths, epoch=1)
    assert len(first) == len(second) == len(TokenBatchSampler(*lengths, max_tokens=BUDGET))
    assert first != second
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}


def test_the_plan_follows_from_seed_and_epoch_alone(lengths):
    assert batches_of(lengths, epoch=3) == batches_of(lengths, epoch=3)
    assert batches_of(lengths, seed=1) != batches_of(lengths, seed=2)


def test_sentences_of_similar_length_are_together(lengths):
    """Random batches of these lengths would be nearly half padding."""
    sampler = TokenBatchSampler(*lengths, max_tokens=BUDGET)
    assert sampler.padding < 0.10
    padded = sum(len(batch) * (lengths[0][batch].max() + lengths[1][batch].max()) for batch in sampler)
    assert sampler.padding == pytest.approx(1 - (lengths[0].sum() + lengths[1].sum()) / padded, abs=1e-3)


def test_a_batch_is_filled_before_the_next_begins():
    lengths = np.full(10, 4)
    assert sorted(map(len, TokenBatchSampler(lengths, lengths, max_tokens=16))) == [2, 4, 4]


@pytest.mark.parametrize("processes", [2, 3, 8])
def test_each_process_has_as_many_batches_as_the_others(lengths, processes):
    sampler = TokenBatchSampler(*lengths, max_tokens=BUDGET, num_processes=processes)
    assert len(sampler) % processes == 0 and len(sampler) - len(TokenBatchSampler(*lengths, BUDGET)) < processes
    assert sorted(np.concatenate(list(sampler))) == list(range(2_000))
    with pytest.raises(UserError, match="2 pairs can't be shared among 3 processes"):
        TokenBatchSampler(np.array([3, 4]), np.array([3, 4]), max_tokens=20, num_processes=3)


def test_a_budget_below_the_longest_sentence_is_refused(lengths):
    with pytest.raises(UserError, match=r"a sentence has 44 tokens, but a batch may hold 20"):
        TokenBatchSampler(np.array([3, 44]), np.array([5, 5]), max_tokens=20)


def test_lengths_follow_the_rows_that_were_kept():
    """A filtered data set holds all rows underneath and an index to those kept."""
    dataset = Dataset.from_dict({"input_ids": [[1], [1, 2], [1, 2, 3]], "labels": [[1, 2], [1], []]})
    kept = dataset.select([2, 0])
    assert token_lengths(kept, "input_ids").tolist() == [3, 1]
    assert token_lengths(kept, "labels").tolist() == [0, 2]


def greedy_ends(pair_lengths: list[int], max_tokens: int) -> list[int]:
    """Where batches end if each pair goes into the batch before it as long as that has room."""
    ends, size, longest = [], 0, 0
    for index, length in enumerate(pair_lengths):
        longest = max(longest, length)
        if (size + 1) * longest > max_tokens:
            ends.append(index)
            size, longest = 0, length
        size += 1
    return [*ends, len(pair_lengths)]


@pytest.mark.parametrize("max_tokens", [40, 41, 64, 1_000, 30_000, 10**7])
def test_batches_end_where_the_next_pair_has_no_room(max_tokens):
    random = np.random.default_rng(max_tokens)
    for pairs in (1, 2, 7, 3_000):
        source, target = random.integers(1, 41, size=(2, pairs))
        sampler = TokenBatchSampler(source, target, max_tokens)
        order = sampler._order(np.random.default_rng(0))
        assert sampler.ends.tolist() == greedy_ends(np.maximum(source, target)[order].tolist(), max_tokens)

"""Values out of range are refused with field, value and what is allowed."""

import math

import numpy as np
import pytest
from datasets import Dataset

from vanilla_transformer.data.batching import TokenBatchSampler
from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.data.limits import LengthLimits, take_pairs
from vanilla_transformer.data.streaming import TokenStream
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError

LIMITS = {"max_source_length": 50, "max_target_length": 50, "max_length_ratio": 3.0}
PAIRS = Dataset.from_dict({"source": ["a", "b", "c"], "target": ["d", "e", "f"]})

out_of_range = pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("max_source_length", 1, "an integer of at least 2"),
        ("max_source_length", -5, "an integer of at least 2"),
        ("max_target_length", 2.5, "an integer of at least 2"),
        ("max_length_ratio", math.nan, "a number of at least 1"),
        ("max_length_ratio", 0.5, "a number of at least 1"),
    ],
)


@out_of_range
def test_length_limits(field, value, allowed, english_german_tokenizer):
    message = f"^{field} is {value}; it must be {allowed}$"
    limits = LIMITS | {field: value}
    with pytest.raises(UserError, match=message):
        LengthLimits(**limits).check()
    with pytest.raises(UserError, match=message):
        encode_pairs(PAIRS, english_german_tokenizer, **limits)
    with pytest.raises(UserError, match=message):
        TokenStream(PAIRS.to_iterable_dataset(), english_german_tokenizer, max_tokens=100, buffer_size=10, **limits)


def test_any_ratio_may_be_allowed():
    assert LengthLimits(2, 2, math.inf).check() == (2, 2, math.inf)


@pytest.mark.parametrize("num_proc", [0, -1])
def test_processes_that_tokenize(num_proc, english_german_tokenizer):
    with pytest.raises(UserError, match=f"num_proc is {num_proc}; it must be an integer of at least 1"):
        encode_pairs(PAIRS, english_german_tokenizer, **LIMITS, num_proc=num_proc)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("buffer_size", 0, "buffer_size is 0; it must be an integer of at least 1"),
        ("num_processes", 0, "num_processes is 0; it must be an integer of at least 1"),
        ("process_index", 1, "process_index is 1; it must be an integer from 0 to 0"),
    ],
)
def test_streams(field, value, message, english_german_tokenizer):
    settings = {"max_tokens": 100, "buffer_size": 10, field: value}
    with pytest.raises(UserError, match=message):
        TokenStream(PAIRS.to_iterable_dataset(), english_german_tokenizer, **LIMITS, **settings)


@pytest.mark.parametrize("position", [{}, None, "x", {"taken": 1, "buffer": {}}, {"taken": "1", "buffer": {}}])
def test_a_position_that_is_none_is_refused(position, english_german_tokenizer):
    stream = TokenStream(
        PAIRS.to_iterable_dataset(), english_german_tokenizer, **LIMITS, max_tokens=100, buffer_size=10
    )
    with pytest.raises(UserError, match="is no position in a stream"):
        stream.resume(position)


def test_batches():
    lengths = np.array([3, 4])
    for settings, message in [
        ({"max_tokens": 0}, "max_tokens is 0; it must be an integer of at least 1"),
        ({"max_tokens": 10, "num_processes": 0}, "num_processes is 0; it must be an integer of at least 1"),
    ]:
        with pytest.raises(UserError, match=message):
            TokenBatchSampler(lengths, lengths, **settings)
    with pytest.raises(UserError, match="0 pairs can't be shared among 1 processes"):
        TokenBatchSampler(lengths[:0], lengths[:0], max_tokens=10)


@pytest.mark.parametrize("vocab_size", [0, 259, 10**9, 300.0])
def test_vocabulary(vocab_size):
    with pytest.raises(UserError, match=f"vocab_size is {vocab_size}; it must be an integer from 260 to 1,000,000"):
        train_tokenizer(["a b"], vocab_size)


@pytest.mark.parametrize("streaming", [False, True])
def test_the_first_pairs(streaming):
    pairs = PAIRS.to_iterable_dataset() if streaming else PAIRS
    assert [row["source"] for row in take_pairs(pairs, 2)] == ["a", "b"]
    for count in (None, 3, 100):
        assert len(list(take_pairs(pairs, count))) == 3
    for count in (0, -1):
        with pytest.raises(UserError, match=f"max_train_samples is {count}; it must be an integer of at least 1"):
            take_pairs(pairs, count, "max_train_samples")

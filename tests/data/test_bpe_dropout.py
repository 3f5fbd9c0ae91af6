"""BPE-dropout: the paper's distribution, a function of seed, epoch and sentence, in batches within the budget."""

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast as StockTokenizer

from vanilla_transformer.data.bpe_dropout import (
    UNDROPPED,
    BpeDropout,
    BpeDropoutBatchSampler,
    BpeDropoutPairs,
    as_lists,
    as_rows,
    sentence_keys,
)
from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.data.streaming import TokenStream
from vanilla_transformer.data.tokenization import dictionary_tokenizer, subword_nmt_tokenizer, train_tokenizer
from vanilla_transformer.errors import UserError

SENTENCES = [
    "a banana and an ananas",
    "isn't she here ?  no !",
    "Zwei Männer gehen, und ein Hund rennt.",
    "mississippi mississippi 2025",
    "👍🏽 हिन्दी 한국어 </s> text",
    "x",
    "",
]
LIMITS = {"max_source_length": 60, "max_target_length": 60}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES * 3, 330)


def segment(dropout: BpeDropout, texts: list[str], seed: int = 0, epoch: int = 0) -> list[list[int]]:
    keys = sentence_keys(seed, epoch, np.arange(len(texts)), side=0)
    return as_lists(dropout.segment(as_rows(dropout.split(texts)), keys))


def distribution(symbols: tuple[str, ...], ranks: dict[tuple[str, str], int], p: float) -> Counter:
    """The probability of each segmentation of a word by algorithm 1 of the paper, by following every way it can go."""
    possible = [(ranks[pair], i) for i, pair in enumerate(zip(symbols, symbols[1:], strict=False)) if pair in ranks]
    result: Counter = Counter()
    dropped = 1.0  # the probability that all merges of a lower rank are dropped
    for _, i in sorted(possible):
        merged = (*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :])
        for segmentation, probability in distribution(merged, ranks, p).items():
            result[segmentation] += dropped * (1 - p) * probability
        dropped *= p
    result[symbols] += dropped
    return result


@pytest.mark.parametrize("p", [0.1, 0.5])
@pytest.mark.parametrize("word", ["banana", "mississippi", "Männer"])
def test_segmentations_have_the_probabilities_of_the_paper_s_algorithm(tokenizer, word, p):
    """Five standard deviations are beyond chance for a few dozen segmentations."""
    merges = [tuple(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]
    dropout = BpeDropout(tokenizer, p)
    symbols = tuple(tokenizer.convert_ids_to_tokens(segment(BpeDropout(tokenizer, 1.0), [word])[0])[:-1])
    expected = distribution(symbols, {merge: rank for rank, merge in enumerate(merges)}, p)
    times = 10_000
    counts = Counter(tuple(tokenizer.convert_ids_to_tokens(ids)[:-1]) for ids in segment(dropout, [word] * times))
    assert counts.keys() <= expected.keys() and len(counts) > 5
    for segmentation, probability in expected.items():
        deviation = (times * probability * (1 - probability)) ** 0.5
        assert abs(counts[segmentation] - times * probability) <= 5 * deviation + 1, segmentation


def test_segmentations_are_as_frequent_as_with_the_tokenizers_library(tokenizer):
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.model.dropout = 0.3
    text = "a mississippi banana"
    theirs = Counter(map(len, (encoding.ids for encoding in backend.encode_batch([text] * 5_000))))
    ours = Counter(map(len, segment(BpeDropout(tokenizer, 0.3), [text] * 5_000)))
    for length in theirs.keys() | ours.keys():
        assert abs(theirs[length] - ours[length]) <= 6 * (theirs[length] + ours[length] + 1) ** 0.5


def test_without_dropout_the_tokenizer_s_own_segmentation_and_with_all_dropped_its_symbols(tokenizer):
    assert segment(BpeDropout(tokenizer, 0.0), SENTENCES) == tokenizer(SENTENCES)["input_ids"]
    symbols = segment(BpeDropout(tokenizer, 1.0), SENTENCES)
    assert [len(ids) for ids in symbols] == [len(text.encode()) + 1 for text in SENTENCES]
    assert tokenizer.batch_decode(symbols, skip_special_tokens=True) == SENTENCES


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_text_comes_back_and_added_tokens_stay_whole(p):
    tokenizer = train_tokenizer(SENTENCES * 3, 330)
    tokenizer.add_special_tokens({"additional_special_tokens": [">>fr<<"]})
    texts = [f">>fr<< {text}" for text in SENTENCES] + ["banana>>fr<<banana"]
    found = segment(BpeDropout(tokenizer, p), texts)
    tag = tokenizer.convert_tokens_to_ids(">>fr<<")
    assert all(ids.count(tag) == 1 for ids in found)
    assert tokenizer.batch_decode([[i for i in ids[:-1]] for ids in found]) == texts


def test_other_kinds_of_bpe_are_segmented_as_by_their_tokenizer():
    """subword-nmt marks a word's end; a continuing prefix is not repeated in what a merge makes."""
    nmt = subword_nmt_tokenizer(["a n", "an a", "b anana</w>", "n a</w>"], ["banana bandana"])
    vocabulary = {name: i for i, name in enumerate(["<unk>", "a", "b", "##a", "##n", "##na", "ba", "bana", "##b"])}
    merges = [("##n", "##a"), ("b", "##a"), ("ba", "##na")]
    backend = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="##", unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    prefixed = StockTokenizer(tokenizer_object=backend, unk_token="<unk>")
    for tokenizer, texts in ((nmt, ["banana bandana", "anana z"]), (prefixed, ["banana ba", "abb bana z"])):
        assert segment(BpeDropout(tokenizer, 0.0), texts) == tokenizer(texts)["input_ids"]
        assert segment(BpeDropout(tokenizer, 0.5), texts * 9) != tokenizer(texts * 9)["input_ids"]


def test_a_segmentation_depends_on_seed_epoch_side_and_sentence_alone(tokenizer):
    dropout = BpeDropout(tokenizer, 0.5)
    texts = SENTENCES * 20
    whole = segment(dropout, texts)
    assert whole == segment(pickle.loads(pickle.dumps(dropout)), texts)
    for number in (0, 3, 80):
        keys = sentence_keys(0, 0, np.array([number]), side=0)
        assert as_lists(dropout.segment(as_rows(dropout.split([texts[number]])), keys)) == [whole[number]]
    others = [segment(dropout, texts, seed=1), segment(dropout, texts, epoch=1)]
    others.append(as_lists(dropout.segment(as_rows(dropout.split(texts)), sentence_keys(0, 0, np.arange(140), 1))))
    assert all(other != whole for other in others) and others[0] != others[1] != others[2]
    assert len({tuple(ids) for ids in whole[3::7]}) > 10  # a sentence that occurs often


def test_the_tokenizer_stays_as_it_was(tokenizer, tmp_path):
    before = tokenizer.backend_tokenizer.to_str()
    segment(BpeDropout(tokenizer, 0.5), SENTENCES)
    assert tokenizer.backend_tokenizer.to_str() == before and tokenizer.backend_tokenizer.model.dropout is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dictionary_tokenizer(["<s>", "<pad>", "</s>", "<unk>", "a"]), "the tokenizer is WordLevel: only the"),
        (lambda: train_tokenizer(["a"], 260), "the tokenizer is BPE without merges: only the merges of a BPE"),
    ],
)
def test_other_tokenizers_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        BpeDropout(make(), 0.1)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_a_probability_out_of_range_is_refused(tokenizer, p):
    with pytest.raises(UserError, match=f"bpe_dropout is {p}; it must be a number from 0 to 1"):
        BpeDropout(tokenizer, p)


# Epochs

TEXTS = [" ".join(["banana", "ananas", "Hund", "mississippi"][i % 4 :][: 1 + i % 3] * (1 + i % 5)) for i in range(240)]


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return Dataset.from_dict({"source": TEXTS, "target": TEXTS[::-1]})


def make_pairs(rows: Dataset, tokenizer, p: float = 0.3, **changes) -> BpeDropoutPairs:
    dropout = BpeDropout(tokenizer, p)
    encoded, _ = encode_pairs(rows, tokenizer, max_length_ratio=99, **LIMITS, dropout=dropout)
    return BpeDropoutPairs(encoded, dropout, **(LIMITS | changes))


def epoch_of(pairs: BpeDropoutPairs, sampler: BpeDropoutBatchSampler, epoch: int) -> Iterator[list[dict]]:
    sampler.set_epoch(epoch)
    for batch in sampler:
        yield pairs.__getitems__(batch)


@pytest.mark.parametrize("processes", [1, 3])
def test_batches_of_every_epoch_are_within_the_budget_and_hold_each_pair_once(rows, tokenizer, processes):
    pairs = make_pairs(rows, tokenizer)
    sampler = BpeDropoutBatchSampler(pairs, 200, seed=3, num_processes=processes)
    assert len(sampler) % processes == 0
    seen = []
    for epoch in range(3):
        batches = list(epoch_of(pairs, sampler, epoch))
        assert len(batches) == len(sampler)
        for batch in batches:
            assert all(len(batch) * max(len(pair[side]) for pair in batch) <= 200 for side in ("input_ids", "labels"))
        flat = [pair for batch in batches for pair in batch]
        for side, texts in (("input_ids", TEXTS), ("labels", TEXTS[::-1])):
            found = tokenizer.batch_decode([pair[side] for pair in flat], skip_special_tokens=True)
            assert sorted(found) == sorted(texts)
        seen.append(sorted(pair["input_ids"] for pair in flat))
    assert len({str(epoch) for epoch in seen}) == 3 and list(epoch_of(pairs, sampler, 2)) == batches
    assert sampler.padding < 0.2


def test_filters_and_the_data_without_dropout_do_not_depend_on_it(rows, tokenizer):
    limits = {"max_source_length": 30, "max_target_length": 25, "max_length_ratio": 2.0}
    plain, report = encode_pairs(rows, tokenizer, **limits)
    symbols, same = encode_pairs(rows, tokenizer, **limits, dropout=BpeDropout(tokenizer, 0.9), num_proc=2)
    assert report == same and 0 < report.too_long and 0 < report.length_ratio
    assert all(plain[name][:] == symbols[name][:] for name in ("input_ids", "labels"))


def test_a_pair_that_would_be_over_a_limit_keeps_its_segmentation(rows, tokenizer):
    pairs = make_pairs(rows, tokenizer, p=0.9, max_source_length=26)
    sampler = BpeDropoutBatchSampler(pairs, 40)
    keys = [key for batch in sampler for key in batch]
    assert 20 < sum(epoch == UNDROPPED for _, epoch in keys) < 220
    for (row, epoch), pair in zip(keys, pairs.__getitems__(keys), strict=True):
        assert len(pair["input_ids"]) <= 26 and len(pair["labels"]) <= 40
        undropped = pair["input_ids"] == pairs.pairs[row]["input_ids"] and pair["labels"] == pairs.pairs[row]["labels"]
        assert undropped or epoch == 0


def test_an_epoch_that_needs_more_batches_than_the_others_is_not_dropped(rows, tokenizer, monkeypatch):
    pairs = make_pairs(rows, tokenizer, p=0.5)
    sampler = BpeDropoutBatchSampler(pairs, 100)
    monkeypatch.setattr(pairs, "lengths", lambda epoch: {side: np.full(240, 59) for side in ("input_ids", "labels")})
    sampler.set_epoch(1)  # the first is what the number of batches is chosen by
    batches = list(sampler)
    assert len(batches) == len(sampler) and {epoch for batch in batches for _, epoch in batch} == {UNDROPPED}
    assert sorted(row for batch in batches for row, _ in batch) == list(range(240))


def test_few_pairs_have_no_empty_batch(tokenizer):
    pairs = make_pairs(Dataset.from_dict({"source": TEXTS[:3], "target": TEXTS[:3]}), tokenizer)
    assert sorted(len(batch) for batch in BpeDropoutBatchSampler(pairs, 200)) == [1, 1, 1]


def test_workers_make_the_same_batches(rows, tokenizer):
    pairs = make_pairs(rows, tokenizer)
    sampler = BpeDropoutBatchSampler(pairs, 200)
    here = list(DataLoader(pairs, batch_sampler=sampler, collate_fn=list))
    assert here == list(DataLoader(pairs, batch_sampler=sampler, collate_fn=list, num_workers=2))


def test_data_without_symbols_is_refused(rows, tokenizer):
    encoded, _ = encode_pairs(rows, tokenizer, max_length_ratio=99, **LIMITS)
    with pytest.raises(UserError, match="no column 'source_symbols'; make it by encode_pairs with dropout"):
        BpeDropoutPairs(encoded, BpeDropout(tokenizer, 0.1), **LIMITS)


# Streams


def test_a_stream_is_segmented_anew_each_time_within_budget_and_limits(rows, tokenizer):
    pairs: IterableDataset = rows.to_iterable_dataset()
    limits = {"max_source_length": 100, "max_target_length": 100, "max_length_ratio": 99}
    dropout = BpeDropout(tokenizer, 0.6)
    stream = TokenStream(pairs, tokenizer, max_tokens=100, **limits, buffer_size=50, dropout=dropout)
    seen: dict[str, set] = {}
    for batch in islice(stream, 300):
        for side in ("input_ids", "labels"):
            assert len(batch) * max(len(pair[side]) for pair in batch) <= 100
        for pair in batch:
            text = tokenizer.decode(pair["input_ids"], skip_special_tokens=True)
            seen.setdefault(text, set()).add(tuple(pair["input_ids"]))
    assert set(seen) == set(TEXTS)
    assert all(len(segmentations) > 1 for segmentations in seen.values())

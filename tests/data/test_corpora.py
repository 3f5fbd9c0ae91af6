"""Several corpora: which options belong to which, and how much of each is in an epoch."""

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from vanilla_transformer.data.batching import TokenBatchSampler
from vanilla_transformer.data.bpe_dropout import BpeDropout, BpeDropoutBatchSampler, BpeDropoutPairs
from vanilla_transformer.data.corpora import Mixture, broadcast, list_corpora
from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.data.streaming import TokenStream
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.training.resuming import fingerprint_data

LIMITS = {"max_source_length": 100, "max_target_length": 100, "max_length_ratio": 50}


def test_an_option_has_one_value_or_one_for_each_corpus():
    assert broadcast({"file": ["a"], "name": [], "lang": ["de", "fr"]}) == [("a", None, "de"), ("a", None, "fr")]
    assert broadcast({"file": ["a", "b"], "lang": ["de"]}) == [("a", "de"), ("b", "de")]
    assert broadcast({"file": [], "lang": ["de"]}) == [(None, "de")]
    with pytest.raises(UserError, match="^file has 3 values, lang has 2 values; give one for all corpora, or as many"):
        broadcast({"file": ["a", "b", "c"], "lang": ["de", "fr"]})


def test_a_corpus_has_two_languages():
    with pytest.raises(UserError, match="source_lang and target_lang are both de; they must differ"):
        list_corpora(["a"], [], ["en", "de"], ["de"], file_option="train_file")


@pytest.mark.parametrize(
    ("sizes", "weights", "counts"),
    [
        ([600, 400], [1, 3], [250, 750]),
        ([600, 400], [6, 4], [600, 400]),
        ([600, 400], [0.003, 0.002], [600, 400]),
        ([10, 10, 10], [1, 1, 1e-9 + 1], [10, 10, 10]),
        ([5, 5], [2, 1], [7, 3]),
        ([1, 1000], [1, 1], [501, 500]),
    ],
)
def test_an_epoch_has_the_weights_shares(sizes, weights, counts):
    mixture = Mixture(sizes, weights)
    assert mixture.counts.tolist() == counts and sum(counts) == sum(sizes)
    assert str(mixture).startswith(f"{counts[0]:,} of {sizes[0]:,}")


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ([5, 5], [1], "train_weights are 1, but there are 2 corpora; give one weight for each"),
        ([5], [2], "train_weights are 2, but there is one corpus, which has all of an epoch; leave them out"),
        ([5, 5], [1, 0], "train_weights are 1 0; each must be a number above 0"),
        ([5, 5], [1, -1], "each must be a number above 0"),
        ([5, 5], [1, float("nan")], "each must be a number above 0"),
        ([5, 5], [float("inf"), 1], "each must be a number above 0"),
        ([5, 5], [1, 1000], "of corpus 1 an epoch of 10 pairs would have none; raise its weight, or leave it out"),
    ],
)
def test_weights_that_can_not_be_are_refused(sizes, weights, message):
    with pytest.raises(UserError, match=message):
        Mixture(sizes, weights)


@pytest.mark.parametrize(("sizes", "weights"), [([700, 300], [1, 1]), ([40, 1500], [5, 1]), ([500, 500], [1, 17])])
@pytest.mark.parametrize("num_processes", [1, 3])
def test_each_epoch_has_its_shares_in_batches_within_the_budget(sizes, weights, num_processes):
    """Counted one by one: rows of each corpus, tokens of each batch, and how often a row was seen in 40 epochs."""
    random = np.random.default_rng(0)
    source, target = random.integers(2, 40, size=(2, sum(sizes)))
    mixture = Mixture(sizes, weights)
    sampler = TokenBatchSampler(source, target, 200, seed=3, num_processes=num_processes, mixture=mixture)
    assert len(sampler) % num_processes == 0
    seen: Counter[int] = Counter()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for batch in batches:
            assert len(batch) * max(source[batch].max(), target[batch].max()) <= 200
        rows = [row for batch in batches for row in batch]
        of_first = sum(row < sizes[0] for row in rows)
        assert [of_first, len(rows) - of_first] == mixture.counts.tolist()
        times = Counter(rows)
        for start, size, count in ((0, sizes[0], mixture.counts[0]), (sizes[0], sizes[1], mixture.counts[1])):
            assert {times[row] for row in range(start, start + size)} <= {count // size, -(-count // size)}
        seen += times
        if epoch == 0:
            sides = [[lengths[batch] for batch in batches] for lengths in (source, target)]
            padded = sum(len(lengths) * lengths.max() for side in sides for lengths in side)
            assert sampler.tokens == sum(lengths.sum() for side in sides for lengths in side)
            assert sampler.places == pytest.approx(padded, rel=0.01)  # equal bounds are shuffled
    for start, size, count in ((0, sizes[0], mixture.counts[0]), (sizes[0], sizes[1], mixture.counts[1])):
        often = [seen[row] for row in range(start, start + size)]
        assert max(often) - min(often) <= 3 and sum(often) == 40 * count


def test_batches_of_an_epoch_depend_on_seed_and_epoch_alone():
    source, target = np.random.default_rng(0).integers(2, 40, size=(2, 300))

    def batches(seed: int, epoch: int) -> list[list[int]]:
        sampler = TokenBatchSampler(source, target, 200, seed=seed, mixture=Mixture([200, 100], [1, 3]))
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(1, 2) == batches(1, 2)
    assert batches(1, 2) != batches(1, 3) and batches(1, 2) != batches(2, 2)


def test_weights_as_the_sizes_take_every_pair_once():
    source, target = np.random.default_rng(0).integers(2, 40, size=(2, 300))
    mixed = TokenBatchSampler(source, target, 200, mixture=Mixture([200, 100], [2, 1]))
    assert list(mixed) == list(TokenBatchSampler(source, target, 200))


# Streams

WORDS = {"de": [f"Wort {n}" for n in range(60)], "fr": [f"mot {n}" for n in range(25)]}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"word {n}" for n in range(60)] + WORDS["de"] + WORDS["fr"], 320, ["de", "fr"])


def rows(language: str) -> Dataset:
    targets = WORDS[language]
    return Dataset.from_dict({"source": [f"word {n}" for n in range(len(targets))], "target": targets})


def make_stream(tokenizer, weights=(1, 3), **overrides) -> TokenStream:
    settings = {"max_tokens": 100, "buffer_size": 20, "weights": weights, "target_langs": ["de", "fr"], **LIMITS}
    corpora = [rows("de").to_iterable_dataset(), rows("fr").to_iterable_dataset()]
    return TokenStream(corpora, tokenizer, **(settings | overrides))


def test_a_stream_draws_pairs_by_weight_and_tags_them(tokenizer):
    batches = islice(make_stream(tokenizer), 400)
    tags = Counter(pair["input_ids"][0] for batch in batches for pair in batch)
    german, french = (tags[tokenizer.convert_tokens_to_ids(tag)] for tag in (">>de<<", ">>fr<<"))
    assert german + french == tags.total()
    assert german / tags.total() == pytest.approx(0.25, abs=0.05)


def test_a_stream_has_the_ids_of_a_data_set(tokenizer):
    expected = [
        tuple(pair["input_ids"])
        for language in ("de", "fr")
        for pair in encode_pairs(rows(language), tokenizer, target_lang=language, **LIMITS)[0]
    ]
    found = {tuple(pair["input_ids"]) for batch in islice(make_stream(tokenizer), 200) for pair in batch}
    assert found == set(expected)


def test_a_stream_of_corpora_resumes_with_the_batches_it_would_have_seen(tokenizer):
    whole = list(islice(make_stream(tokenizer), 60))
    for taken in (7, 31, 44):
        first = make_stream(tokenizer)
        list(islice(first, taken + 2))  # two batches ahead, as a data loader may be
        position = json.loads(json.dumps(first.position(taken)))
        resumed = make_stream(tokenizer)
        resumed.resume(position)
        assert list(islice(resumed, 60 - taken)) == whole[taken:]


def test_processes_share_a_stream_of_corpora(tokenizer):
    whole = list(islice(make_stream(tokenizer), 40))
    shares = [list(islice(make_stream(tokenizer, process_index=index, num_processes=2), 20)) for index in range(2)]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == whole


def test_weights_are_part_of_a_streams_fingerprint(tokenizer):
    one, same, other = (fingerprint_data(make_stream(tokenizer, weights)) for weights in ((1, 3), (1, 3), (1, 3.001)))
    assert one == same != other


def test_a_stream_refuses_a_language_without_a_tag(tokenizer):
    with pytest.raises(UserError, match="the target language is 'it', but the model knows de, fr"):
        make_stream(tokenizer, target_langs=["de", "it"])


def test_encoded_pairs_begin_with_the_tag(tokenizer, tmp_path):
    pairs = rows("fr")
    tagged, _ = encode_pairs(pairs, tokenizer, target_lang="fr", **LIMITS)
    plain, _ = encode_pairs(pairs, tokenizer, **LIMITS)
    other, _ = encode_pairs(pairs, tokenizer, target_lang="de", **LIMITS)
    tags = tokenizer.convert_tokens_to_ids([">>fr<<", ">>de<<"])
    assert tagged["input_ids"] == [[tags[0], *ids] for ids in plain["input_ids"]]
    assert other["input_ids"] == [[tags[1], *ids] for ids in plain["input_ids"]]
    assert tagged["labels"] == plain["labels"]


def test_bpe_dropout_keeps_the_shares_and_the_tags(tokenizer):
    dropout = BpeDropout(tokenizer, 0.3)
    encoded = [encode_pairs(rows(lang), tokenizer, target_lang=lang, dropout=dropout, **LIMITS)[0] for lang in WORDS]
    pairs = BpeDropoutPairs(
        concatenate_datasets(encoded), dropout, max_source_length=100, max_target_length=100, seed=1
    )
    sampler = BpeDropoutBatchSampler(pairs, 100, seed=1, mixture=Mixture([60, 25], [1, 3]))
    tags = tokenizer.convert_tokens_to_ids([">>de<<", ">>fr<<"])
    seen: Counter[int] = Counter()
    for epoch in range(30):
        sampler.set_epoch(epoch)
        batches = [pairs.__getitems__(batch) for batch in sampler]
        assert len(batches) == len(sampler)
        counts = Counter(pair["input_ids"][0] for batch in batches for pair in batch)
        assert [counts[tag] for tag in tags] == [21, 64]
        for batch in batches:
            assert len(batch) * max(len(ids) for pair in batch for ids in pair.values()) <= 100
        seen += Counter(row for batch in sampler for row, _ in batch)
    assert max(seen[row] for row in range(60)) - min(seen[row] for row in range(60)) <= 3

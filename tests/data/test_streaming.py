"""Batches from a stream: the budget holds, nothing is lost, and a run resumes with the batches it would have seen."""

import gzip
import json
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import IterableDataset

from vanilla_transformer.data.encoding import encode_batch
from vanilla_transformer.data.reading import iterate_sentences, load_pairs
from vanilla_transformer.data.streaming import TokenStream
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError

PAIRS = [(" ".join(["word", str(n)] * (1 + n % 7)), " ".join(["Wort", str(n)] * (1 + n % 5))) for n in range(230)]
LIMITS = {"max_source_length": 100, "max_target_length": 100, "max_length_ratio": 50}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer((sentence for pair in PAIRS for sentence in pair), 300)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The pairs in each of the forms that can be read."""
    folder = tmp_path_factory.mktemp("data")
    for side, lang in enumerate(("en", "de")):
        text = "".join(f"{pair[side]}\n" for pair in PAIRS)
        (folder / f"plain.{lang}").write_text(text)
        (folder / f"zipped.{lang}.gz").write_bytes(gzip.compress(text.encode()))
    rows = [{"translation": {"en": source, "de": target}} for source, target in PAIRS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "columns.tsv").write_text("en\tde\n" + "".join("\t".join(pair) + "\n" for pair in PAIRS))
    pq.write_table(pa.Table.from_pylist(rows), folder / "nested.parquet", row_group_size=50)
    return folder


def stream_of(pairs: IterableDataset, tokenizer, **overrides) -> TokenStream:
    settings = {"max_tokens": 200, "buffer_size": 64, **LIMITS}
    return TokenStream(pairs, tokenizer, **(settings | overrides))


def load(folder: Path, name: str = "plain") -> IterableDataset:
    return load_pairs(folder / name, "en", "de", streaming=True)


def texts(tokenizer, batch: list) -> list[tuple[str, str]]:
    return [
        tuple(tokenizer.decode(pair[side], skip_special_tokens=True) for side in ("input_ids", "labels"))
        for pair in batch
    ]


def epoch_of(stream: TokenStream, tokenizer) -> list[list[tuple[str, str]]]:
    """The batches until every pair has been seen."""
    batches, seen = [], 0
    for batch in stream:
        batches.append(texts(tokenizer, batch))
        seen += len(batch)
        if seen == len(PAIRS):
            return batches
    raise AssertionError


@pytest.mark.parametrize("name", ["plain", "zipped", "rows.jsonl", "columns.tsv", "nested.parquet"])
def test_every_pair_comes_once_an_epoch_from_any_kind_of_file(folder, tokenizer, name):
    pairs = load(folder, name)
    assert isinstance(pairs, IterableDataset)
    assert list(iterate_sentences(pairs)) == list(iterate_sentences(load_pairs(folder / name, "en", "de")))
    batches = epoch_of(stream_of(pairs, tokenizer), tokenizer)
    assert sorted(pair for batch in batches for pair in batch) == sorted(PAIRS)


def test_no_batch_exceeds_the_budget_and_similar_lengths_are_together(folder, tokenizer):
    stream = stream_of(load(folder), tokenizer, buffer_size=500)
    batches = list(islice(stream, 80))  # more than an epoch
    for batch in batches:
        for side in ("input_ids", "labels"):
            assert len(batch) * max(len(pair[side]) for pair in batch) <= 200
    assert 0 < stream.padding < 0.15


def test_report_and_padding_are_those_of_the_batches_made(folder, tokenizer):
    stream = stream_of(load(folder), tokenizer, buffer_size=500)
    assert (stream.report.kept, stream.padding) == (0, 0)
    next(iter(stream))
    assert stream.report.kept == len(PAIRS) and 0 < stream.padding < 0.15


def test_epochs_differ_in_order(folder, tokenizer):
    stream = iter(stream_of(load(folder), tokenizer, buffer_size=500))
    first, second = ([], [])
    for epoch in (first, second):
        while len(epoch) < len(PAIRS):
            epoch += texts(tokenizer, next(stream))
    assert sorted(first) == sorted(second) == sorted(PAIRS)
    assert first != second


@pytest.mark.parametrize("name", ["plain", "nested.parquet"])
@pytest.mark.parametrize("taken", [0, 1, 7, 20, 53, 90])
def test_resumes_at_the_sentence_where_it_stopped(folder, tokenizer, name, taken, monkeypatch):
    """In the first buffer, in later ones and in later epochs, with one batch made ahead as the Trainer may do."""
    whole = list(islice(stream_of(load(folder, name), tokenizer), 120))
    stopped = stream_of(load(folder, name), tokenizer)
    assert list(islice(stopped, taken + 1)) == whole[: taken + 1]
    position = json.loads(json.dumps(stopped.position(taken)))

    tokenized: list[str] = []

    def recorded(batch, *args):
        tokenized.extend(batch["source"])
        return encode_batch(batch, *args)

    monkeypatch.setattr("vanilla_transformer.data.streaming.encode_batch", recorded)
    resumed = stream_of(load(folder, name), tokenizer)
    resumed.resume(position)
    assert next(iter(resumed)) == whole[taken]
    assert len(tokenized) <= 64, "the buffer in which it stopped is filled again, and nothing before it"
    assert list(islice(resumed, 120 - taken)) == whole[taken:]


def test_processes_take_the_batches_in_turn(folder, tokenizer):
    whole = list(islice(stream_of(load(folder), tokenizer), 60))
    for index in range(2):
        share = stream_of(load(folder), tokenizer, process_index=index, num_processes=2)
        assert list(islice(share, 30)) == whole[index::2]


@pytest.mark.parametrize("taken", [7, 12, 53])
def test_another_number_of_processes_continues_where_the_run_stopped(folder, tokenizer, taken):
    whole = list(islice(stream_of(load(folder), tokenizer), 90))
    stopped = stream_of(load(folder), tokenizer, num_processes=2)
    list(islice(stopped, taken))
    position = json.loads(json.dumps(stopped.position(taken)))
    shares = []
    for index in range(3):
        share = stream_of(load(folder), tokenizer, process_index=index, num_processes=3)
        share.resume(position)
        shares.append(list(islice(share, 10)))
    for step in range(10):  # each process takes one of the next three batches, which one does not matter
        together = [share[step] for share in shares]
        expected = whole[taken + 3 * step : taken + 3 * step + 3]
        assert sorted(map(str, together)) == sorted(map(str, expected))


def test_what_is_dropped_is_counted(tmp_path, tokenizer):
    (tmp_path / "train.en").write_text("good\n\ngood too\n" + "long " * 200 + "\n\n")
    (tmp_path / "train.de").write_text("gut\nleer\nauch gut\nlang\n\n")
    stream = stream_of(load_pairs(tmp_path / "train", "en", "de", streaming=True), tokenizer, buffer_size=1)
    seen = [texts(tokenizer, batch) for batch in islice(stream, 3)]
    assert sorted(pair for batch in seen for pair in batch) == [
        ("good", "gut"),
        ("good", "gut"),
        ("good too", "auch gut"),
    ]
    assert str(stream.report).startswith("kept 3 of 6 pairs; dropped 2 with an empty side, 1 over")


def test_what_can_not_be_is_refused_with_a_sentence(tmp_path, folder, tokenizer):
    with pytest.raises(UserError, match="may have 100 tokens, but a batch may hold 50; raise the token budget"):
        stream_of(load(folder), tokenizer, max_tokens=50)
    with pytest.raises(UserError, match="buffer_size is 0; it must be an integer of at least 1"):
        stream_of(load(folder), tokenizer, buffer_size=0)
    with pytest.raises(UserError, match="no sentence pair is left: kept 0 of 230 pairs"):
        next(iter(stream_of(load(folder), tokenizer, max_source_length=2)))
    (tmp_path / "train.en").write_text("one\ntwo\n")
    (tmp_path / "train.de").write_text("eins\n")
    with pytest.raises(UserError, match="has 2 lines but .* has 1"):
        next(iter(stream_of(load_pairs(tmp_path / "train", "en", "de", streaming=True), tokenizer)))
    with pytest.raises(UserError, match="there is no column 'fr'"):
        load_pairs(folder / "nested.parquet", "en", "fr", streaming=True)

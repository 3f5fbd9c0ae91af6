"""Which pairs are dropped and why, what they are tokenized to, and that it is cached."""

import dataclasses
import json
import os
import subprocess
import sys
import textwrap

import pytest
from datasets import Dataset
from pair_files import write_prefix
from transformers import AutoTokenizer

from vanilla_transformer.data.encoding import DropReport, encode_pairs
from vanilla_transformer.data.reading import load_pairs
from vanilla_transformer.errors import UserError

pytestmark = pytest.mark.usefixtures("empty_cache")


@pytest.fixture
def tokenizer(english_german_tokenizer):
    return english_german_tokenizer


def make_pairs(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_dict({"source": [p[0] for p in pairs], "target": [p[1] for p in pairs]})


def encode(pairs: Dataset, tokenizer, **limits) -> tuple[Dataset, DropReport]:
    defaults = {"max_source_length": 50, "max_target_length": 50, "max_length_ratio": 3.0}
    return encode_pairs(pairs, tokenizer, **(defaults | limits))


def test_drops_are_counted_by_reason(tokenizer):
    pairs = make_pairs(
        ("A dog runs.", "Ein Hund rennt."),
        ("", "Ein Hund"),
        ("A dog", " \u3000\t"),
        ("dog " * 51, "Hund"),
        ("dog", "Hund " * 51),
        ("a", "Zwei Männer und ein Hund und zwei Männer und ein Hund."),
        ("Two men walk.", "Zwei Männer gehen."),
    )
    encoded, report = encode(pairs, tokenizer)
    assert report == DropReport(kept=2, empty=2, too_long=2, length_ratio=1)
    assert str(report) == (
        "kept 2 of 7 pairs; dropped 2 with an empty side, 2 over the length limit, 1 over the length ratio"
    )
    assert encoded.column_names == ["input_ids", "labels"]
    assert tokenizer.batch_decode(encoded["input_ids"][:], skip_special_tokens=True) == ["A dog runs.", "Two men walk."]
    assert encoded["labels"][:] == [tokenizer(pairs["target"][i])["input_ids"] for i in (0, 6)]
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.kept = 0


def test_length_limits_include_eos_and_nothing_is_cut(tokenizer):
    text = "A dog runs and two men walk."
    length = len(tokenizer(text)["input_ids"])
    pairs = make_pairs((text, text), ("dog", "Hund"))
    encoded, report = encode(pairs, tokenizer, max_source_length=length, max_target_length=length)
    assert report.kept == 2
    assert len(encoded[0]["input_ids"]) == len(encoded[0]["labels"]) == length
    assert encode(pairs, tokenizer, max_source_length=length - 1, max_target_length=length)[1].too_long == 1
    assert encode(pairs, tokenizer, max_source_length=length, max_target_length=length - 1)[1].too_long == 1


def test_length_ratio_spares_short_sentences(tokenizer):
    def report(source_length: int, target_length: int, ratio: float) -> DropReport:
        texts = ["~" * (length - 1) for length in (source_length, target_length)]  # a token each, and </s>
        return encode(make_pairs(("a", "b"), tuple(texts)), tokenizer, max_length_ratio=ratio)[1]

    assert report(2, 10, 1.5).length_ratio == 0
    assert report(2, 11, 1.5).length_ratio == 1
    assert report(11, 2, 1.5).length_ratio == 1
    assert report(10, 20, 2.0).length_ratio == 0
    assert report(10, 21, 2.0).length_ratio == 1
    assert report(2, 40, float("inf")).length_ratio == 0


def test_nothing_left(tokenizer):
    with pytest.raises(UserError, match="no sentence pair is left: kept 0 of 2 pairs; dropped 1 with an empty side, 1"):
        encode(make_pairs(("", "a"), ("dog", "Hund")), tokenizer, max_source_length=2)
    with pytest.raises(UserError, match="holds no sentence pairs"):
        encode(make_pairs(("a", "b")).select([]), tokenizer)


def test_a_tokenizer_that_never_appends_eos_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(file | {"post_processor": None}))
    with pytest.raises(UserError, match="does not append its end-of-sentence token"):
        encode(make_pairs(("a", "b")), AutoTokenizer.from_pretrained(tmp_path))


def test_special_tokens_in_a_sentence_stay_text_in_every_process(tokenizer):
    pairs = make_pairs(*[("Two </s> men", "Zwei <pad> Männer")] * 4)
    encoded, _ = encode(pairs, tokenizer, num_proc=2)
    for example in encoded:
        assert example["input_ids"].count(tokenizer.eos_token_id) == 1
        assert tokenizer.pad_token_id not in example["labels"]


def test_a_new_process_finds_the_tokenized_pairs_and_prints_no_warning(tokenizer, tmp_path):
    """In one process, then in another with a tokenizer that was saved, loaded and has padded."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prefix = write_prefix(tmp_path, ["Two men", "long " * 300, "A dog"] * 5, ["Zwei Männer", "lang " * 300, "Hund"] * 5)
    encoded, report = encode(load_pairs(prefix, "en", "de"), tokenizer)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")}
    script = f"""
        import datasets
        from transformers import AutoTokenizer
        from vanilla_transformer.data.encoding import encode_pairs
        from vanilla_transformer.data.reading import load_pairs
        from vanilla_transformer.data.numbers import number_pairs
        from vanilla_transformer.data.tokenization import train_tokenizer

        numbers = number_pairs("en", "fr", "test", 3)
        trained = train_tokenizer(numbers["source"], 300)
        trained.model_max_length = 8
        limits = dict(max_source_length=50, max_target_length=50, max_length_ratio=3.0)
        encode_pairs(numbers, trained, **limits)
        encode_pairs(numbers, trained, **(limits | dict(max_source_length=49)), num_proc=4)

        datasets.config.HF_DATASETS_CACHE = {str(tmp_path / "cache")!r}
        tokenizer = AutoTokenizer.from_pretrained({str(tmp_path / "tokenizer")!r})
        tokenizer(["Two", "Two men"], padding=True, truncation=True, max_length=3)
        encoded, report = encode_pairs(load_pairs({prefix!r}, "en", "de"), tokenizer, **limits, num_proc=2)
        print(report)
        print(encoded._fingerprint)
    """
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    environment |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_CACHE": str(tmp_path / "other")}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert (result.stderr, result.returncode) == ("", 0)
    assert result.stdout.split("\n") == [str(report), encoded._fingerprint, ""]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.arrow")} == files


@pytest.mark.parametrize(
    "change", [{"max_source_length": 9}, {"max_target_length": 9}, {"max_length_ratio": 2.0}, {"num_proc": 2}]
)
def test_other_limits_are_other_pairs_other_processes_are_not(tokenizer, tmp_path, change):
    pairs = load_pairs(write_prefix(tmp_path, ["Two men"] * 3, ["Zwei"] * 3), "en", "de")
    before, after = encode(pairs, tokenizer)[0], encode(pairs, tokenizer, **change)[0]
    assert (before.cache_files == after.cache_files) is ("num_proc" in change)


def test_a_data_set_with_other_columns_is_refused(tokenizer):
    with pytest.raises(UserError, match="the data set has no column 'target'"):
        encode(Dataset.from_dict({"source": ["a"], "de": ["b"]}), tokenizer)

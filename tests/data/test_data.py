import dataclasses
import gzip
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import datasets
import pytest
import torch
from datasets import Dataset, Features, Translation, Value
from transformers import AutoTokenizer, Seq2SeqTrainer, Seq2SeqTrainingArguments

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data import reading
from vanilla_transformer.data.batching import TranslationCollator
from vanilla_transformer.data.encoding import DropReport, encode_pairs
from vanilla_transformer.data.reading import load_pairs, read_lines
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError

ENGLISH = ['Two "men" walk.', "A dog,\u2028a cat\x0b and\x85 more", "", "  spaces  and a \r inside"]
GERMAN = ["Zwei 'Männer' gehen.", "Ein Hund\u2029 und mehr", "leer", "Leerzeichen 👍🏽"]
PAIRS = [{"source": source, "target": target} for source, target in zip(ENGLISH, GERMAN, strict=True)]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["Two men walk and a dog runs.", "Zwei Männer gehen und ein Hund rennt."] * 20, 300)


def write(path: Path, text: str) -> str:
    """Writes a file exactly as given, gzipped if its name says so."""
    content = text.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def write_prefix(folder: Path, source: list[str], target: list[str], suffix: str = "", end: str = "\n") -> str:
    write(folder / f"train.en{suffix}", "".join(line + end for line in source))
    write(folder / f"train.de{suffix}", "".join(line + end for line in target))
    return str(folder / "train")


def pairs_of(*pairs: tuple[str, str]) -> Dataset:
    return Dataset.from_dict({"source": [p[0] for p in pairs], "target": [p[1] for p in pairs]})


def encode(pairs: Dataset, tokenizer, **limits) -> tuple[Dataset, DropReport]:
    defaults = {"max_source_length": 50, "max_target_length": 50, "max_length_ratio": 3.0}
    return encode_pairs(pairs, tokenizer, **(defaults | limits))


# Reading


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_prefix_files_are_read_line_by_line_exactly(tmp_path, suffix, end):
    pairs = load_pairs(write_prefix(tmp_path, ENGLISH, GERMAN, suffix, end), "en", "de")
    assert pairs.to_list() == PAIRS
    assert pairs.features == Features({"source": Value("string"), "target": Value("string")})


def test_the_languages_decide_the_direction(tmp_path):
    prefix = write_prefix(tmp_path, ENGLISH, GERMAN)
    assert load_pairs(prefix, "de", "en")["source"][:] == GERMAN


def test_last_line_needs_no_line_feed_and_a_byte_order_mark_is_no_text(tmp_path):
    path = write(tmp_path / "text", "\ufeffone\ntwo\n\nfour")
    assert read_lines(path) == ["one", "two", "", "four"]
    assert read_lines(write(tmp_path / "text.gz", "one\n\n")) == ["one", ""]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_tsv_takes_quotes_as_they_are(tmp_path, suffix):
    lines = ["id\tde\ten", *(f"{i}\t{pair['target']}\t{pair['source']}" for i, pair in enumerate(PAIRS))]
    path = write(tmp_path / f"pairs.tsv{suffix}", "\n".join(lines))
    assert load_pairs(path, "en", "de").to_list() == PAIRS


def test_csv_takes_quotes_as_quoting(tmp_path):
    path = write(tmp_path / "pairs.csv", 'en,de\n"Two ""men"", walking",Männer\n"a\r\nline","NA"\n\nnull,1.0\n')
    assert load_pairs(path, "en", "de").to_list() == [
        {"source": 'Two "men", walking', "target": "Männer"},
        {"source": "a\r\nline", "target": "NA"},
        {"source": "", "target": ""},
        {"source": "null", "target": "1.0"},
    ]


@pytest.mark.parametrize("nested", [False, True])
def test_jsonl(tmp_path, nested):
    rows = [{"en": pair["source"], "de": pair["target"] or None} for pair in PAIRS]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps({"translation": r} if nested else r) + "\n" for r in rows))
    assert load_pairs(path, "en", "de").to_list() == PAIRS


@pytest.mark.parametrize("nested", [False, True])
def test_parquet(tmp_path, nested):
    rows = [{"en": pair["source"] or None, "de": pair["target"], "fr": "x"} for pair in PAIRS]
    Dataset.from_list([{"translation": r} if nested else r for r in rows]).to_parquet(tmp_path / "a.parquet")
    assert load_pairs(tmp_path / "a.parquet", "en", "de").to_list() == PAIRS


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_hub_data_set(monkeypatch, nested, streaming):
    rows = [{"en": pair["source"], "de": pair["target"]} for pair in PAIRS]
    plain = Dataset.from_list(rows)
    translation = Dataset.from_dict({"translation": rows}, Features({"translation": Translation(["de", "en"])}))
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        dataset = translation if nested else plain
        return dataset.to_iterable_dataset() if streaming else dataset

    monkeypatch.setattr(reading, "load_dataset", load_dataset)
    pairs = load_pairs("someone/some-data", "en", "de", split="test", config_name="de-en", streaming=streaming)
    assert list(pairs) == PAIRS
    assert asked == [(("someone/some-data", "de-en"), {"split": "test", "streaming": streaming})]


def test_pairs_are_memory_mapped_and_made_once(tmp_path, monkeypatch):
    prefix = write_prefix(tmp_path, ENGLISH, GERMAN)
    first = load_pairs(prefix, "en", "de")
    assert first.cache_files
    with monkeypatch.context() as patch:
        patch.setattr(reading, "_iterate_lines", None)
        assert load_pairs(prefix, "en", "de").to_list() == first.to_list()
    write(tmp_path / "train.en", "changed\n" * 4)
    assert load_pairs(prefix, "en", "de")["source"][:] == ["changed"] * 4


def test_a_changed_parquet_file_is_read_again(tmp_path):
    for sentence in ("one", "zwei"):
        Dataset.from_dict({"en": [sentence], "de": [sentence]}).to_parquet(tmp_path / "a.parquet")
        assert load_pairs(tmp_path / "a.parquet", "en", "de")["source"][:] == [sentence]


# Data that can't be read


@pytest.mark.parametrize(("source", "target"), [(5, 3), (3, 5), (0, 1), (1, 0)])
def test_files_of_different_length(tmp_path, source, target):
    prefix = write_prefix(tmp_path, ["a"] * source, ["b"] * target)
    shorter = min(source, target)
    message = f"train.en has {source} lines but .*train.de has {target}, so lines {shorter + 1} and after"
    with pytest.raises(UserError, match=message):
        load_pairs(prefix, "en", "de")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_undecodable_bytes(tmp_path, suffix):
    content = "gut\nschön\n".encode() + "schön\n".encode("latin-1")
    (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(UserError, match=rf"a{suffix}, line 3: byte 0xf6 at position 4 .* iconv"):
        read_lines(tmp_path / f"a{suffix}")


def test_undecodable_bytes_in_one_file_of_a_prefix(tmp_path):
    prefix = write_prefix(tmp_path, ["a", "b"], ["c", "d"])
    (tmp_path / "train.de").write_bytes(b"c\n\xff\xfe\n")
    with pytest.raises(UserError, match=r"train.de, line 2: byte 0xff at position 1"):
        load_pairs(prefix, "en", "de")


def test_broken_gzip(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"line\n" * 1000)[:-20])
    with pytest.raises(UserError, match=r"a\.gz.*check the path and the file"):
        read_lines(tmp_path / "a.gz")
    (tmp_path / "b.gz").write_bytes(b"plain\n")
    with pytest.raises(UserError, match=r"b\.gz: Not a gzipped file"):
        read_lines(tmp_path / "b.gz")


def test_unknown_file():
    with pytest.raises(UserError, match=r"no/such/file: No such file or directory; check"):
        read_lines("no/such/file")
    with pytest.raises(UserError, match=r"pairs.tsv can't be read: No such file or directory"):
        load_pairs("pairs.tsv", "en", "de")
    with pytest.raises(UserError, match=r"pairs.parquet can't be read: no such file"):
        load_pairs("pairs.parquet", "en", "de")
    with pytest.raises(UserError, match=r"no /data/train: looked for /data/train.en or /data/train.en.gz and .*de.gz"):
        load_pairs("/data/train", "en", "de")


def test_missing_language_file(tmp_path):
    prefix = write_prefix(tmp_path, ["a"], ["b"])
    with pytest.raises(UserError, match=r"'fr' half .* there is .*train.en, but no .*train.fr or .*train.fr.gz"):
        load_pairs(prefix, "en", "fr")


def test_file_of_unknown_kind_and_folder(tmp_path):
    for path in (tmp_path, write(tmp_path / "pairs.xlsx", "")):
        with pytest.raises(UserError, match="give a .tsv, .csv, .jsonl or .parquet file, or the prefix"):
            load_pairs(path, "en", "de")


def test_the_same_language_twice(tmp_path):
    with pytest.raises(UserError, match="both 'en'"):
        load_pairs(write_prefix(tmp_path, ["a"], ["b"]), "en", "en")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "a.parquet"])
def test_missing_column(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        Dataset.from_dict({"en": ["a"], "fr": ["b"]}).to_parquet(path)
    else:
        write(path, {"a.tsv": "en\tfr\na\tb\n", "a.csv": "en,fr\na,b\n", "a.jsonl": '{"en": "a", "fr": "b"}\n'}[name])
    with pytest.raises(UserError, match=rf"{name}.*: there is no column 'de' but 'en', 'fr'; name"):
        load_pairs(path, "en", "de")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "en\tde\na\tb\na\tb\tc\n", r"a.tsv, line 3: 3 columns, but the first line names 2 \('en', 'de'\)"),
        ("a.tsv", "en\tde\na\n", r"a.tsv, line 2: 1 columns"),
        ("a.csv", 'en,de\n"a\nb",c\nd\n', r"a.csv, line 4: 1 columns"),
        ("a.csv", 'en,de\na,"b\n', r"a.csv, line 2: .*fix the quoting"),
        ("a.jsonl", '{"en": "a", "de": "b"}\n{"en"\n', r"a.jsonl, line 2: not JSON"),
        ("a.jsonl", '["a", "b"]\n', r"a.jsonl, line 1: '\[\"a\", \"b\"\]' is no JSON object"),
        ("a.jsonl", '{"en": "a", "de": 1}\n', r"a.jsonl, line 1: 'de' is 1; it must be a string"),
        ("a.jsonl", '{"en": "\\ud83d", "de": "b"}\n', r"a.jsonl, line 1: 'en' is '\\ud83d'; it must be a string"),
        ("a.parquet", "no Parquet", r"a.parquet can't be read as Parquet: "),
    ],
)
def test_malformed_files(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as raised:
        load_pairs(write(tmp_path / name, text), "en", "de")
    assert "\n" not in str(raised.value)


def test_numbers_where_sentences_belong(tmp_path):
    Dataset.from_dict({"en": ["a"], "de": [1]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet: column 'de' holds int64; it must hold strings"):
        load_pairs(tmp_path / "a.parquet", "en", "de")


@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl", "train"])
def test_data_without_pairs(tmp_path, name):
    write_prefix(tmp_path, [], [])
    if name != "train":
        write(tmp_path / name, {"a.tsv": "en\tde\n", "a.csv": "", "a.jsonl": ""}[name])
    with pytest.raises(UserError, match="holds no sentence pairs"):
        load_pairs(tmp_path / name, "en", "de")


def test_hub_data_set_out_of_reach():
    with pytest.raises(UserError, match=r"someone/data is neither a pair of files here .* nor, with split 'test'") as e:
        load_pairs("someone/data", "en", "de", split="test")
    assert "\n" not in str(e.value)


# Filtering and tokenizing


def test_drops_are_counted_by_reason(tokenizer):
    pairs = pairs_of(
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
    pairs = pairs_of((text, text), ("dog", "Hund"))
    encoded, report = encode(pairs, tokenizer, max_source_length=length, max_target_length=length)
    assert report.kept == 2
    assert len(encoded[0]["input_ids"]) == len(encoded[0]["labels"]) == length
    assert encode(pairs, tokenizer, max_source_length=length - 1, max_target_length=length)[1].too_long == 1
    assert encode(pairs, tokenizer, max_source_length=length, max_target_length=length - 1)[1].too_long == 1


def test_length_ratio_spares_short_sentences(tokenizer):
    def report(source_length: int, target_length: int, ratio: float) -> DropReport:
        texts = ["~" * (length - 1) for length in (source_length, target_length)]  # a token each, and </s>
        return encode(pairs_of(("a", "b"), tuple(texts)), tokenizer, max_length_ratio=ratio)[1]

    assert report(2, 10, 1.5).length_ratio == 0
    assert report(2, 11, 1.5).length_ratio == 1
    assert report(11, 2, 1.5).length_ratio == 1
    assert report(10, 20, 2.0).length_ratio == 0
    assert report(10, 21, 2.0).length_ratio == 1
    assert report(2, 40, float("inf")).length_ratio == 0


def test_nothing_left(tokenizer):
    with pytest.raises(UserError, match="no sentence pair is left: kept 0 of 2 pairs; dropped 1 with an empty side, 1"):
        encode(pairs_of(("", "a"), ("dog", "Hund")), tokenizer, max_source_length=1)
    with pytest.raises(UserError, match="holds no sentence pairs"):
        encode(pairs_of(("a", "b")).select([]), tokenizer)


def test_trap_10_tokenizer_that_never_appends_eos_is_refused(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    file = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(file | {"post_processor": None}))
    with pytest.raises(UserError, match="does not append its end-of-sentence token"):
        encode(pairs_of(("a", "b")), AutoTokenizer.from_pretrained(tmp_path))


def test_special_tokens_in_a_sentence_stay_text_in_every_process(tokenizer):
    pairs = pairs_of(*[("Two </s> men", "Zwei <pad> Männer")] * 4)
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


# Batches


@pytest.fixture
def examples(tokenizer):
    return encode(pairs_of(("Two men walk and", "Zwei"), ("A", "Ein Hund rennt."), ("A dog", "Hund")), tokenizer)[0]


def test_trap_20_the_collator_gives_the_decoder_its_input(examples, tokenizer):
    features = [{**examples[i], "length": 3, "text": "extra columns are ignored"} for i in range(3)]
    batch = TranslationCollator(tokenizer, decoder_start_token_id=0)(features)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "decoder_input_ids"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    for row, example in enumerate(features):
        source, target = example["input_ids"], example["labels"]
        assert batch["input_ids"][row, : len(source)].tolist() == source
        assert batch["input_ids"][row, len(source) :].eq(tokenizer.pad_token_id).all()
        assert batch["attention_mask"][row].sum() == batch["attention_mask"][row, : len(source)].sum() == len(source)
        assert batch["labels"][row, : len(target)].tolist() == target
        assert batch["labels"][row, len(target) :].eq(-100).all()
        assert batch["decoder_input_ids"][row, : len(target)].tolist() == [0, *target[:-1]]
    assert batch["decoder_input_ids"].min() >= 0
    assert batch["decoder_input_ids"].shape == batch["labels"].shape


def test_pad_to_multiple_of(examples, tokenizer):
    batch = TranslationCollator(tokenizer, decoder_start_token_id=0, pad_to_multiple_of=8)(list(examples))
    assert {tensor.shape[1] % 8 for tensor in batch.values()} == {0}


def test_stock_trainer_trains_evaluates_and_saves(examples, tokenizer, tmp_path, caplog):
    """With label smoothing (trap 20), generation in evaluation, and the tokenizer's saved name (trap 14)."""
    config = VanillaTransformerConfig.preset("tiny", vocab_size=len(tokenizer), encoder_layers=1, decoder_layers=1)
    trainer = Seq2SeqTrainer(
        VanillaTransformerForConditionalGeneration(config),
        Seq2SeqTrainingArguments(
            tmp_path,
            max_steps=2,
            per_device_train_batch_size=2,
            label_smoothing_factor=0.1,
            predict_with_generate=True,
            generation_max_length=8,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        data_collator=TranslationCollator(tokenizer, config.decoder_start_token_id),
        train_dataset=examples,
        eval_dataset=examples,
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(examples).predictions.shape[0] == len(examples)
    assert "__call__" not in caplog.text
    trainer.save_model()
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"

"""Each kind of data gives the same pairs, and what can't be read is refused with a sentence."""

import bz2
import errno
import gzip
import json
import lzma
import os

import pytest
from datasets import Dataset, Features, Translation, Value
from pair_files import ENGLISH, GERMAN, PAIRS, write, write_prefix

from vanilla_transformer.data import reading, text_files
from vanilla_transformer.data.reading import load_pairs
from vanilla_transformer.data.text_files import iterate_lines, read_lines
from vanilla_transformer.errors import UserError

pytestmark = pytest.mark.usefixtures("empty_cache")


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
        patch.setattr(reading, "iterate_lines", None)
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
    with pytest.raises(UserError, match=r"pairs.tsv can't be read: no such file"):
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


# Files that are not what they seem

MANY = "\t".join(map(str, range(5_000)))


def test_a_replaced_file_is_read_anew_though_size_and_time_are_the_same(tmp_path):
    prefix = write_prefix(tmp_path, ["one", "two"], ["eins", "zwei"])
    table = write(tmp_path / "a.tsv", "en\tde\none\teins\n")
    parquet = tmp_path / "a.parquet"

    def read() -> list[str]:
        return [load_pairs(data, "en", "de")["source"][0] for data in (prefix, table, parquet)]

    Dataset.from_dict({"en": ["one"], "de": ["eins"]}).to_parquet(parquet)
    assert read() == ["one"] * 3
    for path in (tmp_path / "train.en", tmp_path / "a.tsv", parquet):
        before = path.stat()
        path.write_bytes(path.read_bytes().replace(b"one", b"uno"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert read() == ["uno"] * 3


def test_the_same_content_is_found_in_the_cache_under_any_name_and_time(tmp_path, monkeypatch):
    first = load_pairs(write_prefix(tmp_path, ENGLISH, GERMAN), "en", "de")
    (tmp_path / "copy").mkdir()
    prefix = write_prefix(tmp_path / "copy", ENGLISH, GERMAN)
    monkeypatch.setattr(reading, "iterate_lines", None)
    second = load_pairs(prefix, "en", "de")
    assert second.to_list() == first.to_list() and second._fingerprint == first._fingerprint


def test_utf16_nul_bytes_and_gzip_without_its_name(tmp_path):
    text = "Two men\n"
    for content, message in [
        (text.encode("utf-16"), r"a\.txt, line 1: byte 0xff at position 1 is not valid UTF-8; convert"),
        (text.encode("utf-16-le"), r"a\.txt, line 1: there is a NUL byte, so this is no UTF-8 text; convert"),
        (b"good\nb\0d\n", r"a\.txt, line 2: there is a NUL byte"),
        (gzip.compress(text.encode()), r"a\.txt is compressed with gzip; unpack it first, or give .* ends in \.gz"),
        (lzma.compress(text.encode()), r"a\.txt is compressed with xz; unpack it first"),
        (bz2.compress(text.encode()), r"a\.txt is compressed with bzip2; unpack it first"),
    ]:
        (tmp_path / "a.txt").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_lines(tmp_path / "a.txt")


def test_a_name_in_capitals_is_of_gzip_too(tmp_path):
    (tmp_path / "a.TSV.GZ").write_bytes(gzip.compress(b"Two men\n"))
    assert read_lines(tmp_path / "a.TSV.GZ") == ["Two men"]


def test_a_gzip_file_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    zeros = gzip.compress(bytes(1 << 25))
    (tmp_path / "line.gz").write_bytes(zeros)
    with pytest.raises(UserError, match=r"line\.gz, line 1 has over 16,777,216 bytes"):
        read_lines(tmp_path / "line.gz")
    monkeypatch.setattr(text_files, "_SMALL", 1 << 20)
    (tmp_path / "lines.gz").write_bytes(gzip.compress(b"\n" * (1 << 25)))
    with pytest.raises(UserError, match=r"lines\.gz, line [\d]+: the file unpacks to 500 times its size"):
        for _ in iterate_lines(tmp_path / "lines.gz"):
            pass


@pytest.mark.parametrize("streaming", [False, True])
def test_folders_and_pipes_are_no_data_files(tmp_path, streaming):
    (tmp_path / "folder.tsv").mkdir()
    (tmp_path / "folder.parquet").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("folder.tsv", "folder.parquet", "pipe.jsonl"):
        with pytest.raises(UserError, match=f"{name} can't be read: not a regular file"):
            load_pairs(tmp_path / name, "en", "de", streaming=streaming)
    with pytest.raises(UserError, match="Is a directory"):
        read_lines(tmp_path)


def test_a_file_that_can_not_be_opened_or_vanishes(tmp_path, monkeypatch):
    prefix = write_prefix(tmp_path, ENGLISH, GERMAN)

    def vanish(path):
        (tmp_path / "train.de").unlink(missing_ok=True)
        return str(path)

    monkeypatch.setattr(reading, "file_digest", vanish)
    with pytest.raises(UserError, match=r"train\.de: No such file or directory; check the path"):
        load_pairs(prefix, "en", "de")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "en\tde\ten\na\tb\tc\n", r"a\.tsv, line 1: 'en' names two columns; give each a name of its own"),
        ("a.csv", "en,de,de\na,b,c\n", r"a\.csv, line 1: 'de' names two columns"),
        ("a.jsonl", '{"en": "a", "de": "b", "en": "c"}\n', r"a\.jsonl, line 1: not JSON \('en' is there twice\)"),
        ("a.jsonl", '{"en": "a", "de": [' + "1," * 5_000 + "1]}\n", r"'de' is \[1, 1, .*; it must be a string"),
        ("a.tsv", MANY + "\n" + MANY + "\n", r"no column 'en' but .* and 4980 more"),
        ("a.tsv", MANY + "\nx\n", r"1 columns, but the first line names 5000"),
        ("a.jsonl", "[" * 100_000 + "\n", r"a\.jsonl, line 1: not JSON \(maximum recursion depth"),
        ("a.jsonl", '{"en": "a", "de": ' + "1" * 5_000 + "}\n", r"a\.jsonl, line 1: not JSON \(Exceeds the limit"),
        (
            "a.csv",
            'en,de\na,b\na,"b\n' + "c,d\n" * 40_000,
            r"a\.csv, line \d+: .* row that begins on line 3; fix",
        ),
    ],
)
def test_malformed_rows_are_refused_in_a_short_sentence(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message) as raised:
        load_pairs(write(tmp_path / name, text), "en", "de")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_columns_without_a_name_may_repeat(tmp_path):
    pairs = load_pairs(write(tmp_path / "a.tsv", "en\t\tde\t\na\t1\tb\t2\n"), "en", "de")
    assert pairs.to_list() == [{"source": "a", "target": "b"}]


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("datasets.arrow_writer.ArrowWriter.finalize", full)
    with pytest.raises(UserError, match="can't write the data cache .*No space left on device; free some space"):
        load_pairs(write_prefix(tmp_path, ENGLISH, GERMAN), "en", "de")


def test_a_stream_that_can_not_be_read_is_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="no column 'de'"):
        load_pairs(write(tmp_path / "a.tsv", "en\tfr\na\tb\n"), "en", "de", streaming=True)
    with pytest.raises(UserError, match="holds no sentence pairs"):
        load_pairs(write(tmp_path / "b.tsv", "en\tde\n"), "en", "de", streaming=True)

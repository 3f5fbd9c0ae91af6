"""Sentence pairs from files and from the Hub, as memory-mapped or streamed data sets."""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetsError
from datasets.fingerprint import Hasher

from ..errors import UserError, first_line

CACHE_VERSION = 1  # to be raised when the same input leads to other pairs or ids: old caches are not found then
PAIR_FEATURES = Features({"source": Value("string"), "target": Value("string")})


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_pairs(
    data: str | os.PathLike,
    source_lang: str,
    target_lang: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """Read sentence pairs.

    `data` is one of these, all text in UTF-8; the text files may also be gzipped, with `.gz` after the name:

    - A prefix of two files with one sentence per line, `train` for `train.en` and `train.de`. Lines end at a line
      feed (or carriage return and line feed) and nowhere else.
    - A `.tsv` file. The first line names the columns, two of them after the languages; other columns are ignored. Tabs
      and line feeds separate, every other character (quotes too) stands for itself.
    - A `.csv` file. The first line names the columns as above; commas separate, fields may be quoted as in RFC 4180.
    - A `.jsonl` file, one object per line: `{"en": "...", "de": "..."}` or the same inside `{"translation": {...}}`.
    - A `.parquet` file with the same columns or the same `translation` structure.
    - The id of a data set on the Hub with the same columns or the same `translation` structure.

    A blank line, or a missing value, is an empty sentence: it keeps its place here, and `encode_pairs` drops it.

    Args:
        data: Prefix, file or Hub id.
        source_lang: Suffix or column name of the source sentences, such as "en".
        target_lang: Suffix or column name of the target sentences.
        split: Which split of a Hub data set. Files have none.
        config_name: Which configuration of a Hub data set. Files have none.
        streaming: Whether to read pairs as they are needed, for data that does not fit into memory or cache.

    Returns:
        A memory-mapped data set with the string columns "source" and "target"; an iterable one when streaming.

    Raises:
        UserError: The data can't be found, or can't be read as sentence pairs of the two languages. When streaming,
            what is wrong in the middle of a file is found when it is read.
    """
    data = os.fspath(data)
    if source_lang == target_lang:
        raise UserError(f"source and target language are both {source_lang!r}; name two different ones")
    extension = Path(data.removesuffix(".gz")).suffix
    if extension in _ROW_READERS:
        pairs = _read_files(_read_table, (data,), source_lang, target_lang, streaming)
    elif extension == ".parquet":
        pairs = _load_parquet(data, source_lang, target_lang, streaming)
    else:
        candidates = {lang: (f"{data}.{lang}", f"{data}.{lang}.gz") for lang in (source_lang, target_lang)}
        files = {lang: next(filter(os.path.isfile, names), None) for lang, names in candidates.items()}
        looked_for = " or ".join(candidates[source_lang]) + " and " + " or ".join(candidates[target_lang])
        missing = [lang for lang, file in files.items() if file is None]
        if not missing:
            pairs = _read_files(_read_parallel, tuple(files.values()), source_lang, target_lang, streaming)
        elif len(missing) == 1:
            raise UserError(
                f"the {missing[0]!r} half of the pairs is missing: there is {next(filter(None, files.values()))}, but "
                f"no {' or '.join(candidates[missing[0]])}; add that file, or check the language codes"
            )
        elif os.path.exists(data):
            raise UserError(
                f"{data} can't be read as sentence pairs: give a .tsv, .csv, .jsonl or .parquet file, or the prefix of "
                f"two files (looked for {looked_for})"
            )
        elif not _HUB_ID.fullmatch(data):
            raise UserError(f"there is no {data}: looked for {looked_for}; check the path and the language codes")
        else:
            pairs = _load_from_hub(data, source_lang, target_lang, split, config_name, looked_for, streaming)
    if not streaming and len(pairs) == 0:
        raise UserError(no_pairs(data))
    return pairs


def iterate_sentences(pairs: Dataset | IterableDataset) -> Iterator[str]:
    """Yields the sentences of both sides, as a tokenizer is trained on, without holding more than a thousand pairs."""
    for batch in pairs.iter(batch_size=1_000):
        yield from batch["source"]
        yield from batch["target"]


def read_lines(path: str | os.PathLike) -> list[str]:
    """`iterate_lines` in a list."""
    return list(iterate_lines(path))


def iterate_lines(path: str | os.PathLike) -> Iterator[str]:
    """Read a text file, plain or `.gz`, one sentence per line.

    Lines end at a line feed (or carriage return and line feed) and nowhere else.

    Raises:
        UserError: The file can't be opened, or isn't UTF-8; the message has file and line.
    """
    return map(_without_line_end, _iterate_lines(os.fspath(path)))


def _iterate_lines(path: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 file with their line ends, a byte order mark removed."""
    number = 0
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not valid "
            "UTF-8; convert the file, for example with iconv -t UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        where = f"{path}, after line {number}" if number else path
        raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}; check the path and the file") from None


def _without_line_end(line: str) -> str:
    return line.removesuffix("\n").removesuffix("\r")


def _read_parallel(
    source_file: str, target_file: str, source_lang: str, target_lang: str
) -> Iterator[tuple[str | None, str | None]]:
    """Yields the sentence pairs of two files."""
    lengths = [0, 0]
    for pair in zip_longest(_iterate_lines(source_file), _iterate_lines(target_file)):
        for side, line in enumerate(pair):
            lengths[side] += line is not None
        if lengths[0] == lengths[1]:
            yield _without_line_end(pair[0]), _without_line_end(pair[1])
    if lengths[0] != lengths[1]:
        raise UserError(
            f"{source_file} has {lengths[0]:,} lines but {target_file} has {lengths[1]:,}, so lines "
            f"{min(lengths) + 1:,} and after have no partner; line n of one must translate line n of the other"
        )


def _read_table(path: str, source_lang: str, target_lang: str) -> Iterator[tuple[str | None, str | None]]:
    """Yields the sentence pairs of a .tsv, .csv or .jsonl file."""
    for number, row in _ROW_READERS[Path(path.removesuffix(".gz")).suffix](path):
        if row is None:
            yield None, None
        else:
            yield _pair_of(row, f"{path}, line {number}", source_lang, target_lang)


def _pair_of(row: dict[str, Any], where: str, source_lang: str, target_lang: str) -> tuple[str | None, str | None]:
    """The two sentences of a row, which may be inside its "translation"."""
    if isinstance(row.get("translation"), dict):
        row = row["translation"]
    for lang in (source_lang, target_lang):
        if lang not in row:
            raise UserError(_missing_column(where, lang, list(row)))
        if not _is_text(row[lang]):
            raise UserError(f"{where}: {lang!r} is {row[lang]!a}; it must be a string")
    return row[source_lang], row[target_lang]


def _is_text(value: Any) -> bool:
    """Whether a value is a string that UTF-8 can hold (JSON can spell half of a surrogate pair), or is missing."""
    try:
        return value is None or isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _missing_column(where: str, lang: str, present: Sequence[str]) -> str:
    columns = ", ".join(map(repr, present)) or "none at all"
    return f"{where}: there is no column {lang!r} but {columns}; name the columns after the languages"


def _read_tsv(path: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    fields = ((n, _without_line_end(line).split("\t")) for n, line in enumerate(_iterate_lines(path), start=1))
    yield from _with_header(path, fields)


def _read_csv(path: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    reader = csv.reader(_iterate_lines(path), strict=True)
    try:
        yield from _with_header(path, ((reader.line_num, fields) for fields in reader))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; fix the quoting, or use a .tsv file") from None


def _with_header(path: str, lines: Iterator[tuple[int, list[str]]]) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yields line number and columns of each line after the first; no columns where a line is empty."""
    _, header = next(lines, (0, []))
    for number, fields in lines:
        if fields in ([], [""]):
            yield number, None
            continue
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns, but the first line names {len(header)} "
                f"({', '.join(map(repr, header))}); give every line the same columns"
            )
        yield number, dict(zip(header, fields, strict=True))


def _read_jsonl(path: str) -> Iterator[tuple[int, dict[str, Any] | None]]:
    for number, line in enumerate(_iterate_lines(path), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); write one object per line") from None
        if not isinstance(row, dict | None):
            raise UserError(f"{path}, line {number}: {line.strip()[:40]!r} is no JSON object; write one per line")
        yield number, row


_ROW_READERS: dict[str, Callable[[str], Iterator[tuple[int, dict[str, Any] | None]]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}


def _read_files(
    reader: Callable[..., Iterator], paths: tuple[str, ...], source_lang: str, target_lang: str, streaming: bool
) -> Dataset | IterableDataset:
    """The pairs that a reader finds in files; unless streaming, read again only when a file has changed."""
    stamps = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise UserError(f"{path} can't be read: {error.strerror}; check the path") from None
        stamps.append((os.path.abspath(path), status.st_size, status.st_mtime_ns))
    arguments = (*paths, source_lang, target_lang)
    if streaming:
        source = {"reader": reader, "arguments": arguments}
        return IterableDataset.from_generator(_named, PAIR_FEATURES, gen_kwargs=source)
    return generate_pairs(reader, arguments, fingerprint(reader.__name__, stamps, source_lang, target_lang))


def generate_pairs(reader: Callable[..., Iterator], arguments: tuple, fingerprint: str) -> Dataset:
    """The pairs that `reader(*arguments)` yields, written into the cache once and found there by the fingerprint.

    Raises:
        UserError: Whatever the reader raises, or it yields nothing.
    """
    try:
        return Dataset.from_generator(
            _named, PAIR_FEATURES, gen_kwargs={"reader": reader, "arguments": arguments}, fingerprint=fingerprint
        )
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise


def _named(reader: Callable[..., Iterator], arguments: tuple) -> Iterator[dict[str, str]]:
    empty = True
    for source, target in reader(*arguments):
        empty = False
        yield _as_row(source, target)
    if empty:
        raise UserError(no_pairs(arguments[0]))


def _as_row(source: str | None, target: str | None) -> dict[str, str]:
    """A pair by the names of its columns; what is missing is empty."""
    return {"source": source or "", "target": target or ""}


def no_pairs(where: str) -> str:
    return f"{where} holds no sentence pairs; give data with at least one"


def fingerprint(*parts: Any) -> str:
    """Derive a cache key from `parts` and the version of what is cached."""
    return Hasher.hash((CACHE_VERSION, parts))


def _load_parquet(path: str, source_lang: str, target_lang: str, streaming: bool) -> Dataset | IterableDataset:
    if not os.path.isfile(path):
        raise UserError(f"{path} can't be read: no such file; check the path")
    try:
        dataset = load_dataset("parquet", data_files=path, split="train", streaming=streaming)
        return _select_languages(dataset, path, source_lang, target_lang)
    except UserError:
        raise
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(
            f"{path} can't be read as Parquet: {first_line(error.__cause__ or error)}; check the file"
        ) from None


def _load_from_hub(
    data: str,
    source_lang: str,
    target_lang: str,
    split: str,
    config_name: str | None,
    looked_for: str,
    streaming: bool,
) -> Dataset | IterableDataset:
    try:
        dataset = load_dataset(data, config_name, split=split, streaming=streaming)
        return _select_languages(dataset, f"{data} on the Hub", source_lang, target_lang)
    except UserError:
        raise
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{data} is neither a pair of files here (looked for {looked_for}) nor, with split {split!r} and "
            f"configuration {config_name!r}, a data set that the Hub could give: {first_line(error.__cause__ or error)}"
        ) from None


def _select_languages(
    dataset: Dataset | IterableDataset, where: str, source_lang: str, target_lang: str
) -> Dataset | IterableDataset:
    """The columns of the two languages, as "source" and "target"."""
    if isinstance(dataset, IterableDataset):
        first = next(iter(dataset), None)
        if first is None:
            raise UserError(no_pairs(where))
        _pair_of(first, where, source_lang, target_lang)  # better refused now than in the first step

        def named(row: dict[str, Any]) -> dict[str, str]:
            return _as_row(*_pair_of(row, where, source_lang, target_lang))

        return dataset.map(named, remove_columns=list(first), features=PAIR_FEATURES)
    dataset = dataset.flatten()
    prefix = "translation." if f"translation.{source_lang}" in dataset.column_names else ""
    columns = {f"{prefix}{source_lang}": "source", f"{prefix}{target_lang}": "target"}
    for column in columns:
        if column not in dataset.column_names:
            raise UserError(_missing_column(where, column, dataset.column_names))
        if dataset.features[column].dtype not in ("string", "large_string"):
            raise UserError(f"{where}: column {column!r} holds {dataset.features[column].dtype}; it must hold strings")
    dataset = dataset.select_columns(list(columns)).rename_columns(columns)
    if any(column.null_count for column in dataset.data.columns):
        dataset = dataset.map(_blank_for_null, batched=True, desc="Filling in missing sentences")
    return dataset


def _blank_for_null(batch: dict[str, list[str | None]]) -> dict[str, list[str]]:
    return {name: [sentence or "" for sentence in sentences] for name, sentences in batch.items()}

"""Sentence pairs from files and from the Hub, as memory-mapped or streamed data sets."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset, load_dataset
from datasets.exceptions import DatasetsError

from ..errors import UserError, first_line
from .caching import PAIR_FEATURES, PairRow, cache_errors, cache_key, cache_pairs, check_regular, file_digest
from .text_files import iterate_lines, iterate_rows, table_format

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
    if table_format(data):
        table = {"path": data, "source_lang": source_lang, "target_lang": target_lang}
        return _load_files(_read_table, (data,), table, streaming)
    if Path(data).suffix == ".parquet":
        return _load_parquet(data, source_lang, target_lang, streaming)
    candidates = {lang: (f"{data}.{lang}", f"{data}.{lang}.gz") for lang in (source_lang, target_lang)}
    files = {lang: next(filter(os.path.isfile, names), None) for lang, names in candidates.items()}
    source_file, target_file = files[source_lang], files[target_lang]
    if source_file is not None and target_file is not None:
        prefix = {"source_file": source_file, "target_file": target_file}
        return _load_files(read_parallel, (source_file, target_file), prefix, streaming)
    if source_file is not None or target_file is not None:
        missing = source_lang if source_file is None else target_lang
        raise UserError(
            f"the {missing!r} half of the pairs is missing: there is {source_file or target_file}, but no "
            f"{' or '.join(candidates[missing])}; add that file, or check the language codes"
        )
    looked_for = " or ".join(candidates[source_lang]) + " and " + " or ".join(candidates[target_lang])
    if os.path.exists(data):
        raise UserError(
            f"{data} can't be read as sentence pairs: give a .tsv, .csv, .jsonl or .parquet file, or the prefix of "
            f"two files (looked for {looked_for})"
        )
    if not _HUB_ID.fullmatch(data):
        raise UserError(f"there is no {data}: looked for {looked_for}; check the path and the language codes")
    return _load_from_hub(data, source_lang, target_lang, split, config_name, looked_for, streaming)


def iterate_sentences(pairs: Dataset | IterableDataset) -> Iterator[str]:
    """Yield the sentences of both sides, to train a tokenizer on; holds a thousand pairs at a time."""
    for batch in pairs.iter(batch_size=1_000):
        yield from batch["source"]
        yield from batch["target"]


def _load_files(
    reader: Callable[..., Iterator[PairRow]], paths: Sequence[str], arguments: dict[str, str], streaming: bool
) -> Dataset | IterableDataset:
    """Read pairs from files; unless streaming, through the cache, so that only changed files are read again."""
    if streaming:
        for path in paths:
            check_regular(path)
        next(reader(**arguments))  # better refused now than in the first step
        return IterableDataset.from_generator(reader, PAIR_FEATURES, gen_kwargs=arguments)
    settings = {name: value for name, value in arguments.items() if value not in paths}
    return cache_pairs(reader, cache_key(reader.__name__, list(map(file_digest, paths)), settings), **arguments)


def read_parallel(source_file: str, target_file: str) -> Iterator[PairRow]:
    """Yield the pairs of two files of which line n translates line n."""
    source_lines = target_lines = 0
    for source, target in zip_longest(iterate_lines(source_file), iterate_lines(target_file)):
        source_lines += source is not None
        target_lines += target is not None
        if source_lines == target_lines:
            yield {"source": source, "target": target}
    if source_lines != target_lines:
        raise UserError(
            f"{source_file} has {source_lines:,} lines but {target_file} has {target_lines:,}, so lines "
            f"{min(source_lines, target_lines) + 1:,} and after have no partner; line n of one must translate line n "
            "of the other"
        )
    if source_lines == 0:
        raise UserError(no_pairs_message(f"{source_file} and {target_file}"))


def _read_table(path: str, source_lang: str, target_lang: str) -> Iterator[PairRow]:
    """Yield the pairs of a .tsv, .csv or .jsonl file; a blank line is a pair of empty sentences."""
    empty = True
    for number, row in iterate_rows(path):
        empty = False
        where = f"{path}, line {number}"
        yield {"source": "", "target": ""} if row is None else _extract_pair(row, where, source_lang, target_lang)
    if empty:
        raise UserError(no_pairs_message(path))


def _extract_pair(row: dict[str, Any], where: str, source_lang: str, target_lang: str) -> PairRow:
    """Return the sentences of the two languages in a row, or in its "translation"; a missing value is empty."""
    if isinstance(row.get("translation"), dict):
        row = row["translation"]
    for lang in (source_lang, target_lang):
        if lang not in row:
            raise UserError(_missing_column_message(where, lang, list(row)))
        if not _is_text(row[lang]):
            raise UserError(f"{where}: {lang!r} is {row[lang]!a:.80}; it must be a string")
    return {"source": row[source_lang] or "", "target": row[target_lang] or ""}


def _is_text(value: Any) -> bool:
    """Return whether a value is missing, or a string that UTF-8 can encode: JSON can hold half a surrogate pair."""
    try:
        return value is None or isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def no_pairs_message(where: str) -> str:
    """Return the sentence for data without a single pair."""
    return f"{where} holds no sentence pairs; give data with at least one"


def _missing_column_message(where: str, lang: str, present: Sequence[str]) -> str:
    columns = ", ".join(map(repr, present[:20])) or "none at all"
    columns += f" and {len(present) - 20} more" if len(present) > 20 else ""
    return f"{where}: there is no column {lang!r} but {columns}; name the columns after the languages"


def _load_parquet(path: str, source_lang: str, target_lang: str, streaming: bool) -> Dataset | IterableDataset:
    check_regular(path)
    # The library's own key is path and time of change; the digest is part of it as the configuration's name.
    digest = "default" if streaming else file_digest(path)
    try:
        pq.read_schema(path)  # load_dataset would print what is wrong as well as raise it
        with cache_errors():
            dataset = load_dataset("parquet", digest, data_files=path, split="train", streaming=streaming)
        pairs = _select_languages(dataset, path, source_lang, target_lang)
        if isinstance(pairs, Dataset):
            pairs._fingerprint = cache_key("parquet", digest, source_lang, target_lang)
        return pairs
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
    """Reduce a data set to the columns of the two languages, named "source" and "target"."""
    if isinstance(dataset, IterableDataset):
        first = next(iter(dataset), None)
        if first is None:
            raise UserError(no_pairs_message(where))
        _extract_pair(first, where, source_lang, target_lang)  # better refused now than in the first step

        def extract(row: dict[str, Any]) -> PairRow:
            return _extract_pair(row, where, source_lang, target_lang)

        return dataset.map(extract, remove_columns=list(first), features=PAIR_FEATURES)
    dataset = dataset.flatten()
    prefix = "translation." if f"translation.{source_lang}" in dataset.column_names else ""
    columns = {f"{prefix}{source_lang}": "source", f"{prefix}{target_lang}": "target"}
    for column in columns:
        if column not in dataset.column_names:
            raise UserError(_missing_column_message(where, column, dataset.column_names))
        if dataset.features[column].dtype not in ("string", "large_string"):
            raise UserError(f"{where}: column {column!r} holds {dataset.features[column].dtype}; it must hold strings")
    if len(dataset) == 0:
        raise UserError(no_pairs_message(where))
    dataset = dataset.select_columns(list(columns)).rename_columns(columns)
    if any(column.null_count for column in dataset.data.columns):
        dataset = dataset.map(_blank_for_null, batched=True, desc="Filling in missing sentences")
    return dataset


def _blank_for_null(batch: dict[str, list[str | None]]) -> dict[str, list[str]]:
    return {name: [sentence or "" for sentence in sentences] for name, sentences in batch.items()}

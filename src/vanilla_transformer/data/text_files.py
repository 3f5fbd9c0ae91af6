"""UTF-8 text files, plain or gzipped, as lines and as the rows of a table."""

import csv
import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

NumberedRow = tuple[int, dict[str, Any] | None]  # line number in the file, and columns; None for a blank line


def read_lines(path: str | os.PathLike) -> list[str]:
    """Return the lines that `iterate_lines` yields."""
    return list(iterate_lines(path))


def iterate_lines(path: str | os.PathLike, *, keep_ends: bool = False) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, decompressed if its name ends in `.gz`.

    Lines end at a line feed (or carriage return and line feed) and nowhere else. A byte order mark is removed.

    Args:
        path: The file.
        keep_ends: Whether to keep the line ends.

    Raises:
        UserError: The file can't be opened, or isn't UTF-8; the message has file and line.
    """
    path = os.fspath(path)
    number = 0
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield line if keep_ends else line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not valid "
            "UTF-8; convert the file, for example with iconv -t UTF-8"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        where = f"{path}, after line {number}" if number else path
        raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}; check the path and the file") from None


def table_format(path: str) -> str | None:
    """Return the extension that names a table's format (".tsv", ".csv" or ".jsonl"), or None for another file."""
    extension = Path(path.removesuffix(".gz")).suffix
    return extension if extension in _ROW_READERS else None


def iterate_rows(path: str) -> Iterator[NumberedRow]:
    """Yield line number and columns of each row of a .tsv, .csv or .jsonl file.

    Raises:
        UserError: As in `iterate_lines`, or a row is malformed; the message has file and line.
    """
    return _ROW_READERS[Path(path.removesuffix(".gz")).suffix](path)


def _read_tsv(path: str) -> Iterator[NumberedRow]:
    return _with_header(path, ((n, line.split("\t")) for n, line in enumerate(iterate_lines(path), start=1)))


def _read_csv(path: str) -> Iterator[NumberedRow]:
    reader = csv.reader(iterate_lines(path, keep_ends=True), strict=True)  # a quoted field keeps its line feeds
    try:
        yield from _with_header(path, ((reader.line_num, fields) for fields in reader))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; fix the quoting, or use a .tsv file") from None


def _with_header(path: str, lines: Iterable[tuple[int, list[str]]]) -> Iterator[NumberedRow]:
    """Name the fields of each line after the fields of the first."""
    lines = iter(lines)
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


def _read_jsonl(path: str) -> Iterator[NumberedRow]:
    for number, line in enumerate(iterate_lines(path), start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError as error:
            raise UserError(f"{path}, line {number}: not JSON ({error}); write one object per line") from None
        if not isinstance(row, dict | None):
            raise UserError(f"{path}, line {number}: {line.strip()[:40]!r} is no JSON object; write one per line")
        yield number, row


_ROW_READERS: dict[str, Callable[[str], Iterator[NumberedRow]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}

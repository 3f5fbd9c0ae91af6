"""UTF-8 text files, plain or gzipped, as lines and as the rows of a table."""

import csv
import gzip
import json
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import UserError

MAX_LINE_BYTES = 1 << 24  # a long novel has a few million
_SMALL = 1 << 28  # bytes that any file may unpack to
_GZIP = ".gz"
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh91AY&SY": "bzip2", b"\xfd7zXZ\0": "xz", b"(\xb5/\xfd": "zstd", b"PK\3\4": "zip"}

NumberedRow = tuple[int, dict[str, Any] | None]  # line number in the file, and columns; None for a blank line


def read_lines(path: str | os.PathLike) -> list[str]:
    """Return the lines that `iterate_lines` yields."""
    return list(iterate_lines(path))


def iterate_lines(path: str | os.PathLike, *, keep_ends: bool = False) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, decompressed if its name ends in `.gz`, in letters of either case.

    Lines end at a line feed (or carriage return and line feed) and nowhere else. A byte order mark is removed.

    Args:
        path: The file.
        keep_ends: Whether to keep the line ends.

    Raises:
        UserError: The file can't be opened or isn't UTF-8, or holds a NUL, a line of more than `MAX_LINE_BYTES` bytes,
            or unpacks to 500 times its size; the message has file and line.
    """
    path = os.fspath(path)
    number = size = 0
    line = b""
    try:
        with gzip.open(path) if is_gzip(path) else open(path, "rb") as file:
            # Text is packed to a third or a tenth; a file that unpacks to 500 times its size is made to fill the disk.
            most = max(_SMALL, 500 * os.fstat(file.fileno()).st_size) if is_gzip(path) else math.inf
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), start=1):
                size += len(line)
                if size > most:
                    raise UserError(f"{path}, line {number}: the file unpacks to 500 times its size; is it text?")
                text = decode_line(line, number, path)
                yield text if keep_ends else text.removesuffix("\n").removesuffix("\r")
    except (OSError, EOFError, zlib.error) as error:
        where = f"{path}, after line {number}" if number else path
        raise UserError(f"{where}: {getattr(error, 'strerror', None) or error}; check the path and the file") from None


def decode_line(line: bytes, number: int, path: str) -> str:
    """Decode a line of a UTF-8 text, without the byte order mark at the beginning of the first.

    Args:
        line: The line, with at most one byte more than `MAX_LINE_BYTES`.
        number: Its number, from 1.
        path: What the text is called in an error.

    Raises:
        UserError: The line is longer, isn't UTF-8, holds a NUL, or is the first of a compressed file.
    """
    if number == 1 and (kind := next((kind for magic, kind in _MAGIC.items() if line.startswith(magic)), None)):
        raise UserError(
            f"{path} is compressed with {kind}; unpack it first, or give a file of gzip a name that ends in {_GZIP}"
        )
    if len(line) > MAX_LINE_BYTES:
        raise UserError(f"{path}, line {number} has over {MAX_LINE_BYTES:,} bytes; put one sentence on it")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}: byte 0x{error.object[error.start]:02x} at position {error.start + 1} is not valid "
            "UTF-8; convert the text, for example with iconv -t UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{path}, line {number}: there is a NUL byte, so this is no UTF-8 text; convert it, for example with iconv "
            "-t UTF-8, or remove the byte"
        )
    return text


def is_gzip(path: str | os.PathLike) -> bool:
    """Return whether a file is gzipped, by its name."""
    return os.fspath(path).lower().endswith(_GZIP)


def table_format(path: str) -> str | None:
    """Return the extension that names a table's format (".tsv", ".csv" or ".jsonl"), or None for another file."""
    extension = _extension(path)
    return extension if extension in _ROW_READERS else None


def iterate_rows(path: str) -> Iterator[NumberedRow]:
    """Yield line number and columns of each row of a .tsv, .csv or .jsonl file.

    Raises:
        UserError: As in `iterate_lines`, or a row is malformed; the message has file and line.
    """
    return _ROW_READERS[_extension(path)](path)


def _extension(path: str) -> str:
    """Return the extension of a name, but for that of gzip."""
    return Path(path[: -len(_GZIP)] if is_gzip(path) else path).suffix


def _read_tsv(path: str) -> Iterator[NumberedRow]:
    return _with_header(path, ((n, line.split("\t")) for n, line in enumerate(iterate_lines(path), start=1)))


def _read_csv(path: str) -> Iterator[NumberedRow]:
    reader = csv.reader(iterate_lines(path, keep_ends=True), strict=True)  # a quoted field keeps its line feeds
    start = 1  # line on which the row being read begins

    def rows() -> Iterator[tuple[int, list[str]]]:
        nonlocal start
        for fields in reader:
            yield reader.line_num, fields
            start = reader.line_num + 1

    try:
        yield from _with_header(path, rows())
    except csv.Error as error:
        raise UserError(
            f"{path}, line {reader.line_num}: {error}, in a row that begins on line {start}; fix the quoting, or use a "
            ".tsv file"
        ) from None


def _with_header(path: str, lines: Iterable[tuple[int, list[str]]]) -> Iterator[NumberedRow]:
    """Name the fields of each line after the fields of the first."""
    lines = iter(lines)
    number, header = next(lines, (1, []))
    if repeated := [name for name, count in Counter(header).items() if name and count > 1]:
        raise UserError(f"{path}, line {number}: {repeated[0]!r} names two columns; give each a name of its own")
    for number, fields in lines:
        if fields in ([], [""]):
            yield number, None
            continue
        if len(fields) != len(header):
            raise UserError(
                f"{path}, line {number}: {len(fields)} columns, but the first line names {len(header)} "
                f"({', '.join(map(repr, header)):.300}); give every line the same columns"
            )
        yield number, dict(zip(header, fields, strict=True))


def _read_jsonl(path: str) -> Iterator[NumberedRow]:
    for number, line in enumerate(iterate_lines(path), start=1):
        yield number, parse_object(line, f"{path}, line {number}")


def parse_object(line: str, where: str) -> dict[str, Any] | None:
    """Parse a line with a JSON object; None if it is blank.

    Args:
        line: The line.
        where: Its place, for errors.

    Raises:
        UserError: It is something else, or a name is there twice.
    """
    try:
        row = json.loads(line, object_pairs_hook=_unique_keys) if line.strip() else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); write one object per line") from None
    if not isinstance(row, dict | None):
        raise UserError(f"{where}: {line.strip()[:40]!r} is no JSON object; write one per line")
    return row


def is_text(value: Any) -> bool:
    """Return whether a value is a string that UTF-8 can encode: JSON can hold half of a surrogate pair."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"{Counter(key for key, _ in pairs).most_common(1)[0][0]!r} is there twice")
    return row


_ROW_READERS: dict[str, Callable[[str], Iterator[NumberedRow]]] = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}

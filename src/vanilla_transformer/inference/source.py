"""What to translate: sentences of the command line, a file or standard input, and what translations begin with."""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, tee
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..data.text_files import MAX_LINE_BYTES, decode_line, is_text, iterate_lines, parse_object
from ..errors import UserError
from .text_io import decode_arguments, read_arriving_lines, replace_line_breaks
from .translate import split_into_windows

STDIN = "standard input"


class Request(NamedTuple):
    """A line of JSON input: a sentence, and what its translation must begin with."""

    source: str
    target_prefix: str = ""


def parse_request(line: str, where: str) -> Request:
    """Parse a line of JSON input, such as `{"source": "Two dogs run.", "target_prefix": "Zwei"}`.

    Args:
        line: The line; a blank one is an empty sentence.
        where: Place of the line, for errors.

    Raises:
        UserError: It is no JSON object, has other fields, or a field that is no string.
    """
    if not line.strip():
        return Request("")
    values = parse_object(line, where) or {}
    if other := sorted(values.keys() - set(Request._fields)):
        raise UserError(
            f"{where}: {other[0]!r} is no field of the input; its fields are {' and '.join(Request._fields)}"
        )
    if "source" not in values:
        raise UserError(f'{where}: there is no "source", the sentence to translate; add it')
    for name, value in values.items():
        if not isinstance(value, str):
            raise UserError(f"{where}: {name} is {value!r:.40}; it must be a string")
        if not is_text(value):
            raise UserError(
                f"{where}: {name} has half of a surrogate pair, which is no text; write the character whole"
            )
    return Request(**values)


class Source:
    """The sentences to translate: those on the command line, else those of the input file, else standard input.

    Args:
        sentences: Words of the command line.
        input_file: One sentence per line; None for standard input.
        json_input: Whether each sentence is a line of JSON with the fields of `Request`.
        target_prefix: What all translations must begin with.
        target_prefix_file: The same for each sentence, one per line.
        keep_line_breaks: Whether line breaks in a target prefix can be part of the output.

    Attributes:
        sentences: How many there are; None for those that can be read only once.
        digests: SHA-256 of the files by what they are, "input" and "target_prefix"; None if one can't be read again.

    Raises:
        UserError: A line can't be read, or there are not as many target prefixes as sentences.
    """

    def __init__(
        self,
        sentences: list[str],
        input_file: str | None = None,
        *,
        json_input: bool = False,
        target_prefix: str | None = None,
        target_prefix_file: str | None = None,
        keep_line_breaks: bool = False,
    ) -> None:
        self.sentences: int | None = None
        self.digests: dict[str, str] | None = None
        self._path, self._keep_line_breaks = input_file, keep_line_breaks
        self._json_input = json_input
        self._prefix_path, self._prefix = target_prefix_file, target_prefix
        self._windows: Iterator[list[Any]] | None = None  # of strings, or with JSON input of `Request`s
        if sentences:
            self.sentences = len(sentences)
            decoded = decode_arguments(sentences)
            self._windows = split_into_windows(list(self._parse_lines(decoded, "the command line, sentence")))
        elif input_file is None:  # reads while the model loads
            self._windows = read_arriving_lines(self._parse_lines(iterate_stdin(), f"{STDIN}, line"))
        elif _can_be_read_again(input_file):
            self.sentences, digest = _read_through(self._parse_lines(iterate_lines(input_file), f"{input_file}, line"))
            self.digests = {"input": digest}
        if target_prefix is not None:
            self._prefix = self._check_prefix(decode_arguments([target_prefix])[0], "target_prefix")
            self._describe_prefixes(hashlib.sha256(self._prefix.encode()).hexdigest())
        if target_prefix_file is not None:
            self._read_prefixes(target_prefix_file)

    def _read_prefixes(self, path: str) -> None:
        """Read the file of target prefixes once, if it can be read again, for what is wrong with it."""
        if not _can_be_read_again(path):
            self.digests = None
            return
        count, digest = _read_through(self._iterate_prefixes(path))
        if self.sentences is not None and count != self.sentences:
            raise UserError(
                f"{path} has {count:,} target prefixes for {self.sentences:,} sentences; give a line for each, empty "
                "where a translation may begin as it likes"
            )
        self._describe_prefixes(digest)

    def _describe_prefixes(self, digest: str) -> None:
        if self.digests is not None:
            self.digests["target_prefix"] = digest

    def _iterate_prefixes(self, path: str) -> Iterator[str]:
        for number, line in enumerate(iterate_lines(path), start=1):
            yield self._check_prefix(line, f"{path}, line {number}")

    def _check_prefix(self, prefix: str, where: str) -> str:
        """Return a target prefix; one that would be changed in the output is refused."""
        if not self._keep_line_breaks and replace_line_breaks(prefix) != prefix:
            raise UserError(f"{where}: {prefix!r:.40} has a line break, and a translation is one line; leave it out")
        return prefix

    def _parse_lines(self, lines: Iterable[str], where: str) -> Iterator[Any]:
        """Return the lines, or with JSON input the requests in them."""
        return self._parse_requests(lines, where) if self._json_input else iter(lines)

    def _parse_requests(self, lines: Iterable[str], where: str) -> Iterator[Request]:
        for number, line in enumerate(lines, start=1):
            request = parse_request(line, f"{where} {number}")
            self._check_prefix(request.target_prefix, f"{where} {number}")
            yield request

    def read(self, start: int = 0) -> tuple[Iterator[list[str]], str | Iterator[str] | None]:
        """Return the sentences from the given one on, in windows, and target prefixes as `translate` takes them."""
        windows = self._windows
        if windows is None:
            lines = self._parse_lines(iterate_lines(self._path or ""), f"{self._path}, line")
            windows = split_into_windows(islice(lines, start, None))
        if self._json_input:
            requests, same = tee(windows)
            prefixes = (request.target_prefix for window in same for request in window)
            return ([request.source for request in window] for window in requests), prefixes
        if self._prefix_path is not None:
            return windows, islice(self._iterate_prefixes(self._prefix_path), start, None)
        return windows, self._prefix


def iterate_stdin() -> Iterator[str]:
    """Yield the lines of standard input as they come."""
    try:
        # A buffer of its own: Python aborts if it ends while a thread waits for a line in sys.stdin's.
        stdin: BinaryIO = open(os.dup(sys.stdin.fileno()), "rb")
    except (OSError, ValueError):  # no file, as in a notebook or a test
        stdin = sys.stdin.buffer
    lines = iter(partial(stdin.readline, MAX_LINE_BYTES + 1), b"")
    for number, line in enumerate(lines, start=1):
        yield decode_line(line, number, STDIN).removesuffix("\n").removesuffix("\r")


def _can_be_read_again(path: str) -> bool:
    """Tell whether a path is a file, and no pipe; one that is not there is read for the error."""
    return Path(path).is_file() or not Path(path).exists()


def _read_through(lines: Iterable[Any]) -> tuple[int, str]:
    """Count the lines and take their digest. This finds what is wrong with one before the model is loaded."""
    count, digest = 0, hashlib.sha256()
    for line in lines:
        count += 1
        digest.update(f"{line}\n".encode())
    return count, digest.hexdigest()

"""An output file of translations that appears under its name when it is complete, and can be continued until then.

While `out.txt` is being written there are `out.txt.part`, which holds the translations so far, and `out.txt.part.json`,
which says from what they are made. Both vanish when the file is complete.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ..data.files import check_output_name, new_output, partial_path, publish
from ..data.text_files import is_gzip, iterate_lines
from ..errors import UserError
from .translate import WINDOW_SIZE

_FORMAT = 1  # of the description
_DIGESTS = ("input", "target_prefix", "model")  # what is described by a digest, which says nothing to people


class TranslationOutput:
    """A new file of translations.

    Args:
        path: The file; with a name that ends in `.gz` it is gzipped.
        sentences: Number of sentences of the input; None if it can be read only once. Then the output can't be
            continued.
        lines_per_sentence: Number of lines for each sentence.
    """

    def __init__(self, path: str, sentences: int | None, lines_per_sentence: int) -> None:
        self.path = Path(path)
        self.partial = partial_path(path)
        self.description = self.partial.with_name(f"{self.partial.name}.json")
        self.sentences = sentences
        self.lines_per_sentence = lines_per_sentence

    def check_is_not_input(self, input_file: str | None) -> None:
        """Refuse an output that is the input file, also by another path.

        Raises:
            UserError: It is, or the output's unfinished part is.
        """
        for path in (self.path, self.partial, self.description):
            if input_file and path.exists() and os.path.exists(input_file) and os.path.samefile(path, input_file):
                raise UserError(f"the output file {self.path} is the input file, or would replace it; name a new one")

    def check(self, resume: bool) -> None:
        """Refuse early what `open` would refuse, but for what depends on the model.

        Args:
            resume: Whether to continue an unfinished output.

        Raises:
            UserError: The output exists already, can't be created, is being written by another run, or is unfinished
                and `resume` is false; or as in `check_output_name`.
        """
        check_output_name(self.path)
        if os.path.lexists(self.path):
            raise UserError(f"the output file {self.path} exists already; name a new one, or remove it first")
        if not self.path.parent.is_dir():
            raise UserError(f"can't write the output file {self.path}: there is no folder {self.path.parent}")
        self._check_not_locked()
        has_partial, has_description = os.path.lexists(self.partial), os.path.lexists(self.description)
        if has_partial and not has_description:
            raise UserError(
                f"{self.partial} exists already and can't be continued, as there is no {self.description.name}; "
                "remove it, or name another output file"
            )
        if has_description and not resume:
            raise UserError(
                f"{self.partial} holds an unfinished output; continue it with resume, or remove it and "
                f"{self.description.name}"
            )

    @property
    def is_unfinished(self) -> bool:
        """Whether there is an unfinished output to continue."""
        return self.description.exists()

    def is_finished(self) -> bool:
        """Whether the file exists with as many lines as the output will have; it may be another file all the same."""
        if self.sentences is None or not self.path.is_file():
            return False
        try:
            lines = sum(1 for _ in iterate_lines(self.path))
        except UserError:  # no text
            return False
        return lines == self.sentences * self.lines_per_sentence

    def remove_description(self) -> None:
        """Remove the description that a run left when it was ended between its last two steps."""
        if os.path.lexists(self.path) and not os.path.lexists(self.partial):
            self.description.unlink(missing_ok=True)

    @contextmanager
    def open(self, source: Mapping[str, Any] | None) -> Iterator["OutputWriter"]:
        """Start the output, or continue it where it ends; it appears under its name if the block raises nothing.

        After an error the part that is written stays, unless it is empty.

        Args:
            source: What the output is made from: digests of "input", "model" and perhaps "target_prefix", and each
                setting by its name, as JSON can hold them. None if the output can't be continued.

        Raises:
            UserError: The unfinished output is made from something else or in use, or the file can't be written.
        """
        try:
            with FileLock(f"{self.partial}.lock", timeout=0):
                try:
                    yield from self._open_locked(source)
                finally:
                    Path(f"{self.partial}.lock").unlink(missing_ok=True)
        except Timeout as error:
            raise self._in_use() from error
        except OSError as error:
            if isinstance(error, BrokenPipeError) or error.filename not in (None, *map(str, self._files())):
                raise
            hint = "make room, and continue it with resume" if self.is_unfinished else "check the path and the space"
            raise UserError(f"can't write the output file {self.path}: {error.strerror}; {hint}") from error

    def _check_not_locked(self) -> None:
        """Refuse an output that another run is writing: what it has written so far is not to be removed."""
        lock = Path(f"{self.partial}.lock")
        if lock.exists():
            try:
                with FileLock(lock, timeout=0):
                    pass  # left by a run that was killed
            except Timeout as error:
                raise self._in_use() from error

    def _in_use(self) -> UserError:
        return UserError(f"{self.partial} is being written by another run; wait for it to end")

    def _files(self) -> tuple[Path, ...]:
        return self.path, self.partial, self.description, Path(f"{self.partial}.lock")

    def _open_locked(self, source: Mapping[str, Any] | None) -> Iterator["OutputWriter"]:
        """Do what `open` does; no other run writes the same output meanwhile."""
        if source is not None:
            self._describe(source)
        with open(self.partial, "r+b" if source is not None and self.partial.exists() else "x+b") as file:
            writer = OutputWriter(file, is_gzip(self.path), self.lines_per_sentence, self.sentences)
            try:
                yield writer
                writer.finish()
            except BaseException:
                if os.fstat(file.fileno()).st_size == 0:
                    self.partial.unlink()
                    self.description.unlink(missing_ok=True)
                raise
        publish(self.partial, self.path)
        self.description.unlink(missing_ok=True)

    def _describe(self, source: Mapping[str, Any]) -> None:
        """Write what the output is made from, or compare it with what the unfinished output is made from."""
        wanted = json.loads(json.dumps({"format": _FORMAT, "window": WINDOW_SIZE, **source}))
        if not self.is_unfinished:
            with new_output(self.description) as file:
                json.dump(wanted, file)
            return
        try:
            found = json.loads(self.description.read_text(encoding="utf-8"))
            differences = [name for name in {**found, **wanted} if found.get(name) != wanted.get(name)]
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self.description} can't be read, so {self.partial.name} can't be continued; remove both"
            ) from error
        if differences:
            name = differences[0]
            change = f"of another {name}" if name in _DIGESTS else f"with {name} {found.get(name)}"
            now = "" if name in _DIGESTS else f", not {wanted.get(name)}"
            raise UserError(
                f"{self.partial} was made {change}{now}; run it again as it was, or remove it and "
                f"{self.description.name} to start over"
            )


class OutputWriter:
    """Writes the lines of sentences, window by window, after those that a file already holds.

    What is left is always what an uninterrupted run would have written: translating goes on at the beginning of a
    window, since a translation's last digits depend on the batch, and a gzip file has one member for each window.

    Args:
        file: The file, at its beginning.
        compress: Whether to write gzip.
        lines_per_sentence: Number of lines for each sentence.
        sentences: Number of sentences of the input, or None if it is not known.

    Attributes:
        done: Number of sentences that the file already holds.
    """

    def __init__(self, file: BinaryIO, compress: bool, lines_per_sentence: int, sentences: int | None) -> None:
        self.file, self.compress = file, compress
        self.lines_per_window = lines_per_sentence * WINDOW_SIZE
        self.total = None if sentences is None else sentences * lines_per_sentence
        lines, end = self._measure()
        self.done = lines // lines_per_sentence
        file.truncate(end)
        file.seek(end)
        self._waiting: list[str] = []  # lines of a gzip member that is not complete

    def _measure(self) -> tuple[int, int]:
        """Return the number of lines in complete windows, and the offset where these end."""
        lines = complete = end = 0
        for count, position in self._members() if self.compress else self._lines():
            lines += count
            if lines % self.lines_per_window == 0 or lines == self.total:
                complete, end = lines, position
        return complete, end

    def _lines(self) -> Iterator[tuple[int, int]]:
        """Yield 1 and the offset of the end of each complete line."""
        position = 0
        for line in self.file:
            position += len(line)
            if line.endswith(b"\n"):
                yield 1, position

    def _members(self) -> Iterator[tuple[int, int]]:
        """Yield the number of lines of each complete gzip member and the offset of its end."""
        position, rest = 0, b""
        while True:
            member, lines = zlib.decompressobj(wbits=31), 0  # 31: with gzip's header
            while not member.eof:
                data = rest or self.file.read(1 << 20)
                if not data:
                    return
                try:
                    lines += member.decompress(data).count(b"\n")
                except zlib.error:  # not written whole
                    return
                position += len(data) - len(member.unused_data)
                rest = member.unused_data
            yield lines, position

    def write(self, lines: list[str]) -> None:
        """Write the lines of one sentence."""
        if not self.compress:
            self.file.write("".join(f"{line}\n" for line in lines).encode())
            self.file.flush()
            return
        self._waiting += lines
        if len(self._waiting) >= self.lines_per_window:
            self._write_member()

    def _write_member(self) -> None:
        text = "".join(f"{line}\n" for line in self._waiting)
        self.file.write(gzip.compress(text.encode(), mtime=0))
        self.file.flush()
        self._waiting = []

    def finish(self) -> None:
        """Write what is left, down to the disk."""
        if self.compress and (self._waiting or self.file.tell() == 0):
            self._write_member()
        self.file.flush()
        os.fsync(self.file.fileno())

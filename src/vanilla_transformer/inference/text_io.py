"""Lines of text in and out: command line, standard input, output files."""

import io
import os
import queue
import re
import threading
from collections.abc import Iterable, Iterator
from typing import TextIO

from ..errors import UserError
from .translate import WINDOW


def decoded(sentences: list[str]) -> list[str]:
    """Sentences from the command line, in UTF-8 whatever the locale.

    Raises:
        UserError: A sentence that is not valid UTF-8.
    """
    try:
        return [os.fsencode(sentence).decode("utf-8") for sentence in sentences]
    except UnicodeDecodeError as error:
        raise UserError("a sentence on the command line is not valid UTF-8; convert it, as with iconv") from error


def one_line(text: str) -> str:
    """The text with each line break in it replaced by a space, for files and pipes with one translation per line."""
    return re.sub(r"\r\n|\r|\n", " ", text)


def reopen_output(path: str, lines_per_sentence: int, sentences: int) -> tuple[TextIO, int]:
    """Open a file of translations to go on with it; lines at its end that are not those of a whole sentence go.

    Args:
        path: The file.
        lines_per_sentence: How many lines a sentence has.
        sentences: How many sentences there are in all.

    Returns:
        The file, and how many sentences are done.

    Raises:
        UserError: It is longer than the translation of all sentences would be, or cannot be written.
    """
    try:
        file = open(path, "r+b")
        done = end = 0
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n") and number % lines_per_sentence == 0:
                done, end = done + 1, file.tell()
    except OSError as error:
        raise UserError(f"can't write the output file {path}: {error.strerror}; check the path") from error
    if done > sentences:
        file.close()
        raise UserError(
            f"the output file {path} has lines for {done:,} sentences, but there are {sentences:,}; it is not a "
            "translation of this input"
        )
    file.truncate(end)
    file.seek(end)
    return io.TextIOWrapper(file, encoding="utf-8", newline="\n"), done


def as_they_arrive(lines: Iterable[str]) -> Iterator[list[str]]:
    """Windows of at most `WINDOW` lines: what has come by the time that the next window is asked for, at least one.

    So who writes a line and waits gets an answer, and who writes many gets them translated together. Reading begins at
    once, in a thread of its own, which is never more than a window ahead.
    """
    end = object()
    arrived: queue.Queue = queue.Queue(WINDOW)

    def read() -> None:
        try:
            for line in lines:
                arrived.put(line)
            arrived.put(end)
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()

    def windows() -> Iterator[list[str]]:
        while True:
            window = [arrived.get()]
            while not arrived.empty() and isinstance(window[-1], str) and len(window) < WINDOW:
                window.append(arrived.get())
            last = window[-1] if isinstance(window[-1], str) else window.pop()
            if window:
                yield window
            if isinstance(last, Exception):
                raise last
            if last is end:
                return

    return windows()

"""Text of the command line, of pipes and of output files."""

import os
import queue
import re
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from ..errors import UserError
from .translate import WINDOW_SIZE

T = TypeVar("T")


def decode_arguments(sentences: list[str]) -> list[str]:
    """Decode command-line arguments as UTF-8, whatever the locale.

    Args:
        sentences: Arguments as in `sys.argv`, decoded by Python in the locale's encoding.

    Raises:
        UserError: A sentence is not valid UTF-8.
    """
    try:
        return [os.fsencode(sentence).decode("utf-8") for sentence in sentences]
    except UnicodeDecodeError as error:
        raise UserError("a sentence on the command line is not valid UTF-8; convert it, as with iconv") from error


def replace_line_breaks(text: str) -> str:
    """Replace each line break by a space, for output with one translation per line."""
    return re.sub(r"\r\n|\r|\n", " ", text)


def read_arriving_lines(lines: Iterable[T]) -> Iterator[list[T]]:
    """Group piped lines into windows as they arrive, so that a single line is translated without waiting for more.

    A background thread starts to read at once and stays at most `WINDOW_SIZE` lines ahead.

    Args:
        lines: The lines, or what they are parsed to, but no None; an exception that they raise is raised after the
            window before it.

    Returns:
        An iterator over windows of 1 to `WINDOW_SIZE` lines: all that have arrived when the window is asked for.
    """
    arrived: queue.Queue[T | Exception | None] = queue.Queue(WINDOW_SIZE)  # ends with None or the exception

    def read() -> None:
        try:
            for line in lines:
                arrived.put(line)
            arrived.put(None)
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()

    def windows() -> Iterator[list[T]]:
        while True:
            window: list[T] = []
            item = arrived.get()
            while item is not None and not isinstance(item, Exception):
                window.append(item)
                if arrived.empty() or len(window) == WINDOW_SIZE:
                    break
                item = arrived.get()
            if window:
                yield window
            if isinstance(item, Exception):
                raise item
            if item is None:
                return

    return windows()

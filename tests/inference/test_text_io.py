"""Text of the command line, of pipes and of output files."""

import itertools
import threading

import pytest

from vanilla_transformer.errors import UserError
from vanilla_transformer.inference import text_io
from vanilla_transformer.inference.text_io import read_arriving_lines, replace_line_breaks


def test_lines_are_taken_as_they_arrive(monkeypatch):
    monkeypatch.setattr(text_io, "WINDOW_SIZE", 3)
    asked = threading.Semaphore(0)

    def lines():
        for number in range(2):
            asked.acquire()
            yield f"alone {number}"
        asked.acquire()
        yield from ("a", "b", "c", "d")
        raise UserError("the fifth is broken")

    windows = read_arriving_lines(lines())
    for number in range(2):
        asked.release()
        assert next(windows) == [f"alone {number}"]  # although the next line has not come
    asked.release()
    found = []
    with pytest.raises(UserError, match="the fifth is broken"):
        found += itertools.chain.from_iterable(windows)
    found = []
    for window in read_arriving_lines("abcdefgh"):
        assert 1 <= len(window) <= 3
        found += window
    assert found == list("abcdefgh")


def test_line_breaks_become_spaces():
    assert replace_line_breaks("a\nb\r\nc\rd") == "a b c d"
    assert replace_line_breaks("a\u2028b  c") == "a\u2028b  c"

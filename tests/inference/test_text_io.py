"""Text of the command line, of pipes and of output files."""

import itertools
import threading

import pytest

from vanilla_transformer.data.files import open_output
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference import text_io
from vanilla_transformer.inference.text_io import read_arriving_lines, reopen_output, replace_line_breaks


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


def test_an_output_file_is_never_overwritten(tmp_path):
    path = tmp_path / "out.txt"
    with open_output(str(path)) as file:
        file.write("mine\n")
    with pytest.raises(UserError, match="exists already"):
        open_output(str(path))
    assert path.read_text() == "mine\n"
    with pytest.raises(UserError, match="No such file"):
        open_output(str(tmp_path / "no" / "out.txt"))


@pytest.mark.parametrize(
    ("content", "lines_per_sentence", "done", "kept"),
    [
        ("", 1, 0, ""),
        ("eins\nzwei\ndr", 1, 2, "eins\nzwei\n"),
        ("eins\nzwei\ndrei\n", 2, 1, "eins\nzwei\n"),
        ("\n\n", 1, 2, "\n\n"),
    ],
)
def test_an_output_file_is_gone_on_with_after_the_last_whole_sentence(
    content, lines_per_sentence, done, kept, tmp_path
):
    path = tmp_path / "out.txt"
    path.write_text(content)
    file, count = reopen_output(str(path), lines_per_sentence, 5)
    with file:
        file.write("über\n")
    assert count == done
    assert path.read_text(encoding="utf-8") == f"{kept}über\n"


def test_an_output_file_that_is_longer_than_the_input_is_left_alone(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("eins\nzwei\n")
    with pytest.raises(UserError, match="has lines for 2 sentences, but there are 1"):
        reopen_output(str(path), 1, 1)
    assert path.read_text() == "eins\nzwei\n"

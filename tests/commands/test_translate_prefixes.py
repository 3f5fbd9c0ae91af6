"""`vanilla-transformer translate` with target prefixes: one for all, one for each line, or in JSON lines."""

import gzip
import json
import os
import threading

import pytest
from helpers import NUMBERS

from vanilla_transformer.inference import output as output_module
from vanilla_transformer.inference import translate as translate_module
from vanilla_transformer.inference.source import Request, parse_request
from vanilla_transformer.inference.translate import translate

PREFIXES = ["forty", "", "one", "  sev"]
LIMIT = ["--max_new_tokens", "12"]


@pytest.fixture
def inputs(tmp_path):
    """Paths of the same sentences and prefixes as text, gzipped with CRLF, and as JSON lines."""
    (tmp_path / "in.txt").write_text("".join(f"{sentence}\n" for sentence in NUMBERS))
    (tmp_path / "prefixes.txt.gz").write_bytes(gzip.compress("\ufeff".encode() + "\r\n".join(PREFIXES).encode()))
    requests = [{"source": source, "target_prefix": prefix} for source, prefix in zip(NUMBERS, PREFIXES, strict=True)]
    lines = [json.dumps(requests[0]), "", *(json.dumps(request, ensure_ascii=False) for request in requests[2:])]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def expected(model, tokenizer):
    found = translate(model, tokenizer, NUMBERS, target_prefix=PREFIXES, max_new_tokens=12)
    return [translation.text for (translation,) in found]


def test_each_way_to_give_prefixes_gives_the_same(run_script, folder, inputs, expected):
    assert all(text.startswith(prefix) for text, prefix in zip(expected, PREFIXES, strict=True))
    text = ["--input_file", inputs / "in.txt", "--target_prefix_file", inputs / "prefixes.txt.gz"]
    lines = ["--input_file", inputs / "in.jsonl", "--json_input"]
    words = [*NUMBERS, "--target_prefix_file", inputs / "prefixes.txt.gz"]
    json_words = [*(inputs / "in.jsonl").read_text().split("\n"), "--json_input"]
    for given, stdin in (
        (text, b""),
        (lines, b""),
        (words, b""),
        (json_words, b""),
        (text[2:], (inputs / "in.txt").read_bytes()),
        (["--json_input"], (inputs / "in.jsonl").read_bytes()),
    ):
        code, out, err = run_script("translate", "--model_name_or_path", folder, *LIMIT, *given, "--json", stdin=stdin)
        assert (code, err) == (0, "")
        found = [json.loads(line) for line in out.splitlines()]
        assert [line["translations"][0]["text"] for line in found] == expected
        assert [line["source"] for line in found] == NUMBERS


def test_one_prefix_for_all(run_script, folder):
    flags = ["--num_beams", "3", "--num_return_sequences", "2", "--target_prefix", "twö, "]
    code, out, _ = run_script("translate", *NUMBERS, "--model_name_or_path", folder, *LIMIT, *flags)
    assert code == 0 and out.count("\n") == 2 * len(NUMBERS)
    assert all(line.startswith("twö, ") for line in out.split("\n")[:-1])
    code, out, err = run_script("translate", "seven", "--model_name_or_path", folder, *LIMIT, "--target_prefix", "")
    assert code == 0 and err == "note: --target_prefix has no effect: it is empty\n"


def test_an_output_with_prefixes_is_continued_only_with_the_same(run_script, folder, inputs, monkeypatch, full_disk):
    for module in (translate_module, output_module):
        monkeypatch.setattr(module, "WINDOW_SIZE", 2)
    prefixes, whole, output = (inputs / name for name in ("prefixes.txt.gz", "whole.txt", "out.txt"))
    text = ["--input_file", inputs / "in.txt", "--target_prefix_file", prefixes]
    for given in (text, ["--input_file", inputs / "in.jsonl", "--json_input"]):

        def run(path, *flags, given=given):
            return run_script(
                "translate", "--model_name_or_path", folder, *LIMIT, *given, "--output_file", path, *flags
            )

        assert run(whole)[0] == 0
        with full_disk(3):
            assert run(output)[0] == 2
        if given is text:
            before = prefixes.read_bytes()
            prefixes.write_bytes(gzip.compress(b"a\nb\nc\nd\n"))
            assert "was made of another target_prefix; run it again as it was" in run(output, "--resume")[2]
            prefixes.write_bytes(before)
            for other in (["--target_prefix", "one"], []):
                code, _, err = run(output, "--resume", given=[*text[:2], *other])
                assert code == 2 and "was made of another target_prefix" in err
        assert run(output, "--resume") == (0, "", "")
        assert output.read_bytes() == whole.read_bytes()
        whole.unlink()
        output.unlink()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target_prefix", "a", "--json_input"], "--target_prefix and --json_input both say what translations begin"),
        (["--target_prefix", "a", "--target_prefix_file", "b"], "--target_prefix and --target_prefix_file both say"),
        (["--target_prefix_file", "no/file"], "no/file: No such file"),
        (["--target_prefix", "a\nb"], "target_prefix: 'a\\nb' has a line break, and a translation is one line"),
        (["--target_prefix", os.fsdecode(b"b\xe9")], "on the command line is not valid UTF-8"),
        (["--target_prefix", "a" * 200, *LIMIT], "needs one more for the end, but a translation has at most 12"),
        (["--json_input"], "the command line, sentence 1: not JSON"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(refused, folder, flags, message):
    assert message in refused("translate", "seven", "--model_name_or_path", folder, *flags)


def test_a_number_of_prefixes_that_is_not_that_of_the_sentences_is_refused(refused, run_script, folder, inputs):
    model = ["--model_name_or_path", folder, *LIMIT]
    for count in (0, 3, 5):
        path = inputs / "few.txt"
        path.write_text("one\n" * count)
        error = refused(
            "translate", *NUMBERS, "--model_name_or_path", "no/such/model", "--target_prefix_file", str(path)
        )
        assert f"few.txt has {count} target prefixes for 4 sentences; give a line for each" in error
        stdin = "".join(f"{sentence}\n" for sentence in NUMBERS).encode()
        code, out, err = run_script("translate", *model, "--target_prefix_file", path, stdin=stdin)
        assert code == 2 and err.count("\n") == 1 and ("no target prefix for" in err or "more target prefixes" in err)
        assert out.count("\n") <= 4
    path.write_bytes(b"one\none\none\nb\xe9\n")
    assert "few.txt, line 4" in refused("translate", *NUMBERS, *model, "--target_prefix_file", str(path))
    path.write_text("one\none\none\na\rb\n")
    assert "few.txt, line 4: 'a\\rb' has a line break" in refused(
        "translate", *NUMBERS, *model, "--target_prefix_file", str(path)
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seven", "not JSON"),
        ("7", "'7' is no JSON object"),
        ("null", 'there is no "source"'),
        ("{}", 'there is no "source"'),
        ('{"target_prefix": "a"}', 'there is no "source"'),
        ('{"source": 7}', "source is 7; it must be a string"),
        ('{"source": "a", "target_prefix": null}', "target_prefix is None; it must be a string"),
        (
            '{"source": "a", "prefix": "b"}',
            "'prefix' is no field of the input; its fields are source and target_prefix",
        ),
        ('{"source": "a", "source": "b"}', "'source' is there twice"),
        ('{"source": "a", "target_prefix": "b\\nc"}', "has a line break"),
        ('{"source": "\\ud83d"}', "source has half of a surrogate pair"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_line_that_is_no_request_is_named(refused, folder, tmp_path, line, message):
    (tmp_path / "in.jsonl").write_text(f'{{"source": "seven"}}\n{line}\n')
    flags = ["--json_input", "--model_name_or_path", "no/such/model"]
    error = refused("translate", *flags, "--input_file", str(tmp_path / "in.jsonl"))
    assert "in.jsonl, line 2: " in error and message in error and len(error) < 400


def test_line_breaks_are_part_of_json(run_script, folder):
    line = json.dumps({"source": "seven", "target_prefix": "a\r\nb"})
    _, out, _ = run_script("translate", line, "--json_input", "--json", "--model_name_or_path", folder, *LIMIT)
    assert json.loads(out)["translations"][0]["text"].startswith("a\r\nb")


def test_a_request_is_its_fields():
    assert parse_request('{"target_prefix": "Zwei", "source": "Two dogs."}', "") == ("Two dogs.", "Zwei")
    assert parse_request(' {"source": "\\ud83d\\ude00"}', "") == Request("\U0001f600", "")
    assert parse_request(" \t", "") == ("", "")


def test_prefixes_come_from_a_pipe_but_are_not_resumed(run_script, refused, folder, tmp_path):
    pipe, model = tmp_path / "pipe", ["--model_name_or_path", folder, *LIMIT]
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("two\n\n",))
    writer.start()
    flags = ["--target_prefix_file", str(pipe), "--output_file", str(tmp_path / "out.txt")]
    assert run_script("translate", "seven", "nine", *model, *flags) == (0, "", "")
    writer.join()
    assert (tmp_path / "out.txt").read_text().startswith("two")
    (tmp_path / "in.txt").write_text("seven\nnine\n")
    error = refused("translate", *model, *flags, "--resume", "--input_file", str(tmp_path / "in.txt"))
    assert f"--resume needs --target_prefix_file to be a file that can be read again; {pipe} is none" in error


def test_the_file_of_prefixes_is_never_the_output(run_script, folder, tmp_path):
    path = tmp_path / "prefixes.txt"
    path.write_text("one\n")
    flags = ["--model_name_or_path", folder, *LIMIT, "--target_prefix_file", path, "--output_file", path]
    code, _, err = run_script("translate", "seven", *flags)
    assert code == 2 and err.count("\n") == 1 and path.read_text() == "one\n"

"""`vanilla-transformer translate`, as a user runs it."""

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import NUMBERS

from vanilla_transformer.engines.ctranslate2 import CTranslate2Engine
from vanilla_transformer.inference.alignments import split_into_words
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.text_io import replace_line_breaks
from vanilla_transformer.inference.translate import translate

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def expected_lines(model, tokenizer, sentences=NUMBERS, **settings):
    results = translate(model, tokenizer, sentences, **settings)
    return [replace_line_breaks(translation.text) for alternatives in results for translation in alternatives]


def test_translates_sentences_from_arguments(run_script, folder, model, tokenizer):
    code, out, err = run_script("translate", *NUMBERS, "--model_name_or_path", folder, "--max_new_tokens", "20")
    assert (code, err) == (0, "")
    assert out.split("\n") == [*expected_lines(model, tokenizer, max_new_tokens=20), ""]


def test_a_translation_with_a_line_break_is_one_line(run_script, folder, tokenizer, tmp_path):
    model, _ = load(folder, device="cpu")
    model.generation_config.forced_bos_token_id = tokenizer("\n")["input_ids"][0]  # each translation starts with it
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert next(translate(model, tokenizer, ["seven"]))[0].text.startswith("\n")
    _, out, _ = run_script("translate", *NUMBERS, "--model_name_or_path", str(tmp_path), "--max_new_tokens", "5")
    assert out.count("\n") == len(NUMBERS) and out.startswith(" ")


@pytest.mark.parametrize("source", ["plain", "gz", "stdin"])
def test_one_line_out_per_line_in(run_script, folder, model, tokenizer, tmp_path, source):
    text = "\n".join(NUMBERS).encode() + b"\r\n" + "été\u2028 hiver".encode()  # the last line has no line end
    path = tmp_path / {"plain": "in.txt", "gz": "in.txt.gz", "stdin": "unused"}[source]
    path.write_bytes(gzip.compress(text) if source == "gz" else text)
    given = [] if source == "stdin" else ["--input_file", str(path)]
    code, out, _ = run_script("translate", "--model_name_or_path", folder, *given, "--max_new_tokens", "20", stdin=text)
    assert code == 0
    sentences = [*NUMBERS, "été\u2028 hiver"]
    assert out.split("\n") == [*expected_lines(model, tokenizer, sentences, max_new_tokens=20), ""]


def test_an_empty_input_file_gives_nothing(run_script, folder, tmp_path):
    (tmp_path / "in.txt").touch()
    assert run_script(
        "translate", "--model_name_or_path", folder, "--input_file", str(tmp_path / "in.txt"), stdin=b"no"
    ) == (
        0,
        "",
        "",
    )


def test_beam_search_with_several_translations_into_a_file(run_script, folder, model, tokenizer, tmp_path):
    output = tmp_path / "out.txt"
    flags = "--num_beams 4 --num_return_sequences 2 --length_penalty 0.6 --max_new_tokens 20 --batch_tokens 24".split()
    arguments = [*NUMBERS, "--model_name_or_path", folder, "--output_file", str(output), *flags]
    assert run_script("translate", *arguments) == (0, "", "")
    expected = expected_lines(
        model, tokenizer, num_beams=4, num_return_sequences=2, length_penalty=0.6, max_new_tokens=20
    )
    assert output.read_text().split("\n") == [*expected, ""]
    assert len(expected) == 2 * len(NUMBERS)


def test_who_writes_a_line_and_waits_gets_an_answer(folder):
    command = [sys.executable, str(SCRIPTS / "translate.py"), "--model_name_or_path", folder, "--max_new_tokens", "20"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    answers = []
    for sentence in (b"seven\n", b"forty-two\n"):
        process.stdin.write(sentence)
        process.stdin.flush()
        answers.append(process.stdout.readline())
    out, err = process.communicate()
    assert all(answers) and (out, err, process.returncode) == (b"", b"", 0)


def test_json_lines_have_the_source_and_all_translations_with_scores(run_script, folder, model, tokenizer):
    flags = ["--num_beams", "3", "--num_return_sequences", "2", "--max_new_tokens", "20", "--json"]
    code, out, _ = run_script("translate", *NUMBERS, "--model_name_or_path", folder, *flags)
    expected = translate(model, tokenizer, NUMBERS, num_beams=3, num_return_sequences=2, max_new_tokens=20)
    assert code == 0
    for line, sentence, translations in zip(out.splitlines(), NUMBERS, expected, strict=True):
        found = json.loads(line)
        assert found["source"] == sentence
        assert [each["text"] for each in found["translations"]] == [each.text for each in translations]
        assert [each["score"] for each in found["translations"]] == pytest.approx(
            [each.score for each in translations], rel=1e-4
        )


def test_ctranslate2_translates_from_the_same_command(
    run_script, refused, folder, model, tokenizer, monkeypatch, tmp_path
):
    monkeypatch.setattr("vanilla_transformer.engines.ctranslate2.HF_HOME", str(tmp_path))
    words = [*NUMBERS, "--model_name_or_path", folder, "--engine", "ctranslate2", "--max_new_tokens", "12"]
    assert "give normalize 0.6 for length^0.6" in refused("translate", *words)
    assert not list(tmp_path.iterdir())  # nothing was converted
    for dtype, settings in (("int8", {"num_beams": 1}), ("float32", {"num_beams": 4, "normalize": 1})):
        flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        code, out, err = run_script("translate", *words, "--dtype", dtype, *flags)
        assert (code, err) == (0, "")
        engine = CTranslate2Engine(model, tokenizer, dtype)
        search = {"num_beams": 1} if dtype == "int8" else {"num_beams": 4, "search": None, "length_penalty": 1.0}
        expected = expected_lines(model, tokenizer, engine=engine, max_new_tokens=12, **search)
        assert out.split("\n") == [*expected, ""]
    assert len([path for path in tmp_path.rglob("*") if path.is_dir()]) == 4  # two of the cache, and two models


def test_lengths_are_normalized_as_generate_does(run_script, folder, model, tokenizer):
    words = [*NUMBERS, "--model_name_or_path", folder, "--max_new_tokens", "12", "--normalize", "0.5"]
    code, out, err = run_script("translate", *words, "--num_beams", "3")
    expected = expected_lines(model, tokenizer, num_beams=3, search=None, length_penalty=0.5, max_new_tokens=12)
    assert (code, err) == (0, "") and out.split("\n") == [*expected, ""]
    _, out, err = run_script("translate", *words, "--num_beams", "1")
    assert err == "note: --normalize has no effect: search with one beam is greedy\n"
    assert out.split("\n") == [*expected_lines(model, tokenizer, num_beams=1, max_new_tokens=12), ""]


def test_lines_are_split_and_joined(run_script, refused, folder, model, tokenizer, tmp_path):
    lines = ["Seven. Forty-two! One.", "", "seven"]
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in lines))
    words = ["--model_name_or_path", folder, "--input_file", str(tmp_path / "in.txt"), "--max_new_tokens", "9"]
    code, out, err = run_script("translate", *words, "--split_sentences", "--source_lang", "en")
    assert (code, err) == (0, "")
    expected = expected_lines(model, tokenizer, ["Seven.", "Forty-two!", "One.", "", "seven"], max_new_tokens=9)
    assert out.split("\n") == [" ".join(map(str.strip, expected[:3])), *expected[3:], ""]
    assert "give --source_lang" in refused("translate", *words, "--split_sentences")
    assert "--num_return_sequences 2 goes with one" in refused(
        "translate", *words, "--split_sentences", "--num_return_sequences", "2"
    )
    assert "--target_prefix goes with one" in refused("translate", *words, "--split_sentences", "--target_prefix", "x")
    _, _, err = run_script("translate", *words, "--source_lang", "en")
    assert err == "note: --source_lang has no effect: only --split_sentences needs it\n"


def test_alignments_are_appended_as_other_tools_append_them(run_script, folder, model, tokenizer, tmp_path):
    sentences = [*NUMBERS, "  ", "seven ||| eight"]
    (tmp_path / "in.txt").write_text("".join(f"{sentence}\r\n" for sentence in sentences))
    words = ["--model_name_or_path", folder, "--input_file", str(tmp_path / "in.txt"), "--alignments"]
    settings = {"num_beams": 2, "num_return_sequences": 2, "max_new_tokens": 20}
    words += [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    code, plain, err = run_script("translate", *words)
    _, as_json, _ = run_script("translate", *words, "--json")
    assert (code, err) == (0, "")
    expected = list(translate(model, tokenizer, sentences, alignments=True, **settings))
    lines = iter(plain.removesuffix("\n").split("\n"))
    for sentence, line, translations in zip(sentences, as_json.splitlines(), expected, strict=True):
        found = json.loads(line)
        assert found["source_words"] == sentence.split()
        for translation, described in zip(translations, found["translations"], strict=True):
            text, separator, alignment = next(lines).rpartition(" ||| ")
            assert (text, separator) == (replace_line_breaks(translation.text), " ||| ")
            assert [tuple(map(int, pair.split("-"))) for pair in alignment.split()] == list(translation.alignment)
            assert [tuple(pair) for pair in described["alignment"]] == list(translation.alignment)
            assert described["words"] == split_into_words(translation.text)


def test_translate_refuses_what_it_cannot_do(refused, folder, tmp_path):
    taken, latin = tmp_path / "taken.txt", tmp_path / "latin.txt"
    taken.write_text("mine\nall\n")
    latin.write_bytes(b"good\nb\xe9b\xe9\n")
    model = ["--model_name_or_path", folder]
    assert "no such folder" in refused("translate", "seven", "--model_name_or_path", str(tmp_path / "none"))
    assert "config.json" in refused("translate", "seven", "--model_name_or_path", str(tmp_path))
    assert "--resume continues an --output_file" in refused("translate", "seven", *model, "--resume")
    assert "num_return_sequences" in refused(
        "translate", "seven", *model, "--num_beams", "1", "--num_return_sequences", "2"
    )
    assert "taken.txt exists already" in refused("translate", "seven", *model, "--output_file", str(taken))
    assert taken.read_text() == "mine\nall\n"
    assert "give one of the two" in refused("translate", "seven", *model, "--input_file", str(taken))
    assert "none.txt" in refused("translate", *model, "--input_file", str(tmp_path / "none.txt"))
    assert "latin.txt, line 2" in refused("translate", *model, "--input_file", str(latin))
    assert "on the command line" in refused("translate", os.fsdecode(b"b\xe9b\xe9"), *model)


def test_what_comes_before_a_broken_line_of_standard_input_is_translated(run_script, folder):
    flags = ["--model_name_or_path", folder, "--max_new_tokens", "20"]
    code, out, err = run_script("translate", *flags, stdin=b"seven\nb\xe9b\xe9\n")
    assert code == 2 and out.count("\n") == 1
    assert err.startswith("error: standard input, line 2: byte 0xe9") and err.count("\n") == 1


@pytest.mark.parametrize("name", ["translate", "evaluate_model"])
def test_an_unknown_flag_is_refused(run_script, folder, name):
    code, out, err = run_script(name, "--model_name_or_path", folder, "--num_beam_groups", "2")
    assert (code, out) == (2, "") and "unrecognized arguments: --num_beam_groups" in err


def test_translate_is_quiet_when_its_reader_leaves(folder):
    command = [sys.executable, str(SCRIPTS / "translate.py"), "--model_name_or_path", folder, "--max_new_tokens", "5"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    process.stdin.write(b"seven\n" * 3)
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


@pytest.mark.parametrize("model_name", ["none", "folder"])
def test_a_reader_that_waits_for_a_line_does_not_abort_the_process(folder, model_name):
    """Python aborts when it ends while a thread holds the lock of sys.stdin's buffer."""
    command = [sys.executable, str(SCRIPTS / "translate.py"), "--max_new_tokens", "5", "--model_name_or_path"]
    command.append(folder if model_name == "folder" else model_name)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if model_name == "folder":
        process.stdin.write(b"seven\n")
        process.stdin.flush()
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
    error = process.stderr.read().decode()
    process.stdin.close()
    assert process.wait() == (130 if model_name == "folder" else 2)
    assert "Fatal" not in error and error.count("\n") <= 1


def test_a_compressed_pipe_is_named(run_script, folder):
    code, _, err = run_script("translate", "--model_name_or_path", folder, stdin=gzip.compress(b"seven\n"))
    assert code == 2 and err.startswith("error: standard input is compressed with gzip; unpack it first")

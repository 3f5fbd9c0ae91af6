"""`vanilla-transformer translate --output_file`: complete under its name or not at all, and continued exactly."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import wordy_model

from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.inference import output as output_module
from vanilla_transformer.inference import translate as translate_module

SENTENCES = ["forty-two", "", "one thousand and one", "seven", "ninety", "two", "three hundred"]
WINDOW = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_tokenizer(SENTENCES * 2, 270)
    folder = tmp_path_factory.mktemp("model")
    wordy_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def small_windows(monkeypatch):
    monkeypatch.setattr(translate_module, "WINDOW_SIZE", WINDOW)
    monkeypatch.setattr(output_module, "WINDOW_SIZE", WINDOW)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.txt"
    path.write_text("".join(f"{sentence}\n" for sentence in SENTENCES))
    return path


@pytest.fixture
def translate(run_script, folder, source):
    """Run the command on the source with two translations for each sentence; returns exit code and error output."""

    def translate(output, *flags, **overrides):
        options = {"model_name_or_path": folder, "input_file": source, "num_beams": 2, "num_return_sequences": 2}
        options |= {"max_new_tokens": 12, "output_file": output} | overrides
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        code, out, err = run_script("translate", *words, *flags)
        assert out == "" and "Traceback" not in err
        return code, err

    return translate


def names(folder):
    return sorted(path.name for path in folder.iterdir())


class Killed(BaseException):
    """Stands for a kill: nothing of the program runs after it."""


@pytest.fixture
def killed_run(translate, monkeypatch):
    """Run the command and stop it before a number of sentences is written; what it has written stays."""

    def run(output, sentences, *flags, **overrides):
        write, unlink, written = output_module.OutputWriter.write, type(output).unlink, []

        def write_or_die(writer, lines):
            written.append(lines)
            if len(written) > sentences:
                writer.file.write(b"torn")  # as a line that is cut off
                raise Killed
            write(writer, lines)

        with monkeypatch.context() as patch:
            patch.setattr(output_module.OutputWriter, "write", write_or_die)
            kept = {f"{output.name}.part", f"{output.name}.part.json"}
            patch.setattr(type(output), "unlink", lambda path, **_: None if path.name in kept else unlink(path))
            with pytest.raises(Killed):
                translate(output, *flags, **overrides)

    return run


@pytest.mark.parametrize("name", ["out.txt", "out.gz"])
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_an_output_that_was_killed_is_continued_to_the_same_bytes(
    translate, killed_run, small_windows, source, tmp_path, name, flags
):
    whole, output = tmp_path / f"whole-{name}", tmp_path / name
    assert translate(whole, *flags) == (0, "")
    assert names(tmp_path) == ["in.txt", whole.name]
    for sentences in (0, 1, 3, 6):
        killed_run(output, sentences, *flags)
        assert not output.exists() and (tmp_path / f"{name}.part").exists()
        killed_run(output, 0, *flags, "--resume")
        assert translate(output, *flags, "--resume") == (0, "")
        assert output.read_bytes() == whole.read_bytes()
        output.unlink()
        assert names(tmp_path) == ["in.txt", whole.name]
    text = whole.read_bytes()
    lines = (gzip.decompress(text) if name.endswith(".gz") else text).decode().splitlines()
    assert len(lines) == len(SENTENCES) * (1 if flags else 2)


def test_only_what_is_missing_is_translated(translate, killed_run, small_windows, tmp_path, monkeypatch):
    killed_run(tmp_path / "out.txt", 5)
    read = []
    batches = translate_module._SourceBatcher.make_batches
    monkeypatch.setattr(
        translate_module._SourceBatcher,
        "make_batches",
        lambda self, window, numbers: read.extend(window) or batches(self, window, numbers),
    )
    assert translate(tmp_path / "out.txt", "--resume")[0] == 0
    assert read == SENTENCES[4:]


def test_a_run_that_was_killed_before_its_output_appeared_is_continued(translate, small_windows, tmp_path, monkeypatch):
    output = tmp_path / "out.txt"
    with monkeypatch.context() as patch:
        patch.setattr(output_module, "publish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            translate(output)
    assert names(tmp_path) == ["in.txt", "out.txt.part", "out.txt.part.json"]
    assert translate(output, "--resume") == (0, "")
    assert names(tmp_path) == ["in.txt", "out.txt"]


def test_a_finished_output_is_not_changed_by_resume(translate, tmp_path):
    output = tmp_path / "out.txt"
    translate(output)
    before = output.read_bytes(), output.stat().st_mtime_ns
    code, err = translate(output, "--resume")
    assert code == 0 and "nothing to resume" in err and err.count("\n") == 1
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before and names(tmp_path) == ["in.txt", "out.txt"]


def test_resume_without_an_unfinished_output_starts_one_and_says_so(translate, tmp_path):
    code, err = translate(tmp_path / "out.txt", "--resume")
    assert code == 0 and err.startswith("note: there is no unfinished") and err.count("\n") == 1
    assert names(tmp_path) == ["in.txt", "out.txt"]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("way", ["same", "link", "hard link", "relative"])
def test_the_input_is_never_the_output(translate, source, tmp_path, resume, way, monkeypatch):
    before, output = source.read_bytes(), tmp_path / "out.txt"
    if way == "link":
        output.symlink_to(source)
    elif way == "hard link":
        os.link(source, output)
    else:
        monkeypatch.chdir(tmp_path)
        output = source if way == "same" else "in.txt"
    code, err = translate(output, *resume)
    assert code == 2 or (resume and "left as it is" in err)
    assert source.read_bytes() == before and err.count("\n") == 1


@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("content", [b"my novel, one line", b"my novel, one line\n", b"\xff\xfe", b""])
def test_a_file_of_the_users_is_never_changed(translate, tmp_path, resume, content):
    output = tmp_path / "novel.txt"
    output.write_bytes(content)
    code, err = translate(output, *resume)
    assert code == 2 and "exists already" in err and err.count("\n") == 1
    assert output.read_bytes() == content and names(tmp_path) == ["in.txt", "novel.txt"]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_partial_file_of_another_program_is_never_changed(translate, tmp_path, resume):
    (tmp_path / "out.txt.part").write_text("mine\n")
    code, err = translate(tmp_path / "out.txt", *resume)
    assert code == 2 and "out.txt.part exists already" in err and err.count("\n") == 1
    assert (tmp_path / "out.txt.part").read_text() == "mine\n" and names(tmp_path) == ["in.txt", "out.txt.part"]


@pytest.mark.parametrize("flag", ["num_beams", "num_return_sequences", "batch_tokens", "max_new_tokens"])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_refused_setting_leaves_nothing(translate, tmp_path, flag, resume):
    code, err = translate(tmp_path / "out.txt", *resume, **{flag: 0})
    assert code == 2 and f"error: {flag} is 0; it must be" in err
    assert names(tmp_path) == ["in.txt"]
    assert translate(tmp_path / "out.txt")[0] == 0


def test_settings_that_only_the_model_can_refuse_leave_nothing(translate, tmp_path):
    code, err = translate(tmp_path / "out.txt", num_return_sequences=3)
    assert code == 2 and "num_return_sequences is 3; it can be at most num_beams, 2" in err
    code, err = translate(tmp_path / "out.txt", "--too_long", "refuse", max_source_length=2)
    assert code == 2 and "sentence 1 has" in err
    assert names(tmp_path) == ["in.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_beams": 3}, "was made with num_beams 2, not 3"),
        ({"max_new_tokens": 13}, "was made with max_new_tokens 12, not 13"),
        ({"length_penalty": 0.1}, "was made with length_penalty None, not 0.1"),
        ({"batch_tokens": 99}, "was made with batch_tokens 1024, not 99"),
        ({"num_return_sequences": 1}, "was made with num_return_sequences 2, not 1"),
        ({"dtype": "bfloat16"}, "was made with dtype float32, not bfloat16"),
        ({"engine": "ctranslate2", "normalize": 1}, "was made with engine torch, not ctranslate2"),
        ({"normalize": 1}, "was made with normalize None, not 1.0"),
        ("--json", "was made with json False, not True"),
        ("--alignments", "was made with alignments False, not True"),
        ({"split_sentences": "True", "source_lang": "en", "num_return_sequences": 1}, "was made with split_sentences"),
        ("model", "was made of another model"),
        ("input", "was made of another input"),
    ],
)
def test_an_output_is_not_continued_with_another_input_model_or_setting(
    translate, killed_run, small_windows, source, folder, tmp_path, change, message
):
    output = tmp_path / "out.txt"
    killed_run(output, 3)
    before = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    flags, overrides = [], {}
    if isinstance(change, dict):
        overrides = change
    elif change == "model":
        overrides["model_name_or_path"] = tmp_path.parent / f"{tmp_path.name}-other"
        other = wordy_model(train_tokenizer(SENTENCES * 2, 270))
        other.lm_head.weight.data[5, 3] += 1
        other.save_pretrained(overrides["model_name_or_path"])
        train_tokenizer(SENTENCES * 2, 270).save_pretrained(overrides["model_name_or_path"])
    elif change == "input":
        source.write_text(source.read_text().replace("seven", "eight"))
        before["in.txt"] = source.read_bytes()
    else:
        flags = [change]
    code, err = translate(output, *flags, "--resume", **overrides)
    assert code == 2 and message in err and err.count("\n") == 1
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == before
    code, err = translate(output)  # nor is it started over, unasked
    assert code == 2 and "holds an unfinished output; continue it with resume" in err


def test_a_description_that_is_damaged_is_named(translate, killed_run, small_windows, tmp_path):
    killed_run(tmp_path / "out.txt", 3)
    for content in ("{", "[]", "null"):
        (tmp_path / "out.txt.part.json").write_text(content)
        code, err = translate(tmp_path / "out.txt", "--resume")
        assert code == 2 and "out.txt.part.json can't be read" in err and err.count("\n") == 1


def test_two_runs_do_not_write_the_same_output(translate, killed_run, small_windows, tmp_path):
    killed_run(tmp_path / "out.txt", 3)
    with output_module.FileLock(f"{tmp_path / 'out.txt.part'}.lock"):
        code, err = translate(tmp_path / "out.txt", "--resume")
    assert code == 2 and "being written by another run" in err


def test_a_full_disk_is_one_sentence_and_the_output_can_be_continued(translate, small_windows, tmp_path, full_disk):
    assert translate(tmp_path / "whole.txt") == (0, "")
    with full_disk(4):
        code, err = translate(tmp_path / "out.txt")
    assert code == 2 and "No space left on device; make room, and continue it with resume" in err
    assert err.count("\n") == 1 and (tmp_path / "out.txt.part").exists()
    assert translate(tmp_path / "out.txt", "--resume") == (0, "")
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()


def test_a_folder_that_is_not_there_is_named_before_the_model_is_loaded(translate, tmp_path):
    code, err = translate(tmp_path / "no" / "out.txt", model_name_or_path="no/such/model")
    assert code == 2 and "there is no folder" in err and not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["out.txt", "out.gz"])
def test_an_empty_input_gives_an_empty_output(translate, source, tmp_path, name):
    source.write_text("")
    assert translate(tmp_path / name) == (0, "")
    content = (tmp_path / name).read_bytes()
    assert (gzip.decompress(content) if name == "out.gz" else content) == b""


def test_an_input_that_can_be_read_only_once_is_translated_but_not_resumed(translate, run_script, folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    code, err = translate(tmp_path / "out.txt", "--resume", input_file=tmp_path / "pipe")
    assert code == 2 and "can be read again" in err
    flags = ["--model_name_or_path", folder, "--output_file", str(tmp_path / "out.txt"), "--max_new_tokens", "5"]
    assert run_script("translate", *flags, stdin=b"seven\ntwo\n")[0] == 0
    assert (tmp_path / "out.txt").read_text().count("\n") == 2
    assert names(tmp_path) == ["in.txt", "out.txt", "pipe"]
    code, _, _ = run_script("translate", *flags[:3], str(tmp_path / "two.txt"), stdin=b"seven\nb\xe9b\xe9\n")
    assert code == 2 and (tmp_path / "two.txt.part").read_text().count("\n") == 1  # what was translated is not lost


def test_a_process_that_is_killed_at_any_moment_is_continued_to_the_same_bytes(folder, tmp_path):
    source, whole, output = (tmp_path / name for name in ("in.txt", "whole.txt", "out.txt"))
    source.write_text("".join(f"{sentence}\n" for sentence in SENTENCES * 40))
    program = (
        "from vanilla_transformer.inference import output, translate\n"
        "output.WINDOW_SIZE = translate.WINDOW_SIZE = 4\n"
        "from vanilla_transformer.commands.translate import main\n"
        "main()"
    )

    def start(path, *flags):
        words = ["--model_name_or_path", folder, "--input_file", source, "--output_file", path]
        words += ["--max_new_tokens", "8", "--num_beams", "1", *flags]
        command = [sys.executable, "-c", program, *map(str, words)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    assert start(whole).wait() == 0
    kills = 0
    for pause in (0.0, 0.05, 0.3):
        process = start(output, "--resume")
        while process.poll() is None and not (tmp_path / "out.txt.part.json").exists():
            time.sleep(0.005)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += not output.exists()
    assert kills > 0
    process = start(output, "--resume")
    assert process.wait() == 0
    assert output.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == ["in.txt", "out.txt", "whole.txt"]


def test_json_has_no_number_that_is_none(run_script, folder, tmp_path):
    for file in os.listdir(folder):
        content = (tmp_path.__class__(folder) / file).read_bytes()
        (tmp_path / file).write_bytes(content)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    (tmp_path / "generation_config.json").write_text(json.dumps(config | {"do_sample": True, "num_beams": 1}))
    _, out, _ = run_script("translate", "seven", "--model_name_or_path", str(tmp_path), "--json")
    assert json.loads(out, parse_constant=pytest.fail)["translations"][0]["score"] is None


@pytest.mark.parametrize("flags", [[], ["--resume"]])
@pytest.mark.parametrize("as_link", [False, True])
def test_an_input_with_as_many_lines_as_the_output_is_not_taken_for_it(translate, source, tmp_path, flags, as_link):
    """With one translation a sentence the input has just as many lines as a finished output."""
    output = source
    if as_link:
        output = tmp_path / "out.txt"
        output.symlink_to(source)
    before = source.read_bytes()
    code, err = translate(output, *flags, num_return_sequences=1)
    assert code == 2 and "is the input file" in err
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["o.xz", "o.ZST", "o.bz2", "o.zip", "-"])
def test_a_name_that_promises_something_else_is_refused(translate, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, err = translate(name)
    assert code == 2 and "the output file" in err and err.count("\n") == 1 and not os.path.exists(name)


def test_gzip_is_written_whatever_the_case_of_its_name(translate, tmp_path):
    assert translate(tmp_path / "a.gz")[0] == translate(tmp_path / "b.GZ")[0] == 0
    assert (tmp_path / "b.GZ").read_bytes() == (tmp_path / "a.gz").read_bytes()


def test_what_another_run_is_writing_is_not_called_a_leftover(translate, tmp_path):
    (tmp_path / "out.txt.part").touch()  # of a pipe, so there is no description
    with output_module.FileLock(f"{tmp_path / 'out.txt.part'}.lock"):
        code, err = translate(tmp_path / "out.txt")
    assert code == 2 and "being written by another run; wait" in err

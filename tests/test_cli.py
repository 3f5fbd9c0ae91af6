"""The console command: how it starts, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import vanilla_transformer
from vanilla_transformer import cli

SOURCE = Path(vanilla_transformer.__file__).parents[1]
# As pip writes it, but for the interpreter in its first line.
CONSOLE_SCRIPT = """
import sys
from vanilla_transformer.cli import main
if __name__ == "__main__":
    sys.exit(main())
"""
# The same with a stand-in for `train`, so that nothing has to be loaded.
STAND_IN = """
import sys, types
from huggingface_hub.errors import StrictDataclassFieldValidationError
import vanilla_transformer
from vanilla_transformer.cli import main
from vanilla_transformer.errors import UserError

def command(argv):
    {body}

vanilla_transformer.register = lambda: {register}
sys.modules["vanilla_transformer.commands.train"] = types.SimpleNamespace(main=command)
if __name__ == "__main__":
    sys.exit(main())
"""


@pytest.fixture
def script(tmp_path):
    """Write the console script of an installed package; returns its path."""

    def write(body: str | None = None, register: str = "None") -> Path:
        path = tmp_path / "vanilla-transformer"
        path.write_text(CONSOLE_SCRIPT if body is None else STAND_IN.format(body=body, register=register))
        return path

    return write


def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": "utf-8"} | environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
    )


# How it starts


def imported(finished: subprocess.CompletedProcess[str]) -> set[str]:
    """The modules that a process started with `-X importtime` imported."""
    lines = finished.stderr.splitlines()
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}


@pytest.mark.parametrize("argument", ["--help", "--version", "unknown"])
def test_help_version_and_errors_do_not_import_torch(script, argument):
    as_script = run("-X", "importtime", script(), argument)
    as_module = run("-X", "importtime", "-m", "vanilla_transformer", argument)
    assert as_script.stdout == as_module.stdout
    for finished in (as_script, as_module):
        assert finished.returncode == (2 if argument == "unknown" else 0)
        assert "vanilla_transformer.cli" in imported(finished)
        assert not imported(finished) & {"torch", "transformers", "numpy"}


def test_help_names_every_command():
    text = cli.make_parser().format_help()
    assert all(f"\n  {name:<10} {purpose}\n" in text for name, purpose in cli.COMMANDS.items())


SCRIPT = "/venv/bin/vanilla-transformer"
SPAWNED = ["python", "-c", "from multiprocessing.spawn import spawn_main", "--multiprocessing-fork"]


@pytest.mark.parametrize(
    ("orig_argv", "argv", "expected"),
    [
        (["python", SCRIPT, "train", "-m"], [SCRIPT, "train", "-m"], True),
        (["python", "-u", SCRIPT], [SCRIPT], True),
        (["python.exe", "vanilla-transformer.exe", "train"], ["vanilla-transformer.exe", "train"], True),
        (["python", "-m", "vanilla_transformer", "train"], ["-m", "train"], True),
        (["python", "-Im", "vanilla_transformer", "train"], ["-m", "train"], True),
        (["python", "-u", "-m", "vanilla_transformer"], ["-m"], True),  # as torchrun and accelerate start it
        (["python", "-m", "launch", "-m", "vanilla_transformer"], ["-m", "-m", "vanilla_transformer"], False),
        (["python", "-m", "pytest", "vanilla_transformer"], ["-m", "vanilla_transformer"], False),
        (SPAWNED, [SCRIPT, "train"], False),
        (SPAWNED, [SCRIPT, "train", *"abcdef"], False),  # children copy the words of their parent, however many
        (["python", "vanilla-transformer.py"], ["vanilla-transformer.py"], False),  # somebody's own program
        (["python", "app.pyz", "train"], ["app.pyz", "train"], False),
        (["python", "-c", "import vanilla_transformer"], ["-c"], False),
        (["python"], [""], False),
        (["python"], [], False),
        ([], [""], False),  # embedded
    ],
)
def test_only_the_command_itself_registers_late(monkeypatch, orig_argv, argv, expected):
    monkeypatch.setattr(sys, "orig_argv", orig_argv)
    monkeypatch.setattr(sys, "argv", argv)
    assert vanilla_transformer._runs_the_command() is expected


def test_registration_needs_no_argv(monkeypatch):
    monkeypatch.delattr(sys, "argv")  # as where Python is embedded
    assert vanilla_transformer._runs_the_command() is False


def test_the_stand_in_gets_the_words_after_its_name(script):
    finished = run(script("print(argv)"), "train", "--traceback", "a", "--", "--traceback")
    assert (finished.returncode, finished.stdout) == (0, "['a', '--', '--traceback']\n")


@pytest.mark.parametrize("shell", cli.SHELLS)
def test_completion_knows_commands_and_options(shell):
    script = cli.completion(shell)
    for word in ("translate", "per_device_train_tokens", "too_long", "quantization"):
        assert word in script


# How it ends


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "unknown command trian; did you mean train?"),
        (["xyz"], f"unknown command xyz; choose from {', '.join(cli.COMMANDS)}"),
        ([], f"give a command: {', '.join(cli.COMMANDS)}"),
        (["--versio"], "unknown option --versio; did you mean --version?"),
        (["--traceback"], f"give a command: {', '.join(cli.COMMANDS)}"),
    ],
)
def test_an_unknown_word_is_one_line_with_status_2(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ('raise UserError("bad.txt is empty;\\n give another")', 2, "error: bad.txt is empty; give another\n"),
        (
            'raise StrictDataclassFieldValidationError("dropout", TypeError("not a float"))',
            2,
            "error: Validation error for field 'dropout': TypeError: not a float\n",
        ),
        ("{}['key']", 1, "error: KeyError: 'key' (run again with --traceback to see where)\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("sys.exit(3)", 3, ""),
    ],
)
def test_every_error_is_one_line_and_has_its_status(script, body, status, error):
    finished = run(script(body), "train")
    assert (finished.returncode, finished.stdout, finished.stderr) == (status, "", error)


def test_an_interrupt_while_torch_loads_ends_without_traceback(script):
    finished = run(script("pass", register="(_ for _ in ()).throw(KeyboardInterrupt)"), "train")
    assert (finished.returncode, finished.stderr) == (130, "")


def test_traceback_shows_where_an_unexpected_error_came_from(script):
    finished = run(script("{}['key']"), "train", "a", "--traceback")
    assert finished.returncode == 1
    assert finished.stderr.startswith("Traceback") and finished.stderr.endswith("KeyError: 'key'\n")


# Output streams


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("cp1252", b"\xe9 \\uc548 \\u1234\n"),
        ("ascii", b"\\xe9 \\uc548 \\u1234\n"),
        ("utf-8", "é 안 ሴ\n".encode()),
    ],
)
def test_any_text_can_be_printed_in_any_encoding(script, encoding, written):
    path = script('print("\\u00e9 \\uc548 \\u1234"); print("\\uc548", file=sys.stderr)')
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONIOENCODING": encoding}
    finished = subprocess.run([sys.executable, path, "train"], env=environment, capture_output=True)
    assert (finished.returncode, finished.stdout) == (0, written)


def test_a_file_name_that_is_not_utf8_can_be_printed(script):
    finished = run(script('print("The model is in \\udcff")'), "train")
    assert (finished.returncode, finished.stdout) == (0, "The model is in \\udcff\n")


def test_closed_streams_end_nothing_and_no_file_takes_their_place(script, tmp_path):
    output = tmp_path / "output.txt"
    body = f'print("words"); os = __import__("os"); file = open({str(output)!r}, "w"); os.write(1, b"C"); file.close()'
    command = f'exec "{sys.executable}" "{script(body)}" train <&- >&- 2>&-'
    finished = subprocess.run(["sh", "-c", command], env=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert finished.returncode == 0
    assert output.read_text() == ""


def test_a_reader_that_has_gone_is_no_error(script):
    with subprocess.Popen(
        [sys.executable, script('print("line\\n" * 100_000)'), "train"],
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_standard_output_on_a_full_disk_is_one_line(script):
    with open("/dev/full", "wb") as full:
        finished = subprocess.run(
            [sys.executable, script('print("words")'), "train"],
            env=os.environ | {"PYTHONPATH": str(SOURCE)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: OSError: [Errno 28]") and finished.stderr.count("\n") == 1

"""The parser that all commands and benchmarks have."""

import re
from dataclasses import dataclass, field, fields
from importlib import import_module

import pytest

from vanilla_transformer.cli import COMMANDS
from vanilla_transformer.commands.arguments import CommandParser
from vanilla_transformer.commands.train import GROUPS, MOST_USED
from vanilla_transformer.training.recipe import PaperTrainingArguments


@dataclass
class Arguments:
    words: list[str] = field(default_factory=list, metadata={"positional": True, "help": "Words."})
    output_dir: str = field(kw_only=True, metadata={"help": "Where to."})
    num_beams: int = field(default=4, metadata={"help": "Beam size."})
    early: bool = field(default=True, metadata={"help": "Whether to stop early."})
    search_name: str | None = field(default=None, metadata={"help": "Which search."})


@pytest.fixture
def parser() -> CommandParser:
    return CommandParser(
        Arguments,
        prog="program",
        doc="What it does.\n\nprogram --output_dir out a b\n",
        most_used=["output_dir", "words"],
        groups={"search": ["search_name", "num_beams", "of_another_release"]},
    )


def test_help_shows_the_most_used_options_first_and_then_the_groups(parser):
    text = parser.format_help()
    assert text.startswith("usage: program [options] --output_dir OUTPUT_DIR [words ...]\n\nWhat it does.\n")
    titles = re.findall(r"^(\w[\w ]*):$", text, flags=re.MULTILINE)
    assert titles == ["most used", "search", "other options", "general"]
    shown = re.findall(r"^  (?:--)?(\w+)", text, flags=re.MULTILINE)
    assert shown == ["output_dir", "words", "search_name", "num_beams", "early", "no_early", "traceback"]
    assert "--output-dir" not in text, "one spelling is enough"
    assert "default: 4" in text and "default: None" not in text
    assert text.endswith("program --output_dir out a b\n")


def test_both_spellings_and_positional_arguments_are_parsed(parser):
    (arguments,) = parser.parse(["a", "--output-dir", "out", "--num_beams", "2", "--no_early", "--traceback"])
    assert arguments == Arguments(["a"], output_dir="out", num_beams=2, early=False)
    assert parser.parse(["--output_dir", "out"])[0].words == []


@pytest.mark.parametrize(
    ("argv", "early", "words"),
    [
        (["--early", "a", "b"], True, ["a", "b"]),
        (["--early", "False", "a"], False, ["a"]),
        (["--early=no", "a"], False, ["a"]),
        (["a", "--early"], True, ["a"]),
        (["--early", "--", "no", "--early"], True, ["no", "--early"]),
        (["no", "--early"], True, ["no"]),
    ],
)
def test_a_switch_takes_no_positional_argument_for_its_value(parser, argv, early, words):
    (arguments,) = parser.parse(["--output_dir", "out", *argv])
    assert (arguments.early, arguments.words) == (early, words)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--output_dir", "out", "--num_beam=2"], "unrecognized arguments: --num_beam=2; did you mean --num_beams?"),
        (["--output_dir", "out", "--search"], "unrecognized arguments: --search; did you mean --search_name?"),
        (["--output_dir", "out", "--xyz=1"], "unrecognized arguments: --xyz=1"),
        (
            ["--output_dir", "out", "--num_beams", "two\nlines"],
            "argument --num_beams: invalid int value: 'two\\nlines'",
        ),
        (["a"], "the following arguments are required: --output_dir"),
        (
            ["--output_dir", "out", "--early", "No"],
            "'No' after --early may be its value or an argument of its own; write --early=No, or put the argument "
            "first",
        ),
    ],
)
def test_an_error_is_one_line_with_status_2(parser, capsys, argv, message):
    with pytest.raises(SystemExit) as stop:
        parser.parse(argv)
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", f"error: {message}\n")


@pytest.mark.parametrize("script", ["train", "evaluate_model", "benchmarks/training", "benchmarks/decoding"])
def test_an_unknown_option_of_a_script_is_refused_in_a_line(run_script, script):
    code, out, err = run_script(script, "--preset_of", "mine")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: unrecognized arguments: --preset_of mine(; did you mean --presets?\?)?\n", err)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_at_most_ten_most_used_options(command):
    parser = import_module(f"vanilla_transformer.commands.{command}").make_parser()
    sections = parser.sections()
    shown = {action.dest for action in sections["most used"]}
    assert next(iter(sections)) == "most used" and 1 < len(shown) <= 10
    required = {action.dest for action in parser._actions if action.required}
    assert required <= shown, "what must be given stands first"
    assert all(action.help for actions in sections.values() for action in actions)
    if command != "train":
        assert "other options" not in sections, "each of our own options has a group"


def test_the_groups_of_train_name_options_that_exist_and_all_of_our_own():
    parser = import_module("vanilla_transformer.commands.train").make_parser()
    own = [*MOST_USED, *(name for names in GROUPS.values() for name in names)]
    known = {item.name for dataclass_type in parser.dataclass_types for item in fields(dataclass_type)}
    assert set(own) <= known
    rest = {action.dest for action in parser.sections()["all other Seq2SeqTrainingArguments"]}
    assert not rest & set(PaperTrainingArguments.__annotations__), "the recipe's own defaults are in a group"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--text_files", "a", "--text_files", "b"],
            "--text_files is given twice; give all its values after one --text_files",
        ),
        (
            ["--text_files=a", "--text_files", "b", "c"],
            "--text_files is given twice; give all its values after one --text_files",
        ),
        (["--text_files", "a", ""], "--text_files is empty; give a value, or leave it out"),
        (["--input_file", ""], "--input_file is empty; give a value, or leave it out"),
    ],
)
def test_a_list_given_twice_and_an_empty_path_are_refused(argv, message, capsys):
    @dataclass
    class Paths:
        text_files: list[str] = field(default_factory=list, metadata={"help": "Files."})
        input_file: str | None = field(default=None, metadata={"help": "A file."})
        prefix: str = field(default="x", metadata={"help": "A text, which may be empty."})

    parser = CommandParser(Paths, prog="program", doc="", most_used=[])
    with pytest.raises(SystemExit):
        parser.parse(argv)
    assert capsys.readouterr().err == f"error: {message}\n"
    assert parser.parse(["--prefix", "", "--input_file", "a", "--input_file", "b"])[0] == Paths([], "b", "")


def test_a_shells_tilde_after_an_equals_sign_is_the_home_folder(parser, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parser.parse(["--output_dir=~/out", "~"])[0] == Arguments(["~"], output_dir="/home/me/out")
    assert parser.parse_given(["--output_dir=~/out"])["output_dir"] == "/home/me/out"

"""Each option of push, export, convert, plot and illustrate is obeyed, refused, or reported in a line.

What is refused here leaves nothing behind.
"""

import errno
import os
import typing
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
from helpers import wordy_model, write_fairseq_checkpoint

from vanilla_transformer.commands.convert import ConvertArguments
from vanilla_transformer.commands.export import ExportArguments
from vanilla_transformer.commands.illustrate import IllustrateArguments
from vanilla_transformer.commands.plot import PlotArguments
from vanilla_transformer.commands.push import CardArguments, PushArguments
from vanilla_transformer.data.tokenization import train_tokenizer

DATACLASSES = {
    "push_to_hub": (PushArguments, CardArguments),
    "export": (ExportArguments,),
    "convert_checkpoint": (ConvertArguments,),
    "plot_attention": (PlotArguments,),
    "illustrate": (IllustrateArguments,),
}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sharing") / "model"
    tokenizer = train_tokenizer(["forty-two", "seven"] * 2, 270)
    model = wordy_model(tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_fairseq_checkpoint(folder.parent)
    return folder


@pytest.fixture
def commands(model_folder, tmp_path) -> dict[str, list[str]]:
    """A command line of each command that works, without its output."""
    model = ["--model_name_or_path", str(model_folder)]
    parent = model_folder.parent
    return {
        "push_to_hub": [*model, "--output_dir"],
        "export": [*model, "--to", "marian", "--output_dir"],
        "convert_checkpoint": [
            str(parent / "checkpoint_best.pt"),
            "--dict",
            str(parent / "dict.en.txt"),
            "--output_dir",
        ],
        "plot_attention": ["seven", *model, "--output_file"],
        "illustrate": [*model, "--output_file"],
    }


@pytest.fixture
def refusal(run_script, tmp_path):
    """Run a command that must be refused with one line and leave nothing; returns the line."""

    def refusal(command: str, *words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        code, out, err = run_script(command, *words)
        assert (code, out) == (2, ""), (code, out, err)
        assert err.startswith("error: ") and err.count("\n") == 1, err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return refusal


def new(command: str) -> str:
    """The name of an output of this command."""
    return "new.html" if command == "illustrate" else "new.png"


def value_options() -> typing.Iterator[tuple[str, str]]:
    """Options with a choice of values or a number."""
    for command, types in DATACLASSES.items():
        for option in (option for dataclass_type in types for option in fields(dataclass_type)):
            kinds = {option.type, *typing.get_args(option.type)}
            if int in kinds or any(typing.get_origin(kind) is typing.Literal for kind in kinds):
                yield command, option.name


@pytest.mark.parametrize(("command", "name"), list(value_options()))
def test_a_value_that_is_none_is_refused_by_name(command, name, commands, refusal, tmp_path):
    assert name in refusal(command, *commands[command], str(tmp_path / new(command)), f"--{name}", "1.5x")


@pytest.mark.parametrize("command", DATACLASSES)
def test_a_required_option_that_is_missing_is_named(command, refusal):
    required = [
        option.name
        for dataclass_type in DATACLASSES[command]
        for option in fields(dataclass_type)
        if option.default is MISSING and option.default_factory is MISSING
    ]
    assert any(name in refusal(command) for name in required)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("push_to_hub", ["--repo_id", "a/b/c"], "--repo_id is 'a/b/c'; it must be name or owner/name"),
        ("push_to_hub", ["--repo_id", ""], "--repo_id is ''"),
        (
            "push_to_hub",
            ["--license", "Apache 2.0"],
            "--license is 'Apache 2.0'; it must be a license as the Hub names",
        ),
        ("push_to_hub", ["--license", "mit\n---\nx: y"], "--license is 'mit"),
        ("push_to_hub", ["--commit_message", " "], "--commit_message is blank"),
        *(("push_to_hub", [f"--{option.name}", " "], f"--{option.name} is blank") for option in fields(CardArguments)),
        ("push_to_hub", ["--scores", "no/such.json"], "no/such.json can't be read"),
        ("export", ["--quantization", "int8"], "--quantization int8 goes with --to ctranslate2, not with --to marian"),
        ("export", ["--quantization", ""], "--quantization  goes with --to ctranslate2"),
        ("convert_checkpoint", ["--dict", "no/such.txt"], "--dict is given twice"),
        ("plot_attention", ["--positions", "5"], "give either a sentence"),
        ("plot_attention", ["--target", " "], "is blank"),
        ("illustrate", ["--sentence", " "], "the sentence is blank"),
        ("illustrate", ["--sentence", "a\nb"], "the sentence has a line break"),
        ("illustrate", ["--sentence", "seven " * 70], "tokens; give one of at most"),
        ("illustrate", ["--sentence", "\udcff"], "not valid UTF-8"),
        ("illustrate", ["--device", "nowhere"], "device is 'nowhere'"),
    ],
)
def test_what_can_not_be_is_refused(command, words, message, commands, refusal, tmp_path):
    assert message in refusal(command, *commands[command], str(tmp_path / new(command)), *words)


def test_a_dictionary_that_is_not_there_is_named(model_folder, refusal, tmp_path):
    checkpoint = str(model_folder.parent / "checkpoint_best.pt")
    words = [checkpoint, "--dict", "no/such.txt", "--output_dir", str(tmp_path / "new")]
    assert "no/such.txt" in refusal("convert_checkpoint", *words)


@pytest.mark.parametrize("number", ["0", "-1", "100001", str(10**30), "nan"])
def test_a_number_of_positions_has_bounds(number, model_folder, refusal, tmp_path):
    words = ["--model_name_or_path", "no/such/model", "--output_file", str(tmp_path / "a.png")]
    assert "positions" in refusal("plot_attention", *words, f"--positions={number}")


def test_a_quantization_that_ctranslate2_has_not_is_refused_before_the_model_is_loaded(refusal, tmp_path):
    pytest.importorskip("ctranslate2")
    words = ["--model_name_or_path", "no/such/model", "--to", "ctranslate2", "--output_dir", str(tmp_path / "new")]
    assert "quantization is 'int4'; CTranslate2 has int8" in refusal("export", *words, "--quantization", "int4")


@pytest.mark.parametrize(
    ("command", "words", "reported"),
    [
        ("push_to_hub", ["--private"], "--private has no effect: --output_dir pushes nothing"),
        ("push_to_hub", ["--commit_message", "x"], "--commit_message has no effect"),
        ("push_to_hub", ["--existing_card", "keep"], "--existing_card has no effect"),
        ("push_to_hub", ["--token", "hf_x"], "--token has no effect: nothing is loaded from the Hub"),
        ("plot_attention", ["--token", "hf_x"], "--token has no effect"),
        ("plot_attention", ["--model_revision", "x"], "--model_revision has no effect"),
        ("illustrate", ["--token", "hf_x"], "--token has no effect"),
        ("illustrate", ["--trust_remote_code"], "--trust_remote_code has no effect"),
    ],
)
def test_what_has_no_effect_is_reported_in_a_line(
    command, words, reported, commands, run_script, tmp_path, monkeypatch
):
    monkeypatch.setattr("vanilla_transformer.commands.push.verify", lambda *args, **kwargs: [])
    code, _, err = run_script(command, *commands[command], tmp_path / new(command), *words)
    assert code == 0 and err.startswith("note: ") and reported in err and err.count("\n") == 1, err


def test_a_kind_of_attention_has_no_effect_on_positions(model_folder, run_script, tmp_path):
    words = ["--model_name_or_path", model_folder, "--output_file", tmp_path / "a.png", "--positions", "4"]
    code, out, err = run_script("plot_attention", *words, "--kind", "decoder")
    assert (code, err) == (0, "note: --kind has no effect: --positions draws no attention\n")
    assert out == f"The picture is in {tmp_path / 'a.png'}\n"


# Files


@pytest.mark.parametrize("command", DATACLASSES)
def test_what_exists_is_left_alone(command, commands, refusal, tmp_path):
    path = tmp_path / new(command)
    path.write_text("mine")
    assert "exist" in refusal(command, *commands[command], str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("command", ["push_to_hub", "export", "plot_attention", "illustrate"])
def test_the_folder_of_the_model_is_left_alone(command, commands, refusal, model_folder):
    before = {path: path.read_bytes() for path in model_folder.iterdir()}
    assert refusal(command, *commands[command], str(model_folder))
    assert {path: path.read_bytes() for path in model_folder.iterdir()} == before


@pytest.mark.parametrize("command", DATACLASSES)
def test_a_place_that_can_not_be_written_is_one_sentence(command, commands, refusal, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "can't write" in refusal(command, *commands[command], str(tmp_path / "file" / new(command)))


@pytest.mark.parametrize("command", DATACLASSES)
def test_a_full_disk_leaves_nothing_and_is_one_sentence(command, commands, refusal, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name in ("save_pretrained", "_save_pretrained"):
        monkeypatch.setattr(f"transformers.PreTrainedTokenizerBase.{name}", full)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    monkeypatch.setattr("vanilla_transformer.data.files.publish", full)
    assert "No space left on device" in refusal(command, *commands[command], str(tmp_path / new(command)))

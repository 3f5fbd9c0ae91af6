"""Each option of translate and evaluate is obeyed, or refused by its name before a model is loaded, or reported."""

import json
import typing
from dataclasses import fields

import pytest
from helpers import wordy_model

from vanilla_transformer.commands.arguments import DecodingArguments
from vanilla_transformer.commands.evaluate import EvaluateArguments
from vanilla_transformer.commands.translate import TranslateArguments
from vanilla_transformer.data.tokenization import train_tokenizer

COMMANDS = {"translate": TranslateArguments, "evaluate_model": EvaluateArguments}
SENTENCES = ["forty-two", "one thousand and one", "seven"]
HUGE = str(10**30)
# Of the values below, those that an option may have.
ALLOWED = {
    "length_penalty": {"0", "-1"},
    "batch_tokens": {HUGE},
    "max_source_length": {HUGE},
    "normalize": {"0", "-1"},
}


def numeric_options():
    for command, dataclass_type in COMMANDS.items():
        for option in (*fields(dataclass_type), *fields(DecodingArguments)):
            if {int, float} & {option.type, *typing.get_args(option.type)}:
                for value in ("0", "-1", "nan", "inf", HUGE, "1.5x"):
                    if value not in ALLOWED.get(option.name, ()):
                        yield command, option.name, value


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = train_tokenizer(SENTENCES * 2, 270)
    folder = tmp_path_factory.mktemp("model")
    wordy_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def refusal(run_script):
    """Run a command that must be refused with one line; returns the line."""

    def refusal(command, *words, stdin=b"seven\n"):
        code, out, err = run_script(command, *words, stdin=stdin)
        assert (code, out) == (2, "") and err.startswith("error: ") and err.count("\n") == 1, err
        return err

    return refusal


def test_there_are_numeric_options():
    assert {(command, name) for command, name, _ in numeric_options()} >= {
        (command, name)
        for command in COMMANDS
        for name in ("num_beams", "length_penalty", "max_new_tokens", "batch_tokens", "max_source_length")
    }


@pytest.mark.parametrize(("command", "name", "value"), list(numeric_options()))
def test_an_impossible_number_is_refused_by_name_before_a_model_is_loaded(refusal, command, name, value):
    assert name in refusal(command, "--model_name_or_path", "no/such/model", f"--{name}={value}")


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        (command, name, value)
        for command in COMMANDS
        for name, values in ALLOWED.items()
        for value in sorted(values)
        if name != "normalize" or command == "translate"
    ],
)
def test_a_possible_number_is_accepted(refusal, command, name, value):
    assert "there is no such folder" in refusal(command, "--model_name_or_path", "no/such/model", f"--{name}={value}")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("too_long", "break"),
        ("device", "nonsense"),
        ("device", "meta"),
        ("device", "cuda:99"),
        ("dtype", "nonsense"),
        ("dtype", "float8_e4m3fn"),
        ("num_beams", "10000"),
    ],
)
def test_an_impossible_choice_is_refused_by_name_before_a_model_is_loaded(refusal, command, name, value):
    error = refusal(command, "--model_name_or_path", "no/such/model", f"--{name}", value)
    assert name in error and value in error


def test_an_unknown_tokenizer_of_bleu_is_refused(refusal):
    error = refusal("evaluate_model", "--model_name_or_path", "no/such/model", "--bleu_tokenize", "15b")
    assert "bleu_tokenize" in error and "'15b'" in error and "'13a'" in error


@pytest.mark.parametrize(
    "option",
    [*(field.name for field in fields(DecodingArguments)), "output_file"],
)
def test_options_of_a_model_are_refused_where_files_are_scored(refusal, tmp_path, option):
    (tmp_path / "text").write_text("a\n")
    types = typing.get_type_hints(DecodingArguments)
    default = {"batch_tokens": "1024", "max_source_length": "1024", "too_long": "cut", "model_revision": "main"}
    words = [f"--{option}"] if types.get(option) is bool else [f"--{option}", default.get(option, "2")]
    text = str(tmp_path / "text")
    error = refusal("evaluate_model", "--predictions_file", text, "--references_file", text, *words)
    assert f"--{option} can't be given with files" in error  # although it may be given as its default


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["--num_beams", "1", "--length_penalty", "0.6"], "--length_penalty has no effect: search with one beam"),
        (["--model_revision", "v1", "--token", "x"], "--model_revision, --token have no effect: the model is in a"),
    ],
)
def test_an_option_without_effect_is_reported_in_a_line(run_script, folder, command, words, note):
    small = {"translate": ["seven"], "evaluate_model": ["--max_predict_samples", "1"]}[command]
    code, _, err = run_script(command, "--model_name_or_path", folder, "--max_new_tokens", "3", *small, *words)
    assert code == 0 and f"note: {note}" in err and err.count("\n") == 1


def test_options_of_a_data_set_without_one_are_reported_in_a_line(run_script, folder):
    words = ["--max_predict_samples", "1", "--max_new_tokens", "3", "--split", "test", "--dataset_config_name", "x"]
    code, _, err = run_script("evaluate_model", "--model_name_or_path", folder, *words)
    assert code == 0
    assert err == "note: --dataset_config_name, --split have no effect: there is no --dataset_name\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--dtype", "int8"], "dtype is 'int8'; it must be auto, float32"),
        (["--engine", "ctranslate2", "--dtype", "float64"], "dtype is 'float64'; the engine ctranslate2 has auto"),
        (["--engine", "ctranslate2", "--alignments"], "--engine ctranslate2 can't do --alignments"),
        (["--engine", "ctranslate2", "--target_prefix", "x"], "--engine ctranslate2 can't do --target_prefix"),
        (["--engine", "ctranslate2", "--json_input"], "can't do --json_input, which gives target prefixes"),
        (["--model_name_or_path", "other", "--engine", "ctranslate2"], "--engine ctranslate2 can't do an ensemble"),
        (["--model_name_or_path", "other", "--alignments"], "--alignments are those of one model's attention"),
        (["--engine", "onnx"], "argument --engine: invalid choice: 'onnx'"),
        (["--normalize", "1", "--length_penalty", "1"], "--normalize and --length_penalty are two penalties"),
    ],
)
def test_what_an_engine_can_not_do_is_refused_before_a_model_is_loaded(refusal, words, message):
    assert message in refusal("translate", "--model_name_or_path", "no/such/model", *words)


def test_as_many_beams_as_types_are_refused(refusal, folder):
    assert "num_beams is 999; it must be below" in refusal(
        "translate", "seven", "--model_name_or_path", folder, "--num_beams", "999"
    )


@pytest.mark.parametrize("hypotheses", ["\n\n", " \n\t\n"])
def test_blank_translations_are_scored(run_script, tmp_path, hypotheses):
    (tmp_path / "predictions").write_text(hypotheses)
    (tmp_path / "references").write_text("a cat\nb\n")
    files = ["--predictions_file", str(tmp_path / "predictions"), "--references_file", str(tmp_path / "references")]
    code, out, _ = run_script("evaluate_model", *files, "--json")
    assert code == 0 and json.loads(out)["bleu"] == 0


def test_empty_files_are_refused(refusal, tmp_path):
    (tmp_path / "empty").write_text("")
    file = str(tmp_path / "empty")
    assert "is empty" in refusal("evaluate_model", "--predictions_file", file, "--references_file", file)

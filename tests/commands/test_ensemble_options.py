"""Several models in --model_name_or_path: an ensemble in translate and evaluate, refused elsewhere."""

import json
import shutil

import pytest
from helpers import NUMBERS, wordy_model

from vanilla_transformer.cli import COMMANDS
from vanilla_transformer.commands.arguments import is_another_model
from vanilla_transformer.commands.translate import make_parser
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.inference import output as output_module
from vanilla_transformer.inference import translate as translate_module
from vanilla_transformer.inference.translate import translate

LIMIT = ["--max_new_tokens", "12"]


@pytest.fixture(scope="module")
def other(tokenizer):
    model = wordy_model(tokenizer, d_model=24, decoder_layers=2)
    model.lm_head.weight.data = model.lm_head.weight.data.flip(0)
    return model


@pytest.fixture(scope="module")
def folders(folder, other, tokenizer, tmp_path_factory):
    second = tmp_path_factory.mktemp("second")
    other.save_pretrained(second)
    tokenizer.save_pretrained(second)
    return [folder, str(second)]


@pytest.fixture
def expected(model, other, tokenizer):
    found = translate([model, other], tokenizer, NUMBERS, max_new_tokens=12)
    return [translation.text.replace("\n", " ") for (translation,) in found]


def test_several_models_translate_together(run_script, folders, model, tokenizer, tmp_path, expected):
    (tmp_path / "in.txt").write_text("".join(f"{sentence}\n" for sentence in NUMBERS))
    stdin = (tmp_path / "in.txt").read_bytes()
    option = "--model_name_or_path"
    for words in (
        [option, *folders, *NUMBERS, *LIMIT],
        [*NUMBERS, option, *folders, *LIMIT],
        [option, folders[0], f"{option}={folders[1]}", *LIMIT, "--input_file", tmp_path / "in.txt"],
        [f"--model-name-or-path={folders[0]}", folders[1], *LIMIT],
        [option, *folders, *LIMIT, f"--input_file={tmp_path / 'in.txt'}"],
    ):
        code, out, err = run_script("translate", *words, stdin=stdin)
        assert (code, err) == (0, "") and out.split("\n")[:-1] == expected
    alone = [each.text for (each,) in translate(model, tokenizer, NUMBERS, max_new_tokens=12)]
    assert expected != alone


def test_a_sentence_after_a_model_is_a_sentence(tmp_path, folder):
    parser = make_parser()

    def parsed(*words):
        arguments, _ = parser.parse(["--model_name_or_path", *words])
        return arguments.model_name_or_path, arguments.sentences

    assert parsed("m", "forty-two", "seven") == (["m"], ["forty-two", "seven"])
    assert parsed("m", folder, "seven", folder) == (["m", folder], ["seven", folder])
    assert parsed("m", "--", folder) == (["m"], [folder])
    assert parsed("m", "n/o", "--input_file", "f") == (["m", "n/o"], [])
    assert parsed("m", "--model_name_or_path", "n/o", "seven") == (["m", "n/o"], ["seven"])
    assert parsed("m", "--json", folder) == (["m"], [folder])
    assert not is_another_model("x" * 100_000, []) and not is_another_model("a\0b", [])
    assert parser.given(["--model_name_or_path", "m", folder, "--json"]) >= {"model_name_or_path", "json"}


def test_evaluate_scores_an_ensemble(run_script, folders, expected, tmp_path):
    for suffix in ("en", "fr"):
        (tmp_path / f"test.{suffix}").write_text("".join(f"{sentence or '-'}\n" for sentence in NUMBERS))
    flags = ["--test_file", tmp_path / "test", "--source_lang", "en", "--target_lang", "fr", *LIMIT, "--json"]
    output = ["--output_file", tmp_path / "out.txt"]
    code, out, err = run_script("evaluate_model", "--model_name_or_path", *folders, *flags, *output)
    assert code == 0, err
    found = (tmp_path / "out.txt").read_text().split("\n")
    pairs = [pair for *pair, sentence in zip(found, expected, NUMBERS, strict=False) if sentence]
    assert len(pairs) == 3 and all(one == other for one, other in pairs)
    report = json.loads(out)
    alone = json.loads(run_script("evaluate_model", "--model_name_or_path", folders[0], *flags)[1])
    assert (report["model"], alone["model"]) == (folders, folders[0]) and alone["weights"] != report["weights"]


def test_every_model_is_checked(refused, folders, tokenizer, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folders[1], broken)
    (broken / "model.safetensors").write_bytes(b"damaged")
    words = ["seven", "--model_name_or_path", folders[0], str(broken)]
    assert f"{broken}/model.safetensors" in refused("translate", *words)
    train_tokenizer(["eight", *NUMBERS] * 2, 270).save_pretrained(broken)
    shutil.copy(f"{folders[1]}/model.safetensors", broken)
    error = refused("translate", *words)
    assert f"the tokenizers of {folders[0]} and {broken} differ: type" in error
    assert "no such folder" in refused(
        "translate", *words[1:3], "no/model", "--input_file", folders[0] + "/config.json"
    )


def test_an_output_is_continued_only_with_all_models(run_script, folders, tmp_path, monkeypatch, full_disk):
    for module in (translate_module, output_module):
        monkeypatch.setattr(module, "WINDOW_SIZE", 2)
    (tmp_path / "in.txt").write_text("".join(f"{sentence}\n" for sentence in NUMBERS))

    def run(models, name, *flags):
        files = ["--input_file", tmp_path / "in.txt", "--output_file", tmp_path / name]
        return run_script("translate", "--model_name_or_path", *models, *files, *LIMIT, *flags)

    assert run(folders, "whole.txt")[0] == 0
    with full_disk(3):
        assert run(folders, "out.txt")[0] == 2
    for models in (folders[:1], folders[1:], folders[::-1], [*folders, folders[0]]):
        code, _, err = run(models, "out.txt", "--resume")
        assert code == 2 and "was made of another model" in err
    assert run(folders, "out.txt", "--resume") == (0, "", "")
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "whole.txt").read_bytes()


@pytest.mark.parametrize("command", ["plot", "export", "push", "train"])
def test_a_command_for_one_model_refuses_several(capsys, folders, command):
    from importlib import import_module

    assert command in COMMANDS
    parser = import_module(f"vanilla_transformer.commands.{command}").make_parser()
    option = "--model_name_or_path"
    for words in ([option, *folders], [option, folders[0], option, folders[1]], [f"{option}={folders[0]}", folders[1]]):
        with pytest.raises(SystemExit) as stop:
            parser.parse(words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.count("\n") == 1
        assert f"{option} has several models, and vanilla-transformer {command} takes one; give one" in error

"""No foreign code is saved on, pushed on or run in the check."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import one_layer_config

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenization import PreTrainedTokenizerFast, train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.hub import trust
from vanilla_transformer.hub.push import save_for_hub
from vanilla_transformer.hub.trust import check_code
from vanilla_transformer.hub.verify import verify
from vanilla_transformer.inference.loading import load

FOREIGN = "stranger/evil--evil.Evil"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder for the Hub."""
    folder = tmp_path_factory.mktemp("trust") / "saved"
    tokenizer = train_tokenizer(["one", "two"] * 2, 270)
    save_for_hub(VanillaTransformerForConditionalGeneration(one_layer_config(tokenizer)), tokenizer, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change(path: Path, **fields) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | fields))


def evil(path: Path, harm: Path) -> None:
    """Write code that leaves a file when it runs, and defines every class that may be asked for."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"from pathlib import Path\nPath({str(harm)!r}).touch()\n")


def test_an_untouched_folder_has_no_foreign_code(saved):
    model, _ = load(str(saved), device="cpu")
    check_code(saved, model, "it")


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": [FOREIGN, None]}}),
        ("tokenizer_config.json", {"auto_map": [None, FOREIGN]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["modeling_vanilla_transformer.Evil", None]}}),
        ("config.json", {"auto_map": {"AutoConfig": FOREIGN}}),
        ("config.json", {"custom_pipelines": {"translation": {"impl": FOREIGN}}}),
        ("config.json", {"attn_implementation": "stranger/kernel"}),
        ("generation_config.json", {"auto_map": {"AutoModel": FOREIGN}}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": FOREIGN}}),
    ],
)
def test_a_reference_to_foreign_code_is_refused_before_it_runs(name, fields, folder, monkeypatch):
    model, tokenizer = load(str(folder), device="cpu")
    change(folder / name, **fields)
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: pytest.fail("a process was started"))
    with pytest.raises(UserError, match=f"{name} has the .*which is foreign code; remove it"):
        verify(folder, model, tokenizer)


@pytest.mark.parametrize("name", ["modeling_vanilla_transformer.py", "step_decoder_vanilla_transformer.py"])
def test_changed_code_is_refused_before_it_runs(name, folder, tmp_path):
    model, tokenizer = load(str(folder), device="cpu")
    evil(folder / name, tmp_path / "harm")
    with pytest.raises(UserError, match=f"{name} is neither this package's nor the model's own code"):
        verify(folder, model, tokenizer)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["custom_generate/generate.py", "adapter_config.json"])
def test_files_that_transformers_picks_up_unasked_are_refused(name, folder, tmp_path):
    model, tokenizer = load(str(folder), device="cpu")
    evil(folder / name, tmp_path / "harm")
    with pytest.raises(UserError, match="makes transformers load foreign code or weights"):
        verify(folder, model, tokenizer)
    assert not (tmp_path / "harm").exists()


def test_code_that_nothing_names_is_no_obstacle(folder, tmp_path):
    model, tokenizer = load(str(folder), device="cpu")
    evil(folder / "train.py", tmp_path / "harm")
    assert len(verify(folder, model, tokenizer)) == 4
    assert not (tmp_path / "harm").exists()


def test_nothing_of_a_downloaded_model_but_the_model_is_saved_on(folder, tmp_path):
    """F1: a reference in tokenizer_config.json, by whatever way the tokenizer is loaded."""
    for name in ("custom_generate/generate.py", "evil.py"):
        evil(folder / name, tmp_path / "harm")
    (folder / "chat_template.jinja").write_text("{{ evil }}")
    model, _ = load(str(folder), device="cpu")
    fields = {"auto_map": {"AutoTokenizer": [None, FOREIGN]}, "evil": FOREIGN, "processor_class": "Evil"}
    change(folder / "tokenizer_config.json", **fields)
    model.config.custom_pipelines = {"translation": {"impl": FOREIGN}}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert "evil" in tokenizer.init_kwargs
    output = tmp_path / "output"
    save_for_hub(model, tokenizer, output)
    assert len(verify(output, model, tokenizer)) == 4
    assert {path.name for path in output.iterdir()} == {path.name for path in folder.iterdir()} - {
        "custom_generate",
        "evil.py",
        "chat_template.jinja",
    }
    for path in output.glob("*.json"):
        assert "stranger" not in path.read_text() and "Evil" not in path.read_text(), path
    assert not (tmp_path / "harm").exists()
    assert model.config.custom_pipelines == {"translation": {"impl": FOREIGN}}, "the caller's config is as it was"


SUBCLASS = """
from vanilla_transformer import VanillaTransformerForConditionalGeneration


class Louder(VanillaTransformerForConditionalGeneration):
    pass
"""


def test_a_subclass_is_saved_as_what_it_is_and_its_own_code_is_trusted(saved, tmp_path, monkeypatch):
    """It imports the package, so that it can't load without it: the check says so."""
    (tmp_path / "louder.py").write_text(SUBCLASS)
    monkeypatch.syspath_prepend(str(tmp_path))
    from louder import Louder

    model, tokenizer = Louder.from_pretrained(saved), load(str(saved), device="cpu")[1]
    output = tmp_path / "output"
    save_for_hub(model, tokenizer, output)
    auto_map = json.loads((output / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForSeq2SeqLM"] == "louder.Louder"
    with pytest.raises(UserError) as error:
        verify(output, model, tokenizer)
    assert "AutoModelForSeq2SeqLM without the package: " in str(error.value) and "\n" not in str(error.value)
    assert "neither this package's" not in str(error.value)
    monkeypatch.setattr(Louder, "_auto_class", None)
    model = Louder.from_pretrained(saved)  # a save writes into the model's config
    with pytest.raises(UserError, match="the model is a Louder, but .*; call Louder.register_for_auto_class"):
        save_for_hub(model, tokenizer, tmp_path / "unregistered")
    assert not (tmp_path / "unregistered").exists()
    sys.modules.pop("louder")


def test_the_trusted_files_are_those_of_the_package_and_of_the_model(saved):
    model, _ = load(str(saved), device="cpu")
    digests = trust._trusted_digests(model)
    assert all(trust._digest(path) in digests for path in saved.glob("*.py"))

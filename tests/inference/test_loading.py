"""Loading a saved model: what is loaded, and what is refused."""

import json

import pytest
from helpers import wordy_model

from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.loading import load
from vanilla_transformer.inference.translate import translate

SENTENCES = [
    "a dog runs",
    "two dogs run on the green grass",
    "",
    "a cat",
    "the cat sleeps all day long",
    "  \t",
    "a dog",
]
SHORT = {"max_new_tokens": 12}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES * 2, 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    return wordy_model(tokenizer, dropout=0.5)


@pytest.fixture(scope="module")
def saved(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts(results) -> list[list[str]]:
    return [[translation.text for translation in translations] for translations in results]


def test_load_gives_the_saved_model(model, tokenizer, saved):
    loaded, its_tokenizer = load(str(saved), device="cpu")
    assert not loaded.training
    assert list(translate(loaded, its_tokenizer, SENTENCES, **SHORT)) == list(
        translate(model, tokenizer, SENTENCES, **SHORT)
    )


@pytest.mark.parametrize("missing", ["config.json", "tokenizer_config.json", "model.safetensors"])
def test_load_names_what_a_folder_lacks(saved, tmp_path, missing):
    for file in saved.iterdir():
        if file.name != missing and file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=missing.replace(".", r"\.")) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)


def test_load_names_a_damaged_file(saved, tmp_path):
    for file in saved.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(UserError, match=str(tmp_path)) as error:
        load(str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["./no/such/folder", "nobody/no-such-model"])
def test_load_of_nothing(name):
    with pytest.raises(UserError, match=f"{name}: there is no such folder") as error:
        load(name)
    assert "\n" not in str(error.value)


def test_load_does_not_run_code_unasked(saved, tmp_path):
    config = json.loads((saved / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.Config", "AutoModelForSeq2SeqLM": "code.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    (tmp_path / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UserError, match="trust_remote_code"):
        load(str(tmp_path))


def test_load_to_a_device_that_is_not_there(saved):
    with pytest.raises(UserError, match="cuda:99") as error:
        load(str(saved), device="cuda:99")
    assert "\n" not in str(error.value)

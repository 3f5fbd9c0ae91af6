"""A model with its tokenizer, in memory and saved, and commands that must be refused."""

import pytest
from helpers import NUMBERS, wordy_model

from vanilla_transformer.data.tokenization import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(NUMBERS * 2, 270)


@pytest.fixture(scope="module")
def model(tokenizer):
    return wordy_model(tokenizer)


@pytest.fixture(scope="module")
def folder(model, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def refused(run_script):
    """Run a script that must stop with one sentence."""

    def refused(name: str, *arguments: str, stdin: bytes = b"") -> str:
        code, out, err = run_script(name, *arguments, stdin=stdin)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1
        return err

    return refused

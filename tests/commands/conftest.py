"""A model with its tokenizer, in memory and saved, and commands that must be refused."""

from contextlib import contextmanager

import pytest
from helpers import NUMBERS, wordy_model

from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.inference import output as output_module


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
def full_disk(monkeypatch):
    """Give a context in which the disk is full when so many sentences' translations are written."""

    @contextmanager
    def full_disk(sentences: int):
        write, written = output_module.OutputWriter.write, []

        def write_until_full(writer, lines):
            written.append(lines)
            if len(written) > sentences:
                raise OSError(28, "No space left on device")
            write(writer, lines)

        with monkeypatch.context() as patch:
            patch.setattr(output_module.OutputWriter, "write", write_until_full)
            yield

    return full_disk


@pytest.fixture
def refused(run_script):
    """Run a script that must stop with one sentence."""

    def refused(name: str, *arguments: str, stdin: bytes = b"") -> str:
        code, out, err = run_script(name, *arguments, stdin=stdin)
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and err.count("\n") == 1
        return err

    return refused

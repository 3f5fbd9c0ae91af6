"""A model with its tokenizer, in memory and saved."""

import pytest
from helpers import SENTENCES, wordy_model

from vanilla_transformer.data.tokenization import train_tokenizer


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

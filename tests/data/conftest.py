"""Fixtures of the tests of reading and encoding."""

import datasets
import pytest

from vanilla_transformer.data.tokenization import train_tokenizer


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> None:
    """Give the test a cache of its own, in `tmp_path / "cache"`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def english_german_tokenizer():
    return train_tokenizer(["Two men walk and a dog runs.", "Zwei Männer gehen und ein Hund rennt."] * 20, 300)

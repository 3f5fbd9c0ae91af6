"""Data for small training runs."""

import pytest
from datasets import Dataset
from training_runs import SENTENCES

from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.data.tokenization import train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES, 280)


@pytest.fixture(scope="module")
def dataset(tokenizer) -> Dataset:
    pairs = Dataset.from_dict({"source": SENTENCES, "target": [sentence.upper() for sentence in SENTENCES]})
    return encode_pairs(pairs, tokenizer, max_source_length=100, max_target_length=100, max_length_ratio=9)[0]

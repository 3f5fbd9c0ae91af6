"""Sources get the Unicode normal form of the text that the tokenizer was trained on."""

import unicodedata

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from vanilla_transformer.data import normal_form as module
from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.data.normal_form import normal_form, normalize_sources
from vanilla_transformer.data.tokenization import train_tokenizer

COMPOSED = ["두 젊은이가 날씨에 대해 이야기한다.", "Zwei Männer grüßen.", "Two men walk."]
DECOMPOSED = [unicodedata.normalize("NFD", text) for text in COMPOSED]


@pytest.fixture(autouse=True)
def _log_again():
    module._log_once.cache_clear()


@pytest.mark.parametrize(
    ("texts", "form"),
    [
        (COMPOSED, "NFC"),
        (DECOMPOSED, "NFD"),
        (COMPOSED + DECOMPOSED, None),
        (["plain ASCII"], None),
        (COMPOSED * 100 + DECOMPOSED[:1], "NFC"),
    ],
)
def test_the_form_of_the_training_text_is_noted_and_saved(texts, form, tmp_path):
    tokenizer = train_tokenizer(texts, 300)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path / "again")
    for either in (tokenizer, loaded, AutoTokenizer.from_pretrained(tmp_path / "again")):
        assert normal_form(either) == form


def test_sources_in_another_form_are_converted_and_it_is_said_once(caplog):
    tokenizer = train_tokenizer(COMPOSED, 300)
    assert normalize_sources(tokenizer, COMPOSED) == COMPOSED and not caplog.records
    for _ in range(2):
        assert normalize_sources(tokenizer, DECOMPOSED) == COMPOSED
    assert [record.getMessage() for record in caplog.records] == [
        "some sources are not in Unicode normal form NFC, which the model was trained on; they are converted to it"
    ]
    assert normalize_sources(train_tokenizer(DECOMPOSED, 300), COMPOSED) == DECOMPOSED


def test_nothing_is_converted_for_a_tokenizer_without_a_form():
    tokenizer = train_tokenizer(COMPOSED + DECOMPOSED, 300)
    assert normalize_sources(tokenizer, DECOMPOSED) == DECOMPOSED


def test_the_tokenizer_itself_restores_either_form_exactly():
    tokenizer = train_tokenizer(COMPOSED, 300)
    for text in COMPOSED + DECOMPOSED:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_training_converts_sources_as_translation_does_and_leaves_targets():
    tokenizer = train_tokenizer(COMPOSED, 300)
    pairs = Dataset.from_dict({"source": DECOMPOSED, "target": DECOMPOSED})
    limits = {"max_source_length": 200, "max_target_length": 200, "max_length_ratio": 9}
    encoded, _ = encode_pairs(pairs, tokenizer, **limits)
    assert encoded["input_ids"][:] == tokenizer(COMPOSED)["input_ids"]
    assert encoded["labels"][:] == tokenizer(DECOMPOSED)["input_ids"]

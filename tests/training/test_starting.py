"""The tokenizer that a model begins with, when it is not made by training, and the tags that it gets."""

import json

import pytest
import torch
from helpers import small_model
from transformers import AutoTokenizer

from vanilla_transformer.errors import UserError
from vanilla_transformer.language_tags_vanilla_transformer import tagged_languages
from vanilla_transformer.training.starting import load_or_create


def begin(tokenizer_name, target_langs=()):
    """Make a new model for a saved tokenizer."""
    return load_or_create(
        model_name_or_path=None,
        preset="tiny",
        config_overrides="d_model=16,encoder_layers=1,decoder_layers=1",
        tokenizer_name=str(tokenizer_name),
        vocab_size=280,
        checkpoint=None,
        sentences=(),
        target_langs=target_langs,
    )


@pytest.mark.parametrize("content", ["null", "", "{}", '{"model": '])
def test_a_damaged_tokenizer_is_refused_in_a_sentence(tokenizer, tmp_path, content):
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=f"can't load the tokenizer {tmp_path}"):
        begin(tmp_path)


def test_a_folder_that_does_not_exist_is_said_not_to(tmp_path):
    with pytest.raises(UserError, match="there is no such folder, so check the name"):
        begin(tmp_path / "mistyped")


def test_a_reference_to_foreign_code_is_not_saved_with_the_new_model(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path / "given")
    file = tmp_path / "given" / "tokenizer_config.json"
    foreign = {"auto_map": {"AutoTokenizer": [None, "somebody/else--tokenization.Tokenizer"]}}
    file.write_text(json.dumps(json.loads(file.read_text()) | foreign))
    _, loaded = begin(tmp_path / "given")
    loaded.save_pretrained(tmp_path / "trained")
    assert "auto_map" not in json.loads((tmp_path / "trained" / "tokenizer_config.json").read_text())
    assert AutoTokenizer.from_pretrained(tmp_path / "trained").get_vocab() == tokenizer.get_vocab()


def test_a_given_tokenizer_gets_the_tags_of_several_languages(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert tagged_languages(begin(tmp_path, ["de"])[1]) == []
    model, tagged = begin(tmp_path, ["de", "fr"])
    assert tagged_languages(tagged) == ["de", "fr"] and model.config.vocab_size == len(tokenizer) + 2


@pytest.mark.parametrize("tied", [True, False])
def test_a_new_language_is_a_new_row_of_every_matrix_and_changes_no_other(tokenizer, tmp_path, tied):
    size = len(tokenizer)
    model = small_model(vocab_size=size, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings = {"preset": "base", "config_overrides": None, "tokenizer_name": None, "vocab_size": 280}
    grown, tagged = load_or_create(
        model_name_or_path=str(tmp_path), checkpoint=None, sentences=(), target_langs=["de", "fr"], **settings
    )
    assert len(tagged) == grown.config.vocab_size == size + 2
    before, after = model.state_dict(), grown.cpu().state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(after[name][: len(weight)], weight)
        assert len(after[name]) in ((size + 2,) if len(weight) == size else (len(weight),))
        assert after[name][len(weight) :].isfinite().all()

"""The tokenizer that a new model begins with, when it is not made by training."""

import json

import pytest
from transformers import AutoTokenizer

from vanilla_transformer.errors import UserError
from vanilla_transformer.training.starting import load_or_create


def begin(tokenizer_name):
    """Make a new model for a saved tokenizer."""
    return load_or_create(
        model_name_or_path=None,
        preset="tiny",
        config_overrides="d_model=16,encoder_layers=1,decoder_layers=1",
        tokenizer_name=str(tokenizer_name),
        vocab_size=280,
        checkpoint=None,
        sentences=(),
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

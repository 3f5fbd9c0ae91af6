"""Averages of checkpoints."""

import pytest
import torch
from helpers import one_layer_config
from safetensors.torch import load_file
from training_runs import SENTENCES, run

from vanilla_transformer import VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.tokenization import train_tokenizer
from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.loading import load
from vanilla_transformer.training.averaging import average_checkpoints, last_checkpoints


def test_average_of_checkpoints_is_the_mean_of_their_weights_as_a_model_folder(tmp_path, tokenizer, dataset):
    run(tmp_path / "run", tokenizer, dataset)
    checkpoints = last_checkpoints(tmp_path / "run", 2)
    assert [checkpoint.name for checkpoint in checkpoints] == ["checkpoint-8", "checkpoint-12"]
    average_checkpoints(checkpoints, tmp_path / "average")
    eighth, twelfth, average = (
        load_file(folder / "model.safetensors") for folder in (*checkpoints, tmp_path / "average")
    )
    for name, weight in average.items():
        torch.testing.assert_close(weight, (eighth[name] + twelfth[name]) / 2)
    model, loaded_tokenizer = load(str(tmp_path / "average"))
    assert model.lm_head.weight is model.model.shared.weight
    assert loaded_tokenizer("one two")["input_ids"] == tokenizer("one two")["input_ids"]


def test_averages_that_can_not_be_are_refused(tmp_path, tokenizer, dataset):
    run(tmp_path / "run", tokenizer, dataset, steps=4)
    with pytest.raises(UserError, match="has 1 checkpoints, so the last 5 can't be averaged"):
        last_checkpoints(tmp_path / "run", 5)
    with pytest.raises(UserError, match="already exists and is not empty"):
        average_checkpoints([tmp_path / "run" / "checkpoint-4"], tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"activation_function": "gelu"}, "activation_function"),
        ({"encoder_attention_heads": 4}, "encoder_attention_heads"),
        ({"position_convention": "fairseq"}, "position_convention"),
    ],
)
def test_checkpoints_of_other_models_are_not_averaged(tmp_path, tokenizer, changes, name):
    """Their weights have the same names and shapes."""
    for folder, overrides in (("one", {}), ("two", changes)):
        VanillaTransformerForConditionalGeneration(one_layer_config(tokenizer, **overrides)).save_pretrained(
            tmp_path / folder
        )
        tokenizer.save_pretrained(tmp_path / folder)
    with pytest.raises(UserError, match=f"two has another {name} than .*one; average one run's only"):
        average_checkpoints([tmp_path / "one", tmp_path / "two"], tmp_path / "average")
    assert not (tmp_path / "average").exists()


def test_checkpoints_with_other_tokenizers_are_not_averaged_but_with_other_dropout(tmp_path, tokenizer):
    other = train_tokenizer([sentence[::-1] for sentence in SENTENCES], len(tokenizer))
    for folder, its_tokenizer, dropout in (("one", tokenizer, 0.1), ("two", tokenizer, 0.2), ("three", other, 0.1)):
        config = one_layer_config(tokenizer, dropout=dropout)
        VanillaTransformerForConditionalGeneration(config).save_pretrained(tmp_path / folder)
        its_tokenizer.save_pretrained(tmp_path / folder)
    average_checkpoints([tmp_path / "one", tmp_path / "two"], tmp_path / "average")
    with pytest.raises(UserError, match="three has another tokenizer than .*one"):
        average_checkpoints([tmp_path / "one", tmp_path / "three"], tmp_path / "refused")

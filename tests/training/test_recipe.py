"""The paper's recipe as training arguments."""

import pytest
import torch
from training_runs import make_arguments, make_model, make_trainer
from transformers import (
    Seq2SeqTrainingArguments,
)

from vanilla_transformer import VanillaTransformerConfig
from vanilla_transformer.errors import UserError
from vanilla_transformer.generation_vanilla_transformer import paper_generation_config
from vanilla_transformer.training.recipe import PaperTrainingArguments, noam_peak, paper_arguments


def test_defaults_are_those_of_section_5(tmp_path):
    arguments = PaperTrainingArguments(output_dir=str(tmp_path))
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.98, 1e-9)
    assert arguments.lr_scheduler_type == "inverse_sqrt" and arguments.warmup_steps == 4_000
    assert arguments.label_smoothing_factor == 0.1
    assert arguments.max_grad_norm == 0 and arguments.weight_decay == 0
    assert arguments.max_steps == 100_000 and arguments.per_device_train_tokens == 25_000


def test_learning_rate_is_equation_3(tmp_path, tokenizer, dataset):
    """transformers' inverse square root with the right peak, step by step against the paper's formula."""
    d_model, warmup = 512, 7
    arguments = make_arguments(tmp_path, warmup_steps=warmup, learning_rate=noam_peak(d_model, warmup))
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
    trainer.create_optimizer_and_scheduler(num_training_steps=50)
    for step in range(1, 51):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
        expected = d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
        assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(expected)


def test_new_models_decode_as_in_section_6_1_unless_told_otherwise(tokenizer):
    generation_config = paper_generation_config(make_model(tokenizer))
    assert (generation_config.num_beams, generation_config.length_penalty) == (4, 0.6)
    assert generation_config.decoder_start_token_id == 0


@pytest.mark.parametrize(
    ("preset", "steps", "dropout", "averaged", "d_model"),
    [("base", 100_000, 0.1, 5, 512), ("big", 300_000, 0.3, 20, 1024)],
)
def test_paper_arguments_are_tables_3_and_section_6_1(tmp_path, preset, steps, dropout, averaged, d_model):
    arguments = paper_arguments(preset, str(tmp_path))
    assert isinstance(arguments, Seq2SeqTrainingArguments)
    assert (arguments.max_steps, arguments.save_total_limit) == (steps, averaged)
    assert VanillaTransformerConfig.preset(preset).dropout == dropout
    assert (arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon) == (0.9, 0.98, 1e-9)
    assert (arguments.lr_scheduler_type, arguments.warmup_steps) == ("inverse_sqrt", 4_000)
    assert arguments.learning_rate == pytest.approx((d_model * 4_000) ** -0.5)
    assert (arguments.max_grad_norm, arguments.weight_decay, arguments.label_smoothing_factor) == (0, 0, 0.1)
    assert arguments.per_device_train_tokens == 25_000


def test_paper_arguments_can_be_changed(tmp_path):
    arguments = paper_arguments("base", str(tmp_path), warmup_steps=100, gradient_accumulation_steps=4)
    assert arguments.learning_rate == pytest.approx((512 * 100) ** -0.5)
    assert arguments.gradient_accumulation_steps == 4
    with pytest.raises(UserError, match="diverges without warm-up"):
        paper_arguments("base", str(tmp_path), warmup_steps=0)


def test_bfloat16_needs_no_word_that_there_is_only_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert PaperTrainingArguments(output_dir=str(tmp_path), bf16=True).use_cpu
    assert not PaperTrainingArguments(output_dir=str(tmp_path)).use_cpu

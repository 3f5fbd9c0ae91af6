"""Batches that carry the decoder's input, for this package's trainer and the stock one."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments

from vanilla_transformer import VanillaTransformerConfig, VanillaTransformerForConditionalGeneration
from vanilla_transformer.data.batching import TranslationCollator


@pytest.fixture
def tokenizer(english_german_tokenizer):
    return english_german_tokenizer


@pytest.fixture
def examples(tokenizer):
    return [
        {"input_ids": tokenizer(source)["input_ids"], "labels": tokenizer(target)["input_ids"]}
        for source, target in [("Two men walk and", "Zwei"), ("A", "Ein Hund rennt."), ("A dog", "Hund")]
    ]


def test_the_collator_gives_the_decoder_its_input(examples, tokenizer):
    features = [{**examples[i], "length": 3, "text": "extra columns are ignored"} for i in range(3)]
    batch = TranslationCollator(tokenizer, decoder_start_token_id=0)(features)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "decoder_input_ids"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    for row, example in enumerate(features):
        source, target = example["input_ids"], example["labels"]
        assert batch["input_ids"][row, : len(source)].tolist() == source
        assert batch["input_ids"][row, len(source) :].eq(tokenizer.pad_token_id).all()
        assert batch["attention_mask"][row].sum() == batch["attention_mask"][row, : len(source)].sum() == len(source)
        assert batch["labels"][row, : len(target)].tolist() == target
        assert batch["labels"][row, len(target) :].eq(-100).all()
        assert batch["decoder_input_ids"][row, : len(target)].tolist() == [0, *target[:-1]]
    assert batch["decoder_input_ids"].min() >= 0
    assert batch["decoder_input_ids"].shape == batch["labels"].shape


def test_pad_to_multiple_of(examples, tokenizer):
    batch = TranslationCollator(tokenizer, decoder_start_token_id=0, pad_to_multiple_of=8)(examples)
    assert {tensor.shape[1] % 8 for tensor in batch.values()} == {0}


def test_stock_trainer_trains_evaluates_and_saves(examples, tokenizer, tmp_path, caplog):
    """With label smoothing , generation in evaluation, and the tokenizer's saved name."""
    config = VanillaTransformerConfig.preset("tiny", vocab_size=len(tokenizer), encoder_layers=1, decoder_layers=1)
    trainer = Seq2SeqTrainer(
        VanillaTransformerForConditionalGeneration(config),
        Seq2SeqTrainingArguments(
            tmp_path,
            max_steps=2,
            per_device_train_batch_size=2,
            label_smoothing_factor=0.1,
            predict_with_generate=True,
            generation_max_length=8,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        data_collator=TranslationCollator(tokenizer, config.decoder_start_token_id),
        train_dataset=Dataset.from_list(examples),
        eval_dataset=Dataset.from_list(examples),
        processing_class=tokenizer,
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.predict(Dataset.from_list(examples)).predictions.shape[0] == len(examples)
    assert "__call__" not in caplog.text
    trainer.save_model()
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast"

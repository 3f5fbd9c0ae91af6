"""A saved model fine-tunes with the stock Seq2SeqTrainer; nothing of ours is needed but the import."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers import one_layer_config
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

import vanilla_transformer
from vanilla_transformer.data.tokenization import train_tokenizer

WORDS = "one two three four five six seven eight nine ten".split()
SOURCES = [f"{first} and {second}" for first in WORDS for second in WORDS[:2]]
TARGETS = [f"{first} {second}".upper() for first in WORDS for second in WORDS[:2]]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory) -> Path:
    """A model that was saved, with its tokenizer."""
    folder = tmp_path_factory.mktemp("saved")
    tokenizer = train_tokenizer(SOURCES + TARGETS, 320)
    torch.manual_seed(0)
    config = one_layer_config(tokenizer, d_model=32, dropout=0.0, tie_word_embeddings=request.param)
    vanilla_transformer.VanillaTransformerForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForSeq2SeqLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def stock_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path, prefix: str = "", **arguments
) -> Seq2SeqTrainer:
    """As in any tutorial: tokenized pairs, the stock collator, label smoothing and generation in evaluation."""
    pairs = Dataset.from_dict({"source": [prefix + source for source in SOURCES], "target": TARGETS})
    pairs = pairs.map(
        lambda pair: tokenizer(pair["source"], text_target=pair["target"]), remove_columns=pairs.column_names
    )
    defaults = {
        "per_device_train_batch_size": len(pairs),
        "per_device_eval_batch_size": 7,
        "max_steps": 60,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "label_smoothing_factor": 0.1,
        "predict_with_generate": True,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(output, **(defaults | arguments)),
        train_dataset=pairs,
        eval_dataset=pairs,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
    )


def test_a_saved_model_fine_tunes_evaluates_and_is_saved_again(folder, tmp_path):
    model, tokenizer = load(folder)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    trainer = stock_trainer(
        model, tokenizer, tmp_path, eval_strategy="steps", eval_steps=20, load_best_model_at_end=False
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    evaluations = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] < losses[0] / 2 and sorted(evaluations, reverse=True) == evaluations and len(evaluations) == 3
    for name, weight in model.named_parameters():
        assert not torch.equal(weight, before[name]), name

    predicted = trainer.predict(trainer.eval_dataset)
    ids = torch.tensor(predicted.predictions).clamp(min=0)  # the Trainer pads with -100
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == TARGETS
    trainer.save_model(tmp_path / "again")
    again, tokenizer = load(tmp_path / "again")
    batch = trainer.data_collator([trainer.eval_dataset[i] for i in range(5)])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
    generated = again.generate(**tokenizer(SOURCES[3], return_tensors="pt"))
    assert tokenizer.decode(generated[0], skip_special_tokens=True) == TARGETS[3]


@pytest.mark.parametrize("pad_to_multiple_of", [None, 8])
def test_tokens_that_are_added_are_trained_and_saved(folder, pad_to_multiple_of, tmp_path):
    model, tokenizer = load(folder)
    old_size = len(tokenizer)
    assert tokenizer.add_tokens(["<caps>", "<lower>"]) == 2
    model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=pad_to_multiple_of)
    names = ("model.encoder.embed_tokens", "model.decoder.embed_tokens", "lm_head")
    before = {name: model.get_submodule(name).weight.detach().clone() for name in names}
    trainer = stock_trainer(model, tokenizer, tmp_path, prefix="<caps> ", max_steps=3)
    assert trainer.train_dataset[0]["input_ids"][0] == old_size
    trainer.train()
    for name in names:
        old, new = before[name], model.get_submodule(name).weight
        assert len(new) == model.config.vocab_size >= old_size + 2
        changed = (new != old).any(dim=1)
        # A source's embedding learns the rows that are read, the output layer all of them.
        assert changed[old_size] or name == "model.decoder.embed_tokens", name
        assert changed.all() or name != "lm_head"

    trainer.save_model(tmp_path / "again")
    again, tokenizer = load(tmp_path / "again")
    assert tokenizer.convert_tokens_to_ids("<lower>") == old_size + 1
    assert again.config.vocab_size == model.config.vocab_size
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == model.config.tie_word_embeddings
    batch = trainer.data_collator([trainer.eval_dataset[i] for i in range(5)])
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)

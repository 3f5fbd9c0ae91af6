"""Validation: the exact loss, batches by token budget, and the order of the data."""

import time

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training_runs import make_arguments, make_model, make_trainer
from transformers import DataCollatorForSeq2Seq

from vanilla_transformer.inference.metrics import make_compute_metrics
from vanilla_transformer.training.evaluation import ConsecutiveBatchSampler
from vanilla_transformer.training.trainer import VanillaTransformerTrainer


def test_evaluation_loss_is_the_likelihood_not_the_smoothed_loss(tmp_path, tokenizer, dataset):
    """The stock trainer reports the smoothed loss, whose exponential is no perplexity."""
    model = make_model(tokenizer)
    trainer = make_trainer(model, make_arguments(tmp_path, predict_with_generate=False), tokenizer, dataset)
    trainer.args.per_device_eval_batch_size = 3
    metrics = trainer.evaluate(dataset.select(range(8)))  # batches of 3, 3 and 2 with different numbers of labels
    batch = trainer.data_collator([dataset[i] for i in range(8)])
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert metrics["eval_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["eval_perplexity"] == pytest.approx(expected.exp().item(), rel=1e-5)


def test_predictions_come_in_the_order_of_the_data(tmp_path, tokenizer, dataset):
    """Grouping by length also permutes what `predict` gives back."""
    trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path), tokenizer, dataset)
    labels = trainer.predict(dataset, max_new_tokens=3).label_ids
    for row, expected in zip(labels, dataset["labels"], strict=True):
        assert [token for token in row if token not in (-100, tokenizer.pad_token_id)] == expected


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_batches_are_consecutive_rows_within_the_budget_for_every_number_of_processes(processes):
    lengths = np.random.default_rng(0).integers(1, 40, 101)
    lengths[50] = 212
    samplers = [ConsecutiveBatchSampler(lengths, 16, 100, process, processes) for process in range(processes)]
    rows = []
    for step in zip(*samplers, strict=True):
        assert len({len(batch) for batch in step}) == 1
        for batch in step:
            assert len(batch) <= 16 and (len(batch) == 1 or len(batch) * lengths[batch].max() <= 100)
            rows += batch
    assert rows[:101] == list(range(101)) and set(rows[101:]) <= {100} and len(rows) < 101 + processes * 16


def test_the_budget_changes_no_result(tmp_path, tokenizer, dataset):
    """The loss, the predictions and the metrics are those of one batch."""
    results = []
    for folder, tokens, rows in (("one", 10_000, 99), ("many", 40, 99), ("rows", 10_000, 5)):
        arguments = make_arguments(tmp_path / folder, per_device_eval_tokens=tokens, per_device_eval_batch_size=rows)
        metrics = make_compute_metrics(tokenizer, bleu_tokenize="13a")
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, compute_metrics=metrics)
        results.append(trainer.predict(dataset.select(range(20)), max_new_tokens=5))
    for other in results[1:]:
        assert other.metrics["test_loss"] == pytest.approx(results[0].metrics["test_loss"], rel=1e-5)
        assert other.metrics["test_bleu"] == results[0].metrics["test_bleu"]
        assert np.array_equal(other.predictions, results[0].predictions)
        assert np.array_equal(other.label_ids, results[0].label_ids)


def test_translating_does_not_change_the_loss(tmp_path, tokenizer, dataset):
    losses = []
    for translates in (True, False):
        arguments = make_arguments(tmp_path, predict_with_generate=translates, per_device_eval_tokens=60)
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
        losses.append(trainer.evaluate(dataset.select(range(20)))["eval_loss"])
    assert losses[0] == losses[1]


def test_a_loss_function_of_the_user_s_does_not_take_the_labels_away(tmp_path, tokenizer, dataset):
    def loss(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten())

    arguments = make_arguments(tmp_path, eval_strategy="steps", eval_steps=2, predict_with_generate=False)
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, compute_loss_func=loss)
    trainer.train()
    plain = make_trainer(trainer.model, arguments, tokenizer, dataset)
    assert trainer.state.log_history[-2]["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-5)


def test_further_columns_do_not_reach_the_collator(tmp_path, tokenizer, dataset):
    """The stock collator can't pad text; in training they are removed too."""
    data = dataset.add_column("id", [f"sentence {row}" for row in range(len(dataset))])
    model = make_model(tokenizer)
    trainer = VanillaTransformerTrainer(
        model=model,
        args=make_arguments(tmp_path, max_steps=1, eval_strategy="steps", eval_steps=1, predict_with_generate=False),
        train_dataset=data,
        eval_dataset=data.select(range(8)),
        processing_class=tokenizer,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
    )
    trainer.train()
    expected = make_trainer(model, make_arguments(tmp_path), tokenizer, dataset).predict(dataset.select(range(8)))
    assert trainer.predict(data.select(range(8))).metrics["test_loss"] == expected.metrics["test_loss"]


def test_metrics_see_what_they_ask_for(tmp_path, tokenizer, dataset):
    """The sources, and the loss of each row; batches of 3, 3 and 2."""
    seen = []

    def metrics(prediction):
        seen.append((prediction.inputs, prediction.losses))
        return {"mean": float(prediction.losses.mean())}

    arguments = make_arguments(tmp_path, include_for_metrics=["inputs", "loss"], per_device_eval_batch_size=3)
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, compute_metrics=metrics)
    rows = dataset.select(range(8))
    trainer.evaluate(rows)
    ((sources, losses),) = seen
    assert [[token for token in row if token not in (-100, tokenizer.pad_token_id)] for row in sources] == list(
        rows["input_ids"]
    )
    expected = [trainer.evaluate(rows.select([row]))["eval_loss"] for row in range(8)]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_validation_on_several_sets_counts_once_in_tokens_per_second(tmp_path, tokenizer, dataset):
    class Slow(VanillaTransformerTrainer):
        def evaluation_loop(self, *args, **kwargs):
            time.sleep(0.5)
            return super().evaluation_loop(*args, **kwargs)

    arguments = make_arguments(
        tmp_path, eval_strategy="steps", eval_steps=2, logging_steps=1, predict_with_generate=False
    )
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, cls=Slow)
    trainer.eval_dataset = {name: dataset.select(range(4)) for name in ("a", "b")}
    trainer.train()
    rates = [line["target_tokens_per_second"] for line in trainer.state.log_history if "loss" in line]
    assert len(rates) == 4 and min(rates) > 0

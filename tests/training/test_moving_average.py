"""The moving average of the weights: what it is, what is validated and saved, and that training does not notice it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import StopAt, make_arguments, make_model, make_trainer
from transformers import TrainerCallback

from vanilla_transformer.errors import UserError
from vanilla_transformer.inference.loading import load
from vanilla_transformer.training.moving_average import TRAINING_WEIGHTS_NAME, decay_of_update

MODEL = "model.safetensors"


class Weights(TrainerCallback):
    """Keeps the weights after each step, in float64."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args, state, control, model, **kwargs):
        self.keep(model)

    def on_step_end(self, args, state, control, model, **kwargs):
        self.keep(model)

    def keep(self, model):
        self.steps.append({name: weight.detach().double().clone() for name, weight in model.named_parameters()})


def train(folder: Path, tokenizer, dataset, resume=None, callbacks=(), steps: int = 9, **changes):
    settings = {"save_strategy": "steps", "save_steps": 3, "save_total_limit": None, "eval_strategy": "steps"}
    settings |= {"eval_steps": 3, "predict_with_generate": False, "metric_for_best_model": "loss"}
    arguments = make_arguments(folder, max_steps=steps, **(settings | changes))
    model = make_model(tokenizer, dropout=0.2)
    trainer = make_trainer(model, arguments, tokenizer, dataset, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    return trainer


def same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, tokenizer, dataset) -> Path:
    folder = tmp_path_factory.mktemp("plain") / "run"
    train(folder, tokenizer, dataset)
    return folder


@pytest.fixture(scope="module")
def averaged(tmp_path_factory, tokenizer, dataset) -> tuple[Path, Weights]:
    folder, weights = tmp_path_factory.mktemp("averaged") / "run", Weights()
    train(folder, tokenizer, dataset, callbacks=[weights], ema_decay=0.3)
    return folder, weights


def test_the_average_is_that_of_the_weights_after_each_step(averaged):
    folder, weights = averaged
    mean = weights.steps[0]
    for updates, step in enumerate(weights.steps[1:]):
        decay = min(0.3, (1 + updates) / (10 + updates))
        assert decay == decay_of_update(0.3, updates)
        mean = {name: decay * mean[name] + (1 - decay) * step[name] for name in step}
    for file in (folder / "checkpoint-9" / MODEL, folder / MODEL):
        for name, weight in load_file(file).items():
            torch.testing.assert_close(weight.double(), mean[name], rtol=1e-5, atol=1e-7)


def test_training_does_not_notice_it(plain, averaged):
    folder, _ = averaged
    for step in (3, 6, 9):
        assert same(plain / f"checkpoint-{step}" / MODEL, folder / f"checkpoint-{step}" / TRAINING_WEIGHTS_NAME)
        assert not same(plain / f"checkpoint-{step}" / MODEL, folder / f"checkpoint-{step}" / MODEL)
    assert not (folder / TRAINING_WEIGHTS_NAME).exists() and not list(plain.rglob(TRAINING_WEIGHTS_NAME))


def test_the_average_is_what_is_validated_loaded_and_kept_as_the_best(tmp_path, tokenizer, dataset):
    trainer = train(tmp_path, tokenizer, dataset, ema_decay=0.9, load_best_model_at_end=True, learning_rate=0.05)
    losses = {line["step"]: line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line}
    best = trainer.state.best_global_step
    assert best == min(losses, key=losses.__getitem__)
    assert same(tmp_path / MODEL, tmp_path / f"checkpoint-{best}" / MODEL)
    for step, loss in losses.items():
        model, _ = load(str(tmp_path / f"checkpoint-{step}"), device="cpu")
        other = make_trainer(model, make_arguments(tmp_path / "other"), tokenizer, dataset)
        assert other.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, tokenizer, dataset, averaged):
    train(tmp_path, tokenizer, dataset, callbacks=[StopAt(6)], ema_decay=0.3)
    train(tmp_path, tokenizer, dataset, resume=str(tmp_path / "checkpoint-6"), ema_decay=0.3)
    whole, _ = averaged
    for name in (MODEL, TRAINING_WEIGHTS_NAME):
        assert same(whole / "checkpoint-9" / name, tmp_path / "checkpoint-9" / name)


def test_it_can_end_and_begin_when_a_run_is_resumed(tmp_path, tokenizer, dataset, plain, caplog):
    train(tmp_path, tokenizer, dataset, callbacks=[StopAt(3)], ema_decay=0.3)
    train(tmp_path, tokenizer, dataset, resume=True, callbacks=[StopAt(6)])
    assert "ema_decay is None from now on; checkpoint-3 had 0.3" in caplog.text
    assert same(plain / "checkpoint-6" / MODEL, tmp_path / "checkpoint-6" / MODEL)
    train(tmp_path, tokenizer, dataset, resume=True, ema_decay=0.5)
    assert "ema_decay is 0.5 from now on; checkpoint-6 had None" in caplog.text
    assert same(plain / "checkpoint-9" / MODEL, tmp_path / "checkpoint-9" / TRAINING_WEIGHTS_NAME)


def test_what_can_not_be_averaged_is_refused(tmp_path, tokenizer, dataset):
    with pytest.raises(UserError, match="ema_decay is 0.9, but fsdp divides the weights among the processes"):
        make_arguments(tmp_path, ema_decay=0.9, fsdp="full_shard")
    arguments = make_arguments(tmp_path, ema_decay=0.9)
    trainer = make_trainer(make_model(tokenizer).to(torch.bfloat16), arguments, tokenizer, dataset)
    with pytest.raises(UserError, match="ema_decay is 0.9, but the weight model.* is in bfloat16, in which the small"):
        trainer.train()

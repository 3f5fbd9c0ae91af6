"""Runs that end early: by patience, or by a limit in minutes."""

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from training_runs import Press, StopAt, equal_weights, make_arguments, make_model, make_trainer
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState

from vanilla_transformer.errors import UserError
from vanilla_transformer.training.callbacks import SaveOnInterrupt
from vanilla_transformer.training.stopping import describe_stop, find_stop_reason, validations_without_improvement
from vanilla_transformer.training.trainer import VanillaTransformerTrainer


@pytest.mark.parametrize("greater_is_better", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.15])
def test_validations_are_counted_as_by_transformers(greater_is_better, threshold):
    """Its callback counts as they come; ours from the log, as after resuming."""
    numbers = random.Random(0)
    args = SimpleNamespace(
        metric_for_best_model="bleu", greater_is_better=greater_is_better, early_stopping_threshold=threshold
    )
    for _ in range(20):
        callback, state = EarlyStoppingCallback(99, threshold), TrainerState()
        for step in range(12):
            value = round(numbers.random(), 1) if step != 5 else float("nan")
            callback.on_evaluate(args, state, TrainerControl(), {"eval_bleu": value})
            if state.best_metric is None or (value > state.best_metric) == greater_is_better and value == value:
                state.best_metric = value
            state.log_history += [{"step": step, "loss": 1.0}, {"step": step, "eval_bleu": value}]
            assert validations_without_improvement(args, state) == callback.early_stopping_patience_counter


class Scores(TrainerCallback):
    """Replaces the loss of each validation, before it is compared."""

    def __init__(self, *losses: float) -> None:
        self.losses = list(losses)

    def on_log(self, args, state, control, logs, **kwargs):
        if "eval_loss" in logs:
            logs["eval_loss"] = state.log_history[-1]["eval_loss"] = self.losses[state.global_step // 2 - 1]


def train(
    folder: Path, tokenizer, dataset, losses=(), stop=None, resume=None, clock=None, callbacks=(), **changes
) -> VanillaTransformerTrainer:
    settings = {"max_steps": 12, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    settings |= {"predict_with_generate": False, "metric_for_best_model": "loss", "save_total_limit": None}
    arguments = make_arguments(folder, **(settings | changes))
    model = make_model(tokenizer, dropout=0.2)
    callbacks = [Scores(*losses), *([StopAt(stop)] if stop else []), *callbacks]

    class Trainer(VanillaTransformerTrainer):
        def minutes(self, now=None):
            return super().minutes(now) if clock is None else clock * self.state.global_step

    trainer = make_trainer(model, arguments, tokenizer, dataset, callbacks=callbacks, cls=Trainer)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


LOSSES = (3.0, 2.0, 2.5, 1.95, 2.1, 2.2)


@pytest.mark.parametrize(
    ("patience", "threshold", "step"), [(1, 0.0, 6), (2, 0.0, 12), (2, 0.1, 8), (3, 0.0, 12), (9, 0.0, 12)]
)
def test_a_run_stops_when_the_metric_has_not_improved(tmp_path, tokenizer, dataset, patience, threshold, step):
    options = {"early_stopping_patience": patience, "early_stopping_threshold": threshold}
    trainer = train(tmp_path, tokenizer, dataset, LOSSES, **options)
    assert trainer.state.global_step == step and (tmp_path / f"checkpoint-{step}").is_dir()
    assert (find_stop_reason(trainer.args, trainer.state) is not None) == (step < 12 or patience == 2)
    assert trainer.state.best_global_step == (8 if step > 6 else 4)


def test_the_best_checkpoint_is_kept_between_those_that_are_saved_anyway(tmp_path, tokenizer, dataset):
    changes = {"early_stopping_patience": 2, "save_steps": 100, "save_total_limit": 2}
    trainer = train(tmp_path, tokenizer, dataset, (3.0, 2.0, 2.5, 2.1), **changes)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    words = describe_stop(trainer.args, trainer.state)
    assert words == (
        "Stopped at step 8 of 12: loss has not improved for 2 validations. The best checkpoint is checkpoint-4; "
        "load_best_model_at_end is False."
    )


def test_the_best_model_is_loaded_if_asked_for(tmp_path, tokenizer, dataset):
    changes = {"early_stopping_patience": 1, "load_best_model_at_end": True, "lr_scheduler_type": "cosine"}
    trainer = train(tmp_path, tokenizer, dataset, LOSSES, **changes)
    trainer.save_model()
    assert equal_weights(tmp_path, tmp_path / "checkpoint-4") and trainer.state.global_step == 6
    words = describe_stop(trainer.args, trainer.state)
    assert words.endswith("The schedule cosine was planned for all 12.")


def test_patience_counts_across_an_interruption_and_goes_on_with_more(tmp_path, tokenizer, dataset):
    losses = (2.0, 2.5, 2.4, 2.3, 2.2, 2.1)
    whole = train(tmp_path / "whole", tokenizer, dataset, losses, early_stopping_patience=3)
    assert whole.state.global_step == 8
    parts = tmp_path / "parts"
    train(parts, tokenizer, dataset, losses, stop=4, early_stopping_patience=3)
    resumed = train(parts, tokenizer, dataset, losses, resume=True, early_stopping_patience=3)
    assert resumed.state.global_step == 8
    assert equal_weights(tmp_path / "whole" / "checkpoint-8", parts / "checkpoint-8")
    again = train(parts, tokenizer, dataset, losses, resume=True, early_stopping_patience=3)
    assert again.is_finished(str(parts / "checkpoint-8")) and not (parts / "checkpoint-10").exists()
    more = train(parts, tokenizer, dataset, losses, resume=True, early_stopping_patience=4)
    assert more.state.global_step == 10


def test_validations_on_other_data_are_not_compared(tmp_path, tokenizer, dataset):
    train(tmp_path, tokenizer, dataset, (1.0, 1.5), stop=4, early_stopping_patience=2)
    arguments = make_arguments(
        tmp_path, max_steps=12, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
        predict_with_generate=False, metric_for_best_model="loss", early_stopping_patience=2,
    )  # fmt: skip
    callbacks = [Scores(0, 0, 9.0, 9.5, 9.4, 9.3)]
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=callbacks)
    trainer.eval_dataset = dataset.select(range(20, 24))
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 10 and trainer.state.best_global_step == 6
    state = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["RunSettings"]["compared_from"] == 4


@pytest.mark.parametrize("metric", ["bleu", "loss"])
@pytest.mark.parametrize("change", [{"generation_num_beams": 2}, {"bleu_tokenize": "intl"}])
def test_scores_of_another_scale_are_not_compared(tmp_path, tokenizer, dataset, caplog, metric, change):
    """Those of the first part are higher; the loss does not depend on such settings."""

    def train(steps: int, score: float, generation_num_beams: int = 1, bleu_tokenize: str = "13a"):
        settings = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
        settings |= {"max_steps": steps, "metric_for_best_model": metric, "generation_max_length": 5}
        arguments = make_arguments(tmp_path, **settings, generation_num_beams=generation_num_beams)
        metrics = {"compute_metrics": lambda prediction: {"bleu": score}, "callbacks": [Scores(1.0, 2.0, 3.0)]}
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, **metrics)
        trainer.metric_settings = {"bleu_tokenize": bleu_tokenize}
        trainer.train(resume_from_checkpoint=steps > 2)
        return trainer.state

    train(2, score=40.0)
    state = train(4, score=30.0, **change)
    assert state.best_global_step == (4 if metric == "bleu" else 2)
    (name,) = change
    assert f"{name} is {change[name]} from now on; checkpoint-2 had " in caplog.text


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_run_ends_after_its_minutes_with_validation_and_checkpoint(tmp_path, tokenizer, dataset, strategy):
    """A step takes half a minute; the limit is cumulative, and a further one continues the run."""
    changes = {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 7, "save_steps": 7}
    losses = (9.0,) * 6
    parts = tmp_path / "parts"
    first = train(parts, tokenizer, dataset, losses, clock=0.5, max_minutes=3.5, **changes)
    assert first.state.global_step == 7 and (parts / "checkpoint-7").is_dir()
    assert first.state.log_history[-2]["step"] == 7 and "eval_loss" in first.state.log_history[-2]
    assert describe_stop(first.args, first.state).startswith("Stopped at step 7 of 12: the limit of 3.5 minutes is")
    same = train(parts, tokenizer, dataset, losses, clock=0.5, max_minutes=3.5, resume=True, **changes)
    assert same.is_finished(str(parts / "checkpoint-7")) and same.state.global_step == 7
    more = train(parts, tokenizer, dataset, losses, clock=0.5, max_minutes=99, resume=True, **changes)
    assert more.state.global_step == 12 and describe_stop(more.args, more.state) is None
    if strategy == "steps":  # a validation in the middle of an epoch draws one random number more
        whole = train(tmp_path / "whole", tokenizer, dataset, losses, **changes)
        assert whole.state.global_step == 12
        assert equal_weights(tmp_path / "whole" / "checkpoint-12", parts / "checkpoint-12")


def test_a_limit_that_is_not_reached_changes_nothing(tmp_path, tokenizer, dataset):
    train(tmp_path / "plain", tokenizer, dataset, LOSSES)
    train(tmp_path / "limited", tokenizer, dataset, LOSSES, max_minutes=60, early_stopping_patience=9)
    assert equal_weights(tmp_path / "plain" / "checkpoint-12", tmp_path / "limited" / "checkpoint-12")


@pytest.mark.parametrize(("limit", "kept"), [(None, {2, 4, 8, 12}), (1, {8, 12}), (2, {8, 12})])
def test_the_best_checkpoints_and_the_last_are_saved_where_only_the_best_are_asked_for(
    tmp_path, tokenizer, dataset, limit, kept
):
    """A finished run that is resumed is not trained again."""
    changes = {"save_strategy": "best", "save_total_limit": limit}
    train(tmp_path, tokenizer, dataset, LOSSES, **changes)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in kept}
    again = train(tmp_path, tokenizer, dataset, LOSSES, resume=True, **changes)
    assert again.is_finished(str(tmp_path / "checkpoint-12")) and again.state.best_global_step == 8


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
@pytest.mark.parametrize("step", [5, 6])
def test_an_interruption_saves_where_only_the_best_are_asked_for(tmp_path, tokenizer, dataset, strategy, step):
    """Also where a validation is due, which is no new best."""
    changes = {"save_strategy": "best", "eval_strategy": strategy, "max_steps": 12}
    losses = (1.0, 2.0, 2.5, 1.95, 2.1, 2.2)
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    train(parts, tokenizer, dataset, losses, callbacks=[SaveOnInterrupt(), Press(step - 1)], **changes)
    assert (parts / f"checkpoint-{step}").is_dir()
    resumed = train(parts, tokenizer, dataset, losses, resume=True, **changes)
    expected = train(whole, tokenizer, dataset, losses, **changes)
    steps = [[line["step"] for line in each.state.log_history if "eval_loss" in line] for each in (resumed, expected)]
    assert steps[0] == steps[1] and equal_weights(parts / "checkpoint-12", whole / "checkpoint-12")


def test_the_best_checkpoints_need_validations(tmp_path):
    with pytest.raises(UserError, match="save_strategy is best, but eval_strategy is no, so that nothing would tell"):
        make_arguments(tmp_path, save_strategy="best", metric_for_best_model="loss")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eval_strategy": "no"}, "early_stopping_patience is 2, but eval_strategy is no, so that nothing would tell"),
        ({"save_strategy": "no"}, "save_strategy is no, so that nothing would keep the best checkpoint; set save"),
    ],
)
def test_patience_without_validations_or_checkpoints_is_refused(tmp_path, changes, message):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "early_stopping_patience": 2}
    with pytest.raises(UserError, match=message):
        make_arguments(tmp_path, **(settings | changes))


def test_patience_without_a_metric_goes_by_the_loss(tmp_path):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "early_stopping_patience": 2}
    arguments = make_arguments(tmp_path, metric_for_best_model=None, **settings)
    assert arguments.metric_for_best_model == "loss" and arguments.greater_is_better is False


def test_minutes_without_a_log_line_count_too(tmp_path, tokenizer, dataset, monkeypatch):
    """The clock stands still but for a minute a step; nothing is logged, and each part has two checkpoints."""
    settings = {"eval_strategy": "no", "logging_strategy": "no", "save_steps": 2, "max_minutes": 7}

    def part(stop: int | None, resume: bool) -> VanillaTransformerTrainer:
        now = [1000.0]
        monkeypatch.setattr("vanilla_transformer.training.trainer.time.perf_counter", lambda: now[0])

        class Tick(TrainerCallback):
            def on_step_begin(self, *args, **kwargs):
                now[0] += 60

        arguments = make_arguments(tmp_path, max_steps=12, save_strategy="steps", save_total_limit=None, **settings)
        callbacks = [Tick(), *([StopAt(stop)] if stop else [])]
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    part(4, resume=False)
    trainer = part(None, resume=True)
    assert trainer.state.global_step == 7 and trainer.minutes() == 7


def test_the_last_checkpoint_is_kept_beside_the_best_one(tmp_path, tokenizer, dataset):
    """The stock trainer deletes it in the end where the limit is 1; the finished run would be trained again."""
    changes = {"save_total_limit": 1, "load_best_model_at_end": True}
    trainer = train(tmp_path, tokenizer, dataset, LOSSES, **changes)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-12"}
    assert trainer.args.save_total_limit == 1
    again = train(tmp_path, tokenizer, dataset, LOSSES, resume=True, **changes)
    assert again.is_finished(str(tmp_path / "checkpoint-12")) and again.state.global_step == 12


def test_without_use_for_the_best_checkpoint_the_last_ones_are_kept(tmp_path, tokenizer, dataset):
    """They are to be averaged: an old one among them would be in the mean."""
    losses = (1.0, 2.5, 2.4, 2.3, 2.2, 2.1)
    train(tmp_path, tokenizer, dataset, losses, save_total_limit=3, load_best_model_at_end=False)
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {f"checkpoint-{step}" for step in (8, 10, 12)}

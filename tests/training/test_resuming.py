"""A resumed run ends with the weights of an uninterrupted one; changed settings are obeyed or refused."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from training_runs import (
    SENTENCES,
    Press,
    StopAt,
    equal_weights,
    make_arguments,
    make_model,
    make_trainer,
    run,
)

from vanilla_transformer.data.bpe_dropout import BpeDropout, BpeDropoutPairs
from vanilla_transformer.data.encoding import encode_pairs
from vanilla_transformer.data.streaming import TokenStream
from vanilla_transformer.errors import UserError
from vanilla_transformer.training.callbacks import SaveOnInterrupt
from vanilla_transformer.training.checkpoints import checkpoint_to_resume, write_manifest
from vanilla_transformer.training.resuming import fingerprint_data

LIMITS = {"max_source_length": 100, "max_target_length": 100, "max_length_ratio": 9}


def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, tokenizer, dataset, capsys):
    """Ctrl-C in the middle of the second epoch; the rest of that epoch must be the batches not yet seen."""
    whole = run(tmp_path / "whole", tokenizer, dataset)
    handler = signal.getsignal(signal.SIGINT)
    interrupt = SaveOnInterrupt()
    run(tmp_path / "parts", tokenizer, dataset, callbacks=[interrupt, Press(step=6)])
    assert interrupt.interrupted and signal.getsignal(signal.SIGINT) is handler
    assert "saving a checkpoint after this step" in capsys.readouterr().err
    checkpoint = checkpoint_to_resume(tmp_path / "parts", "last")
    assert Path(checkpoint).name == "checkpoint-7"

    resumed = run(tmp_path / "parts", tokenizer, dataset, resume=checkpoint)
    assert equal_weights(whole, resumed)
    assert not equal_weights(whole, whole / "checkpoint-8")


def test_a_streamed_run_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, tokenizer):
    """In the second epoch, two accumulated batches a step; resuming anew must not begin at the first sentence."""
    rows = Dataset.from_dict({"source": SENTENCES, "target": [sentence.upper() for sentence in SENTENCES]})

    def train(folder: Path, steps: int, resume: str | None = None) -> TokenStream:
        stream = TokenStream(
            rows.to_iterable_dataset(),
            tokenizer,
            max_tokens=300,
            max_source_length=100,
            max_target_length=100,
            max_length_ratio=9,
            buffer_size=30,
        )
        arguments = make_arguments(
            folder, max_steps=12, gradient_accumulation_steps=2, save_strategy="steps", save_steps=4
        )
        stop = [StopAt(steps)]
        trainer = make_trainer(make_model(tokenizer, dropout=0.2), arguments, tokenizer, stream, callbacks=stop)
        trainer.train(resume_from_checkpoint=resume)
        return stream

    whole = train(tmp_path / "whole", 12)
    assert whole.report.kept > len(SENTENCES)
    train(tmp_path / "parts", 8)
    checkpoint = checkpoint_to_resume(tmp_path / "parts", "last")
    assert Path(checkpoint).name == "checkpoint-8"
    resumed = train(tmp_path / "parts", 12, resume=checkpoint)
    assert resumed.report == whole.report
    assert equal_weights(tmp_path / "whole" / "checkpoint-12", tmp_path / "parts" / "checkpoint-12")


@pytest.mark.parametrize("streaming", [False, True], ids=["data set", "stream"])
def test_a_run_with_bpe_dropout_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path, tokenizer, streaming
):
    """Interrupted in the second epoch. The other value is refused, since other batches have been seen."""

    def resume_with(probability: float, folder: Path, steps: int, checkpoint: str | None = None) -> None:
        data: TokenStream | BpeDropoutPairs
        dropout = BpeDropout(tokenizer, probability)
        if streaming:
            data = make_stream(tokenizer, dropout=dropout)
        else:
            rows = Dataset.from_dict({"source": SENTENCES, "target": [sentence.upper() for sentence in SENTENCES]})
            encoded, _ = encode_pairs(rows, tokenizer, **LIMITS, dropout=dropout)
            data = BpeDropoutPairs(encoded, dropout, max_source_length=100, max_target_length=100)
        settings = {"max_steps": 24, "per_device_train_tokens": 300, "save_strategy": "steps", "save_steps": 8}
        arguments = make_arguments(folder, **settings)
        model = make_model(tokenizer, dropout=0.2)
        trainer = make_trainer(model, arguments, tokenizer, data, callbacks=[StopAt(steps)])
        trainer.train(resume_from_checkpoint=checkpoint)
        if not streaming:
            assert len(trainer.token_batches()) < 16

    resume_with(0.3, tmp_path / "whole", 24)
    resume_with(0.3, tmp_path / "parts", 16)
    checkpoint = str(tmp_path / "parts" / "checkpoint-16")
    resume_with(0.3, tmp_path / "parts", 24, checkpoint)
    assert equal_weights(tmp_path / "whole" / "checkpoint-24", tmp_path / "parts" / "checkpoint-24")
    with pytest.raises(UserError, match="bpe_dropout is 0.1, but checkpoint-16 was trained with 0.3; resume with 0.3"):
        resume_with(0.1, tmp_path / "parts", 24, checkpoint)


def test_bpe_dropout_can_not_begin_in_the_middle_of_an_older_run(stopped, tmp_path, tokenizer):
    """Checkpoints of before do not have the setting."""
    shutil.copytree(stopped, tmp_path / "run")
    state_file = tmp_path / "run" / "checkpoint-8" / "trainer_state.json"
    state_file.write_text(state_file.read_text().replace('"bpe_dropout"', '"unknown"'))
    write_manifest(state_file.parent)
    with pytest.raises(UserError, match="bpe_dropout is 0.3, but checkpoint-8 was trained with 0.0"):
        dropout = BpeDropout(tokenizer, 0.3)
        rows = Dataset.from_dict({"source": SENTENCES, "target": [sentence.upper() for sentence in SENTENCES]})
        encoded, _ = encode_pairs(rows, tokenizer, **LIMITS, dropout=dropout)
        data = BpeDropoutPairs(encoded, dropout, max_source_length=100, max_target_length=100)
        arguments = make_arguments(tmp_path / "run", max_steps=12)
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, data)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))


def test_a_streamed_run_resumes_as_a_stream_only(tmp_path, tokenizer, dataset):
    run(tmp_path, tokenizer, dataset, steps=4)
    stream = TokenStream(
        Dataset.from_dict({"source": ["one"], "target": ["ONE"]}).to_iterable_dataset(),
        tokenizer,
        max_tokens=200,
        max_source_length=9,
        max_target_length=9,
        max_length_ratio=9,
        buffer_size=1,
    )
    trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path), tokenizer, stream)
    with pytest.raises(UserError, match="checkpoint-4 was trained without streaming; continue it in the same way"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))


def make_stream(tokenizer, **settings) -> TokenStream:
    rows = Dataset.from_dict({"source": SENTENCES, "target": [sentence.upper() for sentence in SENTENCES]})
    defaults = {"max_tokens": 300, "buffer_size": 30} | LIMITS
    return TokenStream(rows.to_iterable_dataset(), tokenizer, **(defaults | settings))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, tokenizer, dataset) -> Path:
    """A run of 8 of 12 steps, with checkpoints 4 and 8; copied before it is resumed."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    run(folder, tokenizer, dataset, callbacks=[StopAt(8)])
    return folder


def resume(stopped: Path, folder: Path, tokenizer, dataset, **changes):
    """Resume a copy of the stopped run with other arguments; returns the trainer."""
    shutil.copytree(stopped, folder / "run")
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 4, "save_total_limit": None}
    arguments = make_arguments(folder / "run", **(settings | {"logging_steps": 1} | changes))
    trainer = make_trainer(make_model(tokenizer, dropout=0.2), arguments, tokenizer, dataset)
    trainer.train(resume_from_checkpoint=True)
    return trainer


@pytest.mark.parametrize(
    ("changes", "factor"),
    [({"learning_rate": 0.002}, 0.2), ({"warmup_steps": 20}, 0.5), ({"lr_scheduler_type": "constant_with_warmup"}, 1)],
)
def test_a_changed_schedule_counts_from_the_first_step_on(
    stopped, tmp_path, tokenizer, dataset, caplog, changes, factor
):
    trainer = resume(stopped, tmp_path, tokenizer, dataset, **changes)
    rates = {line["step"]: line["learning_rate"] for line in trainer.state.log_history if "learning_rate" in line}
    expected = 0.01 * factor * 8 / 10  # the rate that is logged for step 9 is that of 8 finished steps
    assert rates[9] == pytest.approx(expected)
    (name,) = changes
    assert f"{name} is {changes[name]} from now on; checkpoint-8 had " in caplog.text


def test_changed_betas_and_weight_decay_count(stopped, tmp_path, tokenizer, dataset):
    trainer = resume(stopped, tmp_path, tokenizer, dataset, adam_beta2=0.9, weight_decay=0.3)
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.9, 0.9)}
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.parametrize(
    "changes",
    [{"per_device_train_tokens": 150}, {"gradient_accumulation_steps": 2}, {"seed": 7}, {"data_seed": 7}]
    + [{"optim": "adafactor"}],
)
def test_what_would_lose_the_place_in_the_data_is_refused(stopped, tmp_path, tokenizer, dataset, changes):
    (name,) = changes
    with pytest.raises(UserError, match=f"^{name} is .*, but checkpoint-8 was trained with .*; resume with"):
        resume(stopped, tmp_path, tokenizer, dataset, **changes)


def test_a_seed_that_has_no_effect_is_refused(tmp_path, tokenizer, dataset):
    """The batches follow data_seed, and the generators of dropout are those of the checkpoint."""
    for seed, steps in ((1, 2), (7, 4)):
        settings = {"max_steps": steps, "save_strategy": "steps", "save_steps": 2, "seed": seed, "data_seed": 3}
        trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path, **settings), tokenizer, dataset)
        if seed == 1:
            trainer.train()
    with pytest.raises(UserError, match="seed is 7, but checkpoint-2 was trained with 1; resume with 1"):
        trainer.train(resume_from_checkpoint=True)


def test_a_longer_run_has_its_own_rates_from_the_first_step_on(tmp_path, tokenizer, dataset):
    """A cosine has come to 0 at the end of the shorter run."""

    def train(folder: Path, steps: int, resume: bool = False) -> dict[int, float]:
        settings = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "logging_steps": 1, "save_steps": 6}
        arguments = make_arguments(folder, max_steps=steps, save_strategy="steps", **settings)
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
        trainer.train(resume_from_checkpoint=resume)
        return {line["step"]: line["learning_rate"] for line in trainer.state.log_history if "loss" in line}

    whole = train(tmp_path / "whole", 12)
    train(tmp_path / "parts", 6)
    resumed = train(tmp_path / "parts", 12, resume=True)
    assert [resumed[step] for step in range(7, 13)] == [whole[step] for step in range(7, 13)]


def test_the_epoch_of_a_stream_goes_on_as_the_share_of_the_run(tmp_path, tokenizer):
    def train(steps: int, resume: bool = False) -> list[tuple[int, float]]:
        settings = {"save_strategy": "steps", "save_steps": 4, "logging_steps": 1, "gradient_accumulation_steps": 2}
        arguments = make_arguments(tmp_path, max_steps=10, **settings)
        callbacks = [StopAt(steps)]
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, make_stream(tokenizer), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=resume)
        return [(line["step"], line["epoch"]) for line in trainer.state.log_history if "loss" in line]

    train(4)
    assert train(10, resume=True) == [(step, step / 10) for step in range(1, 11)]


def test_a_checkpoint_at_the_end_of_an_epoch_has_its_validation(tmp_path, tokenizer, dataset):
    """With eval_strategy epoch and save_strategy steps; the run is killed after that checkpoint."""

    def train(folder: Path, stop: int, resume: bool = False):
        batches = len(make_trainer(make_model(tokenizer), make_arguments(folder), tokenizer, dataset).token_batches())
        settings = {"eval_strategy": "epoch", "save_strategy": "steps", "save_steps": batches, "save_total_limit": None}
        arguments = make_arguments(folder, max_steps=2 * batches + 2, predict_with_generate=False, **settings)
        model = make_model(tokenizer, dropout=0.2)
        trainer = make_trainer(model, arguments, tokenizer, dataset, callbacks=[StopAt(stop * batches)])
        trainer.train(resume_from_checkpoint=resume)
        return [line["step"] for line in trainer.state.log_history if "eval_loss" in line], trainer

    expected, whole = train(tmp_path / "whole", 99)
    _, killed = train(tmp_path / "parts", 1)
    state = json.loads((tmp_path / "parts" / f"checkpoint-{expected[0]}" / "trainer_state.json").read_text())
    assert [line["step"] for line in state["log_history"] if "eval_loss" in line] == expected[:1]
    found, resumed = train(tmp_path / "parts", 99, resume=True)
    assert found == expected and len(expected) == 3 and killed.state.global_step == expected[0]
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_other_data_is_refused_and_other_validation_data_reported(stopped, tmp_path, tokenizer, dataset, caplog):
    changed = dataset.map(lambda row: {"labels": row["labels"][::-1]})
    with pytest.raises(UserError, match="the training data, .* differ from those of checkpoint-8"):
        resume(stopped, tmp_path / "train", tokenizer, changed)
    assert fingerprint_data(dataset) == fingerprint_data(dataset.flatten_indices()) != fingerprint_data(changed)


def test_changed_intervals_count(stopped, tmp_path, tokenizer, dataset):
    resume(stopped, tmp_path, tokenizer, dataset, save_steps=3, max_steps=10)
    names = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert names == {"checkpoint-4", "checkpoint-8", "checkpoint-9", "checkpoint-10"}


def test_a_finished_run_is_not_trained_again(tmp_path, tokenizer, dataset):
    whole = run(tmp_path / "run", tokenizer, dataset, steps=8)
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    trainer = make_trainer(make_model(tokenizer, dropout=0.2), make_arguments(whole, max_steps=8), tokenizer, dataset)
    assert trainer.is_finished(str(whole / "checkpoint-8")) and not trainer.is_finished(str(whole / "checkpoint-4"))
    assert trainer.train(resume_from_checkpoint=True).global_step == 8
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    trainer.save_model(tmp_path / "again")  # as after a kill between the last checkpoint and the final model
    assert equal_weights(whole, tmp_path / "again")


def test_the_best_checkpoint_is_found_where_the_run_s_folder_is_now(tmp_path, tokenizer, dataset):
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 9,
    }
    settings |= {"metric_for_best_model": "loss", "load_best_model_at_end": True, "learning_rate": 1.0, "max_steps": 4}

    def train(folder: Path, **changes):
        arguments = make_arguments(folder, **(settings | {"predict_with_generate": False} | changes))
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset)
        trainer.train(resume_from_checkpoint="resume" in str(folder))
        return trainer

    best = train(tmp_path / "run").state.best_global_step
    (tmp_path / "run").rename(tmp_path / "resumed")
    state = train(tmp_path / "resumed", max_steps=6, learning_rate=1.0).state
    assert Path(state.best_model_checkpoint) == tmp_path / "resumed" / f"checkpoint-{state.best_global_step}"
    assert best is not None


def test_a_stream_s_position_does_not_depend_on_today_s_settings(tmp_path, tokenizer):
    """Six steps of one batch, then of four: the second part has read 6 + 4 x 4 batches, not 10 x 4."""
    for steps, accumulation in ((6, 1), (10, 4)):
        arguments = make_arguments(
            tmp_path,
            max_steps=steps,
            gradient_accumulation_steps=accumulation,
            save_strategy="steps",
            save_steps=steps,
        )
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, make_stream(tokenizer))
        trainer.train(resume_from_checkpoint=steps > 6)
    state = json.loads((tmp_path / "checkpoint-10" / "trainer_state.json").read_text())
    assert state["stateful_callbacks"]["TokenStream"]["taken"] == 6 + 4 * 4


def test_streams_of_other_pairs_limits_or_buffers_have_other_fingerprints(tokenizer):
    changes = [{}, {"buffer_size": 31}, {"max_source_length": 99}, {"max_length_ratio": 8}]
    assert len({fingerprint_data(make_stream(tokenizer, **change)) for change in changes}) == len(changes)
    assert fingerprint_data(make_stream(tokenizer)) == fingerprint_data(make_stream(tokenizer))


def test_resume_from_checkpoint_false_starts_a_new_run(tmp_path, tokenizer, dataset):
    trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path, max_steps=1), tokenizer, dataset)
    assert trainer.train(resume_from_checkpoint=False).global_step == 1


def test_one_of_two_processes_is_resumed_in_the_epoch_that_it_was_in(tmp_path, tokenizer, dataset):
    """There a resumed sampler has one wrapper more, and the stock loop does not tell it the epoch."""

    def train(folder: Path, steps: int = 12, resume: bool = False) -> None:
        arguments = make_arguments(folder, max_steps=12, save_strategy="steps", save_steps=4, save_total_limit=None)
        model = make_model(tokenizer, dropout=0.2)
        trainer = make_trainer(model, arguments, tokenizer, dataset, callbacks=[StopAt(steps)])
        prepare = trainer.accelerator.prepare

        def prepare_a_share(*objects, **kwargs):
            if not isinstance(objects[0], DataLoader):
                return prepare(*objects, **kwargs)
            return prepare_data_loader(objects[0], num_processes=2, process_index=1, even_batches=False)

        trainer.accelerator.prepare = prepare_a_share
        trainer.train(resume_from_checkpoint=resume)

    train(tmp_path / "whole")
    state = json.loads((tmp_path / "whole" / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["epoch"] > 1 and state["epoch"] % 1
    train(tmp_path / "parts", steps=8)
    train(tmp_path / "parts", resume=True)
    assert equal_weights(tmp_path / "whole" / "checkpoint-12", tmp_path / "parts" / "checkpoint-12")


@pytest.mark.parametrize("corpora", [1, 2], ids=["one corpus", "two corpora"])
@pytest.mark.parametrize("stop", [6, 14])
def test_a_stream_resumes_from_any_checkpoint(tmp_path, tokenizer, corpora, stop):
    """Buffers of ten pairs, so that an epoch has several, and checkpoints in the first epoch and in a later one.

    The fingerprint of the data, taken with the first checkpoint, must not move the reader on.
    """
    rows = Dataset.from_dict({"source": SENTENCES, "target": [sentence.upper() for sentence in SENTENCES]})

    def train(folder: Path, steps: int, resume: bool = False) -> None:
        pairs = [rows.shard(corpora, index).to_iterable_dataset() for index in range(corpora)]
        weights = None if corpora == 1 else [1.0, 2.0]
        stream = TokenStream(pairs, tokenizer, max_tokens=500, buffer_size=10, weights=weights, **LIMITS)
        arguments = make_arguments(folder, max_steps=20, save_strategy="steps", save_steps=2, save_total_limit=None)
        model = make_model(tokenizer, dropout=0.2)
        trainer = make_trainer(model, arguments, tokenizer, stream, callbacks=[StopAt(steps)])
        trainer.train(resume_from_checkpoint=resume)

    train(tmp_path / "whole", 20)
    train(tmp_path / "parts", stop)
    train(tmp_path / "parts", 20, resume=True)
    assert equal_weights(tmp_path / "whole" / "checkpoint-20", tmp_path / "parts" / "checkpoint-20")


@pytest.mark.parametrize("step", [3, 5, 12])
@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_an_interruption_adds_and_loses_no_validation(tmp_path, tokenizer, dataset, strategy, step):
    """Between two validations, where one is due, and at the last step."""
    settings = {"eval_strategy": strategy, "eval_steps": 3, "save_strategy": strategy, "save_steps": 3}
    settings |= {"save_total_limit": None, "predict_with_generate": False, "max_steps": 12}

    def train(folder: Path, callbacks=(), resume: bool = False):
        model = make_model(tokenizer, dropout=0.2)
        arguments = make_arguments(folder, **settings)
        trainer = make_trainer(model, arguments, tokenizer, dataset, callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=resume)
        return [line["step"] for line in trainer.state.log_history if "eval_loss" in line], trainer

    expected, whole = train(tmp_path / "whole")
    _, interrupted = train(tmp_path / "parts", [SaveOnInterrupt(), Press(step - 1)])
    assert interrupted.state.global_step == step
    found, resumed = train(tmp_path / "parts", resume=True)
    assert found == expected
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_validation_at_the_start_is_not_repeated_when_a_run_is_resumed(tmp_path, tokenizer, dataset):
    """It would count as one that has not improved."""

    def train(callbacks=(), resume: bool = False):
        arguments = make_arguments(
            tmp_path, max_steps=8, eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=4,
            eval_on_start=True, early_stopping_patience=1, metric_for_best_model="loss", predict_with_generate=False,
        )  # fmt: skip
        trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=list(callbacks))
        trainer.train(resume_from_checkpoint=resume)
        return trainer.state

    train([StopAt(4)])
    state = train(resume=True)
    assert [line["step"] for line in state.log_history if "eval_loss" in line] == [0, 4, 8]
    assert state.global_step == 8

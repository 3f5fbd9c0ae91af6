"""Callbacks of a training run."""

import io
import os
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
from training_runs import Poison, make_arguments, make_model, make_trainer
from transformers import TrainerCallback, TrainerControl, TrainerState

from vanilla_transformer.errors import UserError
from vanilla_transformer.training.callbacks import SampleTranslations, SaveOnInterrupt, lasting_output, print_safely


def test_sample_translations_are_printed_at_each_validation(tmp_path, tokenizer, dataset, capsys):
    arguments = make_arguments(tmp_path, eval_strategy="steps", eval_steps=2)
    samples = SampleTranslations(tokenizer, [("one two", "ONE TWO")])
    make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=[samples]).train()
    assert capsys.readouterr().out.count("source      one two\n  reference   ONE TWO\n  translation ") == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_samples_in_any_script_are_printed_to_any_stream(monkeypatch, encoding):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding=encoding))
    print_safely("한국어 text")
    sys.stdout.flush()
    assert buffer.getvalue() == rb"\ud55c\uad6d\uc5b4 text" + b"\n"


def test_a_stream_that_takes_nothing_ends_no_run(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    closed = io.StringIO()
    closed.close()
    for stream in (Full(), closed):
        monkeypatch.setattr(sys, "stdout", stream)
        print_safely("text")


class Ending(io.StringIO):
    """A stream whose disk is full, or whose reader has gone, once `error` is set."""

    error: OSError | None = None

    def write(self, text):
        if self.error is not None:
            raise self.error
        return super().write(text)

    def flush(self):
        if self.error is not None:
            raise self.error


class At(TrainerCallback):
    """Calls a function at the beginning of a step."""

    def __init__(self, step: int, function) -> None:
        self.step, self.function = step, function

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


@pytest.mark.parametrize("disable_tqdm", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), BrokenPipeError(32, "Broken pipe")])
def test_output_that_can_not_be_written_ends_no_run(tmp_path, tokenizer, dataset, monkeypatch, disable_tqdm, error):
    """As when the disk of a log is full, or when Ctrl-C ends `tee` too: the checkpoint is still saved."""
    out, err = Ending(), Ending()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def interrupt():
        out.error = err.error = error
        signal.raise_signal(signal.SIGINT)

    settings = {"max_steps": 6, "logging_steps": 1, "save_strategy": "steps", "save_steps": 6}
    arguments = make_arguments(tmp_path, disable_tqdm=disable_tqdm, **settings)
    callbacks = [SaveOnInterrupt(), At(2, interrupt)]
    trainer = make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=callbacks)
    trainer.train()
    assert (tmp_path / "checkpoint-3").is_dir() and trainer.state.global_step == 3
    assert (sys.stdout, sys.stderr) == (out, err) and "'loss'" in out.getvalue()


def test_a_pipe_that_nobody_reads_is_left(monkeypatch):
    """Also by the last flush of the process, whose failure would be its exit status."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        with lasting_output():
            print("read", flush=True)
            os.close(reader)
            print("not read", flush=True)
        print("not read either", flush=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_stops(tmp_path, tokenizer, dataset, capsys, number):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    interrupt = SaveOnInterrupt()
    arguments = make_arguments(tmp_path, max_steps=6, save_strategy="steps", save_steps=6)
    callbacks = [interrupt, At(2, lambda: signal.raise_signal(number))]
    make_trainer(make_model(tokenizer), arguments, tokenizer, dataset, callbacks=callbacks).train()
    assert (interrupt.interrupted, interrupt.signal) == (True, number)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    name = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}[number]
    assert f"saving a checkpoint after this step ({name} again to stop at once)" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_the_handlers_are_restored_where_training_ends_with_an_error(tmp_path, tokenizer, dataset):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    callbacks = [SaveOnInterrupt(), Poison(2)]
    trainer = make_trainer(make_model(tokenizer), make_arguments(tmp_path), tokenizer, dataset, callbacks=callbacks)
    with pytest.raises(UserError, match="the loss is "):
        trainer.train()
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_signal_to_one_process_stops_all_at_the_same_step(monkeypatch):
    gather = "vanilla_transformer.training.callbacks.gather"
    monkeypatch.setattr(gather, lambda own: torch.cat([own, torch.tensor([signal.SIGTERM])]))
    interrupt, control = SaveOnInterrupt(), TrainerControl()
    interrupt.on_step_end(SimpleNamespace(world_size=2, device="cpu"), TrainerState(), control)
    assert interrupt.signal == signal.SIGTERM and control.should_save and control.should_training_stop

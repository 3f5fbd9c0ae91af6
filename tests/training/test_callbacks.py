"""Callbacks of a training run."""

import io
import sys

import pytest
from training_runs import make_arguments, make_model, make_trainer

from vanilla_transformer.training.callbacks import SampleTranslations, print_safely


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

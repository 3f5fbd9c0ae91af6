"""scripts/train.py as a user runs it: from files, interrupted, resumed, fine-tuned, and refused with a sentence."""

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM

from vanilla_transformer.data import number_pairs
from vanilla_transformer.tokenization import PreTrainedTokenizerFast

SCRIPT = Path(__file__).parents[1] / "scripts" / "train.py"
SMALL = (
    "--preset tiny --config_overrides d_model=16,encoder_layers=1,decoder_layers=1 "
    "--vocab_size 300 --warmup_steps 10 --per_device_train_tokens 300 --max_length_ratio 99 "
    "--logging_steps 1 --eval_steps 3 --save_steps 3 --max_eval_samples 2"
).split()


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """The arguments that name 60 pairs for training and 5 for validation, in files."""
    folder = tmp_path_factory.mktemp("data")
    for split, size in (("train", 60), ("validation", 5)):
        pairs = number_pairs("en", "de", split, size)
        for lang, side in (("en", "source"), ("de", "target")):
            Path(folder, f"{split}.{lang}").write_text("".join(f"{sentence}\n" for sentence in pairs[side]))
    files = ["--train_file", f"{folder}/train", "--validation_file", f"{folder}/validation"]
    return [*files, "--source_lang", "en", "--target_lang", "de"]


def train(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    finished = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)
    assert finished.returncode == expect, finished.stderr[-3000:]
    return finished


def test_interrupted_resumed_and_fine_tuned(tmp_path, data):
    """The uninterrupted run of test_training.py, at the level of signals and processes."""
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    first = train("--output_dir", whole, "--max_steps", "9", *data, *SMALL)
    assert "train: kept 60 of 60 pairs" in first.stdout and first.stdout.count("translation ") == 3 * 2
    assert f"The model is in {whole}" in first.stdout
    assert "batches: " in first.stdout and "of their tokens padding" in first.stdout
    assert Path(whole, "training.png").read_bytes().startswith(b"\x89PNG")
    assert "Warning" not in first.stderr

    arguments = ["--output_dir", parts, "--max_steps", "9", *data, *SMALL]
    process = subprocess.Popen(
        [sys.executable, "-u", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    output = ""
    for line in process.stdout:
        output += line
        if "'loss'" in line and process.poll() is None and "Interrupted" not in output:
            process.send_signal(signal.SIGINT)
    assert process.wait() == 130, output[-3000:]
    step = int(re.search(r"Stopped at step (\d+); continue with --resume_from_checkpoint", output)[1])
    assert step < 9 and Path(parts, f"checkpoint-{step}", "optimizer.pt").is_file()

    resumed = train(*arguments, "--resume_from_checkpoint")
    assert "missing keys" not in resumed.stderr
    one, other = (
        load_file(Path(whole, "checkpoint-9", "model.safetensors")),
        load_file(Path(parts, "checkpoint-9", "model.safetensors")),
    )
    assert all((one[name] == other[name]).all() for name in one)

    tuned = str(tmp_path / "tuned")
    train("--output_dir", tuned, "--model_name_or_path", whole, "--max_steps", "3", *data, *SMALL)
    model = AutoModelForSeq2SeqLM.from_pretrained(tuned)
    assert (model.config.d_model, model.generation_config.num_beams) == (16, 4)
    assert Path(tuned, "modeling_vanilla_transformer.py").is_file()
    assert '"PreTrainedTokenizerFast"' in Path(tuned, "tokenizer_config.json").read_text()
    assert PreTrainedTokenizerFast.from_pretrained(tuned).vocab_size == model.config.vocab_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config_overrides", "d_model=15"], "--config_overrides d_model=15: d_model is 15; it must be even"),
        (["--config_overrides", "depth=3"], "--config_overrides depth=3: "),
        (["--warmup_steps", "0"], "diverges without warm-up"),
        (["--per_device_train_tokens", "5"], "but a batch may hold 5; raise the token budget"),
        (["--train_file", "no/such/file"], "--train_file and --validation_file go together"),
        (
            ["--train_file", "no/such", "--validation_file", "no/such"],
            "no/such is neither a pair of files here (looked for no/such.en",
        ),
        (["--eval_steps", "2"], "--load_best_model_at_end requires the saving steps"),
        (["--vocab_size", "12"], "vocab_size is 12"),
        (["--model_name_or_path", "no/such/model"], "can't load the model no/such/model"),
        (["--tokenizer_name", "no/such/tokenizer"], "can't load the tokenizer no/such/tokenizer"),
    ],
)
def test_what_can_not_be_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    few = ["--max_train_samples", "50", "--max_eval_samples", "2"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--output_dir", str(tmp_path / "run"), *SMALL, *few, *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert captured.err.strip().splitlines()[-1].startswith("error: ") and message in captured.err


def test_another_runs_folder_is_not_written_into(tmp_path):
    (tmp_path / "model.safetensors").write_text("precious")
    finished = train("--output_dir", str(tmp_path), *SMALL, expect=2)
    assert finished.stderr.strip().endswith("continue the run in it with --resume_from_checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

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

from vanilla_transformer.data.numbers import number_pairs
from vanilla_transformer.data.tokenization import PreTrainedTokenizerFast
from vanilla_transformer.training.record import read_record

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
RECIPE = (
    "--warmup_steps 10 --per_device_train_tokens 300 --max_length_ratio 99 "
    "--logging_steps 1 --eval_steps 3 --save_steps 3 --max_eval_samples 2"
).split()
NEW = "--preset tiny --config_overrides d_model=16,encoder_layers=1,decoder_layers=1 --vocab_size 300".split()
SMALL = [*NEW, *RECIPE]


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


def start(*arguments: str) -> subprocess.Popen[str]:
    """Training that goes on while its output is read."""
    return subprocess.Popen(
        [sys.executable, "-u", SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def equal_weights(one: str, other: str) -> bool:
    """Whether the ninth checkpoints of two runs are the same, bit for bit."""
    weights, others = (load_file(Path(run, "checkpoint-9", "model.safetensors")) for run in (one, other))
    return weights.keys() == others.keys() and all((weights[name] == others[name]).all() for name in weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, data) -> str:
    """The folder of a run of 9 steps that nothing has interrupted."""
    folder = str(tmp_path_factory.mktemp("whole") / "run")
    first = train("--output_dir", folder, "--max_steps", "9", *data, *SMALL)
    assert "train: kept 60 of 60 pairs" in first.stdout and first.stdout.count("translation ") == 3 * 2
    assert f"The model is in {folder}" in first.stdout
    assert "batches: " in first.stdout and "of their tokens padding" in first.stdout
    assert Path(folder, "training.png").read_bytes().startswith(b"\x89PNG")
    assert "Warning" not in first.stderr
    return folder


def test_a_run_says_what_it_was(whole, data):
    record = read_record(whole)
    assert record["command"].startswith(f"vanilla-transformer train --output_dir {whole} --max_steps 9 --train_file ")
    assert (record["model"]["preset"], record["model"]["vocab_size"]) == ("tiny", 300)
    assert (record["data"]["train_file"], record["data"]["train_pairs"]) == (data[1], 60)
    assert record["recipe"]["learning_rate"] == (16 * 10) ** -0.5
    assert record["result"]["steps"] == 9 and record["result"]["minutes"] > 0
    assert record["result"]["validation"]["step"] == 9


def test_killed_and_resumed_ends_with_the_same_weights(tmp_path, data, whole):
    """SIGKILL after step 5, two steps after the last checkpoint."""
    arguments = ["--output_dir", str(tmp_path / "run"), "--max_steps", "9", *data, *SMALL]
    process = start(*arguments)
    steps = 0
    for line in process.stdout:
        steps += "'loss'" in line
        if steps == 5:
            process.kill()
    assert process.wait() == -signal.SIGKILL
    train(*arguments, "--resume_from_checkpoint")
    assert equal_weights(whole, str(tmp_path / "run"))


def test_interrupted_resumed_and_fine_tuned(tmp_path, data, whole):
    """The uninterrupted run of test_training.py, at the level of signals and processes."""
    parts = str(tmp_path / "parts")
    arguments = ["--output_dir", parts, "--max_steps", "9", *data, *SMALL]
    process = start(*arguments)
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
    assert equal_weights(whole, parts)

    tuned = str(tmp_path / "tuned")
    train(
        "--output_dir",
        tuned,
        "--model_name_or_path",
        whole,
        "--max_steps",
        "3",
        *data,
        *RECIPE,
        "--config_overrides",
        "dropout=0.4",
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(tuned)
    assert (model.config.d_model, model.config.dropout, model.generation_config.num_beams) == (16, 0.4, 4)
    assert Path(tuned, "modeling_vanilla_transformer.py").is_file()
    assert '"PreTrainedTokenizerFast"' in Path(tuned, "tokenizer_config.json").read_text()
    assert PreTrainedTokenizerFast.from_pretrained(tuned).vocab_size == model.config.vocab_size
    began_with = read_record(tuned)["model"]
    assert (began_with["model_name_or_path"], began_with["from_hub"]) == (whole, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config_overrides", "d_model=15"], "config_overrides d_model=15: d_model is 15; it must be even"),
        (["--config_overrides", "depth=3"], "config_overrides depth=3: "),
        (["--warmup_steps", "0"], "diverges without warm-up"),
        (["--per_device_train_tokens", "5"], "but a batch may hold 5; raise the token budget"),
        (["--train_file", "no/such/file"], "--train_file and --validation_file go together"),
        (
            ["--train_file", "no/such", "--validation_file", "no/such"],
            "no/such is neither a pair of files here (looked for no/such.en",
        ),
        (["--eval_steps", "2"], "--load_best_model_at_end requires the saving steps"),
        (["--vocab_size", "12"], "vocab_size is 12"),
        (["--model_name_or_path", "no/such/model"], "preset is tiny, but the model no/such/model keeps its size"),
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
    assert finished.stderr.strip().endswith("continue the run in it with resume_from_checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

"""Training in two processes gives the weights of one, from the command line as a user would start it.

Under DDP, where each process has the whole model, and under FSDP, where each has a part.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from packaging import version
from safetensors.torch import load_file

from vanilla_transformer.training.averaging import average_checkpoints, last_checkpoints

SCRIPT = str(Path(__file__).parents[2] / "scripts" / "train.py")
FSDP_ON_CPU = str(Path(__file__).parent / "fsdp_on_cpu.py")
# Dropout would draw other numbers in two processes than in one. With the paper's epsilon of 1e-9 Adam would blow up the
# rounding of gradients that are all but zero.
ARGUMENTS = (
    "--preset tiny --config_overrides d_model=16,encoder_layers=1,decoder_layers=1,dropout=0 --vocab_size 300 "
    "--max_train_samples 200 --max_eval_samples 3 --max_length_ratio 99 --warmup_steps 10 "
    "--per_device_train_tokens 200 --max_steps 4 --eval_steps 2 --save_steps 2 --save_total_limit 9 --logging_steps 1 "
    "--adam_epsilon 1e-3 --use_cpu --disable_tqdm True"
).split()
# `accelerate launch` starts several processes on GPUs in this way; on CPUs it asks for MPI.
TWO = "-m torch.distributed.run --standalone --nproc_per_node 2"


def train(output_dir: Path, *arguments: str, processes: int = 1, recipe: Sequence[str] = ARGUMENTS) -> str:
    launcher = TWO.split() if processes == 2 else []
    if "--fsdp" in arguments:
        launcher.append(FSDP_ON_CPU)
    command = [sys.executable, *launcher, SCRIPT, "--output_dir", str(output_dir), *recipe, *arguments]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return finished.stdout


def assert_equal_weights(one: Path, other: Path) -> None:
    expected, weights = (load_file(folder / "model.safetensors") for folder in (one, other))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """Two accumulated batches per step: the batches that two processes take at once."""
    folder = tmp_path_factory.mktemp("one") / "run"
    train(folder, "--gradient_accumulation_steps", "2")
    return folder


@pytest.fixture(scope="module", params=[[], ["--fsdp"]], ids=["ddp", "fsdp"])
def sharding(request) -> list[str]:
    """The arguments that choose DDP or FSDP."""
    if version.parse(torch.__version__) < version.parse("2.7"):
        if request.param:
            pytest.skip("FSDP over gloo needs torch 2.7")
    return request.param


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, sharding) -> Path:
    folder = tmp_path_factory.mktemp("two") / "run"
    output = train(folder, *sharding, processes=2)
    assert output.count("model: ") == 1 and output.count("translation ") == 3 * 2
    return folder


def test_two_processes_train_as_one(tmp_path, one_process, two_processes):
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        assert_equal_weights(one_process / checkpoint, two_processes / checkpoint)
    for name, folder in (("one", one_process), ("two", two_processes)):
        average_checkpoints(last_checkpoints(folder, 2), tmp_path / name)
    assert_equal_weights(tmp_path / "one", tmp_path / "two")


def test_two_processes_save_what_one_saves(one_process, two_processes):
    """FSDP gives the model a class of its own, whose name and code must not get into the folder."""
    assert_equal_weights(one_process, two_processes)
    assert len(load_file(one_process / "model.safetensors")) == len(load_file(two_processes / "model.safetensors"))
    expected, config = (json.loads((folder / "config.json").read_text()) for folder in (one_process, two_processes))
    assert config == expected
    assert {path.name for path in one_process.glob("*.py")} == {path.name for path in two_processes.glob("*.py")}


@pytest.mark.skipif(
    version.parse(torch.__version__) < version.parse("2.7"), reason="torch below 2.7 can't load an optimizer onto cpu:0"
)
def test_two_processes_resume_with_the_options_of_before(tmp_path, one_process, two_processes, sharding):
    shutil.copytree(two_processes / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    train(tmp_path / "run", "--resume_from_checkpoint", *sharding, processes=2, recipe=())
    assert_equal_weights(one_process / "checkpoint-4", tmp_path / "run" / "checkpoint-4")


def test_two_processes_share_a_stream(tmp_path):
    stream = "--streaming --shuffle_buffer_size 50 --max_source_length 100 --max_target_length 100".split()
    stream += "--bpe_dropout 0.2 --ema_decay 0.5 --max_minutes 999".split()  # the same in each process
    output = train(tmp_path / "one", *stream, "--gradient_accumulation_steps", "2")
    assert "of their tokens padding" in output
    train(tmp_path / "two", *stream, processes=2)
    assert_equal_weights(tmp_path / "one" / "checkpoint-4", tmp_path / "two" / "checkpoint-4")

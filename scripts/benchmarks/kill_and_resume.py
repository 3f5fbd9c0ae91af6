"""Kill training at random moments and at file events, resume it, and compare the weights with an uninterrupted run.

python scripts/benchmarks/kill_and_resume.py --random 60 --events 60 --folder runs/killed

Each part of a run is a process that ends by SIGKILL, either after a random time or while it writes, renames or deletes
a file of a checkpoint. It is resumed, and killed again, until it finishes. Every other run reads its data as a stream.
Prints one line for each run, and ends with status 1 if the weights of one differ.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

OPTIONS = (
    "--preset tiny --config_overrides d_model=16,encoder_layers=1,decoder_layers=1 --vocab_size 300 --warmup_steps 10 "
    "--per_device_train_tokens 300 --max_length_ratio 99 --max_train_samples 400 --max_eval_samples 2 --max_steps 24 "
    "--logging_steps 4 --eval_steps 4 --save_steps 4 --disable_tqdm True --use_cpu"
).split()
STREAM = "--streaming --shuffle_buffer_size 100 --max_source_length 100 --max_target_length 100".split()

# A program that kills itself at the n-th change of a file in the run's folder, then runs the command.
KILL_AT_EVENT = """
import os, signal, sys
folder, left = sys.argv[1], int(sys.argv[2])

def watch(event, arguments):
    global left
    if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"):
        return
    path, writes = arguments[0], True
    if event == "open":
        writes = isinstance(arguments[1], str) and "r" not in arguments[1] or bool((arguments[2] or 0) & os.O_WRONLY)
    if writes and isinstance(path, (str, bytes, os.PathLike)) and folder in os.fsdecode(path):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
from vanilla_transformer.cli import main
main(["train", *sys.argv[3:]])
"""


def train(folder: Path, options: list[str], seconds: float = 600, event: int = 0) -> int:
    """Train, resuming what is there; return the exit status, -9 after a kill."""
    resume = ["--resume_from_checkpoint"] if folder.exists() else []
    arguments = [str(folder), str(event), "--output_dir", str(folder), *options, *resume]
    process = subprocess.Popen(
        [sys.executable, "-c", KILL_AT_EVENT, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"the run in {folder} ended with status {process.returncode}: {errors[-2000:]}")
    return process.returncode


def weights(folder: Path) -> bytes:
    """Return the weights that a run has ended with."""
    return (folder / "model.safetensors").read_bytes()


def main() -> None:
    """Run the trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", type=int, default=60, help="number of kills after a random time")
    parser.add_argument("--events", type=int, default=60, help="number of kills at a change of a file")
    parser.add_argument("--folder", type=Path, required=True, help="new folder for the runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True)
    moments = random.Random(arguments.seed)
    kinds, expected, duration = {"map": OPTIONS, "stream": [*OPTIONS, *STREAM]}, {}, {}
    for name, options in kinds.items():
        start = time.perf_counter()
        train(arguments.folder / name, options)
        duration[name] = time.perf_counter() - start
        expected[name] = weights(arguments.folder / name)
    left = {"random": arguments.random, "events": arguments.events}
    number = different = 0
    while sum(left.values()) > 0:
        name, folder = list(kinds)[number % 2], arguments.folder / f"killed-{number}"
        kills = 0
        for kind in moments.choices(list(left), k=4):
            if left[kind] <= 0:
                continue
            limits = {"seconds": moments.uniform(0, duration[name])} if kind == "random" else {}
            status = train(folder, kinds[name], event=moments.randint(1, 60) if kind == "events" else 0, **limits)
            kills += status != 0
            left[kind] -= status != 0
        train(folder, kinds[name])
        equal = weights(folder) == expected[name]
        different += not equal
        print(f"run {number} ({name}): killed {kills} times, weights {'equal' if equal else 'DIFFERENT'}", flush=True)
        shutil.rmtree(folder)
        number += 1
    raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()

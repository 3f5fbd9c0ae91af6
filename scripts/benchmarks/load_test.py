"""Measure what training does before its first step, with millions of sentence pairs: seconds and memory of each stage.

python scripts/benchmarks/load_test.py --train_files data/tatoeba/train data/multi30k/train --source_lang en \
    --target_lang de --pairs 1000000 3000000 10000000

The pairs of the files are repeated, with other numbers in each, until there are so many; they are written as two text
files into a temporary folder. The training command then runs in a process of its own with an empty cache, and stops
after its first step. Memory is that of the process, without the pages of memory-mapped files that the system may drop.
"""

import functools
import multiprocessing
import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from common import parse, print_header, run
from datasets import disable_progress_bars
from transformers.utils import logging

from vanilla_transformer.data.reading import load_pairs
from vanilla_transformer.errors import UserError

VALIDATION_PAIRS = 100
# In the order of a run. The fingerprint of the data is taken for the first checkpoint, after the first step.
STAGES = ("reading", "tokenizer training", "encoding", "planning", "first epoch's order", "first step", "fingerprint")
COMMAND = (
    "--preset tiny --config_overrides d_model=64,encoder_layers=1,decoder_layers=1 --warmup_steps 10 --max_steps 1 "
    "--per_device_train_tokens 4096 --eval_strategy no --save_strategy steps --save_steps 1 --disable_tqdm True "
    "--use_cpu"
)
NUMBERS = 1_000_000  # how many different numbers there are
STRIDE = 7_919  # a prime number: neighbouring pairs have distant numbers


@dataclass
class LoadTestArguments:
    """What is read, and how much of it."""

    train_files: list[str] = field(metadata={"help": "Sentence pairs to repeat, as for `vanilla-transformer train`."})
    source_lang: str = field(default="en", metadata={"help": "Language of the source."})
    target_lang: str = field(default="de", metadata={"help": "Language of the target."})
    pairs: list[int] = field(
        default_factory=lambda: [1_000_000, 3_000_000, 10_000_000], metadata={"help": "Numbers of pairs."}
    )
    vocab_size: int = field(default=8_000, metadata={"help": "Types of the tokenizer that is trained."})
    temporary_dir: str | None = field(
        default=None, metadata={"help": "Where to put the files; by default the system's."}
    )


def repeat(corpora: list[Any], size: int) -> Iterator[tuple[str, str]]:
    """Yield pairs, with another number in the place of each number, or a number at the end.

    Args:
        corpora: Data sets with the columns "source" and "target".
        size: How many pairs to yield.
    """

    def endless() -> Iterator[tuple[str, str]]:
        while True:
            for pairs in corpora:
                for batch in pairs.iter(batch_size=1_000):
                    yield from zip(batch["source"], batch["target"], strict=True)

    for index, pair in enumerate(islice(endless(), size)):
        number = str(index * STRIDE % NUMBERS)
        source, target = (
            re.sub(r"\d+", number, side) if re.search(r"\d", side) else f"{side} {number}" for side in pair
        )
        yield source, target


def write_pairs(corpora: list[Any], size: int, folder: Path) -> None:
    """Write train.en and train.de, and the first pairs as val.en and val.de."""
    for name, count in (("train", size), ("val", min(size, VALIDATION_PAIRS))):
        with open(folder / f"{name}.source", "w", encoding="utf-8") as sources:
            with open(folder / f"{name}.target", "w", encoding="utf-8") as targets:
                for source, target in repeat(corpora, count):
                    sources.write(f"{source}\n")
                    targets.write(f"{target}\n")


class Stopwatch:
    """Measures the seconds and the peak memory of stages in this process.

    Attributes:
        stages: Seconds of each stage, processor seconds, and the most memory in bytes until its end.
    """

    def __init__(self) -> None:
        self.start = self._now()
        self.stages: dict[str, tuple[float, float, int]] = {}
        self.peak = 0
        threading.Thread(target=self._watch, daemon=True).start()

    @staticmethod
    def _now() -> tuple[float, float]:
        """Return the time, and the processor time of this process."""
        return time.perf_counter(), time.process_time()

    def stop(self, stage: str, start: tuple[float, float]) -> None:
        """Add the time since the start to a stage."""
        seconds, processor_seconds, _ = self.stages.get(stage, (0.0, 0.0, 0))
        now = self._now()
        self.stages[stage] = seconds + now[0] - start[0], processor_seconds + now[1] - start[1], self.peak

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            self.peak = max(self.peak, 1024 * int(status.partition("RssAnon:")[2].split()[0]))
            time.sleep(0.05)

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Measure the calls of a function."""
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = self._now()
            try:
                return function(*args, **kwargs)
            finally:
                self.stop(stage, start)
                if stage == "first step":
                    self.stop("until the first step", self.start)

        setattr(owner, name, measured)


def measure(folder: str, vocab_size: int, results: Any) -> None:
    """Run the training command until its first step, and send what it took; in a process of its own."""
    watch = Stopwatch()
    disable_progress_bars()
    logging.disable_progress_bar()
    from vanilla_transformer.commands import train
    from vanilla_transformer.data import batching
    from vanilla_transformer.training import starting, trainer

    watch.wrap(train, "load_data", "reading")
    watch.wrap(starting, "train_tokenizer", "tokenizer training")
    watch.wrap(train, "encode_training", "encoding")
    watch.wrap(trainer, "fingerprint_data", "fingerprint")
    watch.wrap(trainer.VanillaTransformerTrainer, "token_batches", "planning")
    watch.wrap(batching.TokenBatchSampler, "_order", "first epoch's order")
    watch.wrap(trainer.VanillaTransformerTrainer, "training_step", "first step")
    words = f"--train_file {folder}/train --validation_file {folder}/val --source_lang source --target_lang target"
    words += f" --output_dir {folder}/run --vocab_size {vocab_size} {COMMAND}"
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        train.main(words.split())
    results.put(watch.stages)


def measure_size(corpora: list[Any], size: int, arguments: LoadTestArguments) -> None:
    """Measure one number of pairs, and print its rows of the table."""
    with tempfile.TemporaryDirectory(dir=arguments.temporary_dir) as folder:
        write_pairs(corpora, size, Path(folder))
        os.environ["HF_DATASETS_CACHE"] = f"{folder}/cache"  # the process reads it when it starts
        context = multiprocessing.get_context("spawn")
        results = context.Queue()
        process = context.Process(target=measure, args=(folder, arguments.vocab_size, results))
        process.start()
        process.join()
        if process.exitcode:
            raise UserError(f"training on {size:,} pairs ended with status {process.exitcode}; see its message above")
        stages = results.get()
    for stage in (*STAGES, "until the first step"):
        seconds, processor_seconds, memory = stages[stage]
        rates = (f"{size / value:,.0f}" if value > 0.005 else "-" for value in (seconds, processor_seconds))
        print(
            f"| {size:,} | {stage} | {seconds:.1f} | {processor_seconds:.1f} | {' | '.join(rates)} | "
            f"{memory / 2**20:,.0f} |",
            flush=True,
        )


def main() -> None:
    """Measure each number of pairs."""
    arguments = parse(LoadTestArguments, __doc__, sys.argv[1:])
    for size in arguments.pairs:
        if size < VALIDATION_PAIRS:
            raise UserError(f"pairs is {size}; it must be at least {VALIDATION_PAIRS}")
    corpora = [load_pairs(file, arguments.source_lang, arguments.target_lang) for file in arguments.train_files]
    print_header(
        int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)), ("tokenizers", "datasets", "transformers")
    )
    print("| pairs | stage | seconds | processor seconds | pairs per second | per processor second | most MiB so far |")
    print("|---|---|---|---|---|---|---|")
    for size in arguments.pairs:
        measure_size(corpora, size, arguments)


if __name__ == "__main__":
    run(main)

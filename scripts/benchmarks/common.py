"""What the benchmarks share: data, the header of their output, ratios, and how they start and end."""

import os
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from vanilla_transformer.cli import exit_on_error
from vanilla_transformer.commands.arguments import CommandParser
from vanilla_transformer.commands.process import end_distributed_process
from vanilla_transformer.data.numbers import number_pairs
from vanilla_transformer.data.reading import iterate_sentences, load_pairs
from vanilla_transformer.data.tokenization import train_tokenizer

SEED = 0
NUMBER_PAIRS = 5_000  # where no data is given


@dataclass
class DataArguments:
    """The sentence pairs of a benchmark, and the tokenizer that is trained on them."""

    train_file: str | None = field(
        default=None, metadata={"help": "Sentence pairs, as for `vanilla-transformer train`; else numbers."}
    )
    source_lang: str = field(default="en", metadata={"help": "Language of the source."})
    target_lang: str = field(default="fr", metadata={"help": "Language of the target."})
    vocab_size: int = field(default=10_000, metadata={"help": "Types of the tokenizer that is trained."})

    def load(self) -> tuple[PreTrainedTokenizerBase, Dataset]:
        """Load the pairs and train a tokenizer on them."""
        if self.train_file:
            pairs = load_pairs(self.train_file, self.source_lang, self.target_lang)
        else:
            pairs = number_pairs(self.source_lang, self.target_lang, "train", NUMBER_PAIRS)
        return train_tokenizer(iterate_sentences(pairs), self.vocab_size), pairs


def parse(dataclass_type: type, doc: str | None, argv: list[str] | None) -> Any:
    """Parse the command line into the dataclass, and make the libraries quiet."""
    names = [item.name for item in fields(dataclass_type)]
    parser = CommandParser(dataclass_type, prog=f"python {sys.argv[0]}", doc=doc, most_used=names)
    (arguments,) = parser.parse(argv)
    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return arguments


def processor() -> str:
    """Name the processor, and how many cores of it this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


def print_header(threads: int, libraries: Sequence[str] = ("torch", "transformers"), seed: int = SEED) -> None:
    """Print what a reader needs to repeat the measurement: command, versions, processor, threads and seed."""
    print(shlex.join(["python", *sys.argv]))
    print(", ".join(f"{library} {version(library)}" for library in libraries))
    print(f"{processor()}; {threads} threads, seed {seed}", flush=True)


def format_ratios(ratios: Sequence[float]) -> str:
    """Form the median of ratios, and in brackets each round's: `1.91 (2.13, 1.91, 1.64)`."""
    return f"{statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})"


def run(main: Callable[[], None]) -> None:
    """Run a benchmark as a program: errors end it as they end a command."""
    show_traceback = "--traceback" in sys.argv
    with end_distributed_process(), exit_on_error(show_traceback):
        main()

"""Kill training with SIGKILL again and again, continue it, and compare the weights with an uninterrupted run's.

python scripts/benchmarks/kill_training.py --output_dir runs/killed

A tiny model is trained for 12 steps with a checkpoint at each third: with its data in memory, as a stream, and in two
processes. Uninterrupted, it is trained by the command itself, in a process of its own (for two, by torchrun).

To be killed, it is trained in a new folder by forks of a process that has imported the package, which takes most of a
short run's time. The kill hits after a random time, uniform over the length of a run from the fork on, or as soon as
the kernel (inotify) tells of a certain change in the run's folder, at most a few milliseconds later. Of two processes,
both are killed at once, or one a second before the other. The run is then continued with --resume_from_checkpoint, with
its options or only with the folder, killed up to three times, and at last left alone. It must end with the weights of
the uninterrupted run, bit for bit, and with the same names in its folder; continued again, it must change nothing.
Ctrl-C ends the trial and prints what it has found. Linux only.
"""

import ctypes
import itertools
import multiprocessing
import os
import random
import re
import select
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from common import SEED, parse, print_header, run
from tqdm import tqdm

from vanilla_transformer.cli import main as command
from vanilla_transformer.data.files import check_not_in_use
from vanilla_transformer.training.checkpoints import complete_checkpoints

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["vanilla_transformer.commands.train", "vanilla_transformer.plots.run", "matplotlib.pyplot"]
)

OPTIONS = (
    "--preset tiny --config_overrides d_model=16,encoder_layers=1,decoder_layers=1 --vocab_size 300 --warmup_steps 10 "
    "--per_device_train_tokens 300 --max_length_ratio 99 --max_train_samples 200 --max_eval_samples 2 --max_steps 12 "
    "--logging_steps 3 --eval_steps 3 --save_steps 3 --save_total_limit 2 --disable_tqdm True --use_cpu"
).split()
STREAM = "--streaming --shuffle_buffer_size 100 --max_source_length 100 --max_target_length 100".split()
TIMEOUT = 300  # seconds, after which a run hangs
STARTS_OVER = "leave out resume_from_checkpoint"  # the refusal's remedy where there is nothing to continue


class Kind(NamedTuple):
    """A way to train."""

    options: list[str]
    processes: int


KINDS = {"in memory": Kind([], 1), "streaming": Kind(STREAM, 1), "two processes": Kind([], 2)}
TURNS = ("in memory", "streaming", "in memory", "streaming", "two processes")  # for each kill in turn

# linux/inotify.h
OPEN, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x20, 0x8, 0x40, 0x80, 0x100, 0x200
IS_FOLDER, QUEUE_OVERFLOW = 0x40000000, 0x4000
STAGED = r"tmp-checkpoint/checkpoint-\d+"
# Changes of the run's folder at which it is killed: the kind of event, and the path in the folder.
EVENTS = {
    "folder appears": (CREATE, r""),
    "lock is opened": (OPEN, r"\.lock"),
    "record: part appears": (CREATE, r"run\.part"),
    "record: part is written": (CLOSE_WRITE, r"run\.part"),
    "record: renamed": (MOVED_TO, r"run\.json"),
    "checkpoint: tmp-checkpoint appears": (CREATE, r"tmp-checkpoint"),
    "checkpoint: its folder appears": (CREATE, STAGED),
    "checkpoint: config.json written": (CLOSE_WRITE, rf"{STAGED}/config\.json"),
    "checkpoint: model.safetensors appears": (CREATE | MOVED_TO, rf"{STAGED}/model\.safetensors"),
    "checkpoint: optimizer.pt appears": (CREATE, rf"{STAGED}/optimizer\.pt"),
    "checkpoint: optimizer.pt is written": (CLOSE_WRITE, rf"{STAGED}/optimizer\.pt"),
    "checkpoint: scheduler.pt appears": (CREATE, rf"{STAGED}/scheduler\.pt"),
    "checkpoint: rng_state appears": (CREATE, rf"{STAGED}/rng_state.*\.pth"),
    "checkpoint: trainer_state.json appears": (CREATE, rf"{STAGED}/trainer_state\.json"),
    "checkpoint: manifest.json appears": (CREATE, rf"{STAGED}/manifest\.json"),
    "checkpoint: manifest.json is written": (CLOSE_WRITE, rf"{STAGED}/manifest\.json"),
    "checkpoint: renamed": (MOVED_TO, r"checkpoint-\d+"),
    "checkpoint: tmp-checkpoint is deleted": (DELETE, r"tmp-checkpoint"),
    "old checkpoint: a file is deleted": (DELETE, r"checkpoint-\d+/.*"),
    "old checkpoint: deleted": (DELETE, r"checkpoint-\d+"),
    "model: tmp-model appears": (CREATE, r"tmp-model"),
    "model: model.safetensors appears": (CREATE | MOVED_TO, r"tmp-model/model\.safetensors"),
    "model: config.json is moved": (MOVED_TO, r"config\.json"),
    "model: model.safetensors is moved": (MOVED_TO, r"model\.safetensors"),
    "picture: appears": (CREATE | MOVED_TO, r"training\.png.*"),
    "picture: written": (CLOSE_WRITE, r"training\.png.*"),
}
RANDOM = "random"


@dataclass
class KillArguments:
    """How often to kill, and where."""

    output_dir: str = field(metadata={"help": "New folder for the runs; one that fails is kept in it."})
    random_kills: int = field(default=60, metadata={"help": "Kills after a random time."})
    event_kills: int = field(default=60, metadata={"help": "Kills at a change of a file."})
    seed: int = field(default=SEED, metadata={"help": "Seed of times and changes."})


class Failure(Exception):
    """A run did not end as the uninterrupted one, or can't be continued."""


class Watch:
    """Tell of the changes in a folder and all folders in it, by Linux's inotify."""

    def __init__(self, folder: Path) -> None:
        """Begin to watch."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        number = self._libc.inotify_init1(os.O_NONBLOCK)
        if number < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._file = os.fdopen(number, "rb", buffering=0)  # closed with the object
        self._folders: dict[int, Path] = {}
        self._add(folder)

    def _add(self, folder: Path) -> list[tuple[int, Path]]:
        """Watch a folder; return its present content as events. A folder that was renamed gets its new name."""
        mask = OPEN | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE
        number = self._libc.inotify_add_watch(self._file.fileno(), os.fsencode(folder), mask)
        if number < 0:  # it is gone already
            return []
        self._folders[number] = folder
        events = []
        with suppress(FileNotFoundError):  # it is renamed or deleted meanwhile
            for path in folder.iterdir():
                events.append((CREATE, path))
                if path.is_dir():
                    events += self._add(path)
        return events

    def events(self, seconds: float) -> list[tuple[int, Path]]:
        """Wait up to some seconds for events; return each one's kind and path."""
        if not select.select([self._file], [], [], seconds)[0]:
            return []
        data, position = os.read(self._file.fileno(), 1 << 16), 0
        events = []
        while position < len(data):
            number, mask, _, length = struct.unpack_from("iIII", data, position)
            name = data[position + 16 : position + 16 + length].rstrip(b"\0")
            position += 16 + length
            if mask & QUEUE_OVERFLOW:
                raise OSError("the queue of inotify is full")
            if number in self._folders and name:
                path = self._folders[number] / os.fsdecode(name)
                events.append((mask, path))
                if mask & IS_FOLDER and mask & (CREATE | MOVED_TO):
                    new = self._add(path)
                    events += new if mask & CREATE else []
        return events


class Moment(NamedTuple):
    """The moment of a kill.

    Attributes:
        name: One of `EVENTS`, or `RANDOM`.
        occurrence: Which of the events of that name.
        delay: Seconds after the event, or after the start of the run.
        at_once: Whether two processes are killed together; else the second follows a second later.
    """

    name: str
    occurrence: int
    delay: float
    at_once: bool

    def start(self, folder: Path) -> Callable[[], bool]:
        """Begin to wait; return a function that waits about a millisecond and tells whether the moment has come."""
        if self.name == RANDOM:
            end = time.monotonic() + self.delay

            def wait_for_time() -> bool:
                time.sleep(0.001)
                return time.monotonic() >= end

            return wait_for_time
        mask, pattern = EVENTS[self.name]
        path = re.compile(re.escape(str(folder)) + (f"/{pattern}" if pattern else ""))
        watch, left = Watch(folder.parent), self.occurrence

        def wait_for_event() -> bool:
            nonlocal left
            left -= sum(bool(kind & mask and path.fullmatch(str(where))) for kind, where in watch.events(0.001))
            if left <= 0:
                time.sleep(self.delay)
            return left <= 0

        return wait_for_event


def train(words: list[str], log: str, environment: dict[str, str]) -> None:
    """Run the command in this process, with its output in a file."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    command(["train", *words])


def train_in_forks(words: list[str], processes: int, log: Path, folder: Path, moment: Moment | None) -> int:
    """Run the command in forks until it ends or the moment to kill it has come.

    Returns:
        The exit status; -9 if it was killed.

    Raises:
        Failure: The command hangs.
    """
    children = []
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    for rank in range(processes):
        environment = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "RANK": rank, "LOCAL_RANK": rank}
        environment |= {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
        distributed = {name: str(value) for name, value in environment.items()} if processes > 1 else {}
        children.append(FORKS.Process(target=train, args=(words, f"{log}-{rank}", distributed)))
    has_come = moment.start(folder) if moment else None
    end = time.monotonic() + TIMEOUT
    for child in children:
        child.start()
    statuses: list[int] = []
    try:
        while not statuses:
            if has_come is None:
                time.sleep(0.01)
            elif has_come():
                children[0].kill()
                children[-1].join(0 if moment and moment.at_once else 1)
                break
            if all(child.exitcode == 0 for child in children) or any(child.exitcode for child in children):
                statuses = [child.exitcode or 0 for child in children]
            if time.monotonic() > end:
                raise Failure(f"the run did not end in {TIMEOUT} s")
    finally:
        for child in children:
            child.kill()
            child.join()
    if not statuses:  # the moment has come
        return -9 if any(child.exitcode == -9 for child in children) else children[0].exitcode or 0
    return next((status for status in statuses if status), 0)


class Run:
    """A run that is killed and continued."""

    def __init__(self, folder: Path, kind: Kind, choices: random.Random) -> None:
        """Prepare a run in a new folder; `choices` decides between what is equally good."""
        self.folder, self.kind, self.choices = folder, kind, choices
        self.parts = 0
        folder.parent.mkdir(parents=True)

    @property
    def checkpoint(self) -> int:
        """The step of the last complete checkpoint, 0 before the first."""
        checkpoints = complete_checkpoints(self.folder)
        return int(checkpoints[-1].name.partition("-")[2]) if checkpoints else 0

    def advance(self, moment: Moment | None) -> bool:
        """Start or continue the run; return whether it was killed.

        Raises:
            Failure: It was refused, or ended with an error.
        """
        options = [*OPTIONS, *self.kind.options]
        words = ["--output_dir", str(self.folder)]
        if self.parts == 0:
            return self._run([*words, *options], moment)
        kept = (self.folder / "run.json").exists() and self.choices.random() < 0.5
        resume = ["--resume_from_checkpoint"]
        try:
            return self._run([*words, *resume] if kept else [*words, *options, *resume], moment)
        except Failure as failure:
            if STARTS_OVER not in str(failure):
                raise
        return self._run([*words, *options], moment)

    def _run(self, words: list[str], moment: Moment | None) -> bool:
        self.parts += 1
        log = self.folder.parent / f"log-{self.parts}"
        status = train_in_forks(words, self.kind.processes, log, self.folder, moment)
        if status in (0, -9):
            return status != 0
        text = "".join(file.read_text(encoding="utf-8") for file in sorted(log.parent.glob(f"{log.name}-*")))
        lines = [line for line in text.splitlines() if line.startswith("error: ")]
        raise Failure(f"part {self.parts} ended with status {status}: {lines[-1] if lines else text[-500:]}")

    def check(self, expected: Path) -> None:
        """Compare the finished run with the uninterrupted one, and continue it again.

        Raises:
            Failure: Something differs.
        """
        if (self.folder / "model.safetensors").read_bytes() != (expected / "model.safetensors").read_bytes():
            raise Failure("the weights differ")
        names, expected_names = ({path.name for path in folder.iterdir()} for folder in (self.folder, expected))
        if names != expected_names:
            raise Failure(f"the names in the folder differ: {', '.join(sorted(names ^ expected_names))}")
        before = snapshot(self.folder)
        self.advance(None)
        after = snapshot(self.folder)
        if changed := sorted(name for name in before | after if before.get(name) != after.get(name)):
            raise Failure(f"a finished run was changed: {', '.join(changed)}")


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of all files of a run but its lock."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def train_uninterrupted(folder: Path, kind: Kind) -> None:
    """Train by the command, in a process of its own."""
    launcher = (
        "-m" if kind.processes == 1 else f"-m torch.distributed.run --standalone --nproc_per_node {kind.processes} -m"
    )
    words = [*launcher.split(), "vanilla_transformer", "train", "--output_dir", str(folder), *OPTIONS, *kind.options]
    finished = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if finished.returncode:
        raise Failure(f"the uninterrupted run ended with status {finished.returncode}: {finished.stderr[-1000:]}")


class Trial:
    """All runs, and what became of them."""

    def __init__(self, arguments: KillArguments) -> None:
        """Prepare; nothing is run yet."""
        self.arguments, self.folder = arguments, Path(arguments.output_dir)
        self.choices = random.Random(arguments.seed)
        self.duration: dict[str, float] = {}
        self.kills: Counter[tuple[str, str]] = Counter()  # by moment and kind
        self.started_over: Counter[str] = Counter()  # kills before the first checkpoint, by moment
        self.missed: Counter[tuple[str, str]] = Counter()  # whole runs without the change, by moment and kind
        self.runs = self.equal = 0
        self.failures: list[str] = []

    def prepare(self, name: str) -> None:
        """Train without interruption by the command, and in forks to measure how long that takes."""
        if name in self.duration:
            return
        train_uninterrupted(self.folder / name / "uninterrupted", KINDS[name])
        for _ in range(2):  # the first starts the process that is forked
            shutil.rmtree(self.folder / name / "forked", ignore_errors=True)
            start = time.monotonic()
            forked = Run(self.folder / name / "forked" / "run", KINDS[name], self.choices)
            forked.advance(None)
            self.duration[name] = time.monotonic() - start
        forked.check(self.folder / name / "uninterrupted")

    def run(self) -> None:
        """Kill and continue until all kills are done."""
        events = itertools.cycle(EVENTS)
        moments = [RANDOM] * self.arguments.random_kills + [next(events) for _ in range(self.arguments.event_kills)]
        self.choices.shuffle(moments)
        queues: dict[str, list[str]] = {name: [] for name in KINDS}
        for moment, name in zip(moments, itertools.cycle(TURNS)):
            queues[name].append(moment)
        with tqdm(total=len(moments), unit="kill", disable=None) as progress:
            for name, queue in queues.items():
                if queue:
                    self.prepare(name)
                while queue:
                    self.kill_one_run(name, queue, progress)

    def draw(self, moment: str, kind: str, fresh: bool) -> Moment:
        """Draw the details of a moment."""
        recurs = moment.startswith(("checkpoint: ", "record: "))
        delay = self.choices.choice([0, self.choices.uniform(0, 0.005)])
        return Moment(
            moment,
            occurrence=self.choices.randint(1, 3) if fresh and recurs else 1,
            delay=self.choices.uniform(0, self.duration[kind]) if moment == RANDOM else delay,
            at_once=self.choices.random() < 0.5,
        )

    def kill_one_run(self, name: str, queue: list[str], progress: tqdm) -> None:
        """Kill a run at the next moments of the queue, let it end, and check it."""
        self.runs += 1
        killed = Run(self.folder / name / f"killed-{self.runs}" / "run", KINDS[name], self.choices)
        history: list[str] = []
        try:
            for _ in range(min(self.choices.randint(1, 3), len(queue))):
                moment = queue.pop()
                if not killed.advance(self.draw(moment, name, fresh=not history)):  # it has ended before that moment
                    self.put_back(moment, name, queue, missed=moment != RANDOM and not history)
                    break
                history.append(moment)
                self.kills[moment, name] += 1
                self.started_over[moment] += killed.checkpoint == 0
                progress.update()
            else:
                killed.advance(None)
            killed.check(self.folder / name / "uninterrupted")
            self.equal += 1
            shutil.rmtree(killed.folder.parent)
        except Failure as failure:
            self.failures.append(f"{name}, {killed.folder.parent.name}, killed at [{'; '.join(history)}]: {failure}")
            tqdm.write(self.failures[-1])

    def put_back(self, moment: str, kind: str, queue: list[str], missed: bool) -> None:
        """Try a moment again that did not come; give up a change of a file that three whole runs did not make."""
        self.missed[moment, kind] += missed
        if self.missed[moment, kind] < 3:
            queue.append(moment)
        else:
            self.failures.append(f"{kind}: no run made the change [{moment}]")

    def report(self) -> None:
        """Print the table."""
        print(f"\n| moment | {' | '.join(KINDS)} | before the first checkpoint |\n|---|{'---|' * (len(KINDS) + 1)}")
        for moment in [RANDOM, *EVENTS]:
            counts = [self.kills[moment, name] for name in KINDS]
            if any(counts):
                print(f"| {moment} | {' | '.join(map(str, counts))} | {self.started_over[moment]} |")
        counts = [sum(self.kills[moment, name] for moment in [RANDOM, *EVENTS]) for name in KINDS]
        print(f"| all | {' | '.join(map(str, counts))} | {self.started_over.total()} |")
        print(f"\n{sum(counts)} kills in {self.runs} runs; {self.equal} of them ended as the uninterrupted one.")
        for failure in self.failures:
            print(f"- {failure}")


def main(argv: list[str] | None = None) -> None:
    """Run the trial; the exit status is 1 if anything differs."""
    arguments: KillArguments = parse(KillArguments, __doc__, argv)
    check_not_in_use(arguments.output_dir, "runs")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that train
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # what a killed process leaves is not this program's leak
    print_header(1, ("torch", "transformers", "vanilla-transformer"), arguments.seed)
    trial = Trial(arguments)
    try:
        trial.run()
    finally:
        trial.report()
    sys.exit(1 if trial.failures else 0)


if __name__ == "__main__":
    run(main)

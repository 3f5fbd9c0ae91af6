"""Run Python programs in forks of one process that has imported the package, which takes most of a program's time."""

import io
import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from typing import NamedTuple

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["vanilla_transformer.commands.train", "vanilla_transformer.commands.push"])


class Finished(NamedTuple):
    """What a program left: its exit status, and what it wrote to standard output and error."""

    status: int
    out: str
    err: str


def run_program(argv: list[str], folder: Path, stdin: Path | None = None) -> Finished:
    """Run `-m MODULE ...`, `-c CODE` or `FILE ...` in a folder, as `python` would."""
    out, err = folder / ".stdout", folder / ".stderr"
    process = FORKS.Process(target=_become, args=(argv, folder, stdin or Path(os.devnull), out, err))
    process.start()
    process.join()
    return Finished(process.exitcode, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))


def _become(argv: list[str], folder: Path, stdin: Path, out: Path, err: Path) -> None:
    """Take the streams, the folder and the arguments of the program, and run it."""
    os.dup2(os.open(stdin, os.O_RDONLY), 0)
    os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stdin = io.TextIOWrapper(io.FileIO(0), encoding="utf-8")
    os.chdir(folder)
    program, *words = argv
    if program == "-c":
        sys.argv = ["-c", *words[1:]]
        sys.path.insert(0, "")
        exec(compile(words[0], "<string>", "exec"), {"__name__": "__main__"})
    elif program == "-m":
        sys.argv = words
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = argv
        file = Path(program).resolve()  # absolute, for processes of the program's own, which start in the first folder
        sys.path.insert(0, str(file.parent))
        runpy.run_path(str(file), run_name="__main__")

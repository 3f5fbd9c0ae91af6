"""A console command that is one of several connected processes ends without finalizing the interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = str(Path(__file__).parents[2] / "src" / "vanilla_transformer" / "commands" / "process.py")
# An object in a module is destroyed by the finalization only, the handler of `atexit` is called before it.
PROGRAM = """
import atexit, runpy, sys
end_distributed_process = runpy.run_path({module!r})["end_distributed_process"]  # without the package, which is slow

class SaysWhenItGoes:
    def __del__(self):
        print("finalized")

kept = SaysWhenItGoes()
atexit.register(print, "exit handler")
with end_distributed_process():
    print("command")
    {end}
"""


def run(end: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = PROGRAM.format(end=end, module=MODULE)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | environment, timeout=60
    )


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(130)", 130, ""),
        ("sys.exit('stopped')", 1, "stopped"),
        ("raise RuntimeError('broken')", 1, "RuntimeError: broken"),
    ],
)
def test_exit_status_output_and_handlers_are_those_of_an_ordinary_end(end, status, error):
    distributed, alone = run(end, LOCAL_RANK="0"), run(end)
    assert distributed.returncode == alone.returncode == status
    assert distributed.stdout.split("\n")[:2] == ["command", "exit handler"]
    assert distributed.stderr.strip().endswith(error) and alone.stderr.strip().endswith(error)
    assert "finalized" in alone.stdout and "finalized" not in distributed.stdout

"""What every test runs under: no network, no user caches, fixed seeds. Subprocesses inherit the environment."""

import io
import ipaddress
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"

# Set before any test module imports transformers or datasets, which read these once. Dropping the user's own
# HF_* variables first makes every cache follow HF_HOME and keeps tokens out of the tests.
_hf_home = tempfile.TemporaryDirectory(prefix="hf_home-")
for _name in [name for name in os.environ if name.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))]:
    del os.environ[_name]
os.environ |= {"HF_HOME": _hf_home.name, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models of the tests are too small for a second thread to pay


def pytest_unconfigure() -> None:
    _hf_home.cleanup()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no process is left alone with one at the end."""
    longest = ("test_readme.py", "test_train.py", "test_distributed.py")
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _seed() -> None:
    from transformers import set_seed

    set_seed(0)


@pytest.fixture
def run_script(capsys, monkeypatch) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run a script in this process, by its name; returns the exit code, what it printed, and its error output."""
    from datasets import enable_progress_bars
    from transformers.utils.logging import enable_progress_bar

    def run(name: str, *arguments: str | Path, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.syspath_prepend(SCRIPTS / Path(name).parent)  # as Python does for a script
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    yield run
    enable_progress_bar()  # the scripts are processes of their own and leave them off
    enable_progress_bars()


@pytest.fixture(scope="session", autouse=True)
def _no_network():
    """Fail the test that looks up or connects to an address that is not this machine's own."""

    def check(host: object) -> None:
        try:
            local = host in (None, "", "localhost") or ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = False
        if not local:
            pytest.fail(f"a test tried to reach {host!r}: tests must not use the network")

    real_connect, real_getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def connect(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            check(address[0])
        return real_connect(self, address)

    def getaddrinfo(host, *args, **kwargs):
        check(host)
        return real_getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect)
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield

"""A process that talks to the Hub of hub_server.py and does what tests tell it.

It is one of its own because huggingface_hub reads HF_ENDPOINT and the like once, at import.

Each line of its input is a JSON string of Python code, each line of its output a JSON object with the value that the
code left in `answer`, with what it printed, and with its error. With "stranger" as its argument it is one that can't
import this package.
"""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hub_server

# In sitecustomize.py, and hence in the processes that a client starts as well.
LOOPBACK_ONLY = """
import ipaddress, os, socket

def check(host):
    try:
        local = host in (None, "", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        with open(os.environ["OUTSIDE_LOG"], "a") as log:
            print(host, file=log)
        raise ConnectionError(f"tried to reach {host!r}")

real_connect, real_getaddrinfo = socket.socket.connect, socket.getaddrinfo

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        check(address[0])
    return real_connect(self, address)

def getaddrinfo(host, *args, **kwargs):
    check(host)
    return real_getaddrinfo(host, *args, **kwargs)

socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


class Client:
    """The other end of such a process.

    Args:
        hub: The Hub that it knows.
        folder: Where its cache is and what else it writes; new.
        arguments: "stranger", or nothing.
    """

    def __init__(self, hub: hub_server.Hub, folder: Path, *arguments: str) -> None:
        self.outside = folder / "outside.log"
        (folder / "sitecustomize.py").write_text(LOOPBACK_ONLY)
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(folder / "home")}
        environment |= {"HF_HUB_DISABLE_XET": "1", "OUTSIDE_LOG": str(self.outside)}
        environment["PYTHONPATH"] = os.pathsep.join([str(folder), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        self.process = subprocess.Popen(
            [sys.executable, __file__, *arguments],
            env=environment,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, code: str) -> Any:
        """Run code that must work; its `answer`."""
        answer = self.ask(code)
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    def ask(self, code: str) -> dict[str, Any]:
        """Run code; "answer" or "error", and "printed"."""
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def refused(self, code: str) -> str:
        """Run code that must fail with a UserError; its message."""
        error = self.ask(code)["error"]
        assert error.startswith("UserError: "), error
        return error.removeprefix("UserError: ")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def main() -> None:
    if sys.argv[1:] == ["stranger"]:
        hiding = Path(find_spec("vanilla_transformer").origin).parent / "hub" / "hiding.py"  # imports nothing
        runpy.run_path(str(hiding))["hide_package"]()
    time.sleep = lambda seconds: None  # huggingface_hub waits before it tries again
    output, namespace = sys.stdout, {}
    for line in sys.stdin:
        result: dict[str, Any] = {}
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            try:
                exec(json.loads(line), namespace)
                result["answer"] = namespace.pop("answer", None)
            except (Exception, SystemExit) as error:
                result["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(result | {"printed": printed.getvalue()}), file=output, flush=True)


if __name__ == "__main__":
    main()

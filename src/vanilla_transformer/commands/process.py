"""How the process of a console command ends."""

import atexit
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def end_distributed_process() -> Iterator[None]:
    """Run the body of a console command; in one of several connected processes, end the process with it.

    Outside a distributed run this does nothing. In a distributed run it does what the interpreter does at its end, up
    to and including the handlers of `atexit`, and then leaves by `os._exit`, without finalizing the interpreter. It
    never returns then, so it belongs into the entry point of a program and not into library code.

    Why: gloo, NCCL and autograd have threads of their own, written in C++. When such a thread drops the last reference
    to a tensor that Python has seen, it takes the GIL. Once the interpreter finalizes, Python (up to 3.13) answers that
    with `pthread_exit`, which unwinds the stack through a destructor, and the C++ runtime aborts the process:
    "terminate called without an active exception" (pytorch issue 190489; pull request 179291 was given up). Destroying
    the process group ends most of these threads, not all, and torch can't be told to wait for them. Without
    finalization there is no moment at which the GIL can't be taken.
    """
    if "LOCAL_RANK" not in os.environ:  # set by torchrun and by `accelerate launch`
        yield
        return
    status: object = 0
    try:
        yield
    except SystemExit as stop:
        status = stop.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if status is not None and not isinstance(status, int):  # sys.exit("message")
        print(status, file=sys.stderr)
        status = 1
    _run_exit_handlers()
    os._exit(status or 0)


def _run_exit_handlers() -> None:
    """Join threads, call the handlers of `atexit` (logging, temporary files, trackers) and flush, as Python does."""
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # whoever read it has gone, or it is closed
            pass

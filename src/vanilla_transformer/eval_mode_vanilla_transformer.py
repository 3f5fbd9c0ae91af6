"""Eval mode for the time of a call, safe with threads."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_lock = threading.Lock()
# How many calls of `eval_mode` need each module, of those that were in training mode before the first of these calls.
_users: dict[nn.Module, int] = {}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch a model to eval mode; on exit, restore the mode of each of its modules.

    Several threads may use a model at the same time, or models that share modules: a module returns to training mode
    when the last of them has finished.

    Args:
        model: The model; modules in it may be in different modes, such as frozen ones in eval mode.
    """
    with _lock:
        modules = [module for module in model.modules() if module.training or module in _users]
        for module in modules:
            _users[module] = _users.get(module, 0) + 1
        model.eval()
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _users[module] -= 1
                if _users[module] == 0:
                    del _users[module]
                    module.training = True

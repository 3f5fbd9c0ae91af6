"""Make this package unimportable. Needs only the standard library, so that other processes can run this file."""

import contextlib
import sys
from collections.abc import Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


class _Hider(MetaPathFinder):
    """Report that the package is not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] == PACKAGE.name:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def hide_package() -> MetaPathFinder:
    """Make further imports of the package fail in this process; return what does so in `sys.meta_path`."""
    hider = _Hider()
    sys.meta_path.insert(0, hider)
    return hider


@contextlib.contextmanager
def hidden_package() -> Iterator[None]:
    """Make imports of the package fail inside the `with` block."""
    hider = hide_package()
    try:
        yield
    finally:
        sys.meta_path.remove(hider)

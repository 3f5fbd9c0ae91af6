"""Errors that are the user's to mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from huggingface_hub.errors import StrictDataclassError


class UserError(ValueError):
    """Input that can't be used. The message is one sentence: what is wrong, where, and what to do about it."""


def first_line(error: BaseException) -> str:
    """What a library's error says, without the advice that follows in further lines."""
    return str(error).strip().split("\n")[0]


def in_use(folder: Path) -> bool:
    """Whether writing into a folder could overwrite something: it holds anything, or is a file."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def check_not_in_use(folder: str | Path, purpose: str) -> None:
    """Refuse to write into a folder that is in use.

    Raises:
        UserError: It is; the sentence asks for another folder for the `purpose`, a noun.
    """
    if in_use(Path(folder)):
        raise UserError(f"{folder} already exists and is not empty; give another folder for the {purpose}")


def require(module: str, extra: str) -> ModuleType:
    """Import a module that an extra of this package brings.

    Raises:
        UserError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(
            f"{error.name} is not installed; install it with: pip install 'vanilla-transformer[{extra}]'"
        ) from error


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """For scripts: print a `UserError` as `error: ...` on standard error and exit with status 2, without traceback."""
    try:
        yield
    except (UserError, StrictDataclassError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

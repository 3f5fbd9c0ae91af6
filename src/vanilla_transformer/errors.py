"""Errors that are the user's to mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError


class UserError(ValueError):
    """Input that can't be used. The message is one sentence: what is wrong, where, and what to do about it."""


def first_line(error: BaseException) -> str:
    """What a library's error says, without the advice that follows in further lines."""
    return str(error).strip().split("\n")[0]


def in_use(folder: Path) -> bool:
    """Whether writing into a folder could overwrite something: it holds anything, or is a file."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """For scripts: print a `UserError` as `error: ...` on standard error and exit with status 2, without traceback."""
    try:
        yield
    except (UserError, StrictDataclassError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

"""Errors that are the user's to mend."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import StrictDataclassError


class UserError(ValueError):
    """Input that can't be used. The message is one sentence: what is wrong, where, and what to do about it."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """For scripts: print a `UserError` as `error: ...` on standard error and exit with status 2, without traceback."""
    try:
        yield
    except (UserError, StrictDataclassError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)

"""Errors caused by user input, and the words they are told in."""

import difflib
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType


class UserError(ValueError):
    """Input that can't be used. The message is one sentence: what is wrong, where, and what to do about it."""


def first_line(error: BaseException) -> str:
    """Take the first line of a library's error, without the advice that follows in further lines."""
    return str(error).strip().split("\n")[0]


def clean_token(token: str | None) -> str | None:
    """Take white space, such as the end of a line, off an access token; an empty one is none.

    Raises:
        UserError: It has characters that no token has. The message does not show it.
    """
    if not isinstance(token, str):
        return token
    token = token.strip()
    if not (token.isascii() and token.isprintable()):
        raise UserError("the access token has characters that no token has; copy it again from the Hub's settings")
    return token or None


def hide_token(text: str, token: str | None) -> str:
    """Replace an access token in a text that is shown, such as a library's error, by `***`."""
    return text.replace(token, "***") if isinstance(token, str) and token else text


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


def suggest(word: str, known: Iterable[str]) -> str:
    """Form the end of a message about an unknown word: "; did you mean ...?", or "" where no known word is near."""
    word, names = word.partition("=")[0], list(known)
    near = [name for name in names if len(word) > 2 and name.startswith(word)]
    near = near or difflib.get_close_matches(word, names, n=1, cutoff=0.75)
    return f"; did you mean {near[0]}?" if near else ""

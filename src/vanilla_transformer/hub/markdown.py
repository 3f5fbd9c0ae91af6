"""Foreign text in Markdown: what others wrote is shown as it is, and is never markup, HTML or a secret."""

import html
import re
import shlex
from pathlib import Path

from ..data.secrets import MASK, mask_secrets

# Names that end so, such as --hub_token, and not --per_device_train_tokens or --tokenizer_name.
_SECRET_FLAG = re.compile(r"--([\w-]*[_-])?(token|password|passwd|secret|api[_-]?key)", re.IGNORECASE)
# What begins Markdown or HTML inside a line. An underscore between letters is only an underscore.
_MARKUP = re.compile(r"[\\`*\[\]|~$#!{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def one_line(text: str) -> str:
    """Replace line breaks, control and invisible characters by spaces, which are collapsed."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def escape(text: str) -> str:
    """Show a text inside a line or a table cell: no character of it is markup."""
    return _MARKUP.sub(r"\\\g<0>", html.escape(one_line(mask_secrets(text)), quote=False))


def code_cell(text: str) -> str:
    """Show a text as a code span in a table cell, or escaped where a code span could end early."""
    line = one_line(mask_secrets(text))
    if not line or re.search(r"[`<>&\\\[\]]", line):
        return escape(line)
    return "`{}`".format(line.replace("|", r"\|"))


def public_word(word: str) -> str:
    """Shorten an absolute path, which tells where somebody keeps files, to its name."""
    flag, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{flag}{equals}{Path(value).name if Path(value).is_absolute() else value}"


def command_block(command: str) -> str:
    """Show a command line, each flag on a line of its own, without absolute paths and secrets.

    Raises:
        ValueError: The command's quotes do not match.
    """
    words, secret = [], False
    for word in shlex.split(command):
        flag = word.partition("=")[0]
        names_secret = _SECRET_FLAG.fullmatch(flag) is not None
        word = MASK if secret else f"{flag}={MASK}" if names_secret and flag != word else word
        secret = names_secret and flag == word
        words.append(one_line(mask_secrets(public_word(word))))
    lines = re.sub(r" (?='?--)", " \\\n    ", shlex.join(words))
    if re.search(r"[`<>&]", lines):  # nothing ends this block early, and no renderer can take it for HTML
        return f"<pre><code>{html.escape(lines, quote=False)}\n</code></pre>"
    return f"```sh\n{lines}\n```"

"""Foreign text in Markdown: what others wrote is shown as it is, and is never markup, HTML or a secret."""

import html
import re
import shlex
from pathlib import Path

MASK = "***"
# Tokens of the Hub, GitHub, GitLab, OpenAI and its like, AWS and Slack, and passwords in addresses.
_SECRETS = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}"
    r"|\bgh[a-z]_[A-Za-z0-9]{8,}|\bgithub_pat_\w{8,}|\bglpat-[\w-]{8,}"
    r"|\bsk-(?:(?:proj|ant|or|svcacct|admin)-)?(?:[a-z]+\d+-)?[A-Za-z0-9_]{12,}[\w-]*"
    r"|\bAKIA[0-9A-Z]{12,}|\bxox[a-z]-[\w-]{8,}"
    r"|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"
)
_SECRET_FLAG = re.compile(r"--\w*(token|password|secret|api_?key)\w*", re.IGNORECASE)
# What begins Markdown or HTML inside a line. An underscore between letters is only an underscore.
_MARKUP = re.compile(r"[\\`*\[\]|~$#!{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def mask_secrets(text: str) -> str:
    """Replace what looks like an access token or a password by `***`."""
    return _SECRETS.sub(MASK, text)


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

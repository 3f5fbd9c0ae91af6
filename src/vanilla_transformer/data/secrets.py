"""Access tokens and passwords in texts that are written to disk or shown."""

import re

MASK = "***"
# Tokens of the Hub, GitHub, GitLab, OpenAI and its like, AWS and Slack, and passwords in addresses.
_SECRETS = re.compile(
    r"\b(?:hf|api_org)_[A-Za-z0-9]{8,}"
    r"|\bgh[a-z]_[A-Za-z0-9]{8,}|\bgithub_pat_\w{8,}|\bglpat-[\w-]{8,}"
    # Not in a name such as en-sk-opensubtitles, where sk is Slovak.
    r"|(?<![\w-])sk-(?=[\w-]*\d)(?:(?:proj|ant|or|svcacct|admin)-)?(?:[a-z]+\d+-)?[A-Za-z0-9_]{12,}[\w-]*"
    r"|\bAKIA[0-9A-Z]{12,}|\bxox[a-z]-[\w-]{8,}"
    r"|(?<=://)[^\s/@:]+:[^\s/@]+(?=@)"
)


def mask_secrets(text: str) -> str:
    """Replace what looks like an access token or a password by `***`."""
    return _SECRETS.sub(MASK, text)

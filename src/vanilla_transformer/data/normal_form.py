"""Unicode normal forms: sources get the form of the text that the tokenizer was trained on.

The same text can be spelled in several ways: "\u00e9" or "e" with a combining accent, a Hangul syllable or its letters.
A model knows the spelling that it was trained on. The tokenizer itself restores any text exactly, so it changes none;
the form of its training text is noted in it, and sources are converted before they are tokenized.
"""

import logging
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Literal

from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

NormalForm = Literal["NFC", "NFD"]
NORMAL_FORM_KEY = "unicode_normal_form"  # in a tokenizer's `init_kwargs` and its tokenizer_config.json
_SHARE = 0.99  # of the texts that the forms spell differently; real corpora have a few exceptions


class NormalFormCounter:
    """Count the texts in each normal form."""

    def __init__(self) -> None:
        self._total = 0
        self._counts: dict[NormalForm, int] = {"NFC": 0, "NFD": 0}

    def add(self, text: str) -> None:
        """Count a text, unless it is the same in both forms."""
        if text.isascii():
            return
        composed, decomposed = (unicodedata.is_normalized(form, text) for form in self._counts)
        if not (composed and decomposed):
            self._total += 1
            self._counts["NFC"] += composed
            self._counts["NFD"] += decomposed

    @property
    def form(self) -> NormalForm | None:
        """The form of at least 99% of the texts that differ between the forms; None if there is no such form."""
        return next(
            (form for form, count in self._counts.items() if self._total and count >= _SHARE * self._total), None
        )


def normal_form(tokenizer: PreTrainedTokenizerBase) -> NormalForm | None:
    """Return the Unicode normal form of the text that a tokenizer was trained on, None if it is not known."""
    form = tokenizer.init_kwargs.get(NORMAL_FORM_KEY)
    return form if form in ("NFC", "NFD") else None


def missed_form(tokenizer: PreTrainedTokenizerBase, text: str) -> NormalForm | None:
    """Return the normal form of the training text where a text is not in it; None where it is, or that is not known."""
    form = normal_form(tokenizer)
    return None if form is None or unicodedata.is_normalized(form, text) else form


def normalize_sources(tokenizer: PreTrainedTokenizerBase, sources: Sequence[str]) -> list[str]:
    """Bring sources into the normal form of the tokenizer's training text, if it is known; log the first change."""
    form = normal_form(tokenizer)
    if form is None:
        return list(sources)
    normalized = [unicodedata.normalize(form, source) for source in sources]
    if normalized != list(sources):
        _log_once(form)
    return normalized


@cache
def _log_once(form: NormalForm) -> None:
    logger.warning(
        "some sources are not in Unicode normal form %s, which the model was trained on; they are converted to it", form
    )

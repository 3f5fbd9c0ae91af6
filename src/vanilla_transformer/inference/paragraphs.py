"""Paragraphs: split into sentences before translation, and joined afterwards."""

import math
import re
from bisect import bisect_right
from typing import TYPE_CHECKING, Any

from ..errors import UserError, require
from .alignments import Alignment, word_spans
from .model_files import RECORD_NAME, SavedModel

if TYPE_CHECKING:
    from .translate import Translation

# Written without a space between sentences: punctuation and characters of Chinese and Japanese, and full-width forms.
_JOINED = re.compile("[\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uff9f\U00020000-\U000323af]")


class SentenceSplitter:
    """Splits paragraphs into sentences by the rules of a language, those of the library sentencex.

    Args:
        language: A code such as "en"; only its first part counts ("en" in "en-GB"). For a language without rules of its
            own the library takes those of a related one, or general ones.

    Raises:
        UserError: sentencex is not installed, or the language is no code.
    """

    def __init__(self, language: str) -> None:
        code = re.split("[-_]", language)[0].lower()
        if not re.fullmatch("[a-z]{2,3}", code):
            raise UserError(f"the language to split sentences by is {language!r}; give a code such as en")
        self._language = code
        self._sentencex = require("sentencex", extra="sentences")

    def split(self, paragraph: str) -> list[str]:
        """List the sentences of a paragraph, without white space around them; a blank paragraph is one sentence."""
        sentences = (sentence.strip() for sentence in self._sentencex.segment(self._language, paragraph))
        return [sentence for sentence in sentences if sentence] or [""]


def find_split_language(saved: SavedModel, source_lang: str | None) -> str:
    """Return the language to split sources by: the one that is given, else the one that the model was trained on.

    Args:
        saved: The model; the record of its training names the language.
        source_lang: A language code, or None.

    Raises:
        UserError: sentencex is not installed, the language is no code, or neither says which it is.
    """
    language: Any = source_lang
    if language is None:
        data = saved.read_json(RECORD_NAME).get("data") if saved.find(RECORD_NAME) else None
        language = data.get("source_lang") if isinstance(data, dict) else None
        if isinstance(language, list) and len(set(map(str, language))) == 1:  # that of several corpora
            language = language[0]
        if not isinstance(language, str):
            raise UserError(
                f"sentences are split by a language's rules, and the model has no {RECORD_NAME} that names that of "
                "its sources; give --source_lang"
            )
    SentenceSplitter(language)
    return language


def join_translations(paragraph: str, sentences: list[str], translations: list["Translation"]) -> "Translation":
    """Join the translations of a paragraph's sentences to one, with the sum of their scores.

    A space stands between two, unless both sides are Chinese or Japanese. Alignments count the words of the paragraph
    and of the whole translation.

    Args:
        paragraph: The source.
        sentences: Its sentences, as `SentenceSplitter.split` gives them.
        translations: The translation of each.
    """
    if len(translations) == 1:
        return translations[0]
    text, end = "", 0
    offsets = []  # where each sentence begins in the paragraph, and its translation in the text
    for sentence, translation in zip(sentences, translations, strict=True):
        start = paragraph.index(sentence, end)
        end = start + len(sentence)
        own = translation.text.strip()
        joins = not text or not own or (_JOINED.match(text[-1]) and _JOINED.match(own))
        text += own if joins else f" {own}"
        offsets.append((start, len(text) - len(own)))
    alignment = None
    if translations[0].alignment is not None:
        alignment = _join_alignments((paragraph, text), offsets, sentences, translations)
    return translations[0]._replace(
        text=text, score=math.fsum(each.score for each in translations), alignment=alignment
    )


def _join_alignments(
    whole: tuple[str, str], offsets: list[tuple[int, int]], sentences: list[str], translations: list["Translation"]
) -> Alignment:
    """Count the words of alignments in the whole source and target, by where they begin: a word may be cut in two."""
    starts = [[start for start, _ in word_spans(text)] for text in whole]
    pairs = []
    for offset, sentence, translation in zip(offsets, sentences, translations, strict=True):
        spans = word_spans(sentence), word_spans(translation.text.strip())
        for pair in translation.alignment or ():
            places = (spans[side][pair[side]][0] + offset[side] for side in (0, 1))
            source, target = (bisect_right(begin, place) - 1 for begin, place in zip(starts, places, strict=True))
            pairs.append((source, target))
    return tuple(dict.fromkeys(pairs))

"""Tags of the target language, as in the multilingual models of Marian and OPUS-MT: ">>de<<" before "A dog runs".

A tag is a token that was added to the tokenizer, one id. The tokenizer alone says which languages a model knows.
"""

import re
import unicodedata
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import get_logger

logger = get_logger(__name__)

_TAG = re.compile(r"[\s\ufeff]*>>([A-Za-z0-9_.-]+)<<")
# Letters by their category that show nothing: the Hangul fillers, and the empty braille pattern.
_FILLERS = "\u115f\u1160\u3164\uffa0\u2800"
_UNSEEN = ("Cc", "Cf", "Zs", "Zl", "Zp")  # categories: controls, formats such as the zero-width space, white space


def is_blank(text: str) -> bool:
    """Return whether a text has nothing to see: only white space, controls, zero-width characters and fillers."""
    return all(unicodedata.category(character) in _UNSEEN or character in _FILLERS for character in text)


def language_tag(language: str) -> str:
    """Return the tag of a language: ">>de<<" for "de".

    Raises:
        ValueError: The name has other characters than letters, digits, ".", "-" and "_".
    """
    tag = f">>{language}<<"
    if not _TAG.fullmatch(tag) or tag != tag.strip():
        raise ValueError(
            f"the target language {language!r} can't be a tag; use a code of letters, digits, '.', '-' and '_'"
        )
    return tag


def tagged_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the languages that a tokenizer has tags for, by id; none for a model of one target language."""
    added = sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
    return [match[1] for token, _ in added if (match := _TAG.fullmatch(token))]


def check_target_language(tokenizer: PreTrainedTokenizerBase, target_lang: str | None) -> None:
    """Refuse a target language that the tokenizer has no tag for; None is none.

    Raises:
        ValueError: With the languages that there are.
    """
    if target_lang is None:
        return
    languages = tagged_languages(tokenizer)
    if not languages:
        raise ValueError(
            f"the target language is {target_lang!r}, but the model has no tags of target languages; leave it out"
        )
    if target_lang not in languages:
        raise ValueError(f"the target language is {target_lang!r}, but the model knows {', '.join(languages)}")


def tag_sources(
    tokenizer: PreTrainedTokenizerBase, sources: Sequence[str], target_lang: str | None = None
) -> list[str]:
    """Put the tag of the target language before each source that has none; blank sources stay blank.

    Args:
        tokenizer: The model's tokenizer. If it has no tags, and no language is given, sources stay as they are.
        sources: The source sentences. One that begins with a tag of the model's keeps it.
        target_lang: The target language. None for sources that have their tags; those without are reported once.

    Raises:
        ValueError: The tokenizer has no tag for the language; or no language is given, and a source begins with a tag
            that the model does not know.
    """
    check_target_language(tokenizer, target_lang)
    languages = tagged_languages(tokenizer)
    if not languages:
        return list(sources)
    return [source if is_blank(source) else _tag_source(source, target_lang, languages) for source in sources]


def leading_language(source: str, languages: Sequence[str]) -> str | None:
    """Return the language whose tag a source begins with; None if it is none of these languages."""
    match = _TAG.match(source)
    return match[1] if match and match[1] in languages else None


def _tag_source(source: str, target_lang: str | None, languages: Sequence[str]) -> str:
    """Put the tag before a source, unless it begins with one of the languages' tags."""
    if leading_language(source, languages) is not None:
        return source
    if target_lang is not None:
        return f"{language_tag(target_lang)} {source}"
    if match := _TAG.match(source):
        raise ValueError(
            f"a source begins with {match[0].strip()}, but the model knows {', '.join(map(language_tag, languages))}"
        )
    logger.warning_once(
        "some sources name no target language, and the translation may be in any; name one of "
        f"{', '.join(languages)}, or begin the source with its tag, such as {language_tag(languages[0])}"
    )
    return source

"""The embedded corpus: numbers written out in words, real text with exact answers and without a download."""

import copy
import random
import zlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from datasets import Dataset
from num2words import CONVERTER_CLASSES

from ..errors import UserError
from .caching import PairRow, cache_key, cache_pairs

_DIGIT_EDGES = (0, 10, 100, 1_000, 10_000, 100_000, 1_000_000)  # numbers of n digits: edge n - 1 up to edge n
_ALWAYS_TRAIN = 100  # below it, many languages have a word of its own for each number
_MOST_COPIES = 100  # of a number in training; with one copy each, "one" alone was learned as "one thousand"
_SPLITS = ("train", "validation", "test")


def number_pairs(source_lang: str, target_lang: str, split: str, size: int, seed: int = 0) -> Dataset:
    """Write out numbers from 0 to 999,999 in two languages with the library `num2words`.

    Which split a number belongs to is fixed, so that no number is in two splits whatever their sizes and seeds: below
    100 all are for training; above, a checksum of its digits puts a tenth each into validation and test. A split's
    sample takes equally many numbers of each count of digits, or all there are, so that small numbers are well
    represented. No number comes twice, but in training: where there are too few, it takes up to 100 copies of all.

    Args:
        source_lang: A language that `num2words` knows, such as "en", "fr", "de" or "ko".
        target_lang: Another one.
        split: "train", "validation" or "test".
        size: How many pairs.
        seed: Decides which numbers are taken, and their order.

    Returns:
        A memory-mapped data set with the string columns "source" and "target".

    Raises:
        UserError: `num2words` does not know a language or can't write one of the numbers in it, there is no such split,
            or it has fewer numbers than `size`.
    """
    _check_languages(source_lang, target_lang)
    numbers = _sample_numbers(split, size, seed)
    return cache_pairs(
        _write_numbers,
        cache_key("numbers", version("num2words"), source_lang, target_lang, split, size, seed),
        numbers=tuple(numbers),
        source_lang=source_lang,
        target_lang=target_lang,
    )


def short_number_pairs(source_lang: str, target_lang: str, split: str) -> list[PairRow]:
    """Write out the numbers of a split with at most three digits that are not zero, those with the fewest first.

    These are short sentences, and so rare in a sample that a model may be unsure of them: 13,000 and 20,001 have two.

    Args:
        source_lang: As in `number_pairs`.
        target_lang: As in `number_pairs`.
        split: As in `number_pairs`.

    Raises:
        UserError: `num2words` does not know a language, or can't write one of the numbers in it.
    """
    _check_languages(source_lang, target_lang)
    digits = {number: len(str(number).replace("0", "")) for number in range(_DIGIT_EDGES[-1])}
    numbers = [number for number in digits if digits[number] <= 3 and _assign_split(number) == split]
    numbers.sort(key=digits.__getitem__)
    return list(_write_numbers(numbers, source_lang, target_lang))


def write_number(number: int, lang: str) -> str:
    """Write out a number from 0 to 999,999 in a language that `num2words` knows, as in the pairs."""
    return _fast_converter(lang).to_cardinal(number)


def _check_languages(*languages: str) -> None:
    """Refuse languages that `num2words` does not know."""
    for lang in languages:
        if lang not in CONVERTER_CLASSES:
            known = ", ".join(sorted(CONVERTER_CLASSES))
            raise UserError(f"num2words does not know the language {lang!r}; choose from {known}")


def _assign_split(number: int) -> str:
    """Return the split that a number belongs to."""
    tenth = zlib.crc32(b"%d" % number) % 10
    return "train" if number < _ALWAYS_TRAIN or tenth > 1 else "test" if tenth else "validation"


def _sample_numbers(split: str, size: int, seed: int) -> list[int]:
    """Draw rows of a split, equally many of each count of digits as far as there are, in random order."""
    if split not in _SPLITS:
        raise UserError(f"the numbers have no split {split!r}; choose from {', '.join(_SPLITS)}")
    classes = [[n for n in range(*span) if _assign_split(n) == split] for span in pairwise(_DIGIT_EDGES)]
    available = sum(map(len, classes))
    if not 1 <= size <= available:
        raise UserError(f"size is {size:,}, but the {split} split can have 1 to {available:,} numbers")
    rng = random.Random(seed)
    sample: list[int] = []
    for classes_left, numbers in zip(range(len(classes), 0, -1), classes, strict=True):
        share = (size - len(sample)) // classes_left
        if split == "train":
            numbers = numbers * max(1, min(_MOST_COPIES, share // len(numbers)))  # whole copies: none is missing
        sample += rng.sample(numbers, min(len(numbers), share))
    rng.shuffle(sample)
    return sample


def _write_numbers(numbers: Sequence[int], source_lang: str, target_lang: str) -> Iterator[PairRow]:
    """Yield each number in both languages."""
    sides = {"source": source_lang, "target": target_lang}
    converters = {lang: _fast_converter(lang) for lang in sides.values()}
    for number in numbers:
        pair = {}
        for side, lang in sides.items():
            try:
                pair[side] = converters[lang].to_cardinal(number)
            except Exception as error:
                raise UserError(
                    f"num2words can't write {number} in {lang!r} ({type(error).__name__}); choose another language"
                ) from error
        yield pair


def _fast_converter(lang: str) -> Any:
    """Return num2words' converter of a language, limited to numbers below one million.

    num2words tries all its words from the largest down for each part of a number. Most are far beyond a million;
    without them it is three to ten times as fast.
    """
    converter = copy.copy(CONVERTER_CLASSES[lang])
    if hasattr(converter, "cards"):
        converter.cards = type(converter.cards)(
            (n, word) for n, word in converter.cards.items() if n < _DIGIT_EDGES[-1]
        )
    return converter

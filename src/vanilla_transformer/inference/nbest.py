"""N-best lists in JSON, a line for each source: what `translate --json` writes and `score --nbest_file` reads."""

import math
from collections.abc import Iterator
from typing import Any

from ..data.text_files import is_text, iterate_lines, parse_object
from ..errors import UserError
from .alignments import split_into_words
from .translate import Translation


def describe_translations(sentence: str, translations: list[Translation]) -> dict[str, Any]:
    """Collect what the JSON says of a sentence; with alignments also the words that they count."""
    described: dict[str, Any] = {"source": sentence, "translations": []}
    for text, score, alignment in translations:
        described["translations"].append({"text": text, "score": score if math.isfinite(score) else None})
        if alignment is not None:
            described["source_words"] = split_into_words(sentence)
            described["translations"][-1] |= {"words": split_into_words(text), "alignment": alignment}
    return described


def read_nbest(path: str) -> Iterator[tuple[str, list[Translation]]]:
    """Read n-best lists, a line of JSON each.

    Raises:
        UserError: While iterating: a line is not of the form that `translate --json` writes.
    """
    for number, line in enumerate(iterate_lines(path), start=1):
        where = f"{path}, line {number}"
        row = parse_object(line, where) or {}
        try:
            translations = [_parse_translation(item) for item in row["translations"]]
            source = row["source"]
            if not translations or not is_text(source):
                raise ValueError
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise UserError(
                f"{where}: {line.strip()[:40]!r} is no n-best list; give what translate --json writes"
            ) from None
        yield source, translations


def _parse_translation(item: dict[str, Any]) -> Translation:
    value = item["score"]
    if not is_text(item["text"]) or isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError
    alignment = item.get("alignment")
    return Translation(
        item["text"],
        math.nan if value is None else float(value),
        None if alignment is None else tuple((int(source), int(target)) for source, target in alignment),
    )

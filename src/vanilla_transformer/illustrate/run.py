"""What a model's run left: the curve of its losses, and sentences like those that it was trained on."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..data.corpora import Corpus
from ..data.numbers import short_number_pairs, write_number
from ..data.reading import load_pairs
from ..data.sources import prepare_sources
from ..errors import UserError
from ..hub.provenance import Data
from ..inference.model_files import RECORD_NAME
from ..inference.settings import is_finite_number, is_integer
from ..language_tags_vanilla_transformer import is_blank, tagged_languages
from ..training.checkpoints import read_log

logger = logging.getLogger(__name__)

MOST_POINTS = 1000  # of a curve: more than a screen has
NUMBER = 71  # "seventy-one": a number of several words in most languages; the French is "soixante et onze"
MOST_PAIRS = 2_000
FEW_TOKENS = 12
TITLE = "Attention is all you need."
# A curve of the page, and its name in a Trainer's log.
CURVES = {"train": "loss", "validation": "eval_loss", "scores": "eval_bleu"}


def read_curves(folder: str | Path) -> dict[str, list[list[float]]] | None:
    """Read how a run went from its last checkpoint.

    Args:
        folder: Folder of a run, or of a checkpoint.

    Returns:
        Lists of [step, value]: "train" and "validation", losses in nats per token, and "scores", sacreBLEU. Each is
        empty if it was not logged. None if there is no log.
    """
    log = read_log(folder)
    curves = {curve: _thin(_points(log, name)) for curve, name in CURVES.items()}
    return curves if any(curves.values()) else None


def _points(log: list[Any], name: str) -> list[list[float]]:
    """List [step, value] of the lines of a log that have both, and finite."""
    lines = [line for line in log if isinstance(line, Mapping)]
    return [
        [line["step"], round(line[name], 6)]
        for line in lines
        if is_integer(line.get("step")) and is_finite_number(line.get(name))
    ]


def _thin(points: list[list[float]]) -> list[list[float]]:
    """Leave out points evenly, so that at most `MOST_POINTS` are left, with the first and the last."""
    if len(points) <= MOST_POINTS:
        return points
    return [points[round(i * (len(points) - 1) / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def example_pairs(data: Data | None, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> list[tuple[str, str]]:
    """Take pairs of source and target that the run was not trained on, if they are on this machine.

    Args:
        data: The data of the run, or None where it is not known.
        tokenizer: The model's tokenizer.
        max_tokens: The most tokens of a source.

    Returns:
        At most `MOST_PAIRS`, in order: unseen short numbers where the run was trained on the embedded corpus, else the
        pairs of its validation files, with the tag of the target language where the model has such. Nothing is
        downloaded.
    """
    return [
        (source, target)
        for source, target in islice(_unseen_pairs(data, tokenizer), MOST_PAIRS)
        if not is_blank(source)
        and len(source.splitlines()) == 1
        and len(tokenizer(source, verbose=False)["input_ids"]) <= max_tokens
    ]


def example_sentence(data: Data | None, pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> str:
    """Choose the source that the page begins with.

    Args:
        data: The data of the run, or None where it is not known.
        pairs: What `example_pairs` gave.
        tokenizer: The model's tokenizer.

    Returns:
        The number 71 in words for the embedded corpus; of other data the first source of few tokens; without any the
        title of the paper.
    """
    corpora = data.validation_corpora if pairs and data is not None else []
    if corpora and corpora[0].file is None:
        target_lang = corpora[0].target_lang if tagged_languages(tokenizer) else None
        return prepare_sources(tokenizer, [write_number(NUMBER, corpora[0].source_lang)], target_lang)[0]
    sources = [source for source, _ in pairs]
    lengths = [len(tokenizer(source, verbose=False)["input_ids"]) for source in sources]
    short = (source for source, length in zip(sources, lengths, strict=True) if length <= FEW_TOKENS)
    return next(short, sources[0] if sources else TITLE)


def _unseen_pairs(data: Data | None, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, str]]:
    """Yield the pairs of `example_pairs`, of any length."""
    try:
        for corpus in data.validation_corpora if data is not None else ():
            languages = corpus.source_lang, corpus.target_lang
            if corpus.file is None:
                pairs: Iterable[Any] = short_number_pairs(*languages, "test")
            elif _is_on_disk(corpus):
                logger.warning("the page shows sentences of %s, which %s names", corpus.file, RECORD_NAME)
                pairs = load_pairs(corpus.file, *languages)
            else:
                continue
            target_lang = corpus.target_lang if tagged_languages(tokenizer) else None
            for pair in pairs:
                (source,) = prepare_sources(tokenizer, [pair["source"]], target_lang)
                yield source, pair["target"]
    except UserError:  # files that have changed, or a record that does not fit
        return


def _is_on_disk(corpus: Corpus) -> bool:
    """Return whether a table, or the source half of two text files, exists; else `load_pairs` would ask the Hub."""
    endings = "", f".{corpus.source_lang}", f".{corpus.source_lang}.gz"
    return any(Path(f"{corpus.file}{ending}").is_file() for ending in endings)

"""Score given translations with a model: log P(Y|X), of sentence pairs or of n-best lists.

Sentence pairs, from two files, from one prefix or table, or from standard input with a tab between source and target:

    vanilla-transformer score --model_name_or_path runs/en-de --source_file test.en --target_file translated.de
    vanilla-transformer score --model_name_or_path runs/en-de --pairs_file data/train --source_lang en --target_lang de
    paste train.en train.de | vanilla-transformer score --model_name_or_path runs/en-de > scores.tsv

A line out per pair in, in order: log P(Y|X), the number of tokens with </s>, log P(Y|X) per token, and log P(Y|X)
with the length penalty of the search, with tabs between; or with --json an object that has the log-probability of each
token too.

N-best lists, as `translate --num_return_sequences 4 --json` writes them, are put into the order of the new scores: a
line out per list, the best translation, or with --json the whole list:

    vanilla-transformer score --model_name_or_path runs/other --nbest_file nbest.jsonl --weight 0.5 > reranked.de
"""

import io
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import tee
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from ..data.files import new_output
from ..data.reading import load_pairs, read_parallel
from ..data.text_files import iterate_lines
from ..errors import UserError
from ..inference.loading import find_device
from ..inference.nbest import describe_translations, read_nbest
from ..inference.scoring import MAX_LENGTH, PairScore, check_max_length, check_weight, rerank, score
from ..inference.settings import BATCH_TOKENS, check_settings
from ..inference.source import STDIN, iterate_stdin
from ..inference.text_io import replace_line_breaks
from ..inference.translate import Translation
from ..language_tags_vanilla_transformer import tagged_languages
from .arguments import CommandParser, LoadingArguments, list_options, names, report_without_effect

INPUTS = ("source_file", "pairs_file", "nbest_file")


@dataclass
class ScoreArguments:
    """What to score, and where to."""

    model_name_or_path: str = field(metadata={"help": "Folder of a trained model, or its id on the Hub."})
    source_file: str | None = field(
        default=None, metadata={"help": "Sources, one per line, plain or .gz; with --target_file."}
    )
    target_file: str | None = field(
        default=None, metadata={"help": "Their translations, one per line, plain or .gz; with --source_file."}
    )
    pairs_file: str | None = field(
        default=None,
        metadata={"help": "Sentence pairs: a prefix of two text files (test for test.en, test.de), or a .tsv, .csv, "
                  ".jsonl or .parquet file, with --source_lang and --target_lang."},
    )  # fmt: skip
    source_lang: str | None = field(default=None, metadata={"help": "Language of the source, such as en."})
    target_lang: str | None = field(
        default=None,
        metadata={"help": "Language of the target, such as de; also the tag of a model of several languages."},
    )
    nbest_file: str | None = field(
        default=None, metadata={"help": "N-best lists to put into a new order, as translate --json writes them."}
    )
    weight: float = field(
        default=1.0, metadata={"help": "Weight of this model in the new order; the rest is that of the lists' scores."}
    )
    output_file: str | None = field(
        default=None, metadata={"help": "Where to write, a new file; by default standard output."}
    )
    json: bool = field(default=False, metadata={"help": "Write a JSON object per line."})
    length_penalty: float | None = field(
        default=None,
        metadata={"help": "Exponent alpha of the penalized score; by default that of the model's own search."},
    )
    batch_tokens: int = field(
        default=BATCH_TOKENS, metadata={"help": "Tokens of a side scored together; a GPU takes many more."}
    )
    max_length: int = field(
        default=MAX_LENGTH, metadata={"help": "The most tokens of a side; a longer pair is refused, and never cut."}
    )

    def settings(self) -> dict[str, Any]:
        """Collect the keyword arguments for `score`."""
        return {
            "length_penalty": self.length_penalty,
            "batch_tokens": self.batch_tokens,
            "max_length": self.max_length,
        }


def check(arguments: ScoreArguments, loading: LoadingArguments, given: set[str]) -> None:
    """Refuse arguments that can't be, or that do not go together; print a line for those that have no effect.

    Raises:
        UserError: One sentence on what to give instead.
    """
    check_settings(length_penalty=arguments.length_penalty, batch_tokens=arguments.batch_tokens)
    check_max_length(arguments.max_length)
    check_weight(arguments.weight)
    find_device(loading.device)
    if bool(arguments.source_file) != bool(arguments.target_file):
        raise UserError("--source_file and --target_file go together; one of them is missing")
    inputs = [name for name in INPUTS if getattr(arguments, name)]
    if len(inputs) > 1:
        raise UserError(f"{list_options(inputs)} are several inputs; give one of them")
    if arguments.pairs_file and not (arguments.source_lang and arguments.target_lang):
        raise UserError("--pairs_file needs --source_lang and --target_lang")
    if not arguments.pairs_file:
        report_without_effect(given & {"source_lang"}, "there is no --pairs_file")
    if not arguments.nbest_file:
        report_without_effect(given & {"weight"}, "there is no --nbest_file")


def read_pairs(arguments: ScoreArguments) -> Iterator[tuple[str, str]]:
    """Read the pairs one by one.

    Raises:
        UserError: They can't be found; while iterating, a line can't be read.
    """
    if arguments.source_file and arguments.target_file:
        rows: Any = read_parallel(arguments.source_file, arguments.target_file)
    elif arguments.pairs_file:
        languages = arguments.source_lang or "", arguments.target_lang or ""
        rows = load_pairs(arguments.pairs_file, *languages, streaming=True)
    else:
        return _split_stdin()
    return ((row["source"], row["target"]) for row in rows)


def _split_stdin() -> Iterator[tuple[str, str]]:
    """Split the lines of standard input at their tab."""
    for number, line in enumerate(iterate_stdin(), start=1):
        source, tab, target = line.partition("\t")
        if not tab or "\t" in target:
            raise UserError(
                f"{STDIN}, line {number}, has {line.count(chr(9))} tabs; write source and target with one between them"
            )
        yield source, target


def format_pair(pair: tuple[str, str], found: PairScore, tokenizer: PreTrainedTokenizerBase, as_json: bool) -> str:
    """Format the output for a pair."""
    if not as_json:
        numbers = found.log_prob_per_token, found.score
        return "\t".join([f"{found.log_prob:.6f}", str(found.tokens), *(f"{number:.6f}" for number in numbers)])
    row = {
        "source": pair[0],
        "target": pair[1],
        "log_prob": _finite(found.log_prob),
        "tokens": found.tokens,
        "log_prob_per_token": _finite(found.log_prob_per_token),
        "score": _finite(found.score),
        "target_tokens": tokenizer.convert_ids_to_tokens(found.token_ids),
        "token_log_probs": [_finite(value) for value in found.token_log_probs],
    }
    return json.dumps(row, ensure_ascii=False)


def format_nbest(source: str, translations: list[Translation], as_json: bool) -> str:
    """Format the output for an n-best list: the best translation, or the list as `translate --json` writes it."""
    if not as_json:
        return replace_line_breaks(translations[0].text)
    finite = [item if math.isfinite(item.score) else item._replace(score=math.nan) for item in translations]
    return json.dumps(describe_translations(source, finite), ensure_ascii=False)


def _finite(value: float) -> float | None:
    """Return a number that JSON has; None for what is impossible, minus infinity."""
    return value if math.isfinite(value) else None


def iterate_output(arguments: ScoreArguments, loading: LoadingArguments) -> Iterator[str]:
    """Load the model, and yield the lines of the output."""
    for path in filter(None, (arguments.source_file, arguments.target_file, arguments.nbest_file)):
        if not Path(path).exists():
            next(iterate_lines(path))  # raises before the model is loaded; a pipe is read only once, below
    items: Any = read_nbest(arguments.nbest_file) if arguments.nbest_file else read_pairs(arguments)
    model, tokenizer = loading.load(arguments.model_name_or_path)
    # With --pairs_file the language names a column too; otherwise a model without tags refuses it.
    names_tag = tagged_languages(tokenizer) or not arguments.pairs_file
    settings = {**arguments.settings(), "target_lang": arguments.target_lang if names_tag else None}
    inputs, same = tee(items)
    if arguments.nbest_file:
        for (source, _), translations in zip(
            same, rerank(model, tokenizer, inputs, weight=arguments.weight, **settings), strict=True
        ):
            yield format_nbest(source, translations, arguments.json)
    else:
        for pair, found in zip(same, score(model, tokenizer, inputs, progress=True, **settings), strict=True):
            yield format_pair(pair, found, tokenizer, arguments.json)


def run(arguments: ScoreArguments, loading: LoadingArguments) -> None:
    """Score to standard output or into the output file."""
    lines = iterate_output(arguments, loading)
    if not arguments.output_file:
        for line in lines:
            print(line, flush=True)
        return
    with new_output(arguments.output_file) as output:
        for line in lines:
            print(line, file=output)


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        ScoreArguments,
        LoadingArguments,
        prog="vanilla-transformer score",
        doc=__doc__,
        most_used=[
            "model_name_or_path",
            "source_file",
            "target_file",
            "pairs_file",
            "source_lang",
            "target_lang",
            "nbest_file",
            "output_file",
            "json",
            "device",
        ],
        groups={"scores": names(ScoreArguments), "loading": names(LoadingArguments)},
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    parser = make_parser()
    arguments, loading = parser.parse(argv)
    disable_progress_bar()
    disable_progress_bars()
    check(arguments, loading, parser.given(argv))
    if isinstance(sys.stdout, io.TextIOWrapper):  # as translate: UTF-8, whatever the terminal's encoding is
        sys.stdout.reconfigure(encoding="utf-8")
    run(arguments, loading)

"""Score translations: sacreBLEU and chrF with their signatures, and exact match.

A model, on a test set or, with none given, on unseen numbers of the embedded corpus:

    vanilla-transformer evaluate --model_name_or_path runs/numbers
    vanilla-transformer evaluate --model_name_or_path runs/en-de --test_file data/test --source_lang en --target_lang de

Two text files, a sentence per line:

    vanilla-transformer evaluate --predictions_file translated.de --references_file data/test.de
"""

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import sacrebleu
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from sacrebleu.metrics import BLEU
from transformers.utils.logging import disable_progress_bar

from ..data.files import new_output
from ..data.limits import take_pairs
from ..data.numbers import number_pairs
from ..data.reading import load_pairs
from ..data.text_files import read_lines
from ..errors import UserError
from ..generation_vanilla_transformer import search_settings
from ..hub.weights import weights_digest
from ..inference.metrics import choose_bleu_tokenizer, corpus_scores, make_bleu
from ..inference.text_io import replace_line_breaks
from ..inference.translate import translate
from ..language_tags_vanilla_transformer import tagged_languages
from .arguments import (
    CommandParser,
    DecodingArguments,
    LoadingArguments,
    list_options,
    names,
    report_without_effect,
)

EMBEDDED_SAMPLES = 500
EMBEDDED_TARGET_LANG = "fr"
DEFAULT_SPLIT = "test"
NEED_MODEL = ("test_file", "dataset_name", "dataset_config_name", "split", "output_file")


@dataclass
class EvaluateArguments:
    """What to score, and how."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder of a trained model, or its id on the Hub."}
    )
    test_file: str | None = field(
        default=None,
        metadata={"help": "Sentence pairs: a prefix of two text files (test for test.en, test.de), or a .tsv, .csv, "
                  ".jsonl or .parquet file. Without it and --dataset_name: unseen numbers of the embedded corpus."},
    )  # fmt: skip
    dataset_name: str | None = field(default=None, metadata={"help": "A data set on the Hub, in place of a file."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    split: str | None = field(default=None, metadata={"help": f"The data set's split; by default {DEFAULT_SPLIT}."})
    source_lang: str | None = field(default=None, metadata={"help": "Language of the source, such as en."})
    target_lang: str | None = field(default=None, metadata={"help": "Language of the target, such as de."})
    max_predict_samples: int | None = field(
        default=None,
        metadata={"help": f"Score only the first so many; by default all, or {EMBEDDED_SAMPLES} embedded examples."},
    )
    predictions_file: str | None = field(default=None, metadata={"help": "Translations to score, plain or .gz."})
    references_file: str | None = field(default=None, metadata={"help": "What they should be, plain or .gz."})
    output_file: str | None = field(
        default=None, metadata={"help": "Where to keep the model's translations, a new file."}
    )
    bleu_tokenize: str | None = field(
        default=None,
        metadata={
            "choices": list(BLEU.TOKENIZERS),
            "help": "BLEU's tokenizer, none for tokenized text; by default the usual one for target_lang.",
        },
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON object, with all there is to report."})


@dataclass
class TestSet:
    """Sentence pairs to score a model on.

    Attributes:
        name: What to call it in a report.
        pairs: The pairs to translate, with columns "source" and "target".
        size: How many pairs it has; `pairs` may be the first of them only.
    """

    __test__ = False  # no test, whatever pytest thinks of its name

    name: str
    pairs: Dataset
    size: int


def check(arguments: EvaluateArguments, decoding: DecodingArguments, given: set[str]) -> None:
    """Refuse arguments that can't be, or that do not go together; print a line for those that have no effect.

    Args:
        arguments: The command's arguments.
        decoding: Those of loading and search.
        given: Names of the options that the command line gives.

    Raises:
        UserError: One sentence on what to give instead.
    """
    files = [arguments.predictions_file, arguments.references_file]
    if bool(arguments.model_name_or_path) == any(files):
        raise UserError("give either --model_name_or_path, or --predictions_file and --references_file")
    if any(files) and not all(files):
        raise UserError("--predictions_file and --references_file go together; one of them is missing")
    if any(files) and (without_model := given & {*NEED_MODEL, *names(DecodingArguments)}):
        raise UserError(f"{list_options(without_model)} can't be given with files; only a model translates")
    if arguments.test_file and arguments.dataset_name:
        raise UserError("there is a --test_file and a --dataset_name; give one of the two")
    if (arguments.test_file or arguments.dataset_name) and not (arguments.source_lang and arguments.target_lang):
        raise UserError("a test set needs --source_lang and --target_lang")
    if arguments.max_predict_samples is not None and arguments.max_predict_samples < 1:
        raise UserError(f"max_predict_samples is {arguments.max_predict_samples}; it must be at least 1")
    if any(files):
        report_without_effect(given & {"source_lang"}, "translations are scored as they are")
    else:
        decoding.check()
        if not arguments.dataset_name:
            report_without_effect(given & {"split", "dataset_config_name"}, "there is no --dataset_name")


def load_test_set(arguments: EvaluateArguments) -> TestSet:
    """Load the test set, or unseen numbers of the embedded corpus."""
    name = arguments.test_file or arguments.dataset_name
    source_lang, target_lang = arguments.source_lang or "en", arguments.target_lang or EMBEDDED_TARGET_LANG
    if name is None:
        size = arguments.max_predict_samples or EMBEDDED_SAMPLES
        try:
            pairs = number_pairs(source_lang, target_lang, "test", size)
        except UserError as error:
            raise UserError(f"can't make numbers to translate, with max_predict_samples {size:,}: {error}") from error
        return TestSet(f"numbers {source_lang}-{target_lang}", pairs, size)
    split, config_name = arguments.split or DEFAULT_SPLIT, arguments.dataset_config_name
    pairs = load_pairs(name, source_lang, target_lang, split=split, config_name=config_name)
    return TestSet(name, take_pairs(pairs, arguments.max_predict_samples, "max_predict_samples"), len(pairs))


def evaluate_model(
    model_name_or_path: str, arguments: EvaluateArguments, decoding: DecodingArguments, bleu_tokenize: str
) -> dict[str, Any]:
    """Translate the test set and score the translations."""
    test_set = load_test_set(arguments)
    with new_output(arguments.output_file) if arguments.output_file else nullcontext() as output:
        model, tokenizer = decoding.load(model_name_or_path)
        decoding.report_without_effect(model)
        target_lang = (arguments.target_lang or EMBEDDED_TARGET_LANG) if tagged_languages(tokenizer) else None
        settings = {"target_lang": target_lang, **decoding.settings()}
        translations = translate(model, tokenizer, test_set.pairs["source"], progress=True, **settings)
        start = time.perf_counter()
        hypotheses = []
        for (translation,) in translations:
            hypotheses.append(translation.text)
            if output is not None:
                print(replace_line_breaks(translation.text), file=output)
        seconds = time.perf_counter() - start

    defaults = model.generation_config
    return {
        **corpus_scores(hypotheses, list(test_set.pairs["target"]), bleu_tokenize=bleu_tokenize),
        "model": model_name_or_path,
        "weights": weights_digest(model),
        "data": test_set.name,
        "test_set_sentences": test_set.size,
        "dataset_name": arguments.dataset_name,
        "dataset_config_name": arguments.dataset_config_name if arguments.dataset_name else None,
        "split": (arguments.split or DEFAULT_SPLIT) if arguments.dataset_name else None,
        "target_lang": target_lang,
        "num_beams": search_settings(decoding.num_beams or defaults.num_beams, None)["num_beams"],
        "decoding": {**defaults.to_diff_dict(), **decoding.settings()},
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "seconds": seconds,
    }


def evaluate_files(
    predictions_file: str, references_file: str, max_predict_samples: int | None, bleu_tokenize: str
) -> dict[str, Any]:
    """Score one text file against another."""
    hypotheses, references = read_lines(predictions_file), read_lines(references_file)
    if len(hypotheses) != len(references):
        raise UserError(
            f"{predictions_file} has {len(hypotheses):,} lines but {references_file} has {len(references):,}; line n "
            "of one must translate line n of the other"
        )
    if not hypotheses:
        raise UserError(f"{predictions_file} and {references_file} are empty; give at least one line in each")
    return {
        **corpus_scores(
            hypotheses[:max_predict_samples], references[:max_predict_samples], bleu_tokenize=bleu_tokenize
        ),
        "predictions": predictions_file,
        "references": references_file,
        "test_set_sentences": len(references),
    }


def show(report: Mapping[str, Any]) -> None:
    """Print scores for people."""
    precisions = "/".join(f"{precision:.1f}" for precision in report["bleu_precisions"])
    lengths = f"{report['hypothesis_length']} tokens, reference {report['reference_length']}"
    print(f"sacreBLEU    {report['bleu']:6.2f}  {report['bleu_signature']}")
    print(f"                     {precisions} (brevity penalty {report['brevity_penalty']:.3f}: {lengths})")
    print(f"chrF         {report['chrf']:6.2f}  {report['chrf_signature']}")
    print(f"exact match  {report['exact_match']:6.2f}% of {report['sentences']} sentences")


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        EvaluateArguments,
        DecodingArguments,
        prog="vanilla-transformer evaluate",
        doc=__doc__,
        most_used=[
            "model_name_or_path",
            "test_file",
            "source_lang",
            "target_lang",
            "predictions_file",
            "references_file",
            "num_beams",
            "output_file",
            "json",
            "device",
        ],
        groups={
            "data and scores": names(EvaluateArguments),
            "loading": names(LoadingArguments),
            "search": names(DecodingArguments),
        },
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    parser = make_parser()
    arguments, decoding = parser.parse(argv)
    disable_progress_bar()
    disable_progress_bars()
    check(arguments, decoding, parser.given(argv))
    bleu_tokenize = arguments.bleu_tokenize or choose_bleu_tokenizer(arguments.target_lang)
    make_bleu(bleu_tokenize)  # a missing package is found before anything is translated
    if arguments.model_name_or_path:
        report = evaluate_model(arguments.model_name_or_path, arguments, decoding, bleu_tokenize)
    else:
        files = arguments.predictions_file, arguments.references_file
        report = evaluate_files(*files, arguments.max_predict_samples, bleu_tokenize)
    if arguments.json:
        versions = {library.__name__: library.__version__ for library in (torch, transformers, sacrebleu)}
        print(json.dumps({**report, "versions": versions}, indent=2))  # in ASCII, for streams of any encoding
        return
    show(report)
    if arguments.model_name_or_path:
        speed = report["sentences"] / report["seconds"]
        print(
            f"{report['data']} in {report['seconds']:.1f} s ({speed:.0f} per second), num_beams {report['num_beams']}"
        )

"""Score translations: sacreBLEU's metrics with their signatures, COMET, and exact match.

A model, on a test set or, with none given, on unseen numbers of the embedded corpus:

    vanilla-transformer evaluate --model_name_or_path runs/numbers
    vanilla-transformer evaluate --model_name_or_path runs/en-de --test_file data/test --source_lang en --target_lang de

Two text files, a sentence per line; with several references there are more files:

    vanilla-transformer evaluate --predictions_file translated.de --references_file data/test.de

Several systems, each a model or a file of translations, against the first of them:

    vanilla-transformer evaluate --systems baseline.de runs/en-de --paired_bs \
        --test_file data/test --source_lang en --target_lang de
"""

import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sacrebleu
import torch
import transformers
from datasets import disable_progress_bars
from sacrebleu.metrics import BLEU
from transformers.utils.logging import disable_progress_bar

from ..data.files import new_output
from ..data.reading import load_pairs
from ..errors import UserError
from ..generation_vanilla_transformer import search_settings
from ..hub.weights import weights_digest
from ..inference.comet import COMET_MODEL, Comet
from ..inference.metrics import FURTHER_METRICS, choose_bleu_tokenizer, corpus_scores, make_bleu
from ..inference.significance import (
    DEFAULT_SAMPLES,
    DEFAULT_SEED,
    SEED_VARIABLE,
    PairedTestResult,
    check_samples,
    check_seed,
    paired_test,
)
from ..inference.test_set import TestSet, make_numbers, read_references, take_test_set
from ..inference.text_io import replace_line_breaks
from ..inference.translate import translate
from ..language_tags_vanilla_transformer import tagged_languages
from .arguments import (
    SEVERAL_MODELS,
    CommandParser,
    DecodingArguments,
    LoadingArguments,
    is_another_model,
    list_options,
    names,
    report_without_effect,
)
from .reports import format_scores, format_table

EMBEDDED_SAMPLES = 500
EMBEDDED_TARGET_LANG = "fr"
DEFAULT_SPLIT = "test"


@dataclass
class EvaluateArguments:
    """What to score, and how."""

    model_name_or_path: list[str] = field(
        default_factory=list, metadata={"several": is_another_model, "help": SEVERAL_MODELS}
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
    references_file: list[str] = field(
        default_factory=list,
        metadata={"help": "What they should be, plain or .gz; several files are several references for each sentence. "
                  "With a test set, further references beside its own."},
    )  # fmt: skip
    systems: list[str] = field(
        default_factory=list,
        metadata={"help": "Systems to compare, the first is the baseline: files of translations, and folders or ids of "
                  "models."},
    )  # fmt: skip
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
    metrics: list[str] = field(
        default_factory=list,
        metadata={
            "choices": [*FURTHER_METRICS, "comet"],
            "help": "Further metrics beside BLEU, chrF and exact match.",
        },
    )
    comet_model: str = field(
        default=COMET_MODEL, metadata={"help": "COMET's model: an id on the Hub, downloaded before, or a .ckpt file."}
    )
    paired_bs: bool = field(
        default=False, metadata={"help": "Test each system against the first by paired bootstrap resampling."}
    )
    paired_bs_n: int = field(default=DEFAULT_SAMPLES["bs"], metadata={"help": "Number of resamples."})
    paired_ar: bool = field(
        default=False, metadata={"help": "Test each system against the first by paired approximate randomization."}
    )
    paired_ar_n: int = field(default=DEFAULT_SAMPLES["ar"], metadata={"help": "Number of trials."})
    seed: int | None = field(
        default=None,
        metadata={"help": f"Seed of the paired test; by default ${SEED_VARIABLE}, else {DEFAULT_SEED}."},
    )
    json: bool = field(default=False, metadata={"help": "Print one JSON object, with all there is to report."})

    @property
    def system_names(self) -> list[str]:
        """The systems: a model, a file of translations, or several of both."""
        single = self._model_name or self.predictions_file
        return [single] if single else self.systems

    @property
    def _model_name(self) -> str:
        """The model of --model_name_or_path, or the models of an ensemble, which is one system."""
        return " + ".join(self.model_name_or_path)

    def models(self, name: str) -> list[str]:
        """The models of a system that is a model: several for an ensemble."""
        return self.model_name_or_path if name == self._model_name else [name]

    @property
    def has_test_set(self) -> bool:
        """Whether a test set is named."""
        return bool(self.test_file or self.dataset_name)

    def is_model(self, name: str) -> bool:
        """Whether a system is a model; otherwise it is a file of translations."""
        if name in (self._model_name, self.predictions_file):
            return name == self._model_name
        return not Path(name).exists() or Path(name).is_dir()  # a pipe is a file too

    @property
    def test_type(self) -> str | None:
        """The paired test that is asked for, by sacreBLEU's name: "bs", "ar" or None."""
        return "bs" if self.paired_bs else "ar" if self.paired_ar else None

    @property
    def has_model(self) -> bool:
        """Whether a system is a model."""
        return any(map(self.is_model, self.system_names))


def check(arguments: EvaluateArguments, decoding: DecodingArguments, given: set[str]) -> None:
    """Refuse arguments that can't be, or that do not go together.

    Args:
        arguments: The command's arguments.
        decoding: Those of loading and search.
        given: Names of the options that the command line gives.

    Raises:
        UserError: One sentence on what to give instead.
    """
    if sum(map(bool, (arguments.model_name_or_path, arguments.predictions_file, arguments.systems))) != 1:
        raise UserError(
            "give either --model_name_or_path, or --predictions_file and --references_file, or several --systems"
        )
    if arguments.has_test_set:
        if arguments.test_file and arguments.dataset_name:
            raise UserError("there is a --test_file and a --dataset_name; give one of the two")
        if not (arguments.source_lang and arguments.target_lang):
            raise UserError("a test set needs --source_lang and --target_lang")
    else:
        _check_without_test_set(arguments)
    if not arguments.has_model and (without_model := given & {"output_file", *names(DecodingArguments)}):
        raise UserError(f"{list_options(without_model)} can't be given with files; only a model translates")
    if arguments.systems and arguments.output_file:
        raise UserError("--output_file keeps the translations of one model; give it with --model_name_or_path")
    if arguments.max_predict_samples is not None and arguments.max_predict_samples < 1:
        raise UserError(f"max_predict_samples is {arguments.max_predict_samples}; it must be at least 1")
    _check_paired_test(arguments)
    if "comet" in arguments.metrics and arguments.references_file:
        if not arguments.has_test_set:
            raise UserError("--metrics comet also reads the sentences that were translated; give --test_file")
        raise UserError("--metrics comet takes one reference for each sentence; leave out --references_file")
    if arguments.has_model:
        decoding.check()


def _check_without_test_set(arguments: EvaluateArguments) -> None:
    """Refuse systems that need a test set where none is named."""
    if arguments.has_model and arguments.references_file:
        model = next(filter(arguments.is_model, arguments.system_names))
        raise UserError(
            f"{model} is no file of translations, and --references_file has no sentences for a model to translate; "
            "check the path, or give --test_file, to which --references_file adds references"
        )
    if arguments.predictions_file and not arguments.references_file:
        raise UserError("--predictions_file and --references_file go together; one of them is missing")
    if not all(map(arguments.is_model, arguments.system_names)) and not arguments.references_file:
        raise UserError("files of translations need --references_file, or a test set with --test_file")


def _check_paired_test(arguments: EvaluateArguments) -> None:
    """Refuse settings that no paired test can have."""
    check_samples("paired_bs_n", arguments.paired_bs_n)
    check_samples("paired_ar_n", arguments.paired_ar_n)
    if arguments.seed is not None:
        check_seed("seed", arguments.seed)
    if arguments.paired_bs and arguments.paired_ar:
        raise UserError("there are --paired_bs and --paired_ar; give one of the two")
    if arguments.test_type and len(arguments.systems) < 2:
        raise UserError(
            f"--paired_{arguments.test_type} compares systems with the first of them; give at least two --systems"
        )


def report_ignored(arguments: EvaluateArguments, given: set[str]) -> None:
    """Print a line for the options that are given and have no effect."""
    if not arguments.dataset_name:
        report_without_effect(given & {"split", "dataset_config_name"}, "there is no --dataset_name")
    if not arguments.has_model and not arguments.has_test_set:
        report_without_effect(given & {"source_lang"}, "translations are scored as they are")
    if "comet" not in arguments.metrics:
        report_without_effect(given & {"comet_model"}, "there is no --metrics comet")
    for name in ("bs", "ar"):
        if arguments.test_type != name:
            report_without_effect(given & {f"paired_{name}_n"}, f"there is no --paired_{name}")
    if not arguments.test_type:
        report_without_effect(given & {"seed"}, "there is no --paired_bs or --paired_ar")


def choose_seed(arguments: EvaluateArguments) -> int:
    """Return the seed of the paired test.

    Raises:
        UserError: That of the environment is no seed.
    """
    if arguments.seed is not None:
        return arguments.seed
    text = os.environ.get(SEED_VARIABLE, str(DEFAULT_SEED))
    if not text.isdecimal():
        raise UserError(f"{SEED_VARIABLE} is {text!r}; it must be a whole number, or give --seed")
    check_seed(SEED_VARIABLE, int(text))
    return int(text)


def load_test_set(arguments: EvaluateArguments) -> TestSet:
    """Load the test set with all references: the one that is named, else files alone, else numbers."""
    name, first = arguments.test_file or arguments.dataset_name, arguments.max_predict_samples
    source_lang, target_lang = arguments.source_lang or "en", arguments.target_lang or EMBEDDED_TARGET_LANG
    if name is None and arguments.references_file:
        test_set = read_references(arguments.references_file, first)
    elif name is None:
        test_set = make_numbers(source_lang, target_lang, first or EMBEDDED_SAMPLES)
    else:
        split, config_name = arguments.split or DEFAULT_SPLIT, arguments.dataset_config_name
        pairs = load_pairs(name, source_lang, target_lang, split=split, config_name=config_name)
        test_set = take_test_set(name, pairs, first)
        test_set.add_references(arguments.references_file)
    return test_set


def describe_test_set(arguments: EvaluateArguments, test_set: TestSet) -> dict[str, Any]:
    """Collect what a report says of the test set."""
    facts: dict[str, Any] = {"test_set_sentences": test_set.size}
    if test_set.sources is not None:
        facts |= {
            "data": test_set.name,
            "dataset_name": arguments.dataset_name,
            "dataset_config_name": arguments.dataset_config_name if arguments.dataset_name else None,
            "split": (arguments.split or DEFAULT_SPLIT) if arguments.dataset_name else None,
        }
    if paths := arguments.references_file:
        facts["references"] = paths[0] if len(paths) == 1 else paths
    return facts


def translate_test_set(
    name: str, arguments: EvaluateArguments, decoding: DecodingArguments, test_set: TestSet
) -> tuple[list[str], dict[str, Any]]:
    """Translate the test set with a model; returns the translations, and what a report says of them."""
    with new_output(arguments.output_file) if arguments.output_file else nullcontext() as output:
        names_or_paths = arguments.models(name)
        model, tokenizer = decoding.load(names_or_paths)
        decoding.report_without_effect(model)
        target_lang = (arguments.target_lang or EMBEDDED_TARGET_LANG) if tagged_languages(tokenizer) else None
        settings = {"target_lang": target_lang, **decoding.settings()}
        translations = translate(model, tokenizer, test_set.sources or [], progress=True, **settings)
        start = time.perf_counter()
        hypotheses = []
        for (translation,) in translations:
            hypotheses.append(translation.text)
            if output is not None:
                print(replace_line_breaks(translation.text), file=output)
        seconds = time.perf_counter() - start
    defaults = model.generation_config
    return hypotheses, {
        "model": name if len(names_or_paths) == 1 else names_or_paths,
        "weights": weights_digest(model),
        "target_lang": target_lang,
        "num_beams": search_settings(decoding.num_beams or defaults.num_beams, None)["num_beams"],
        "decoding": {**defaults.to_diff_dict(), **decoding.settings()},
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "seconds": seconds,
    }


def evaluate_systems(
    arguments: EvaluateArguments, decoding: DecodingArguments, bleu_tokenize: str
) -> tuple[list[dict[str, Any]], PairedTestResult | None]:
    """Score all systems; returns a report for each, and the result of the paired test if one is asked for."""
    seed = choose_seed(arguments) if arguments.test_type else DEFAULT_SEED
    comet = Comet(arguments.comet_model) if "comet" in arguments.metrics else None
    test_set = load_test_set(arguments)
    # What can't be read, or does not fit, is found before a model translates.
    models = list(dict.fromkeys(filter(arguments.is_model, arguments.system_names)))
    hypotheses = {name: test_set.read_translations(name) for name in arguments.system_names if name not in models}
    for name in models:
        for model in arguments.models(name):
            decoding.check_model(model)
    facts: dict[str, dict[str, Any]] = {name: {"predictions": name} for name in hypotheses}
    for name in models:
        hypotheses[name], facts[name] = translate_test_set(name, arguments, decoding, test_set)

    further = [name for name in arguments.metrics if name in FURTHER_METRICS]
    references = test_set.references_per_sentence()
    reports = []
    for name in arguments.system_names:
        scores = corpus_scores(hypotheses[name], references, bleu_tokenize=bleu_tokenize, further_metrics=further)
        report = {**scores, **facts[name], **describe_test_set(arguments, test_set)}
        if comet is not None:
            found = comet.scores(test_set.sources or [], hypotheses[name], [first for first, *_ in references])
            report |= {"comet": sum(found) / len(found), "comet_signature": comet.signature}
        reports.append(report)
    result = None
    if arguments.test_type:
        result = paired_test(
            [(name, hypotheses[name]) for name in arguments.system_names],
            references,
            test_type=arguments.test_type,
            n_samples=getattr(arguments, f"paired_{arguments.test_type}_n"),
            seed=seed,
            bleu_tokenize=bleu_tokenize,
            further_metrics=further,
        )
    return reports, result


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
            "systems",
            "metrics",
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
    given = parser.given(argv)
    check(arguments, decoding, given)
    report_ignored(arguments, given)
    bleu_tokenize = arguments.bleu_tokenize or choose_bleu_tokenizer(arguments.target_lang)
    make_bleu(bleu_tokenize)  # a missing package is found before anything is translated
    reports, result = evaluate_systems(arguments, decoding, bleu_tokenize)
    if arguments.json:
        versions = {library.__name__: library.__version__ for library in (torch, transformers, sacrebleu)}
        report = as_json(arguments.system_names, reports, result) if arguments.systems[1:] else reports[0]
        print(json.dumps({**report, "versions": versions}, indent=2))  # in ASCII, for streams of any encoding
    elif arguments.systems[1:]:
        print(format_table(arguments.system_names, reports, result))
    else:
        print(format_scores(reports[0]))


def as_json(
    system_names: Sequence[str], reports: Sequence[dict[str, Any]], result: PairedTestResult | None
) -> dict[str, Any]:
    """Form the JSON object of several systems; each has what it would have alone, and its part of the paired test."""
    systems = [{"system": name, **report} for name, report in zip(system_names, reports, strict=True)]
    if result is None:
        return {"systems": systems}
    tested = zip(systems, result["systems"], strict=True)
    settings = {name: value for name, value in result.items() if name != "systems"}
    return {
        "systems": [{**system, "paired_test": results} for system, results in tested],
        "paired_test": {"baseline": system_names[0], **settings},
    }

"""Score translations: sacreBLEU and chrF with their signatures, and exact match.

A model, on a test set or, with none given, on unseen numbers of the embedded corpus:

    vanilla-transformer evaluate --model_name_or_path runs/numbers
    vanilla-transformer evaluate --model_name_or_path runs/en-de --test_file data/test --source_lang en --target_lang de

Two text files, a sentence per line:

    vanilla-transformer evaluate --predictions_file translated.de --references_file data/test.de
"""

import json
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

import sacrebleu
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from sacrebleu.metrics import BLEU
from transformers.utils.logging import disable_progress_bar

from ..data.files import open_output
from ..data.numbers import number_pairs
from ..data.reading import load_pairs
from ..data.text_files import read_lines
from ..errors import UserError
from ..generation_vanilla_transformer import PAPER_DECODING
from ..hub.weights import weights_digest
from ..inference.metrics import Scores, choose_bleu_tokenizer, make_bleu, score
from ..inference.text_io import replace_line_breaks
from ..inference.translate import translate
from .arguments import CommandParser, DecodingArguments, LoadingArguments, names

EMBEDDED_SAMPLES = 500


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
    split: str = field(default="test", metadata={"help": "The data set's split."})
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


def check(arguments: EvaluateArguments) -> None:
    """Refuse arguments that do not go together.

    Raises:
        UserError: One sentence on what to give instead.
    """
    files = [arguments.predictions_file, arguments.references_file]
    if bool(arguments.model_name_or_path) == any(files):
        raise UserError("give either --model_name_or_path, or --predictions_file and --references_file")
    if any(files) and not all(files):
        raise UserError("--predictions_file and --references_file go together; one of them is missing")
    if any(files) and (arguments.test_file or arguments.dataset_name or arguments.output_file):
        raise UserError("--test_file, --dataset_name and --output_file need a --model_name_or_path that translates")
    if arguments.test_file and arguments.dataset_name:
        raise UserError("there is a --test_file and a --dataset_name; give one of the two")
    if (arguments.test_file or arguments.dataset_name) and not (arguments.source_lang and arguments.target_lang):
        raise UserError("a test set needs --source_lang and --target_lang")
    if arguments.max_predict_samples is not None and arguments.max_predict_samples < 1:
        raise UserError(f"--max_predict_samples is {arguments.max_predict_samples}, but must be at least 1")


def test_set(arguments: EvaluateArguments) -> tuple[str, Dataset, int]:
    """What to call the test set, the sentence pairs of it to translate, and how many it has."""
    if not arguments.test_file and not arguments.dataset_name:
        source_lang, target_lang = arguments.source_lang or "en", arguments.target_lang or "fr"
        size = arguments.max_predict_samples or EMBEDDED_SAMPLES
        return f"numbers {source_lang}-{target_lang}", number_pairs(source_lang, target_lang, "test", size), size
    name = arguments.test_file or arguments.dataset_name
    pairs = load_pairs(
        name,
        arguments.source_lang,
        arguments.target_lang,
        split=arguments.split,
        config_name=arguments.dataset_config_name,
    )
    part = pairs.select(range(min(len(pairs), arguments.max_predict_samples or len(pairs))))
    return name, part, len(pairs)


def evaluate_model(arguments: EvaluateArguments, decoding: DecodingArguments) -> dict:
    """Translate the test set and score the translations."""
    data, pairs, size = test_set(arguments)
    model, tokenizer = decoding.load(arguments.model_name_or_path)
    translations = translate(model, tokenizer, pairs["source"], progress=True, **decoding.settings())
    start = time.perf_counter()
    hypotheses = []
    with open_output(arguments.output_file) if arguments.output_file else nullcontext() as output:
        for (translation,) in translations:
            hypotheses.append(translation.text)
            if output is not None:
                print(replace_line_breaks(translation.text), file=output)
    seconds = time.perf_counter() - start

    defaults = model.generation_config
    return {
        **score(hypotheses, list(pairs["target"]), bleu_tokenize=arguments.bleu_tokenize),
        "model": arguments.model_name_or_path,
        "weights": weights_digest(model),
        "data": data,
        "test_set_sentences": size,
        "dataset_name": arguments.dataset_name,
        "dataset_config_name": arguments.dataset_config_name,
        "split": arguments.split if arguments.dataset_name else None,
        "num_beams": decoding.num_beams or defaults.num_beams or PAPER_DECODING["num_beams"],
        "decoding": {**defaults.to_diff_dict(), **decoding.settings()},
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "seconds": seconds,
    }


def evaluate_files(arguments: EvaluateArguments) -> dict:
    """Score one text file against another."""
    hypotheses, references = read_lines(arguments.predictions_file), read_lines(arguments.references_file)
    if len(hypotheses) != len(references):
        raise UserError(
            f"{arguments.predictions_file} has {len(hypotheses):,} lines but {arguments.references_file} has "
            f"{len(references):,}; line n of one must translate line n of the other"
        )
    scores = score(
        hypotheses[: arguments.max_predict_samples],
        references[: arguments.max_predict_samples],
        bleu_tokenize=arguments.bleu_tokenize,
    )
    return {
        **scores,
        "predictions": arguments.predictions_file,
        "references": arguments.references_file,
        "test_set_sentences": len(references),
    }


def show(scores: Scores) -> None:
    """Print scores for people."""
    precisions = "/".join(f"{precision:.1f}" for precision in scores["bleu_precisions"])
    lengths = f"{scores['hypothesis_length']} tokens, reference {scores['reference_length']}"
    print(f"sacreBLEU    {scores['bleu']:6.2f}  {scores['bleu_signature']}")
    print(f"                     {precisions} (brevity penalty {scores['brevity_penalty']:.3f}: {lengths})")
    print(f"chrF         {scores['chrf']:6.2f}  {scores['chrf_signature']}")
    print(f"exact match  {scores['exact_match']:6.2f}% of {scores['sentences']} sentences")


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
    arguments, decoding = make_parser().parse(argv)
    disable_progress_bar()
    disable_progress_bars()
    check(arguments)
    arguments.bleu_tokenize = arguments.bleu_tokenize or choose_bleu_tokenizer(arguments.target_lang)
    make_bleu(arguments.bleu_tokenize)  # a missing package is found before anything is translated
    report = evaluate_model(arguments, decoding) if arguments.model_name_or_path else evaluate_files(arguments)
    if arguments.json:
        versions = {library.__name__: library.__version__ for library in (torch, transformers, sacrebleu)}
        print(json.dumps({**report, "versions": versions}, ensure_ascii=False, indent=2))
        return
    show(report)
    if arguments.model_name_or_path:
        speed = report["sentences"] / report["seconds"]
        print(
            f"{report['data']} in {report['seconds']:.1f} s ({speed:.0f} per second), num_beams {report['num_beams']}"
        )

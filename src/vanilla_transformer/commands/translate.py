"""Translate sentences with a trained model: one line out per line in, in order.

    vanilla-transformer translate --model_name_or_path runs/numbers "forty-two" "one thousand and one"
    vanilla-transformer translate --model_name_or_path runs/numbers --input_file source.en --output_file target.fr
    cat source.en | vanilla-transformer translate --model_name_or_path runs/numbers --num_beams 4 > target.fr

With --num_return_sequences n there are n lines out per line in, best first, or with --json one line of JSON.
"""

import hashlib
import io
import json
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import chain, tee
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

import vanilla_transformer

from ..data.normal_form import normal_form
from ..engines.ctranslate2 import CTranslate2Engine, check_compute_type
from ..errors import UserError
from ..generation_vanilla_transformer import search_settings
from ..hub.weights import weights_digest
from ..inference.alignments import format_alignment
from ..inference.ensemble import Ensemble
from ..inference.loading import find_device
from ..inference.model_files import SavedModel
from ..inference.nbest import describe_translations
from ..inference.output import TranslationOutput
from ..inference.paragraphs import find_split_language
from ..inference.settings import check_normalization, check_settings
from ..inference.source import Source
from ..inference.text_io import replace_line_breaks
from ..inference.translate import Translation, translate_windows
from .arguments import (
    SEVERAL_MODELS,
    CommandParser,
    DecodingArguments,
    LoadingArguments,
    is_another_model,
    names,
    report_without_effect,
)


@dataclass
class TranslateArguments:
    """What to translate, and where to."""

    sentences: list[str] = field(
        default_factory=list, metadata={"positional": True, "help": "Sentences to translate; else the input file."}
    )
    model_name_or_path: list[str] = field(kw_only=True, metadata={"several": is_another_model, "help": SEVERAL_MODELS})
    input_file: str | None = field(
        default=None, metadata={"help": "One sentence per line, plain or .gz; by default standard input."}
    )
    output_file: str | None = field(
        default=None, metadata={"help": "Where to write, a new file; by default standard output."}
    )
    target_lang: str | None = field(
        default=None, metadata={"help": "Language to translate into, by a model of several: fr puts >>fr<< before."}
    )
    target_prefix: str | None = field(
        default=None, metadata={"help": "Text that every translation must begin with, in any search."}
    )
    target_prefix_file: str | None = field(
        default=None,
        metadata={"help": "The same for each sentence, one per line, plain or .gz; an empty line is no prefix."},
    )
    json_input: bool = field(
        default=False,
        metadata={"help": "Each sentence is a JSON object with its source and, if it has one, its target_prefix."},
    )
    engine: Literal["torch", "ctranslate2"] = field(
        default="torch", metadata={"help": "Translate by CTranslate2; the model is converted once and cached."}
    )
    normalize: float | None = field(
        default=None,
        metadata={
            "help": "Search as generate() and CTranslate2 do, dividing by length^normalize, not as in the paper."
        },
    )
    num_return_sequences: int = field(
        default=1, metadata={"help": "Translations per sentence, best first; at most num_beams."}
    )
    json: bool = field(
        default=False, metadata={"help": "Write a JSON object per sentence: source, and translations with scores."}
    )
    alignments: bool = field(
        default=False, metadata={"help": "Append to each translation which words are aligned, as ' ||| 0-0 1-2'."}
    )
    split_sentences: bool = field(
        default=False,
        metadata={"help": "Split each line into sentences, translate these, and join them to one line again."},
    )
    source_lang: str | None = field(
        default=None,
        metadata={"help": "Language whose rules split sentences; by default the one that the model was trained on."},
    )
    resume: bool = field(
        default=False, metadata={"help": "Continue an --output_file that an earlier run did not finish."}
    )


def format_lines(sentence: str, translations: list[Translation], as_json: bool) -> list[str]:
    """Format the output for a sentence: a line for each translation, or one of JSON for all."""
    if as_json:
        return [json.dumps(describe_translations(sentence, translations), ensure_ascii=False)]
    return [
        replace_line_breaks(translation.text)
        + ("" if translation.alignment is None else f" ||| {format_alignment(translation.alignment)}")
        for translation in translations
    ]


def check(arguments: TranslateArguments, decoding: DecodingArguments) -> None:
    """Refuse arguments that can't be, or that do not go together.

    Raises:
        UserError: One sentence on what to give instead.
    """
    if arguments.engine == "ctranslate2":
        check_engine(arguments, decoding)
    else:
        decoding.check()
    if arguments.alignments and len(arguments.model_name_or_path) > 1:
        raise UserError(
            "--alignments are those of one model's attention; give one --model_name_or_path, or leave it out"
        )
    check_normalization(arguments.normalize)
    if arguments.normalize is not None and decoding.length_penalty is not None:
        raise UserError("--normalize and --length_penalty are two penalties of length; give one of the two")
    check_settings(num_return_sequences=arguments.num_return_sequences)
    if arguments.sentences and arguments.input_file:
        raise UserError("there are sentences on the command line and an --input_file as well; give one of the two")
    prefixes = [name for name in ("target_prefix", "target_prefix_file", "json_input") if getattr(arguments, name)]
    if len(prefixes) > 1:
        raise UserError(
            f"--{prefixes[0]} and --{prefixes[1]} both say what translations begin with; give one of the two"
        )
    if arguments.target_prefix == "":
        report_without_effect(["target_prefix"], "it is empty")
    if arguments.split_sentences and (prefixes or arguments.num_return_sequences > 1):
        name = f"--{prefixes[0]}" if prefixes else f"--num_return_sequences {arguments.num_return_sequences}"
        raise UserError(f"{name} goes with one sentence in a line, not with lines that --split_sentences splits")
    if arguments.source_lang is not None and not arguments.split_sentences:
        report_without_effect(["source_lang"], "only --split_sentences needs it")
    if arguments.resume and not (arguments.input_file and arguments.output_file):
        raise UserError("--resume continues an --output_file from its --input_file; give both")
    for name in ("input_file", "target_prefix_file"):
        path = getattr(arguments, name)
        if arguments.resume and path and not Path(path).is_file():
            raise UserError(f"--resume needs --{name} to be a file that can be read again; {path} is none")


def check_engine(arguments: TranslateArguments, decoding: DecodingArguments) -> None:
    """Refuse what CTranslate2 can't do, as far as that does not depend on the model.

    Raises:
        UserError: With the option's name.
    """
    replace(decoding, dtype="auto").check()
    check_compute_type(decoding.dtype, find_device(decoding.device))
    if len(arguments.model_name_or_path) > 1:
        raise UserError("--engine ctranslate2 can't do an ensemble; give one --model_name_or_path")
    for name in ("alignments", "target_prefix", "target_prefix_file", "json_input"):
        if getattr(arguments, name):
            reason = ", which gives target prefixes" if name == "json_input" else ""
            raise UserError(f"--engine ctranslate2 can't do --{name}{reason}; leave out one of the two")


def load_engine(
    arguments: TranslateArguments, decoding: DecodingArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, CTranslate2Engine | None]:
    """Load the model and its tokenizer, and the engine; None for torch."""
    if arguments.engine == "torch":
        return *decoding.load(arguments.model_name_or_path), None
    model, tokenizer = replace(decoding, dtype="auto").load(arguments.model_name_or_path)
    return model, tokenizer, CTranslate2Engine(model, tokenizer, decoding.dtype)


def collect_settings(
    arguments: TranslateArguments, decoding: DecodingArguments, model: PreTrainedModel
) -> dict[str, Any]:
    """Collect the keyword arguments for `translate`; print a line for options that have no effect."""
    decoding.report_without_effect(model)
    settings = {
        "num_return_sequences": arguments.num_return_sequences,
        "target_lang": arguments.target_lang,
        "alignments": arguments.alignments,
        **decoding.settings(),
    }
    if arguments.normalize is not None:
        if search_settings(decoding.num_beams or model.generation_config.num_beams, None)["num_beams"] == 1:
            report_without_effect(["normalize"], "search with one beam is greedy")
        else:
            settings |= {"search": None, "length_penalty": arguments.normalize}
    return settings


def describe_source(
    source: Source,
    arguments: TranslateArguments,
    decoding: DecodingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split_language: str | None,
    engine: CTranslate2Engine | None,
) -> dict[str, Any] | None:
    """Collect what an output is made from, so that it is continued only with the same; None if it can't be."""
    if source.digests is None:
        return None
    models = model.models if isinstance(model, Ensemble) else [model]
    configs = [config.to_dict() for each in models for config in (each.config, each.generation_config)]
    for config in configs:
        for name in ("_name_or_path", "transformers_version"):
            config.pop(name, None)
    parts = [
        weights_digest(model),
        json.dumps(configs, sort_keys=True, default=str),
        tokenizer.backend_tokenizer.to_str(),
        str(normal_form(tokenizer)),
    ]
    return {
        **source.digests,
        "engine": arguments.engine,
        # Before the model, whose weights differ with it.
        "dtype": engine.dtype if engine else str(model.dtype).removeprefix("torch."),
        "model": hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        "version": vanilla_transformer.__version__,
        "device": model.device.type,
        "json": arguments.json,
        "alignments": arguments.alignments,
        "split_sentences": split_language,
        "normalize": arguments.normalize,
        "num_return_sequences": arguments.num_return_sequences,
        "target_lang": arguments.target_lang,
        **decoding.settings(),
    }


def run(arguments: TranslateArguments, decoding: DecodingArguments) -> None:
    """Translate the sentences to standard output or into the output file."""
    check(arguments, decoding)
    source = Source(
        arguments.sentences,
        arguments.input_file,
        json_input=arguments.json_input,
        target_prefix=arguments.target_prefix,
        target_prefix_file=arguments.target_prefix_file,
        keep_line_breaks=arguments.json,
    )
    output = None
    if arguments.output_file:
        lines_per_sentence = 1 if arguments.json else arguments.num_return_sequences
        output = TranslationOutput(arguments.output_file, source.sentences, lines_per_sentence)
        for path in (arguments.input_file, arguments.target_prefix_file):
            output.check_is_not_input(path)
        if arguments.resume and output.is_finished():
            print(
                f"note: {output.path} has all its lines already, so there is nothing to resume; it is left as it is",
                file=sys.stderr,
            )
            output.remove_description()
            return
        output.check(arguments.resume)
        if arguments.resume and not output.is_unfinished:
            print(f"note: there is no unfinished {output.path} to resume; starting it", file=sys.stderr)

    split_language = None
    if arguments.split_sentences:
        saved = SavedModel(arguments.model_name_or_path[0], decoding.model_revision, decoding.token)
        split_language = find_split_language(saved, arguments.source_lang)
    model, tokenizer, engine = load_engine(arguments, decoding)
    settings = {
        **collect_settings(arguments, decoding, model),
        "split_sentences": split_language,
        "engine": engine,
    }
    if not arguments.sentences and not arguments.input_file and sys.stdin.isatty():
        print("Type one sentence per line; Ctrl-D ends.", file=sys.stderr)
    # Checks the settings before there is a file.
    translate_windows(model, tokenizer, [], target_prefix=arguments.target_prefix, **settings)
    if engine is not None:
        engine.load()
    with (
        nullcontext()
        if output is None
        else output.open(
            describe_source(source, arguments, decoding, model, tokenizer, split_language, engine)
        ) as writer
    ):
        done = writer.done if writer else 0
        sentences, prefixes = source.read(done)
        windows, same_windows = tee(sentences)
        hidden = None if writer else True  # None: shown on a terminal only
        bar = tqdm(total=source.sentences, initial=done, unit=" sentences", disable=hidden)
        translations = translate_windows(
            model, tokenizer, windows, target_prefix=prefixes, first_sentence=done + 1, bar=bar, **settings
        )
        for sentence, alternatives in zip(chain.from_iterable(same_windows), translations, strict=True):
            lines = format_lines(sentence, alternatives, arguments.json)
            if writer:
                writer.write(lines)
            else:
                print(*lines, sep="\n", flush=True)


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        TranslateArguments,
        DecodingArguments,
        prog="vanilla-transformer translate",
        doc=__doc__,
        most_used=[
            "sentences",
            "model_name_or_path",
            "input_file",
            "output_file",
            "target_lang",
            "num_beams",
            "length_penalty",
            "num_return_sequences",
            "json",
            "device",
        ],
        groups={
            "output": names(TranslateArguments),
            "loading": names(LoadingArguments),
            "search": names(DecodingArguments),
        },
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    arguments, decoding = make_parser().parse(argv)
    disable_progress_bar()
    if isinstance(sys.stdout, io.TextIOWrapper):  # translations are UTF-8, whatever the terminal's encoding is
        sys.stdout.reconfigure(encoding="utf-8")
    run(arguments, decoding)

"""Translate sentences with a trained model: one line out per line in, in order.

    vanilla-transformer translate --model_name_or_path runs/numbers "forty-two" "one thousand and one"
    vanilla-transformer translate --model_name_or_path runs/numbers --input_file source.en --output_file target.fr
    cat source.en | vanilla-transformer translate --model_name_or_path runs/numbers --num_beams 4 > target.fr

With --num_return_sequences n there are n lines out per line in, best first, or with --json one line of JSON.
"""

import hashlib
import io
import json
import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, tee
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

import vanilla_transformer

from ..data.normal_form import normal_form
from ..errors import UserError
from ..hub.weights import weights_digest
from ..inference.ensemble import Ensemble
from ..inference.output import TranslationOutput
from ..inference.settings import check_settings
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
    num_return_sequences: int = field(
        default=1, metadata={"help": "Translations per sentence, best first; at most num_beams."}
    )
    json: bool = field(
        default=False, metadata={"help": "Write a JSON object per sentence: source, and translations with scores."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Continue an --output_file that an earlier run did not finish."}
    )


def format_lines(sentence: str, translations: list[Translation], as_json: bool) -> list[str]:
    """Format the output for a sentence: a line for each translation, or one of JSON for all."""
    if as_json:
        found = [
            {"text": translation.text, "score": None if math.isnan(translation.score) else translation.score}
            for translation in translations
        ]
        return [json.dumps({"source": sentence, "translations": found}, ensure_ascii=False)]
    return [replace_line_breaks(translation.text) for translation in translations]


def check(arguments: TranslateArguments, decoding: DecodingArguments) -> None:
    """Refuse arguments that can't be, or that do not go together.

    Raises:
        UserError: One sentence on what to give instead.
    """
    decoding.check()
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
    if arguments.resume and not (arguments.input_file and arguments.output_file):
        raise UserError("--resume continues an --output_file from its --input_file; give both")
    for name in ("input_file", "target_prefix_file"):
        path = getattr(arguments, name)
        if arguments.resume and path and not Path(path).is_file():
            raise UserError(f"--resume needs --{name} to be a file that can be read again; {path} is none")


def describe_source(
    source: Source,
    arguments: TranslateArguments,
    decoding: DecodingArguments,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
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
        "model": hashlib.sha256("\n".join(parts).encode()).hexdigest(),
        "version": vanilla_transformer.__version__,
        "device": model.device.type,
        "dtype": str(model.dtype),
        "json": arguments.json,
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

    model, tokenizer = decoding.load(arguments.model_name_or_path)
    decoding.report_without_effect(model)
    if not arguments.sentences and not arguments.input_file and sys.stdin.isatty():
        print("Type one sentence per line; Ctrl-D ends.", file=sys.stderr)
    settings = {
        "num_return_sequences": arguments.num_return_sequences,
        "target_lang": arguments.target_lang,
        **decoding.settings(),
    }
    # Checks the settings before there is a file.
    translate_windows(model, tokenizer, [], target_prefix=arguments.target_prefix, **settings)
    with (
        nullcontext()
        if output is None
        else output.open(describe_source(source, arguments, decoding, model, tokenizer)) as writer
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
            "batch_tokens",
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

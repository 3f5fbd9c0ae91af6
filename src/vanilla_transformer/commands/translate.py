"""Translate sentences with a trained model: one line out per line in, in order.

    vanilla-transformer translate --model_name_or_path runs/numbers "forty-two" "one thousand and one"
    vanilla-transformer translate --model_name_or_path runs/numbers --input_file source.en --output_file target.fr
    cat source.en | vanilla-transformer translate --model_name_or_path runs/numbers --num_beams 4 > target.fr

With --num_return_sequences n there are n lines out per line in, best first, or with --json one line of JSON.
"""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice, tee
from pathlib import Path

from tqdm import tqdm
from transformers.utils.logging import disable_progress_bar

from ..data.files import open_output
from ..data.text_files import iterate_lines
from ..errors import UserError
from ..inference.text_io import decode_arguments, read_arriving_lines, reopen_output, replace_line_breaks
from ..inference.translate import Translation, split_into_windows, translate_windows
from .arguments import CommandParser, DecodingArguments, LoadingArguments, names


@dataclass
class TranslateArguments:
    """What to translate, and where to."""

    sentences: list[str] = field(
        default_factory=list, metadata={"positional": True, "help": "Sentences to translate; else the input file."}
    )
    model_name_or_path: str = field(kw_only=True, metadata={"help": "Folder of a trained model, or its id on the Hub."})
    input_file: str | None = field(
        default=None, metadata={"help": "One sentence per line, plain or .gz; by default standard input."}
    )
    output_file: str | None = field(
        default=None, metadata={"help": "Where to write, a new file; by default standard output."}
    )
    num_return_sequences: int = field(
        default=1, metadata={"help": "Translations per sentence, best first; at most num_beams."}
    )
    json: bool = field(
        default=False, metadata={"help": "Write a JSON object per sentence: source, and translations with scores."}
    )
    resume: bool = field(
        default=False, metadata={"help": "Go on where an --output_file ends that an earlier run did not finish."}
    )


def stdin_lines() -> Iterator[str]:
    """The lines of standard input, as they come."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input, line {number}, is not valid UTF-8; convert it, as with iconv") from error


def lines_of(sentence: str, translations: list[Translation], as_json: bool) -> list[str]:
    """What to write for a sentence: a line for each translation, or one of JSON for all."""
    if as_json:
        found = [translation._asdict() for translation in translations]
        return [json.dumps({"source": sentence, "translations": found}, ensure_ascii=False)]
    return [replace_line_breaks(translation.text) for translation in translations]


def run(arguments: TranslateArguments, decoding: DecodingArguments) -> None:
    """Translate the sentences given on the command line, else those of the input file, else standard input."""
    given = arguments.sentences
    if given and arguments.input_file:
        raise UserError("there are sentences on the command line and an --input_file as well; give one of the two")
    if arguments.resume and not (arguments.input_file and arguments.output_file):
        raise UserError("--resume goes on with an --output_file from its --input_file; give both")
    total = len(given)
    if given:
        windows = split_into_windows(decode_arguments(given))
    elif arguments.input_file:
        # This finds a line that is not UTF-8 as well. A pipe can be read only once.
        total = sum(1 for _ in iterate_lines(arguments.input_file)) if Path(arguments.input_file).is_file() else 0
    else:
        windows = read_arriving_lines(stdin_lines())  # reads while the model loads

    model, tokenizer = decoding.load(arguments.model_name_or_path)
    if not given and not arguments.input_file and sys.stdin.isatty():
        print("Type one sentence per line; Ctrl-D ends.", file=sys.stderr)
    with ExitStack() as stack:
        done, output = 0, sys.stdout
        if arguments.resume and Path(arguments.output_file).exists():
            lines_per_sentence = 1 if arguments.json else arguments.num_return_sequences
            output, done = reopen_output(arguments.output_file, lines_per_sentence, total)
        elif arguments.output_file:
            output = open_output(arguments.output_file)
        if arguments.output_file:
            stack.enter_context(output)
        if arguments.input_file:
            windows = split_into_windows(islice(iterate_lines(arguments.input_file), done, None))
        hidden = None if arguments.output_file else True  # None: shown on a terminal only
        bar = tqdm(total=total or None, initial=done, unit=" sentences", disable=hidden)
        windows, same_windows = tee(windows)
        translations = translate_windows(
            model,
            tokenizer,
            windows,
            num_return_sequences=arguments.num_return_sequences,
            first_sentence=done + 1,
            bar=bar,
            **decoding.settings(),
        )
        for sentence, alternatives in zip(chain.from_iterable(same_windows), translations, strict=True):
            for line in lines_of(sentence, alternatives, arguments.json):
                print(line, file=output, flush=True)


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

"""Translate sentences with a trained model: one line out per line in, in order.

    python scripts/translate.py --model_name_or_path runs/numbers "forty-two" "one thousand and one"
    python scripts/translate.py --model_name_or_path runs/numbers --input_file source.en --output_file target.fr
    cat source.en | python scripts/translate.py --model_name_or_path runs/numbers --num_beams 4 > target.fr

With --num_return_sequences n there are n lines out per line in, best first.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain

from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.utils.logging import disable_progress_bar

import vanilla_transformer  # noqa: F401 (registers the model with the auto classes)
from vanilla_transformer.data import read_lines
from vanilla_transformer.decoding import DecodingArguments, decoded, one_line, open_output, translate
from vanilla_transformer.errors import UserError, exit_on_user_error


@dataclass
class TranslateArguments:
    model_name_or_path: str = field(metadata={"help": "Folder of a trained model, or its id on the Hub."})
    input_file: str | None = field(
        default=None, metadata={"help": "One sentence per line, plain or .gz; by default standard input."}
    )
    output_file: str | None = field(
        default=None, metadata={"help": "Where to write, a new file; by default standard output."}
    )
    num_return_sequences: int = field(
        default=1, metadata={"help": "Translations per sentence, best first; at most num_beams."}
    )


def stdin_lines() -> Iterator[str]:
    """The lines of standard input, as they come."""
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise UserError(f"standard input, line {number}, is not valid UTF-8; convert it, as with iconv") from error


def run(arguments: TranslateArguments, decoding: DecodingArguments, given: list[str]) -> None:
    """Translate the sentences given on the command line, else those of the input file, else standard input."""
    if given and arguments.input_file:
        raise UserError("there are sentences on the command line and an --input_file as well; give one of the two")
    from_stdin = not given and not arguments.input_file
    typed = from_stdin and sys.stdin.isatty()
    sentences = stdin_lines() if from_stdin else decoded(given) or read_lines(arguments.input_file)

    model, tokenizer = decoding.load(arguments.model_name_or_path)
    settings = {"num_return_sequences": arguments.num_return_sequences, **decoding.settings()}
    if typed:
        print("Type one sentence per line; Ctrl-D ends.", file=sys.stderr)
        translations = chain.from_iterable(translate(model, tokenizer, [line], **settings) for line in sentences)
    else:
        translations = translate(model, tokenizer, sentences, **settings)

    with open_output(arguments.output_file) if arguments.output_file else nullcontext(sys.stdout) as output:
        if arguments.output_file and not typed:
            total = None if from_stdin else len(sentences)
            translations = tqdm(translations, total=total, unit=" sentences", disable=None)  # only on a terminal
        for alternatives in translations:
            for translation in alternatives:
                print(one_line(translation), file=output, flush=typed)
        output.flush()


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser([TranslateArguments, DecodingArguments], description=__doc__.split("\n")[0])
    parser.add_argument("sentences", nargs="*", help="Sentences to translate.")
    arguments, decoding, positional, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    disable_progress_bar()
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        run(arguments, decoding, positional.sentences)
    except BrokenPipeError:  # the reader has enough (| head)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    with exit_on_user_error():
        main()

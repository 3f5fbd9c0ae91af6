"""Write one HTML file in which a trained model runs in the browser and every step of the paper can be read.

    vanilla-transformer illustrate --model_name_or_path runs/demo --output_file illustrated.html
    vanilla-transformer illustrate --model_name_or_path runs/en-de --output_file illustrated.html --sentence "A dog."

The page needs no server and no network. It holds the model's weights and tokenizer, the losses of its run, a sentence
of its validation data that greedy and beam search translate differently, and the source of the functions that compute
each formula.
"""

from dataclasses import dataclass, field
from typing import Literal

from transformers.utils.logging import disable_progress_bar

from ..illustrate.page import check_page_file, check_sentence, write_page
from ..inference.text_io import decode_arguments
from .arguments import CommandParser, LoadingArguments, names


@dataclass
class IllustrateArguments:
    """Which model, and where the page goes."""

    model_name_or_path: str = field(metadata={"help": "Folder of a trained model, or its id on the Hub."})
    output_file: str = field(metadata={"help": "Where to write the page, a new file: .html."})
    sentence: str | None = field(
        default=None, metadata={"help": "Source that the page begins with; by default one of the run's language."}
    )
    language: Literal["en", "ko"] = field(default="en", metadata={"help": "Language that the page begins with."})


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        IllustrateArguments,
        LoadingArguments,
        prog="vanilla-transformer illustrate",
        doc=__doc__,
        most_used=names(IllustrateArguments),
        groups={"loading": names(LoadingArguments)},
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    arguments, loading = make_parser().parse(argv)
    sentence = None if arguments.sentence is None else decode_arguments([arguments.sentence])[0]
    check_page_file(arguments.output_file)
    if sentence is not None:
        check_sentence(sentence)
    disable_progress_bar()
    model, tokenizer = loading.load(arguments.model_name_or_path)
    write_page(
        model,
        tokenizer,
        arguments.output_file,
        model_name_or_path=arguments.model_name_or_path,
        sentence=sentence,
        language=arguments.language,
    )
    print(f"The page is in {arguments.output_file}; open it in a browser")

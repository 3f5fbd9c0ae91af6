"""Draw what attends to what in a trained model, for a sentence and its translation, or the model's positions.

    vanilla-transformer plot --model_name_or_path runs/en-de --output_file cross.png "Two dogs run."
    vanilla-transformer plot --model_name_or_path runs/en-de --output_file encoder.pdf --kind encoder "A dog."
    vanilla-transformer plot --model_name_or_path runs/en-de --output_file positions.png --positions 100

Without --target the translation is the model's own.
"""

from dataclasses import dataclass, field
from typing import Literal

from transformers.utils.logging import disable_progress_bar

from ..errors import UserError
from ..inference.text_io import decode_arguments
from ..plots.attention import attention_maps, plot_attention
from ..plots.figures import check_picture, save_figure
from ..plots.positions import check_length, plot_positions
from .arguments import CommandParser, LoadingArguments, names, report_without_effect


@dataclass
class PlotArguments:
    """What to draw, and where to."""

    sentence: str | None = field(
        default=None, metadata={"positional": True, "help": "The sentence that the encoder reads."}
    )
    model_name_or_path: str = field(kw_only=True, metadata={"help": "Folder of a trained model, or its id on the Hub."})
    output_file: str = field(kw_only=True, metadata={"help": "Where to draw, a new file: .png, .pdf or .svg."})
    target: str | None = field(
        default=None, metadata={"help": "The sentence's translation; by default the model's own."}
    )
    kind: Literal["encoder", "decoder", "cross"] = field(
        default="cross", metadata={"help": "Self-attention of the encoder or decoder, or the decoder's to the source."}
    )
    positions: int | None = field(
        default=None, metadata={"help": "Draw so many sinusoidal positions of the model's width; no sentence needed."}
    )


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        PlotArguments,
        LoadingArguments,
        prog="vanilla-transformer plot",
        doc=__doc__,
        most_used=names(PlotArguments),
        groups={"loading": names(LoadingArguments)},
    )


def check(arguments: PlotArguments, given: set[str]) -> list[str]:
    """Refuse arguments that can't be, before a model is loaded; print a line for those that have no effect.

    Args:
        arguments: The command's arguments.
        given: Names of the options that the command line gives.

    Returns:
        The sentence and its target, in UTF-8 whatever the locale; empty where positions are drawn.

    Raises:
        UserError: One sentence on what to give instead.
    """
    texts = decode_arguments([text for text in (arguments.sentence, arguments.target) if text is not None])
    if bool(texts) == (arguments.positions is not None) or (texts and arguments.sentence is None):
        raise UserError("give either a sentence, and perhaps its --target, or --positions")
    if any(not text.strip() for text in texts):
        raise UserError("the sentence or its --target is blank; there is nothing that could attend to anything")
    if arguments.positions is not None:
        check_length(arguments.positions)
        report_without_effect(given & {"kind"}, "--positions draws no attention")
    check_picture(arguments.output_file)
    return texts


def main(argv: list[str] | None = None) -> None:
    """Run the command with the words of its command line."""
    parser = make_parser()
    arguments, loading = parser.parse(argv)
    texts = check(arguments, parser.given(argv))
    disable_progress_bar()
    model, tokenizer = loading.load(arguments.model_name_or_path)
    if texts:
        figure = plot_attention(attention_maps(model, tokenizer, *texts), arguments.kind)
    else:
        figure = plot_positions(model, arguments.positions)
    save_figure(figure, arguments.output_file)
    print(f"The picture is in {arguments.output_file}")

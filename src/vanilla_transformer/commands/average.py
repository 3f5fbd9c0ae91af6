"""Average the last checkpoints of a run, or the given checkpoints, into a model folder.

vanilla-transformer average runs/en-de --last 5 --output_dir runs/en-de-averaged
"""

from dataclasses import dataclass, field

from ..errors import UserError
from ..training.averaging import average_checkpoints, last_checkpoints
from .arguments import CommandParser, names


@dataclass
class AverageArguments:
    """Which checkpoints, and where to."""

    folders: list[str] = field(
        metadata={"positional": True, "help": "Folder of a run with --last, otherwise checkpoints to average."}
    )
    output_dir: str = field(metadata={"help": "New folder for the averaged model."})
    last: int | None = field(default=None, metadata={"help": "Number of last checkpoints of the run."})


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        AverageArguments, prog="vanilla-transformer average", doc=__doc__, most_used=names(AverageArguments)
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: The words of the command line; by default those of this process.
    """
    (arguments,) = make_parser().parse(argv)
    if arguments.last is not None and len(arguments.folders) > 1:
        raise UserError(f"--last goes with one run's folder, not with {len(arguments.folders)}; leave one of them out")
    checkpoints = (
        arguments.folders if arguments.last is None else last_checkpoints(arguments.folders[0], arguments.last)
    )
    average_checkpoints(checkpoints, arguments.output_dir)
    print(f"The average of {', '.join(map(str, checkpoints))} is in {arguments.output_dir}")

"""The command line of the scripts."""

from typing import Any

from transformers import HfArgumentParser


def parse(parser: HfArgumentParser, argv: list[str] | None) -> tuple[Any, ...]:
    """The parser's dataclasses, and the namespace of its other arguments where it has any.

    An option that the parser does not know ends the script as `argparse` does: usage, one line, status 2.

    Args:
        parser: Of which no `.args` file beside the script is looked for.
        argv: The words of the command line; by default those that the script was started with.
    """
    *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return tuple(parsed)

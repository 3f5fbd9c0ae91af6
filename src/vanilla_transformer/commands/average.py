"""Average the last checkpoints of a run, or the given checkpoints, into a model folder.

vanilla-transformer average runs/en-de --last 5 --output_dir runs/en-de-averaged
"""

from argparse import ArgumentParser, RawDescriptionHelpFormatter

from ..training.averaging import average_checkpoints, last_checkpoints


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: The words of the command line; by default those of this process.
    """
    parser = ArgumentParser(
        prog="vanilla-transformer average", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="the folder of a run with --last, otherwise checkpoints to average")
    parser.add_argument("--last", type=int, help="number of last checkpoints of the run")
    parser.add_argument("--output_dir", required=True, help="new folder for the averaged model")
    arguments = parser.parse_args(argv)
    if arguments.last is not None and len(arguments.folders) > 1:
        parser.error("--last goes with one run's folder")
    checkpoints = (
        arguments.folders if arguments.last is None else last_checkpoints(arguments.folders[0], arguments.last)
    )
    average_checkpoints(checkpoints, arguments.output_dir)
    print(f"The average of {', '.join(map(str, checkpoints))} is in {arguments.output_dir}")

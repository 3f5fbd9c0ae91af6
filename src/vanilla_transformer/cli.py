"""The console command `vanilla-transformer`. It loads torch only when a command runs."""

import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib import import_module

import vanilla_transformer

from .commands.process import end_distributed_process
from .errors import exit_on_user_error

# Each command is the module of its name in `commands`.
COMMANDS = {
    "train": "train a model, or fine-tune one",
    "translate": "translate sentences",
    "evaluate": "score a model or translations: sacreBLEU, chrF, exact match",
    "average": "average checkpoints",
    "push": "push a model to the Hub, or write the folder that would be pushed",
    "export": "write a model for MarianMT, CTranslate2 or ONNX",
    "convert": "convert a checkpoint of fairseq",
    "plot": "draw attention or positions",
}


def make_parser() -> ArgumentParser:
    """Make the parser of the command line up to the command; the rest is parsed by the command."""
    commands = "\n".join(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items())
    parser = ArgumentParser(
        prog="vanilla-transformer",
        description='The Transformer of "Attention Is All You Need".',
        epilog=f"commands:\n{commands}\n\n`vanilla-transformer COMMAND --help` lists a command's options.",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {vanilla_transformer.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: The words of the command line; by default those of this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = make_parser().parse_args(argv[:1]).command
    with end_distributed_process(), exit_on_user_error():
        vanilla_transformer.register()
        import_module(f".commands.{command}", __package__).main(argv[1:])

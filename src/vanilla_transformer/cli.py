"""The console command `vanilla-transformer`. It loads torch only when a command runs."""

import io
import os
import select
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn

from huggingface_hub.errors import StrictDataclassError

import vanilla_transformer

from .commands.process import end_distributed_process
from .errors import UserError, suggest

# Each command is the module of its name in `commands`.
COMMANDS = {
    "train": "train a model, or fine-tune one",
    "translate": "translate sentences",
    "evaluate": "score models or translations: sacreBLEU's metrics, COMET, exact match",
    "score": "score given translations: log P(Y|X) of sentence pairs, a new order of n-best lists",
    "average": "average checkpoints",
    "push": "push a model to the Hub, or write the folder that would be pushed",
    "export": "write a model for MarianMT, CTranslate2 or ONNX",
    "convert": "convert a checkpoint of fairseq",
    "plot": "draw attention or positions",
    "illustrate": "write a page on which the model explains itself in the browser",
}
PROG = "vanilla-transformer"
SHELLS = ("bash", "zsh", "tcsh")
# Ends of the names of options that take a file or a folder, for completion.
FILE_ENDINGS = ("_file", "_dir", "_path", "scores", "systems", "folders", "checkpoint", "dict")


class MainParser(ArgumentParser):
    """A parser whose errors are one line, without usage."""

    def error(self, message: str) -> NoReturn:
        """End the process with one line and status 2."""
        self.exit(2, f"error: {' '.join(message.splitlines())}\n")


def make_options() -> MainParser:
    """Make the parser of the options that stand before a command."""
    parser = MainParser(add_help=False)
    parser.add_argument("--version", action="version", version=f"{PROG} {vanilla_transformer.__version__}")
    parser.add_argument(
        "--print-completion", choices=SHELLS, metavar="SHELL", help=f"print completion for {', '.join(SHELLS)} and exit"
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an unexpected error came from; goes with every command"
    )
    return parser


def make_parser() -> MainParser:
    """Make the parser of a command line that does not begin with a command."""
    commands = "\n".join(f"  {name:<10} {purpose}" for name, purpose in COMMANDS.items())
    parser = MainParser(
        prog=PROG,
        usage="%(prog)s COMMAND [options]",
        description='The Transformer of "Attention Is All You Need".',
        epilog=f"commands:\n{commands}\n\n`{PROG} COMMAND --help` lists a command's options.",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
        parents=[make_options()],
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help="one of the commands below")
    return parser


def answer(words: Sequence[str]) -> None:
    """Answer a command line that does not begin with a command: --help, --version, completion, or an error."""
    parser = make_parser()
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        parser.error(f"unknown option {unknown[0]}{suggest(unknown[0], parser._option_string_actions)}")
    if arguments.print_completion is not None:
        print(completion(arguments.print_completion))
    elif arguments.command is None:
        parser.error(f"give a command: {', '.join(COMMANDS)}")
    elif arguments.command in COMMANDS:
        parser.error(f"give {arguments.command} first, and its options after it")
    else:
        near = suggest(arguments.command, COMMANDS) or f"; choose from {', '.join(COMMANDS)}"
        parser.error(f"unknown command {arguments.command}{near}")


def completion(shell: str) -> str:
    """Form the completion script of a shell from the parsers of all commands."""
    import shtab  # here, as only this needs it

    parser = MainParser(prog=PROG, parents=[make_options()])
    subparsers = parser.add_subparsers()
    for name, purpose in COMMANDS.items():
        command_parser = import_module(f".commands.{name}", __package__).make_parser()
        for action in command_parser._actions:
            if action.dest.endswith(FILE_ENDINGS):
                action.complete = shtab.FILE
        subparsers.add_parser(name, help=purpose, parents=[command_parser], add_help=False)
    return shtab.complete(parser, shell)


def prepare_streams() -> None:
    """Make standard output and error take any text, and give a closed stream a place to go.

    A character that the stream's encoding does not have is written as an escape: a message never ends a run.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller; in this order, the null device takes the closed stream's number
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif number and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def one_line(error: BaseException) -> str:
    """Put an error's text on one line."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def reader_has_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as after `| head`."""
    if not hasattr(select, "poll"):  # Windows
        return True
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # not a file
        return False


def discard_output() -> None:
    """Send what is still to be written to standard output nowhere, so that the interpreter's last flush succeeds."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # not a file
        pass


@contextmanager
def exit_on_error(show_traceback: bool = False) -> Iterator[None]:
    """Run the body of a program; end the process with one line and a status for each error.

    The status is 2 for a `UserError`, 130 for Ctrl-C, 1 for anything else and, without a line, where nobody reads
    standard output any more.

    Args:
        show_traceback: Let errors that are not a `UserError` through, with their traceback.
    """
    try:
        yield
        sys.stdout.flush()
    except (UserError, StrictDataclassError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and reader_has_gone():
            discard_output()
            sys.exit(1)
        if show_traceback:
            raise
        hint = "run again with --traceback to see where"
        print(f"error: {type(error).__name__}: {one_line(error)} ({hint})", file=sys.stderr)
        if isinstance(error, OSError):  # standard output may be on a full disk
            discard_output()
        sys.exit(1)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        argv: The words of the command line; by default those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    end_of_options = words.index("--") if "--" in words else len(words)
    show_traceback = "--traceback" in words[:end_of_options]
    words = [word for word in words[:end_of_options] if word != "--traceback"] + words[end_of_options:]
    prepare_streams()
    with end_distributed_process(), exit_on_error(show_traceback):
        if not words or words[0] not in COMMANDS:
            answer(words)
            return
        vanilla_transformer.register()
        import_module(f".commands.{words[0]}", __package__).main(words[1:])

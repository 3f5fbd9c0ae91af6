"""Write docs/options.md, the table of all options of all commands, from the parsers of the commands.

make docs
"""

from argparse import Action
from importlib import import_module
from pathlib import Path

from vanilla_transformer.cli import COMMANDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"
INTRODUCTION = """\
# All options of all commands

Written by `make docs` from the options' definitions; a test compares. Options that are not given have the default;
"-" is none. A value of another type, or one that is not among the allowed ones, is refused in one line, and so is an
option that a command does not have. `--help` and `--traceback` go with every command.
"""
HEAD = "| option | type | default | allowed | effect |\n|---|---|---|---|---|\n"
TYPES = {"string_to_bool": "bool", "make_choice_type_function": "str"}


def type_name(action: Action) -> str:
    """Name the type of an option's value, `list of` it where it takes several words."""
    name = getattr(action.type, "__qualname__", "str").partition(".")[0]
    name = TYPES.get(name, name)
    if action.type is None or name not in ("bool", "int", "float", "str"):
        name = "str" if action.nargs != 0 else "flag"
    return f"list of {name}" if action.nargs in ("+", "*") else name


def cell(text: str) -> str:
    """Put a text into a cell of a table in Markdown."""
    text = " ".join(text.split())
    return text.replace("|", "\\|").replace("<", "&lt;")


def row(action: Action) -> str:
    """Describe an option: name, type, default, allowed values, effect."""
    name = f"`--{action.dest}`" if action.option_strings else f"`{action.dest}`"
    default = "required" if action.required else "-" if action.default in (None, [], "") else f"`{action.default}`"
    allowed = ", ".join(f"`{choice}`" for choice in action.choices) if action.choices else "-"
    return f"| {name} | {type_name(action)} | {cell(default)} | {cell(allowed)} | {cell(action.help or '')} |"


def describe(command: str) -> str:
    """Write a command's section: a table for each group of its help."""
    parser = import_module(f"vanilla_transformer.commands.{command}").make_parser()
    lines = [f"\n## {command}\n\n{parser.description}\n"]
    for title, actions in parser.sections().items():
        lines.append(
            f"\n### {command}: {title}\n\n| option | type | default | allowed | effect |\n|---|---|---|---|---|\n"
        )
        shown = [action for action in actions if action.const is not False]  # --no_x is the opposite of --x
        lines += [f"{row(action)}\n" for action in shown]
    return "".join(lines)


def make_page() -> str:
    """Write the whole page."""
    return INTRODUCTION + "".join(describe(command) for command in COMMANDS)


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8", newline="\n")
    print(f"The table is in {PAGE}")

"""Write docs/options.md, the table of all options of all commands, from the parsers of the commands.

make docs
"""

from argparse import Action
from importlib import import_module
from pathlib import Path

from vanilla_transformer.cli import COMMANDS
from vanilla_transformer.commands.train_arguments import DATA_RANGES
from vanilla_transformer.data.tokenization import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE
from vanilla_transformer.inference import settings, significance
from vanilla_transformer.plots.positions import MAX_LENGTH
from vanilla_transformer.training import options

PAGE = Path(__file__).resolve().parents[1] / "docs" / "options.md"
INTRODUCTION = """\
# All options of all commands

Written by `make docs` from the options' definitions; a test compares. Options that are not given have the default;
"-" is none. A value of another type, or one that is not allowed, is refused in one line before anything else happens,
and so is an option that a command does not have. `--help` and `--traceback` go with every command.
"""
HEAD = "| option | type | default | allowed | effect | what happens |\n|---|---|---|---|---|---|\n"
EXPONENT = f"a number from -{settings.MAX_LENGTH_PENALTY:g} to {settings.MAX_LENGTH_PENALTY:g}"
# Ranges of `train` that are checked with other options; no dataclass has them in a table.
TRAINING_RANGES = DATA_RANGES | {
    "vocab_size": options.Range(MIN_VOCAB_SIZE, MAX_VOCAB_SIZE, whole=True),
    "max_steps": options.COUNT,
    "num_train_epochs": options.EPOCHS,
}
# Ranges of the other commands.
SETTINGS = {
    "num_beams": f"a whole number from 1 to {settings.MAX_BEAMS}",
    "length_penalty": EXPONENT,
    "normalize": EXPONENT,
    "max_new_tokens": f"a whole number from 1 to {settings.MAX_NEW_TOKENS}",
    "batch_tokens": "a whole number of at least 1",
    "max_source_length": "a whole number of at least 2",
    "too_long": ", ".join(f"`{value}`" for value in settings.TOO_LONG),
    "num_return_sequences": "a whole number from 1 to num_beams",
    "weight": "a number from 0 to 1",
    "max_length": "a whole number of at least 2",
    "max_predict_samples": "a whole number of at least 1",
    "paired_bs_n": f"a whole number from 1 to {significance.MAX_SAMPLES}",
    "paired_ar_n": f"a whole number from 1 to {significance.MAX_SAMPLES}",
    "seed": "a whole number of at least 1",
    "positions": f"a whole number from 1 to {MAX_LENGTH}",
}
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
    text = " ".join(text.split()).replace("%%", "%")  # argparse reads % as the beginning of a value
    return text.replace("|", "\\|").replace("<", "&lt;")


def allowed_values(action: Action, command: str) -> str:
    """List the values that an option may have, or say which numbers."""
    name = action.dest
    if command == "train":
        if name in options.REFUSED:
            return " or ".join(f"`{value}`" for value in options.REFUSED[name][0] if value not in ("", [])) or "-"
        if allowed := (options.RANGES | TRAINING_RANGES).get(name):
            return str(allowed)
        if name in options.CHOICES:
            return ", ".join(f"`{choice.value}`" for choice in options.CHOICES[name])
    elif name in SETTINGS:
        return SETTINGS[name]
    return ", ".join(f"`{choice}`" for choice in action.choices) if action.choices else "-"


def what_happens(action: Action, command: str) -> str:
    """Say whether an option is obeyed, refused or without effect."""
    name = action.dest
    if command != "train":
        return "obeyed"
    if name in options.REFUSED:
        return f"other values are refused: {options.REFUSED[name][1]}"
    if name in options.NO_EFFECT:
        return f"no effect, which is reported: {options.NO_EFFECT[name]}"
    for names, (_, reason) in options.CONDITIONAL.items():
        if name in names:
            return f"obeyed; no effect, which is reported, where {reason}"
    return "obeyed"


def row(action: Action, command: str) -> str:
    """Describe an option: name, type, default, allowed values, effect, and what happens to it."""
    name = f"`--{action.dest}`" if action.option_strings else f"`{action.dest}`"
    default = "required" if action.required else "-" if action.default in (None, [], "") else f"`{action.default}`"
    cells = [default, allowed_values(action, command), action.help or "", what_happens(action, command)]
    return f"| {name} | {type_name(action)} | {' | '.join(map(cell, cells))} |"


def describe(command: str) -> str:
    """Write a command's section: a table for each group of its help."""
    parser = import_module(f"vanilla_transformer.commands.{command}").make_parser()
    lines = [f"\n## {command}\n\n{parser.description}\n"]
    for title, actions in parser.sections().items():
        lines.append(
            f"\n### {command}: {title}\n\n| option | type | default | allowed | effect |\n|---|---|---|---|---|\n"
        )
        shown = [action for action in actions if action.const is not False]  # --no_x is the opposite of --x
        lines += [f"{row(action, command)}\n" for action in shown]
    return "".join(lines)


def make_page() -> str:
    """Write the whole page."""
    return INTRODUCTION + "".join(describe(command) for command in COMMANDS)


if __name__ == "__main__":
    PAGE.write_text(make_page(), encoding="utf-8", newline="\n")
    print(f"The table is in {PAGE}")

"""The parser of the commands, which is made from dataclasses, and the options that several commands have."""

import copy
import os
import re
import sys
from argparse import SUPPRESS, Action, ArgumentDefaultsHelpFormatter, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from transformers import HfArgumentParser, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import suggest
from ..generation_vanilla_transformer import search_settings
from ..inference.ensemble import Ensemble
from ..inference.loading import find_device, find_dtype, load_ensemble
from ..inference.model_files import CONFIG, SavedModel, read_config
from ..inference.settings import BATCH_TOKENS, MAX_SOURCE_LENGTH, TOO_LONG, check_settings

SEVERAL_MODELS = "Folder of a trained model, or its id on the Hub; several translate together, as an ensemble."
_FILES = ("_file", "_files", "_dir", "_path")
NOT_EMPTY = (*_FILES, "_name")  # how options end whose value can't be empty
PATHS = (*_FILES, "folders", "systems", "checkpoint")  # how options end that are paths
AMBIGUOUS_VALUES = ("yes", "t", "y", "1", "no", "f", "n", "0")  # for a switch, beside true and false


class HelpFormatter(RawDescriptionHelpFormatter, ArgumentDefaultsHelpFormatter):
    """Show an option by one spelling, and its default only where it says something."""

    def _format_action_invocation(self, action: Action) -> str:
        # --train_file can also be written --train-file. argparse has no public way to leave that out of the help.
        shown = copy.copy(action)
        shown.option_strings = [spelling for spelling in action.option_strings if "-" not in spelling[2:]]
        return super()._format_action_invocation(shown)

    def _get_help_string(self, action: Action) -> str | None:
        return action.help if action.default in (None, [], "") else super()._get_help_string(action)


class CommandParser(HfArgumentParser):
    """A parser made from dataclasses. Its help shows the most used options first, and the rest in named groups.

    The metadata `"positional": True` makes a field a positional argument: a list takes any number of words, a field
    with a default at most one. Options can't be abbreviated, so that a new option never changes what a command line
    means. Of an option that is given twice the last value counts; one that takes a list is refused, as its values could
    be meant to be added or to be replaced. An empty path or name, as of an unset variable, is refused too. Every error
    is one line, and ends the process with status 2.

    The metadata `"several"` makes a list an option that may be repeated. Its value tells of a word after the option's
    first whether it is one more value, or a positional argument. Other options of models take one model only.

    Args:
        *dataclass_types: The dataclasses, in the order in which `parse` returns them.
        prog: The command as it is called, such as `vanilla-transformer train`.
        doc: The docstring of the command's module: its first line heads the help, the rest stands at the end.
        most_used: Names of the fields that the help shows first, in this order.
        groups: Names of fields for each title, in this order. A name that no dataclass has is passed over, as the
            fields of a library come and go with its versions.
        other: Title of the fields that are named nowhere.
    """

    def __init__(
        self,
        *dataclass_types: type,
        prog: str,
        doc: str | None,
        most_used: Sequence[str],
        groups: Mapping[str, Sequence[str]] | None = None,
        other: str = "other options",
    ) -> None:
        summary, _, rest = (doc or "").strip().partition("\n")
        super().__init__(
            dataclass_types,  # type: ignore[arg-type]  # the library has its own name for the type of a dataclass
            prog=prog,
            description=summary,
            epilog=rest.strip("\n") or None,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--traceback", action="store_true", default=SUPPRESS, help="Show where an unexpected error came from."
        )
        self._titles = {"most used": most_used, **(groups or {}), other: ()}
        in_usage = [action for action in self._actions if action.required and action.option_strings]
        in_usage += [action for action in self._actions if not action.option_strings]
        self.usage = " ".join([prog, "[options]", *map(usage, in_usage)])

    def add_argument(
        self,
        *flags: str,
        positional: bool = False,
        several: Callable[[str, Sequence[str]], bool] | None = None,
        **settings: Any,
    ) -> Action:
        """Add an argument as argparse does, or with `positional` one without a flag, by the name of the first flag."""
        if several is not None:
            settings |= {"action": RepeatedOption, "nargs": None, "is_another": several}
        if not positional:
            return super().add_argument(*flags, **settings)
        required = settings.pop("required", False)
        if settings.get("nargs") == "+":  # a list
            settings["nargs"] = "+" if required else "*"
        elif not required:
            settings["nargs"] = "?"
        return super().add_argument(flags[0].removeprefix("--"), **settings)

    def sections(self) -> dict[str, list[Action]]:
        """Sort the arguments, without --help and --traceback, into the titles of the help."""
        waiting = [action for action in self._actions if action.dest not in ("help", "traceback")]
        sections = {}
        for title, names in self._titles.items():
            chosen = [action for name in names for action in waiting if action.dest == name]
            chosen = chosen if names else waiting
            waiting = [action for action in waiting if action not in chosen]
            sections[title] = chosen
        return {title: actions for title, actions in sections.items() if actions}

    def format_help(self) -> str:
        """Format the help with its sections; argparse itself has no order but that of the definitions."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, [])
        formatter.add_text(self.description)
        general = [action for action in self._actions if action.dest in ("help", "traceback")]
        for title, actions in [*self.sections().items(), ("general", general)]:
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # overloaded there
        """Parse as argparse does, after `_repeat_options` and `_complete_switches`."""
        words = self._repeat_options(list(sys.argv[1:] if args is None else args))
        return super().parse_known_args(self._complete_switches(words), namespace)

    def parse(self, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
        """Parse the words of the command line, by default those of this process, into the dataclasses."""
        self._refuse_unknown(self.parse_known_args(argv)[1])
        parsed = self.parse_args_into_dataclasses(argv, look_for_args_file=False)[: len(list(self.dataclass_types))]
        for options in parsed:
            self._refuse_empty(vars(options))
            for name, value in _expand_users(vars(options)).items():
                setattr(options, name, value)
        return parsed

    def _refuse_empty(self, values: Mapping[str, Any]) -> None:
        """Refuse an empty path or name."""
        for name, value in values.items():
            if name.endswith(NOT_EMPTY) and (value == "" or (isinstance(value, list) and "" in value)):
                self.error(f"--{name} is empty; give a value, or leave it out")

    def _refuse_unknown(self, unknown: Sequence[str]) -> None:
        if unknown:
            near = suggest(unknown[0], self._option_string_actions)
            self.error(f"unrecognized arguments: {' '.join(unknown)}{near}")

    def parse_given(self, argv: Sequence[str] | None = None) -> dict[str, Any]:
        """Parse the words of the command line, and return the values of the options that it gives, by name."""
        parsed, unknown = self.parse_known_args(argv)
        self._refuse_unknown(unknown)
        values = {name: getattr(parsed, name) for name in self.given(argv) - {"traceback"}}
        self._refuse_empty(values)
        return _expand_users(values)

    def given(self, argv: Sequence[str] | None = None) -> set[str]:
        """Return the names of the options that the command line gives, whatever their value."""
        not_given = object()
        namespace = Namespace(**{action.dest: not_given for action in self._actions if action.option_strings})
        self.parse_known_args(argv, namespace)
        return {name for name, value in vars(namespace).items() if value is not not_given}

    def _repeat_options(self, argv: list[str]) -> list[str]:
        """Write an option with several values as one option each, so that it takes no positional argument."""
        end = argv.index("--") if "--" in argv else len(argv)
        self._refuse_several_models(argv[:end])
        self._refuse_repeated_lists(argv[:end])
        positional = any(not action.option_strings for action in self._actions)
        written: list[str] = []
        option: RepeatedOption | None = None  # whose value may come next
        for place, word in enumerate(argv[:end]):
            action = self._option_string_actions.get(word.partition("=")[0])
            if action is not None or word.startswith("--"):
                option = action if isinstance(action, RepeatedOption) else None
            elif option is not None and argv[place - 1] not in option.option_strings:
                if positional and not option.is_another(word, argv[:end]):
                    option = None
                else:
                    written.append(option.option_strings[0])
            written.append(word)
        return written + argv[end:]

    def _refuse_several_models(self, words: Sequence[str]) -> None:
        """Refuse several models for a command that takes one."""
        spellings = {
            spelling
            for action in self._actions
            if action.dest == "model_name_or_path" and not isinstance(action, RepeatedOption)
            for spelling in action.option_strings
        }
        places = [place for place, word in enumerate(words) if word.partition("=")[0] in spellings]
        after = [words[place + (1 if "=" in words[place] else 2) :][:1] for place in places]
        if len(places) > 1 or any(_is_models_folder(word) for following in after for word in following):
            self.error(f"--model_name_or_path has several models, and {self.prog} takes one; give one")

    def _refuse_repeated_lists(self, words: Sequence[str]) -> None:
        """Refuse an option with a list of values that is given twice."""
        options = (self._option_string_actions.get(word.partition("=")[0]) for word in words)
        lists = [action.dest for action in options if action is not None and action.nargs in ("+", "*")]
        if repeated := next((name for name in lists if lists.count(name) > 1), None):
            self.error(f"--{repeated} is given twice; give all its values after one --{repeated}")

    def _complete_switches(self, argv: list[str]) -> list[str]:
        """Write a switch without a value as `--json=True`, so that it takes no positional argument for its value.

        "True" and "False" after it are its value; a word that may as well be an argument, such as "No", is refused.
        """
        if all(action.option_strings for action in self._actions):
            return argv
        switches = {
            spelling
            for action in self._actions
            if action.nargs == "?" and action.const is True
            for spelling in action.option_strings
        }
        end = argv.index("--") if "--" in argv else len(argv)
        completed = []
        for word, following in pairwise([*argv[:end], ""]):
            if word in switches and following.lower() in AMBIGUOUS_VALUES:
                self.error(
                    f"{following!r} after {word} may be its value or an argument of its own; write {word}={following}, "
                    "or put the argument first"
                )
            has_value = following.lower() in ("true", "false")
            completed.append(f"{word}=True" if word in switches and not has_value else word)
        return completed + argv[end:]

    def error(self, message: str) -> NoReturn:
        """End the process with one line and status 2, without argparse's usage."""
        message = re.sub(r"(--\w+)/--[\w-]+", r"\1", message)  # each option's second spelling
        self.exit(2, f"error: {' '.join(message.splitlines())}\n")


class RepeatedOption(Action):
    """An option that may be given several times; its value is the list of them.

    Args:
        is_another: Tells of a word after one of its values, and of all words, whether the word is one more value.
    """

    def __init__(self, *args: Any, is_another: Callable[[str, Sequence[str]], bool], **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.is_another = is_another

    def __call__(self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None) -> None:
        """Add a value to those before."""
        earlier = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, [*(earlier if isinstance(earlier, list) else []), values])


def _expand_users(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace "~" at the beginning of paths: a shell leaves it in `--output_dir=~/runs`."""
    return {name: _expand_user(value) if name.endswith(PATHS) else value for name, value in values.items()}


def _expand_user(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_expand_user, value))
    return os.path.expanduser(value) if isinstance(value, str) else value


def is_another_model(word: str, words: Sequence[str]) -> bool:
    """Tell whether a word after a model's name is another model's, and not a sentence.

    It is if it names a model's folder, or if the sentences come from an input file. A second model on the Hub is given
    with the option again.
    """
    files = ("--input_file", "--input-file")
    return _is_models_folder(word) or any(other.partition("=")[0] in files for other in words)


def _is_models_folder(word: str) -> bool:
    return os.path.isfile(os.path.join(word, CONFIG))  # false too for a sentence that is too long for a path


def usage(argument: Action) -> str:
    """Form an argument as the line of usage shows it."""
    if argument.option_strings:
        return f"{argument.option_strings[0]} {argument.dest.upper()}"
    forms = {"?": "[{0}]", "*": "[{0} ...]", "+": "{0} [{0} ...]"}
    return forms.get(str(argument.nargs), "{0}").format(argument.dest)


def names(dataclass_type: type) -> list[str]:
    """List the names of a dataclass's fields, for a group of options."""
    return [item.name for item in fields(dataclass_type)]


def list_options(names: Iterable[str]) -> str:
    """List options by their names, as a command line gives them."""
    return ", ".join(f"--{name}" for name in sorted(names))


def report_without_effect(names: Collection[str], reason: str) -> None:
    """Print one line for options that were given and have no effect, if there are any."""
    if names:
        verb = "has" if len(names) == 1 else "have"
        print(f"note: {list_options(names)} {verb} no effect: {reason}", file=sys.stderr)


@dataclass
class LoadingArguments:
    """Options for loading a trained model."""

    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit of a model on the Hub."})
    token: str | None = field(default=None, metadata={"help": "Token for a private model on the Hub."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run model code that comes with the model."})
    device: str | None = field(
        default=None, metadata={"help": "cpu, cuda, cuda:1, ...; by default cuda if it is there."}
    )
    dtype: str = field(
        default="auto", metadata={"help": "What to compute in, such as bfloat16; auto is as the model is saved."}
    )

    def load(self, model_name_or_path: str | Sequence[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load the model, or several as an ensemble, and the tokenizer; print a line for options without effect."""
        several = [model_name_or_path] if isinstance(model_name_or_path, str) else model_name_or_path
        if all(Path(name).is_dir() for name in several):
            unused = ["model_revision"] if self.model_revision != "main" else []
            unused += ["token"] if self.token is not None else []
            report_without_effect(unused, "the model is in a folder")
        model, tokenizer = load_ensemble(
            several,
            model_revision=self.model_revision,
            token=self.token,
            trust_remote_code=self.trust_remote_code,
            device=self.device,
            dtype=self.dtype,
        )
        models = model.models if isinstance(model, Ensemble) else [model]
        if self.trust_remote_code and not any(
            type(each).__module__.startswith("transformers_modules") for each in models
        ):
            report_without_effect(["trust_remote_code"], "the model runs by the code of this package")
        return model, tokenizer

    def check_model(self, model_name_or_path: str) -> None:
        """Refuse a model that is not there, or of another kind, before others are loaded and used.

        Raises:
            UserError: Its config can't be read, or is not that of a model that can be loaded.
        """
        read_config(SavedModel(model_name_or_path, self.model_revision, self.token), self.trust_remote_code)


@dataclass
class DecodingArguments(LoadingArguments):
    """Options for loading a trained model and for the search."""

    num_beams: int | None = field(
        default=None, metadata={"help": "Beam size, 1 is greedy; by default the model's own."}
    )
    length_penalty: float | None = field(
        default=None, metadata={"help": "Above 0 prefers long translations in beam search; by default the model's own."}
    )
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest translation, in tokens; by default the source's length plus 50."}
    )
    batch_tokens: int = field(
        default=BATCH_TOKENS, metadata={"help": "Source tokens translated together; a GPU takes many more."}
    )
    max_source_length: int = field(
        default=MAX_SOURCE_LENGTH, metadata={"help": "The most tokens of a sentence; what to do with more: --too_long."}
    )
    too_long: str = field(
        default="cut",
        metadata={"choices": list(TOO_LONG), "help": "Cut too long a sentence, with a warning, or refuse it."},
    )

    def check(self) -> None:
        """Refuse what no model can decode with, before one is loaded.

        Raises:
            UserError: With the option's name, its value and what is allowed.
        """
        check_settings(**self.settings())
        find_dtype(self.dtype, find_device(self.device))

    def report_without_effect(self, model: PreTrainedModel) -> None:
        """Print a line for an option that has no effect with this model."""
        beams = search_settings(self.num_beams or model.generation_config.num_beams, None)["num_beams"]
        if self.length_penalty is not None and beams == 1:
            report_without_effect(["length_penalty"], "search with one beam is greedy")

    def settings(self) -> dict[str, Any]:
        """Collect the keyword arguments for `translate`: only what was given."""
        names = ("num_beams", "length_penalty", "max_new_tokens", "batch_tokens", "max_source_length", "too_long")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

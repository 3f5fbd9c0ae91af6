"""Where a model comes from and how it scores: `run.json` and reports of an evaluation, checked and typed.

Both may have been downloaded with a model. Every value that a card shows goes through the checks here.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from transformers import PreTrainedModel

from ..data.corpora import Corpus, list_corpora
from ..errors import UserError
from .weights import weights_digest

MAX_TEXT = 20_000  # characters of one value
LARGEST = 10**15
_NAMES = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", NoneType: "null"}
_REMEDY = "restore run.json, or remove it to go on without it"
T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """The section "data" of a record: what a model was trained on."""

    source_lang: str | list[str]  # a single one in records of earlier versions
    target_lang: str | list[str]
    max_source_length: int
    max_target_length: int
    train_pairs: int | None = None
    train_file: str | list[str] | None = None
    validation_file: str | list[str] | None = None
    dataset_name: str | list[str] | None = None
    train_weights: list[float] | None = None
    streaming: bool = False
    bpe_dropout: float = 0.0

    @property
    def languages(self) -> list[str]:
        """Source and target languages, each once."""
        return list(dict.fromkeys([*_as_list(self.source_lang), *_as_list(self.target_lang)]))

    @property
    def direction(self) -> str:
        """The languages in words, as in "en to de and fr"."""
        return " to ".join(
            " and ".join(dict.fromkeys(_as_list(languages))) for languages in (self.source_lang, self.target_lang)
        )

    @property
    def validation_corpora(self) -> list[Corpus]:
        """The corpora of files, or of embedded numbers, that the run was validated on; none if they are of the Hub.

        Raises:
            UserError: The numbers of files and languages do not go together.
        """
        if self.dataset_name is not None or (self.train_file is not None and self.validation_file is None):
            return []
        files, sources, targets = map(_as_list, (self.validation_file, self.source_lang, self.target_lang))
        return list_corpora(files, [], sources, targets, file_option="validation_file")

    @property
    def dataset_names(self) -> list[str]:
        """The data sets of the Hub."""
        return list(dict.fromkeys(_as_list(self.dataset_name)))

    @property
    def names(self) -> list[str]:
        """The data sets of the Hub or else the files."""
        return self.dataset_names or list(dict.fromkeys(_as_list(self.train_file)))


@dataclass(frozen=True)
class Start:
    """The section "model" of a record: what training started from."""

    model_name_or_path: str | None = None
    from_hub: bool = False
    preset: str | None = None
    config_overrides: str | None = None


@dataclass(frozen=True)
class Recipe:
    """The section "recipe" of a record: the training arguments in force."""

    per_device_train_tokens: int
    gradient_accumulation_steps: int
    learning_rate: float
    lr_scheduler_type: str
    warmup_steps: float
    adam_beta1: float
    adam_beta2: float
    adam_epsilon: float
    weight_decay: float
    max_grad_norm: float
    label_smoothing_factor: float
    seed: int
    bf16: bool
    fp16: bool
    load_best_model_at_end: bool | None  # None: where there is a validation
    metric_for_best_model: str | None
    ema_decay: float | None = None


@dataclass(frozen=True)
class Validation:
    """The part "validation" of a result: the last validation of a run."""

    eval_loss: float
    eval_bleu: float | None = None


@dataclass(frozen=True)
class Result:
    """The section "result" of a record: how training ended."""

    steps: int
    epochs: float | None = None
    minutes: float | None = None
    stopped: str | None = None
    validation: Validation | None = None
    best_step: int | None = None


@dataclass(frozen=True)
class Machine:
    """The section "machine" of a record: what training ran on."""

    device: str
    processes: int
    threads: int


@dataclass(frozen=True)
class Training:
    """How a model was trained; the three sections of a record that only make sense together."""

    recipe: Recipe
    result: Result
    machine: Machine

    @property
    def step_tokens(self) -> int:
        """The most source tokens, and as many target tokens, of an optimizer step."""
        return self.recipe.per_device_train_tokens * self.recipe.gradient_accumulation_steps * self.machine.processes


@dataclass(frozen=True)
class Run:
    """A record, see `training.record`. Sections that it does not have are None or empty."""

    command: str | None = None
    data: Data | None = None
    start: Start | None = None
    training: Training | None = None
    versions: dict[str, str] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Run":
        """Check a record.

        Raises:
            UserError: A section lacks a value, or a value has another type; the sentence names it.
        """

        def section(name: str, section_class: type[T]) -> T | None:
            return (
                _parse(section_class, record[name], name, "the record of the run", _REMEDY) if name in record else None
            )

        start, data = section("model", Start), section("data", Data)
        recipe, result, machine = section("recipe", Recipe), section("result", Result), section("machine", Machine)
        training = None
        if recipe and result and machine:
            training = Training(recipe, result, machine)
        elif recipe or result:
            missing = next(name for name in ("recipe", "result", "machine") if name not in record)
            raise UserError(f"the record of the run has no {missing}; {_REMEDY}")
        rest = {name: record[name] for name in ("command", "versions", "weights") if name in record}
        loose = _parse(_Loose, rest, "", "the record of the run", _REMEDY)
        return cls(loose.command, data, start, training, loose.versions, loose.weights)


@dataclass(frozen=True)
class _Loose:
    """What stands in a record outside its sections."""

    command: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Decoding:
    length_penalty: float | None = None


@dataclass(frozen=True)
class Report:
    """Scores on a test set, as the command `evaluate` reports them."""

    bleu: float
    bleu_signature: str
    bleu_precisions: list[float]
    brevity_penalty: float
    chrf: float
    chrf_signature: str
    sentences: int
    test_set_sentences: int | None = None
    data: str | None = None
    references: str | list[str] | None = None
    dataset_name: str | None = None
    dataset_config_name: str | None = None
    split: str | None = None
    target_lang: str | None = None  # of a model with several
    num_beams: int | None = None
    decoding: _Decoding | None = None

    @classmethod
    def from_mapping(cls, report: Mapping[str, Any], origin: str = "the report of scores") -> "Report":
        """Check a report.

        Raises:
            UserError: It lacks a value, or a value has another type; the sentence names it.
        """
        return _parse(cls, report, "", origin, "give what vanilla-transformer evaluate --json prints")

    @property
    def test_set(self) -> str:
        """What was scored: a data set's id and split, or a file's name."""
        if self.dataset_name:
            return " ".join(filter(None, (self.dataset_name, self.dataset_config_name, self.split)))
        files = [self.references] if isinstance(self.references, str) else self.references or []
        return Path(self.data or next(iter(files), "a test set")).name

    @property
    def scored_part(self) -> str:
        """The test set, the language of a model with several, and how much was scored where that is not all."""
        whole = self.test_set_sentences
        part = f", the first {self.sentences:,} of {whole:,} sentences" if whole and self.sentences < whole else ""
        return self.test_set + (f" into {self.target_lang}" if self.target_lang else "") + part


def read_scores(path: str | Path, model: PreTrainedModel) -> dict[str, Any]:
    """Read a report of `vanilla-transformer evaluate --json`.

    Args:
        path: The file.
        model: The model whose card the scores are for.

    Raises:
        UserError: The file can't be read, is no such report, or is one on other weights.
    """
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} can't be read: {error}; give what vanilla-transformer evaluate --json prints"
        ) from error
    if isinstance(report, dict) and "systems" in report:
        raise UserError(f"{path} has the scores of several systems; give those of this model alone")
    Report.from_mapping(report, str(path))
    if "weights" in report and report["weights"] != weights_digest(model):
        dtype = str(model.dtype).removeprefix("torch.")
        rounded = "" if report.get("dtype", dtype) == dtype else ", without --dtype"
        raise UserError(f"{path} has the scores of other weights than this model's; score this model{rounded}")
    return report


def _parse(cls: type[T], values: Any, section: str, origin: str, remedy: str) -> T:
    """Make a dataclass of a JSON object; values that it has no field for are passed over.

    Raises:
        UserError: A value is missing or of another type.
    """
    if not isinstance(values, Mapping):
        name = f" under {section!r}" if section else ""
        raise UserError(f"{origin} holds{name} {_shown(values)}; it must be a JSON object: {remedy}")
    parsed = {}
    types = get_type_hints(cls)
    for item in fields(cls):  # type: ignore[arg-type] # every class here is a dataclass
        name = f"{section}.{item.name}" if section else item.name
        if item.name in values:
            parsed[item.name] = _check(values[item.name], types[item.name], name, origin, remedy)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{origin} has no {name}; {remedy}")
    return cls(**parsed)


def _check(value: Any, expected: Any, name: str, origin: str, remedy: str) -> Any:
    """Return the value if it is of the expected type: a plain one, a list, a dict, a dataclass, or one of several."""
    allowed = get_args(expected) if get_origin(expected) not in (list, dict, None) else (expected,)
    for kind in allowed:
        if get_origin(kind) is list and isinstance(value, list):
            return [_check(item, get_args(kind)[0], f"{name}[{i}]", origin, remedy) for i, item in enumerate(value)]
        if get_origin(kind) is dict and isinstance(value, dict):
            return {
                key: _check(item, get_args(kind)[1], f"{name}.{key}", origin, remedy) for key, item in value.items()
            }
        if hasattr(kind, "__dataclass_fields__") and isinstance(value, dict):
            return _parse(kind, value, name, origin, remedy)
        if kind is float and type(value) in (int, float) and abs(value) <= LARGEST:  # False for NaN
            return value
        if kind is int and type(value) is int and abs(value) <= LARGEST:
            return value
        if kind is str and isinstance(value, str) and len(value) <= MAX_TEXT:
            return value
        if kind in (bool, NoneType) and type(value) is kind:
            return value
    names = " or ".join(_NAMES.get(kind, "a JSON object or list") for kind in allowed)
    raise UserError(f"{origin} has {name} = {_shown(value)}, but it must be {names}; {remedy}")


def _as_list(value: str | list[str] | None) -> list[str]:
    """Return one value or none as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def _shown(value: Any) -> str:
    """Show a value in an error, at most 60 characters of it."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."

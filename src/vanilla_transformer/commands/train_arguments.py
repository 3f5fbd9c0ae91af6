"""Options of the train command: model, data, and how the help sorts them."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, IterableDataset
from sacrebleu.metrics import BLEU

from ..data.corpora import Corpus, check_weights, list_corpora
from ..data.limits import take_pairs
from ..data.numbers import number_pairs
from ..data.reading import load_pairs
from ..errors import UserError
from ..language_tags_vanilla_transformer import language_tag
from ..training.options import COUNT, Range, check_metric, find_ineffective
from ..training.recipe import PaperTrainingArguments
from .arguments import names

NUMBERS = {"train": 40_000, "validation": 500}  # pairs of the embedded corpus

LISTS = ("train_file", "validation_file", "dataset_name", "dataset_config_name", "source_lang", "target_lang")
DATA_RANGES = {
    "max_source_length": Range(2, whole=True),  # a token and </s>
    "max_target_length": Range(2, whole=True),
    "max_length_ratio": Range(1),
    "bpe_dropout": Range(0, 1),
    "preprocessing_num_workers": COUNT,
    "shuffle_buffer_size": COUNT,
    "max_train_samples": COUNT,
    "max_eval_samples": COUNT,
}


def check_ranges(options: Any, ranges: dict[str, Range]) -> None:
    """Check the value ranges of options.

    Raises:
        UserError: With the option, its value and what is allowed.
    """
    for name, allowed in ranges.items():
        value = getattr(options, name)
        if value is not None and value not in allowed:
            raise UserError(f"{name} is {value}; it must be {allowed}")


@dataclass
class ModelArguments:
    """The model: a new one of a preset's size, or one to fine-tune."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a model to fine-tune; by default, a new model."}
    )
    preset: Literal["tiny", "base", "big"] = field(default="base", metadata={"help": "Size of a new model."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Changes to the config, such as encoder_layers=3,dropout=0.2."}
    )
    tokenizer_name: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a tokenizer; by default, one trained on the data."}
    )
    vocab_size: int = field(default=37_000, metadata={"help": "Number of types of a new tokenizer."})

    def __post_init__(self) -> None:
        """Check the value ranges.

        Raises:
            UserError: With the option, its value and what is allowed.
        """
        check_ranges(self, {"vocab_size": COUNT})

    @property
    def is_on_the_hub(self) -> bool:
        """Return whether the model to fine-tune comes from the Hub."""
        return self.model_name_or_path is not None and not Path(self.model_name_or_path).is_dir()

    def describe(self) -> dict[str, Any]:
        """Return the options for the record of the run; None for those that are not in force."""
        record = asdict(self) | {"from_hub": self.is_on_the_hub}
        if self.model_name_or_path is not None:
            record |= {"preset": None, "vocab_size": None}
        elif self.tokenizer_name is not None:
            record["vocab_size"] = None
        return record


@dataclass
class DataArguments:
    """The sentence pairs to train and validate on."""

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "Prefix of two files (data/train: data/train.en and .de), or a .tsv, .csv, .jsonl, .parquet file; "
            "several for several corpora."
        },
    )
    validation_file: list[str] | None = field(
        default=None, metadata={"help": "The same for validation; one is validated in each pair of languages."}
    )
    dataset_name: list[str] | None = field(default=None, metadata={"help": "Hub id of a data set, instead of files."})
    dataset_config_name: list[str] | None = field(default=None, metadata={"help": "Configuration of that data set."})
    source_lang: list[str] = field(
        default_factory=lambda: ["en"],
        metadata={"help": "Language to translate from; one for all corpora, or one for each."},
    )
    target_lang: list[str] = field(
        default_factory=lambda: ["fr"],
        metadata={
            "help": "Language to translate into; one for all corpora, or one for each. Several get tags, as >>fr<<."
        },
    )
    train_weights: list[float] | None = field(
        default=None,
        metadata={"help": "Share of each corpus in an epoch, relative to the others; by default what it has."},
    )
    bleu_tokenize: str | None = field(
        default=None,
        metadata={
            "choices": list(BLEU.TOKENIZERS),
            "help": "BLEU's tokenizer for validation; by default the usual one for target_lang.",
        },
    )
    max_source_length: int = field(default=256, metadata={"help": "Drop pairs with a longer source, in tokens."})
    max_target_length: int = field(default=256, metadata={"help": "Drop pairs with a longer target, in tokens."})
    max_length_ratio: float = field(
        default=3.0, metadata={"help": "Drop pairs if one side has more than this many times the tokens of the other."}
    )
    bpe_dropout: float = field(
        default=0.0,
        metadata={"help": "Probability of dropping a merge of the BPE in training (0.1 is usual); 0 turns it off."},
    )
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Number of processes for tokenization."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read training data as it is needed, for data larger than memory or cache."}
    )
    shuffle_buffer_size: int = field(
        default=100_000, metadata={"help": "Pairs in the shuffle buffer with --streaming."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on the first pairs of each corpus only."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Validate on the first pairs of each corpus only."}
    )

    def __post_init__(self) -> None:
        """Check the value ranges, and options that contradict each other.

        Raises:
            UserError: With the option, its value and what is allowed.
        """
        check_ranges(self, DATA_RANGES)
        for name in LISTS:  # a run of an earlier version kept a single name
            if isinstance(value := getattr(self, name), str):
                setattr(self, name, [value])
        if self.dataset_name is not None and (self.train_file or self.validation_file):
            raise UserError("--dataset_name excludes --train_file and --validation_file; give one or the other")
        if bool(self.train_file) != bool(self.validation_file):
            raise UserError("--train_file and --validation_file go together; give both, or neither")

    def check_corpora(self) -> None:
        """Check that the corpora's options go together; a resumed run has some of them from the run before.

        Raises:
            UserError: With the option.
        """
        corpora = self.corpora("train")
        self.corpora("validation")
        if twice := next((corpus for corpus in corpora if corpora.count(corpus) > 1), None):
            raise UserError(f"the corpus {twice} is given twice; give it once, and its share with train_weights")
        if self.train_weights is not None:
            check_weights(self.train_weights, len(corpora))
        elif self.streaming and len(corpora) > 1:
            raise UserError("several corpora in a stream, whose sizes are not known, need train_weights, such as 1 1")
        if len(self.target_langs) > 1:
            try:
                list(map(language_tag, self.target_langs))
            except ValueError as error:
                raise UserError(f"target_lang is {' '.join(self.target_lang)}: {error}") from error

    def corpora(self, split: str) -> list[Corpus]:
        """List the corpora of a split; a corpus is validated on once.

        Raises:
            UserError: The options contradict each other.
        """
        name = "dataset_name" if self.dataset_name is not None else f"{split}_file"
        corpora = list_corpora(
            getattr(self, name) or [],
            (self.dataset_config_name if self.dataset_name is not None else None) or [],
            self.source_lang,
            self.target_lang,
            file_option=name,
        )
        return list(dict.fromkeys(corpora)) if split == "validation" else corpora

    @property
    def target_langs(self) -> list[str]:
        """The target languages, each once."""
        return list(dict.fromkeys(self.target_lang))

    @property
    def limits(self) -> dict[str, Any]:
        """Return the length limits, for `encode_pairs` and `TokenStream`."""
        names = ("max_source_length", "max_target_length", "max_length_ratio")
        return {name: getattr(self, name) for name in names}

    def load(self, split: str, corpus: Corpus, limit: int | None) -> Dataset | IterableDataset:
        """Load a split of a corpus from its file or from the Hub, or generate numbers if neither is given."""
        streaming = self.streaming and split == "train"
        languages = corpus.source_lang, corpus.target_lang
        if corpus.file is None:
            size = NUMBERS[split] if limit is None else limit
            pairs = number_pairs(*languages, split, size)
            return pairs.to_iterable_dataset() if streaming else pairs
        on_the_hub: dict[str, Any] = (
            {} if self.dataset_name is None else {"split": split, "config_name": corpus.config_name}
        )
        return take_pairs(load_pairs(corpus.file, *languages, **on_the_hub, streaming=streaming), limit)

    def load_all(self) -> tuple[list[Dataset] | list[IterableDataset], list[Dataset]]:
        """Load the training and validation pairs of each corpus.

        Raises:
            UserError: The data can't be read.
        """
        train, validation = (
            [self.load(split, corpus, limit) for corpus in self.corpora(split)]
            for split, limit in (("train", self.max_train_samples), ("validation", self.max_eval_samples))
        )
        return train, validation


# How --help sorts the options.
MOST_USED = (
    "train_file",
    "validation_file",
    "source_lang",
    "target_lang",
    "output_dir",
    "preset",
    "vocab_size",
    "per_device_train_tokens",
    "max_steps",
    "resume_from_checkpoint",
)
GROUPS = {
    "model": names(ModelArguments),
    "data": names(DataArguments),
    "recipe": (
        "num_train_epochs",
        "max_minutes",
        "ema_decay",
        "learning_rate",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "label_smoothing_factor",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "weight_decay",
        "max_grad_norm",
        "gradient_accumulation_steps",
        "optim",
        "optim_args",
        "seed",
        "data_seed",
    ),
    "checkpoints and validation": (
        "eval_strategy",
        "eval_steps",
        "eval_on_start",
        "per_device_eval_batch_size",
        "per_device_eval_tokens",
        "predict_with_generate",
        "generation_num_beams",
        "generation_max_length",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "save_only_model",
        "load_best_model_at_end",
        "metric_for_best_model",
        "greater_is_better",
        "early_stopping_patience",
        "early_stopping_threshold",
    ),
    "speed and memory": (
        "bf16",
        "fp16",
        "tf32",
        "gradient_checkpointing",
        "torch_compile",
        "use_cpu",
        "dataloader_num_workers",
        "fsdp",
        "fsdp_config",
        "deepspeed",
        "ddp_backend",
    ),
    "log": (
        "logging_strategy",
        "logging_steps",
        "logging_first_step",
        "logging_nan_inf_filter",
        "report_to",
        "run_name",
        "disable_tqdm",
    ),
    "the Hub": (
        "push_to_hub",
        "hub_model_id",
        "hub_strategy",
        "hub_token",
        "hub_private_repo",
        "hub_always_push",
        "hub_revision",
    ),
}

# Options that are no setting of the run: a resumed run takes them from its own command line only.
NOT_KEPT = {"output_dir", "resume_from_checkpoint", "hub_token", "local_rank"}
# Of each group, a resumed run takes what its own command line has, and nothing of the group from the run before.
ALTERNATIVES = (
    {"max_steps", "num_train_epochs"},
    {"train_file", "validation_file", "dataset_name", "dataset_config_name"},
)


def merge_options(before: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a resumed run: those of the run before unless they are given anew.

    Args:
        before: The options that the run before was given.
        given: The options that stand on the command line.
    """
    replaced = set(given)
    for group in ALTERNATIVES:
        if group & set(given):
            replaced |= group
    if "metric_for_best_model" in given:
        replaced.add("greater_is_better")  # of the metric before
    return {name: value for name, value in before.items() if name not in replaced} | given


# What the library's own checks raise.
LIBRARY_ERRORS = (ValueError, TypeError, ImportError, OSError, KeyError, AttributeError)


def find_culprit(kind: type, settings: dict[str, Any]) -> str:
    """Return "name is value: " for the option without which the others can be used; empty if there is none."""
    for name, value in settings.items():
        try:
            kind(**{other: settings[other] for other in settings if other != name})
        except LIBRARY_ERRORS:
            continue
        return f"{name} is {value}: "
    return ""


def make_options(values: dict[str, Any]) -> tuple[ModelArguments, DataArguments, PaperTrainingArguments]:
    """Make the dataclasses of the options from the values that were given.

    Raises:
        UserError: A value is not allowed, or two contradict each other.
    """
    parts: list[Any] = []
    for kind in (ModelArguments, DataArguments, PaperTrainingArguments):
        known = set(names(kind))
        settings = {name: value for name, value in values.items() if name in known}
        try:
            parts.append(kind(**settings))
        except UserError:
            raise
        except LIBRARY_ERRORS as error:
            raise UserError(find_culprit(kind, settings) + " ".join(str(error).split())) from error
    return parts[0], parts[1], parts[2]


def check_options(
    model: ModelArguments, data: DataArguments, training: PaperTrainingArguments, given: set[str]
) -> dict[str, str]:
    """Return the reason for each option that was given and has no effect, by name.

    Raises:
        UserError: An option can't be obeyed by this command.
    """
    data.check_corpora()
    check_metric(training, data.target_langs)
    if data.streaming and training.max_steps < 0:
        raise UserError("num_train_epochs needs data of a known length, which a stream has not; give max_steps")
    reasons: dict[str, str] = {}
    if data.streaming:
        reasons |= dict.fromkeys(
            (
                *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
                *("dataloader_multiprocessing_context", "dataloader_in_order"),
            ),
            "a stream is read by the training process",
        )
    else:
        reasons["shuffle_buffer_size"] = "the data is not a stream"
    if data.dataset_name is None:
        reasons["dataset_config_name"] = "dataset_name is not given"
    if model.tokenizer_name is not None:
        reasons["vocab_size"] = "the tokenizer is tokenizer_name"
    if training.eval_strategy == "no" or not training.predict_with_generate or training.prediction_loss_only:
        reasons["bleu_tokenize"] = "validation does not translate"
    return find_ineffective(training, given, reasons)

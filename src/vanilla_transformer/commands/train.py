"""Train a Transformer on sentence pairs, or fine-tune one; without data, on numbers spelled out.

vanilla-transformer train --train_file data/train --validation_file data/val --source_lang en --target_lang de \
    --output_dir runs/en-de
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset
from sacrebleu.metrics import BLEU
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..data.batching import TranslationCollator
from ..data.encoding import encode_pairs
from ..data.limits import check_count, take_pairs
from ..data.numbers import number_pairs
from ..data.reading import iterate_sentences, load_pairs
from ..data.streaming import TokenStream
from ..data.tokenization import PreTrainedTokenizerFast, train_tokenizer
from ..errors import UserError, first_line
from ..generation_vanilla_transformer import paper_generation_config
from ..inference.loading import load
from ..inference.metrics import choose_bleu_tokenizer, make_bleu, make_compute_metrics
from ..modeling_vanilla_transformer import VanillaTransformerForConditionalGeneration
from ..plots.run import plot_run
from ..training.callbacks import SampleTranslations, SaveOnInterrupt
from ..training.checkpoints import checkpoint_to_resume
from ..training.recipe import PaperTrainingArguments
from ..training.record import RunRecorder
from ..training.trainer import VanillaTransformerTrainer
from .arguments import CommandParser, names

NUMBERS = {"train": 40_000, "validation": 500}  # pairs of the embedded corpus


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

    @property
    def is_on_the_hub(self) -> bool:
        """Return whether the model to fine-tune comes from the Hub."""
        return self.model_name_or_path is not None and not Path(self.model_name_or_path).is_dir()


@dataclass
class DataArguments:
    """The sentence pairs to train and validate on."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Prefix of two files (data/train: data/train.en and .de), or a .tsv, .csv, .jsonl, .parquet file."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation."})
    dataset_name: str | None = field(default=None, metadata={"help": "Hub id of a data set, instead of files."})
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    source_lang: str = field(default="en", metadata={"help": "Language to translate from."})
    target_lang: str = field(default="fr", metadata={"help": "Language to translate into."})
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
    preprocessing_num_workers: int | None = field(
        default=None, metadata={"help": "Number of processes for tokenization."}
    )
    streaming: bool = field(
        default=False, metadata={"help": "Read training data as it is needed, for data larger than memory or cache."}
    )
    shuffle_buffer_size: int = field(
        default=100_000, metadata={"help": "Pairs in the shuffle buffer with --streaming."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first pairs only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Validate on the first pairs only."})

    @property
    def limits(self) -> dict[str, int | float]:
        """Return the length limits, for `encode_pairs` and `TokenStream`."""
        names = ("max_source_length", "max_target_length", "max_length_ratio")
        return {name: getattr(self, name) for name in names}

    def load(self, split: str, file: str | None, limit: int | None) -> Dataset | IterableDataset:
        """Load a split from its file or from the Hub, or generate numbers if neither is given."""
        streaming = self.streaming and split == "train"
        field = "max_train_samples" if split == "train" else "max_eval_samples"
        if limit is not None:
            check_count(field, limit)
        if self.dataset_name is not None:
            pairs = load_pairs(
                self.dataset_name,
                self.source_lang,
                self.target_lang,
                split=split,
                config_name=self.dataset_config_name,
                streaming=streaming,
            )
        elif file is not None:
            pairs = load_pairs(file, self.source_lang, self.target_lang, streaming=streaming)
        else:
            size = NUMBERS[split] if limit is None else limit
            pairs = number_pairs(self.source_lang, self.target_lang, split, size)
            return pairs.to_iterable_dataset() if streaming else pairs
        return take_pairs(pairs, limit, field)

    def load_both(self) -> tuple[Dataset | IterableDataset, Dataset]:
        """Load the training and validation pairs.

        Raises:
            UserError: The arguments contradict each other, or the data can't be read.
        """
        if self.dataset_name is not None and (self.train_file or self.validation_file):
            raise UserError("--dataset_name excludes --train_file and --validation_file; give one or the other")
        if bool(self.train_file) != bool(self.validation_file):
            raise UserError("--train_file and --validation_file go together; give both, or neither")
        return (
            self.load("train", self.train_file, self.max_train_samples),
            self.load("validation", self.validation_file, self.max_eval_samples),
        )


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


def load_or_make(
    arguments: ModelArguments, checkpoint: str | None, pairs: Dataset | IterableDataset
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and tokenizer of the checkpoint or of the model to fine-tune; otherwise create new ones.

    A new model uses the paper's beam search by default.

    Raises:
        UserError: The model or tokenizer can't be loaded, or the config is invalid.
    """
    if source := checkpoint or arguments.model_name_or_path:
        return load(source)
    if arguments.tokenizer_name:
        try:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.tokenizer_name)
        except (OSError, ValueError) as error:
            raise UserError(f"can't load the tokenizer {arguments.tokenizer_name}: {first_line(error)}") from error
    else:
        tokenizer = train_tokenizer(iterate_sentences(pairs), arguments.vocab_size)
        tokenizer = broadcast_object_list([tokenizer])[0]  # one for all processes
    config = VanillaTransformerConfig.preset(arguments.preset, vocab_size=len(tokenizer))
    if arguments.config_overrides:
        try:
            config.update_from_string(arguments.config_overrides)
            config.validate_architecture()
        except ValueError as error:
            raise UserError(f"--config_overrides {arguments.config_overrides}: {error}") from error
    model = VanillaTransformerForConditionalGeneration(config)
    model.generation_config = paper_generation_config(model)
    return model, tokenizer


def make_parser() -> CommandParser:
    """Make the parser of the command."""
    return CommandParser(
        ModelArguments,
        DataArguments,
        PaperTrainingArguments,
        prog="vanilla-transformer train",
        doc=__doc__,
        most_used=MOST_USED,
        groups=GROUPS,
        other="all other Seq2SeqTrainingArguments",
    )


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: The words of the command line; by default those of this process.
    """
    try:
        model_arguments, data_arguments, training_arguments = make_parser().parse(argv)
    except ValueError as error:  # two training arguments that do not go together
        raise UserError(str(error)) from error
    with training_arguments.main_process_first():
        checkpoint = checkpoint_to_resume(training_arguments.output_dir, training_arguments.resume_from_checkpoint)
    set_seed(training_arguments.seed)

    def say(line: str) -> None:
        if training_arguments.process_index == 0:
            print(line)

    bleu_tokenize = data_arguments.bleu_tokenize or choose_bleu_tokenizer(data_arguments.target_lang)
    data_arguments.bleu_tokenize = bleu_tokenize  # for the record
    make_bleu(bleu_tokenize)
    say(f"validation: BLEU with the tokenizer {bleu_tokenize}")
    with training_arguments.main_process_first():  # the others find the data in the cache
        train_pairs, validation_pairs = data_arguments.load_both()
    model, tokenizer = load_or_make(model_arguments, checkpoint, train_pairs)

    def encode(split: str, pairs: Dataset) -> Dataset:
        with training_arguments.main_process_first():
            dataset, report = encode_pairs(
                pairs, tokenizer, **data_arguments.limits, num_proc=data_arguments.preprocessing_num_workers
            )
        say(f"{split}: {report}")
        return dataset

    if data_arguments.streaming:
        train_dataset = TokenStream(
            train_pairs,
            tokenizer,
            **data_arguments.limits,
            max_tokens=training_arguments.per_device_train_tokens,
            buffer_size=data_arguments.shuffle_buffer_size,
            seed=training_arguments.seed,
            process_index=training_arguments.process_index,
            num_processes=training_arguments.world_size,
        )
    else:
        train_dataset = encode("train", train_pairs)
    validation_dataset = encode("validation", validation_pairs)
    say(f"model: {model.num_parameters():,} parameters, {len(tokenizer):,} types")

    recorder = RunRecorder(
        ["vanilla-transformer", "train", *(sys.argv[2:] if argv is None else argv)],
        model=asdict(model_arguments) | {"from_hub": model_arguments.is_on_the_hub},
        data=asdict(data_arguments) | {"train_pairs": None if data_arguments.streaming else len(train_dataset)},
    )
    interrupt = SaveOnInterrupt()
    samples = [
        (pair["source"], pair["target"]) for pair in validation_pairs.select(range(min(3, len(validation_pairs))))
    ]
    trainer = VanillaTransformerTrainer(
        model=model,
        args=training_arguments,
        train_dataset=train_dataset,
        eval_dataset=validation_dataset,
        processing_class=tokenizer,
        data_collator=TranslationCollator(tokenizer, model.config.decoder_start_token_id),
        compute_metrics=make_compute_metrics(tokenizer, bleu_tokenize=bleu_tokenize),
        callbacks=[interrupt, recorder, SampleTranslations(tokenizer, samples)],
    )
    if not data_arguments.streaming:
        batches = trainer.token_batches()
        say(f"batches: {len(batches)} per epoch, {batches.padding:.1%} of their tokens padding")
    trainer.train(resume_from_checkpoint=checkpoint)
    if data_arguments.streaming:
        say(f"train: {train_dataset.report}")
        say(f"batches: {train_dataset.padding:.1%} of their tokens padding")
    if trainer.is_world_process_zero():
        try:
            plot_run(trainer.state.log_history, Path(training_arguments.output_dir, "training.png"))
        except UserError as error:  # without the extra [plots]
            say(f"no picture of the run: {error}")
    if not interrupt.interrupted:
        trainer.save_model()
    # Close the connections to the other processes; `end_distributed_process` takes care of what they leave behind.
    trainer.accelerator.end_training()
    if interrupt.interrupted:
        say(f"Stopped at step {trainer.state.global_step}; continue with --resume_from_checkpoint.")
        sys.exit(130)
    say(f"The model is in {training_arguments.output_dir}")

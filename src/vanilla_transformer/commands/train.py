"""Train a Transformer on sentence pairs, or fine-tune one; without data, on numbers spelled out.

vanilla-transformer train --train_file data/train --validation_file data/val --source_lang en --target_lang de \
    --output_dir runs/en-de
"""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import PreTrainedModel, TrainerState, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer import TRAINER_STATE_NAME

from ..data.batching import TranslationCollator
from ..data.bpe_dropout import BpeDropout, BpeDropoutPairs
from ..data.corpora import Mixture
from ..data.encoding import encode_pairs
from ..data.limits import take_pairs
from ..data.reading import iterate_sentences
from ..data.streaming import TokenStream
from ..data.tokenization import PreTrainedTokenizerFast
from ..errors import UserError, first_line
from ..inference.metrics import choose_bleu_tokenizer, make_bleu, make_compute_metrics
from ..language_tags_vanilla_transformer import tag_sources, tagged_languages
from ..plots.run import plot_run
from ..training.callbacks import SampleTranslations, SaveOnInterrupt, lasting_output
from ..training.checkpoints import checkpoint_to_resume, lock_run, remove_if_unused
from ..training.recipe import PaperTrainingArguments
from ..training.record import RunRecorder, read_record
from ..training.resuming import STATE_NAME
from ..training.starting import check_unchanged_model, load_or_create
from ..training.stopping import describe_stop
from ..training.trainer import VanillaTransformerTrainer
from .arguments import CommandParser, report_without_effect
from .train_arguments import (
    GROUPS,
    MOST_USED,
    NOT_KEPT,
    DataArguments,
    ModelArguments,
    check_options,
    make_options,
    merge_options,
)


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


@dataclass
class Options:
    """The options of a run.

    Attributes:
        model: Options of the model.
        data: Options of the data.
        training: The training arguments.
        values: The options that count: given on this command line or, when resuming, on the one before.
    """

    model: ModelArguments
    data: DataArguments
    training: PaperTrainingArguments
    values: dict[str, Any]

    def say(self, line: str) -> None:
        """Print a line, in the main process only."""
        if self.training.process_index == 0:
            print(line)

    @property
    def shuffle_seed(self) -> int:
        """Seed of the order of the training data, and of its segmentation by BPE-dropout."""
        return self.training.seed if self.training.data_seed is None else self.training.data_seed

    @property
    def translates(self) -> bool:
        """Return whether validation translates."""
        return self.training.predict_with_generate and not self.training.prediction_loss_only

    def kept(self) -> dict[str, Any]:
        """Return the settings that each checkpoint keeps, which JSON can hold."""
        values = {name: value for name, value in self.values.items() if name not in NOT_KEPT}
        return {"options": json.loads(json.dumps(values, default=str)), "model": asdict(self.model)}


def main(argv: list[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: The words of the command line; by default those of this process.
    """
    words = sys.argv[2:] if argv is None else argv
    given = make_parser().parse_given(words)
    options = Options(*make_options(given), given)
    training = options.training
    with ExitStack() as stack:
        if training.process_index == 0:
            stack.enter_context(remove_if_unused(str(training.output_dir)))
        with training.main_process_first():
            checkpoint = checkpoint_to_resume(
                str(training.output_dir), training.resume_from_checkpoint, training.world_size
            )
            if training.process_index == 0:
                stack.callback(lock_run(str(training.output_dir)).release)
        if checkpoint is not None:
            options = resume_options(given, checkpoint)
        elif training.resume_from_checkpoint is not None:  # killed before the first checkpoint
            record = read_record(str(training.output_dir))
            if not record and not set(given) - NOT_KEPT:
                raise UserError(
                    f"the run in {training.output_dir} was killed before it kept its options; give them again"
                )
            values = merge_options(record.get("options", {}), given)
            options = Options(*make_options(values), values)
        elif options.model.model_name_or_path is not None:
            check_fine_tuning(given)
        ineffective = check_options(options.model, options.data, options.training, set(given))
        if training.process_index == 0:
            for name, reason in ineffective.items():
                report_without_effect([name], reason)
        command = ["vanilla-transformer", "train", *without_token(words, options.training)]
        with lasting_output():
            run(options, checkpoint, command)


def without_token(words: Sequence[str], training: PaperTrainingArguments) -> list[str]:
    """Take the Hub token out of the arguments and of the command line; training has no use for it."""
    token, training.hub_token = training.hub_token, None
    return [word.replace(token, "...") if token else word for word in words]


def check_fine_tuning(given: dict[str, Any]) -> None:
    """Refuse options of a new model where one is fine-tuned.

    Raises:
        UserError: With the option.
    """
    for name in ("preset", "vocab_size", "tokenizer_name"):
        if name in given:
            raise UserError(
                f"{name} is {given[name]}, but the model {given['model_name_or_path']} keeps its size and tokenizer; "
                f"leave out {name}, or leave out model_name_or_path to train a new model"
            )


def resume_options(given: dict[str, Any], checkpoint: str) -> Options:
    """Complete the options of a resumed run by those that its checkpoint was trained with.

    Raises:
        UserError: An option of the model differs from the checkpoint's.
    """
    state = TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))
    states: Any = state.stateful_callbacks  # declared as a list, it is a dict once made
    kept = states.get(STATE_NAME, {})
    check_unchanged_model(given, kept.get("model", {}), Path(checkpoint).name)
    values = merge_options(kept.get("options", {}), given)
    return Options(*make_options(values), values)


def load_data(options: Options) -> tuple[list[Dataset] | list[IterableDataset], list[Dataset]]:
    """Load the sentence pairs of each corpus for training and validation."""
    with options.training.main_process_first():  # the others find the data in the cache
        return options.data.load_all()


def encode(
    options: Options,
    split: str,
    corpora: Sequence[Dataset],
    tokenizer: PreTrainedTokenizerFast,
    dropout: BpeDropout | None = None,
) -> list[Dataset]:
    """Filter and tokenize the corpora of a split, and say what was dropped."""
    data, encoded = options.data, []
    names = data.corpora(split)
    for corpus, pairs in zip(names, corpora, strict=True):
        with options.training.main_process_first():
            dataset, report = encode_pairs(
                pairs,
                tokenizer,
                **data.limits,
                num_proc=data.preprocessing_num_workers,
                dropout=dropout,
                target_lang=corpus.target_lang if tagged_languages(tokenizer) else None,
            )
        options.say(f"{split}{f', {corpus}' if len(names) > 1 else ''}: {report}")
        encoded.append(dataset)
    return encoded


def encode_training(
    options: Options, corpora: Sequence[Dataset | IterableDataset], tokenizer: PreTrainedTokenizerFast
) -> tuple[Dataset | BpeDropoutPairs | TokenStream, Mixture | None]:
    """Make the training data from the pairs of each corpus, and their shares of an epoch."""
    data = options.data
    dropout = BpeDropout(tokenizer, data.bpe_dropout) if data.bpe_dropout else None
    if data.streaming:
        return make_stream(options, corpora, tokenizer, dropout), None
    encoded = encode(options, "train", corpora, tokenizer, dropout)
    mixture = None
    if data.train_weights is not None:
        mixture = Mixture([len(corpus) for corpus in encoded], data.train_weights)
        options.say(f"an epoch: {mixture}")
    pairs = concatenate_datasets(encoded) if len(encoded) > 1 else encoded[0]
    if dropout is None:
        return pairs, mixture
    segmented = BpeDropoutPairs(
        pairs,
        dropout,
        max_source_length=data.max_source_length,
        max_target_length=data.max_target_length,
        seed=options.shuffle_seed,
    )
    return segmented, mixture


def make_stream(
    options: Options,
    corpora: Sequence[IterableDataset],
    tokenizer: PreTrainedTokenizerFast,
    dropout: BpeDropout | None,
) -> TokenStream:
    """Make this process's share of the training batches from the streams of the corpora."""
    training, data = options.training, options.data
    target_langs = [corpus.target_lang for corpus in data.corpora("train")] if tagged_languages(tokenizer) else None
    return TokenStream(
        corpora,
        tokenizer,
        **data.limits,
        max_tokens=training.per_device_train_tokens,
        buffer_size=data.shuffle_buffer_size,
        seed=options.shuffle_seed,
        process_index=training.process_index,
        num_processes=training.world_size,
        dropout=dropout,
        weights=data.train_weights,
        target_langs=target_langs,
    )


def choose_bleu_tokenizers(options: Options) -> dict[str, str]:
    """Choose BLEU's tokenizer for each target language, and say which; none where validation does not translate.

    Raises:
        UserError: One of them can't be loaded.
    """
    data = options.data
    if not options.translates:
        return {}
    tokenizers = {lang: data.bleu_tokenize or choose_bleu_tokenizer(lang) for lang in data.target_langs}
    for name in tokenizers.values():
        make_bleu(name)
    data.bleu_tokenize = ", ".join(dict.fromkeys(tokenizers.values()))  # for the record
    if len(tokenizers) == 1:
        options.say(f"validation: BLEU with the tokenizer {data.bleu_tokenize}")
    else:
        parts = ", ".join(f"eval_bleu_{lang} with the tokenizer {name}" for lang, name in tokenizers.items())
        options.say(f"validation: {parts}; eval_bleu is their mean")
    return tokenizers


def choose_samples(
    options: Options, corpora: Sequence[Dataset], tokenizer: PreTrainedTokenizerFast
) -> list[tuple[str, str]]:
    """Choose the first three pairs for validation, of several corpora one each or more, with their tags."""
    samples: list[tuple[str, str]] = []
    for corpus, pairs in zip(options.data.corpora("validation"), corpora, strict=True):
        first = take_pairs(pairs, max(1, 3 // len(corpora)))
        tag = corpus.target_lang if tagged_languages(tokenizer) else None
        samples += zip(tag_sources(tokenizer, first["source"], tag), first["target"], strict=True)
    return samples


def make_trainer(
    model: PreTrainedModel, training: PaperTrainingArguments, **arguments: Any
) -> VanillaTransformerTrainer:
    """Make the trainer.

    Raises:
        UserError: A training argument can't be obeyed, such as a tracker that is not installed.
    """
    try:
        get_reporting_integration_callbacks(training.report_to)
    except (ValueError, KeyError, ImportError) as error:
        raise UserError(f"report_to is {', '.join(training.report_to or [])}: {first_line(error)}") from error
    try:
        return VanillaTransformerTrainer(model=model, args=training, **arguments)
    except UserError:
        raise
    except (ValueError, ImportError, OSError, RuntimeError) as error:  # of the library's own checks
        given = f"generation_config is {training.generation_config}: " if training.generation_config else ""
        raise UserError(given + first_line(error)) from error


def run(options: Options, checkpoint: str | None, command: list[str]) -> None:
    """Train, and write the model, its record and a picture into the run's folder.

    Args:
        options: The options of the run.
        checkpoint: The checkpoint to continue from, or None.
        command: The command line, for the record.
    """
    training, data, output_dir = options.training, options.data, str(options.training.output_dir)
    set_seed(training.seed)
    bleu_tokenizers = choose_bleu_tokenizers(options)
    train_corpora, validation_corpora = load_data(options)
    model, tokenizer = load_or_create(
        **asdict(options.model),
        checkpoint=checkpoint,
        sentences=chain.from_iterable(map(iterate_sentences, train_corpora)),
        target_langs=data.target_langs,
    )
    if tags := tagged_languages(tokenizer):
        options.say(f"target languages: {', '.join(tags)}; each source begins with its tag, such as >>{tags[0]}<<")
    train_data, mixture = encode_training(options, train_corpora, tokenizer)
    validation = encode(options, "validation", validation_corpora, tokenizer)
    validation_langs = [
        corpus.target_lang
        for corpus, pairs in zip(data.corpora("validation"), validation, strict=True)
        for _ in range(len(pairs))
    ]
    options.say(f"model: {model.num_parameters():,} parameters, {len(tokenizer):,} types")

    recorder = RunRecorder(
        command,
        options=options.kept()["options"],
        model=options.model.describe(),
        data=asdict(data) | {"train_pairs": None if isinstance(train_data, TokenStream) else len(train_data)},
    )
    interrupt = SaveOnInterrupt()
    samples = choose_samples(options, validation_corpora, tokenizer)
    trainer = make_trainer(
        model,
        training,
        mixture=mixture,
        train_dataset=train_data,
        eval_dataset=concatenate_datasets(validation) if len(validation) > 1 else validation[0],
        processing_class=tokenizer,
        data_collator=TranslationCollator(tokenizer, model.config.decoder_start_token_id),
        compute_metrics=make_compute_metrics(tokenizer, bleu_tokenize=bleu_tokenizers, target_langs=validation_langs)
        if bleu_tokenizers
        else None,
        callbacks=[interrupt, recorder, SampleTranslations(tokenizer, samples)],
    )
    trainer.run_settings = options.kept()
    if bleu_tokenizers:
        trainer.metric_settings = {"bleu_tokenize": str(data.bleu_tokenize)}
    if checkpoint is not None and trainer.is_finished(checkpoint) and read_record(output_dir).get("finished"):
        options.say(f"The run in {output_dir} is finished; nothing is trained and nothing is changed.")
        trainer.accelerator.end_training()
        return
    if not data.streaming:
        batches = trainer.token_batches()
        options.say(f"batches: {len(batches)} per epoch, {batches.padding:.1%} of their tokens padding")
    trainer.train(resume_from_checkpoint=checkpoint)
    if isinstance(train_data, TokenStream):
        options.say(f"train: {train_data.report}")
        options.say(f"batches: {train_data.padding:.1%} of their tokens padding")
    if not interrupt.interrupted:
        trainer.save_model()
    if trainer.is_world_process_zero():
        draw(options, trainer.state.log_history)
    if not interrupt.interrupted:  # last: a run that is killed before this line does the above again when resumed
        recorder.finish(trainer.args, trainer.state)
    # Close the connections to the other processes; `end_distributed_process` takes care of what they leave behind.
    trainer.accelerator.end_training()
    if not interrupt.interrupted and (words := describe_stop(training, trainer.state)):
        options.say(words)
    if interrupt.interrupted:
        options.say(f"Stopped at step {trainer.state.global_step}; continue with --resume_from_checkpoint.")
        sys.exit(128 + interrupt.signal)
    options.say(f"The model is in {output_dir}")


def draw(options: Options, log_history: list[dict[str, float]]) -> None:
    """Draw the picture of the run, or say why there is none: it never ends a run."""
    try:
        plot_run(log_history, Path(str(options.training.output_dir), "training.png"))
    except (UserError, OSError) as error:  # without the extra [plots]; on a full disk
        options.say(f"no picture of the run: {first_line(error)}")

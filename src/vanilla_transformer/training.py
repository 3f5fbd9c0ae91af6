"""Training as in section 5 of the paper, in the terms of transformers' Seq2SeqTrainer."""

import signal
import sys
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from .batching import TokenBatchSampler, token_lengths
from .decoding import translate
from .errors import UserError, in_use

# Section 6.1. transformers divides a hypothesis' score by length^0.6; the paper by ((5 + length) / 6)^0.6.
PAPER_DECODING = {"num_beams": 4, "length_penalty": 0.6}


def noam_peak(d_model: int, warmup_steps: int) -> float:
    """The learning rate at the end of the warm-up, (d_model * warmup_steps)^-0.5: equation 3 (section 5.3).

    The equation as a whole is this peak with transformers' "inverse_sqrt" schedule: linear up to the end of the
    warm-up, then with the inverse square root of the step.
    """
    return (d_model * warmup_steps) ** -0.5


@dataclass
class PaperTrainingArguments(Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments with the paper's recipe as defaults; each can be set as in any other Trainer script.

    Args:
        per_device_train_tokens: Budget of a batch: at most so many source and so many target tokens, padding counted.
            It replaces `per_device_train_batch_size`, which counts sentences and is not used.
        learning_rate: Peak of the schedule; by default the paper's, see `noam_peak`.
        resume_from_checkpoint: A checkpoint's folder, or "last" (also without a value) for the last in `output_dir`.
    """

    per_device_train_tokens: int = field(
        default=25_000,
        metadata={"help": "A batch holds at most so many source and so many target tokens, padding counted."},
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate; by default the paper's, (d_model * warmup_steps)^-0.5."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "last",
            "help": "Continue from this checkpoint's folder; without a value, from the last one in output_dir.",
        },
    )
    # 5.2 Schedule, 5.3 Optimizer, 5.4 Regularization
    max_steps: int = field(default=100_000, metadata={"help": "Optimizer steps in all."})
    adam_beta1: float = field(default=0.9, metadata={"help": "Adam's beta1."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Adam's beta2."})
    adam_epsilon: float = field(default=1e-9, metadata={"help": "Adam's epsilon."})
    weight_decay: float = field(default=0.0, metadata={"help": "The paper has none."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Norm at which gradients are clipped, 0 for never."})
    lr_scheduler_type: str = field(default="inverse_sqrt", metadata={"help": "The schedule's form."})
    warmup_steps: float = field(default=4_000, metadata={"help": "Steps in which the learning rate rises."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing of the training loss."})
    # What is watched and kept
    eval_strategy: str = field(default="steps", metadata={"help": "When to validate: steps, epoch or no."})
    eval_steps: float = field(default=1_000, metadata={"help": "Steps from one validation to the next."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save a checkpoint: steps, epoch or no."})
    save_steps: float = field(default=1_000, metadata={"help": "Steps from one checkpoint to the next."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints kept; 2 are the best and the last one."}
    )
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether the best checkpoint is the result."})
    metric_for_best_model: str | None = field(default="bleu", metadata={"help": "What makes a checkpoint the best."})
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of it is better."})
    predict_with_generate: bool = field(default=True, metadata={"help": "Whether validation translates."})
    generation_num_beams: int | None = field(default=1, metadata={"help": "Beam size of validation; 1 is greedy."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Sentences per batch in validation."})
    logging_steps: float = field(default=100, metadata={"help": "Steps from one line of the log to the next."})
    report_to: str | None = field(default="none", metadata={"help": "tensorboard, wandb, ...; or none."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Without an accelerator there is nothing to pin memory for, and torch warns.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()


class VanillaTransformerTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with batches by token budget and the paper's label smoothing.

    It differs from the stock trainer, which works with the model as well, in this:
    - Training batches are those of `TokenBatchSampler`.
    - The model smooths the labels itself, in training only: the loss is the same however a batch is split for
      gradient accumulation, and `eval_loss` is the negative log-likelihood.
    - `model.generation_config` and `config.use_cache` stay as they were, so that a saved model keeps both.
    """

    args: PaperTrainingArguments

    def __init__(self, model: PreTrainedModel, args: PaperTrainingArguments, **kwargs: Any) -> None:
        use_cache = model.config.use_cache
        super().__init__(model=model, args=args, **kwargs)
        model.config.use_cache = use_cache
        self.label_smoother = None

    def get_train_dataloader(self) -> DataLoader:
        """Batches by token budget; the order follows from `data_seed` (or `seed`) and the epoch."""
        if self.train_dataset is None:
            raise UserError("training needs a train_dataset; this trainer was made without one")
        dataset = self._remove_unused_columns(self.train_dataset, description="training")
        sampler = TokenBatchSampler(
            token_lengths(dataset, "input_ids"),
            token_lengths(dataset, "labels"),
            max_tokens=self.args.per_device_train_tokens,
            seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
        )
        return self.accelerator.prepare(
            DataLoader(
                dataset,
                batch_sampler=sampler,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
                persistent_workers=self.args.dataloader_persistent_workers,
            )
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The model's own loss, with label smoothing (section 5.4) in training."""
        if model.training:
            inputs = inputs | {"smoothing": self.args.label_smoothing_factor}
        return super().compute_loss(model, inputs, *args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """The stock step, without what it leaves in the generation config: a `max_length` of 20 among others."""
        generation_config = deepcopy(self.model.generation_config)
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.model.generation_config = generation_config

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The stock log, without samples per second: it counts `per_device_train_batch_size` sentences per batch."""
        logs.pop("train_samples_per_second", None)
        super().log(logs, *args, **kwargs)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Tied matrices are saved once; the stock trainer takes their other names for missing."""
        tied = self.model.all_tied_weights_keys
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)


class SaveOnInterrupt(TrainerCallback):
    """On Ctrl-C, finish the step, save a checkpoint to resume from, and stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.interrupted = False

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.interrupted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nInterrupted: saving a checkpoint after this step (Ctrl-C again to stop at once).", file=sys.stderr)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._previous = signal.signal(signal.SIGINT, self._interrupt)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        signal.signal(signal.SIGINT, self._previous)


class SampleTranslations(TrainerCallback):
    """Prints translations of a few validation sentences after each validation.

    Args:
        tokenizer: The model's tokenizer.
        pairs: Source sentences and their references.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[str, str]]) -> None:
        self.tokenizer = tokenizer
        self.pairs = pairs

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PreTrainedModel,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        translations = translate(model, self.tokenizer, [source for source, _ in self.pairs], num_beams=1)
        for (source, reference), (translation,) in zip(self.pairs, translations, strict=True):
            print(f"  source      {source}\n  reference   {reference}\n  translation {translation}\n")


def checkpoint_to_resume(args: PaperTrainingArguments) -> str | None:
    """The folder of the checkpoint that training continues from, or None for a new run.

    Raises:
        UserError: A new run into a folder that is not empty, or no checkpoint to resume from.
    """
    output_dir = Path(args.output_dir)
    if args.resume_from_checkpoint is None:
        if in_use(output_dir):
            raise UserError(
                f"{output_dir} already exists and is not empty; give another --output_dir, or continue the run in it "
                "with --resume_from_checkpoint"
            )
        return None
    if args.resume_from_checkpoint == "last":
        checkpoint = get_last_checkpoint(output_dir) if output_dir.is_dir() else None
        if checkpoint is None:
            raise UserError(
                f"there is no checkpoint in {output_dir} to resume from; leave out --resume_from_checkpoint "
                "to start anew"
            )
        return checkpoint
    if not Path(args.resume_from_checkpoint, "trainer_state.json").is_file():
        raise UserError(
            f"{args.resume_from_checkpoint} is not a checkpoint: it has no trainer_state.json; give a folder named "
            "checkpoint-<step>"
        )
    return args.resume_from_checkpoint


def paper_generation_config(model: PreTrainedModel) -> GenerationConfig:
    """The model's generation config with the paper's search: beam 4 and length penalty 0.6 (section 6.1)."""
    generation_config = deepcopy(model.generation_config)
    generation_config.update(**PAPER_DECODING)
    return generation_config

"""The training recipe of section 5 of the paper as arguments of transformers' Seq2SeqTrainer."""

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    Seq2SeqTrainingArguments,
    TrainingArguments,
)

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..errors import UserError

logger = logging.getLogger(__name__)


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
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Whether the log leaves out losses that are not finite; such a loss stops."}
    )
    report_to: str | None = field(default="none", metadata={"help": "tensorboard, wandb, ...; or none."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Without an accelerator there is nothing to pin memory for, and torch warns.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()


def set_paper_learning_rate(args: TrainingArguments, d_model: int) -> None:
    """Set `learning_rate` to `noam_peak` where none is given; warn where one is given without a warm-up.

    Raises:
        UserError: Neither a learning rate nor a warm-up.
    """
    warmup_steps = args.get_warmup_steps(args.max_steps)
    if args.learning_rate is None and warmup_steps < 1:
        raise UserError(
            "a post-norm Transformer diverges without warm-up, and the paper's learning rate follows from it; set "
            "warmup_steps to at least 1 (the paper's is 4000), or give learning_rate yourself"
        )
    if args.learning_rate is None:
        args.learning_rate = noam_peak(d_model, warmup_steps)
    elif warmup_steps < 1:
        logger.warning("There is no warm-up (warmup_steps is 0): a new post-norm Transformer is likely to diverge.")


# Steps in all (table 3), and how many of the last checkpoints the paper averages (section 6.1). "tiny" is not in the
# paper: 8,000 updates are what Wu et al. 2021 gave it on Multi30k; the other figures are ours.
RECIPES = {
    "tiny": {"max_steps": 8_000, "save_total_limit": 10, "per_device_train_tokens": 4_096, "warmup_steps": 2_000},
    "base": {"max_steps": 100_000, "save_total_limit": 5},
    "big": {"max_steps": 300_000, "save_total_limit": 20},
}


def paper_arguments(preset: str, output_dir: str, **overrides: Any) -> PaperTrainingArguments:
    """The paper's training of a preset (section 5), its learning rate worked out and its checkpoints kept to average.

    The rest of the recipe, the size's dropout (table 3), is in `VanillaTransformerConfig.preset`.

    Args:
        preset: "base" or "big", or "tiny".
        output_dir: The run's folder.
        **overrides: Any other argument of `PaperTrainingArguments`, or another value for one.

    Raises:
        ValueError: There is no such preset.
        UserError: Neither a learning rate nor a warm-up.
    """
    d_model = VanillaTransformerConfig.preset(preset).d_model
    settings = RECIPES[preset] | {"load_best_model_at_end": False} | overrides
    arguments = PaperTrainingArguments(output_dir=output_dir, **settings)
    set_paper_learning_rate(arguments, d_model)
    return arguments

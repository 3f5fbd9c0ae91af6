"""The training recipe of section 5 of the paper as arguments of transformers' Seq2SeqTrainer."""

import logging
import os
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from transformers import Seq2SeqTrainingArguments

from ..configuration_vanilla_transformer import VanillaTransformerConfig
from ..errors import UserError
from .options import COUNT, EPOCHS, FOLLOWING_SCHEDULES, LOWER_IS_BETTER, check_combinations, check_values

logger = logging.getLogger(__name__)

PAPER_STEPS = 100_000  # of the base model, table 3


def noam_peak(d_model: int, warmup_steps: int) -> float:
    """Return the learning rate at the end of the warm-up, (d_model * warmup_steps)^-0.5: equation 3 (section 5.3).

    Equation 3 is this peak with transformers' "inverse_sqrt" schedule: a linear increase during the warm-up, then a
    decrease proportional to the inverse square root of the step.
    """
    return (d_model * warmup_steps) ** -0.5


@dataclass
class PaperTrainingArguments(Seq2SeqTrainingArguments):
    """Seq2SeqTrainingArguments with the paper's recipe as defaults; each can be set as in any other Trainer script.

    Args:
        per_device_train_tokens: Token budget of a batch: at most this many source tokens and at most this many target
            tokens, including padding. It replaces `per_device_train_batch_size`, which counts sentences.
        learning_rate: Peak of the schedule; by default `noam_peak`.
        resume_from_checkpoint: A checkpoint's folder, or "last" for the last complete one in `output_dir`.
    """

    per_device_train_tokens: int = field(
        default=25_000,
        metadata={
            "help": "Token budget of a batch: at most this many source and this many target tokens, including padding."
        },
    )
    learning_rate: float | None = field(  # type: ignore[assignment] # None until the model's d_model is known
        default=None, metadata={"help": "Peak learning rate; by default the paper's, (d_model * warmup_steps)^-0.5."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "nargs": "?",
            "const": "last",
            "help": "Checkpoint folder to continue from; without a value, the last complete one in output_dir.",
        },
    )
    per_device_eval_tokens: int = field(
        default=4_096, metadata={"help": "Token budget of a validation batch; a longer sentence is a batch of its own."}
    )
    # 5.2 Schedule, 5.3 Optimizer, 5.4 Regularization
    max_steps: int = field(  # type: ignore[assignment] # None until `__post_init__`
        default=None, metadata={"help": "Total number of optimizer steps; by default 100,000, or num_train_epochs."}
    )
    num_train_epochs: float | None = field(  # type: ignore[assignment] # None until `__post_init__`
        default=None, metadata={"help": "Number of epochs, instead of max_steps."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Decay of an exponential moving average of the weights, which is validated and saved; say 0.999."
        },
    )
    max_minutes: float | None = field(
        default=None,
        metadata={"help": "End the run after so many minutes, those before an interruption included."},
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "Adam's beta1."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Adam's beta2."})
    adam_epsilon: float = field(default=1e-9, metadata={"help": "Adam's epsilon."})
    weight_decay: float = field(default=0.0, metadata={"help": "The paper has none."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Maximum gradient norm; 0 turns clipping off."})
    lr_scheduler_type: str = field(default="inverse_sqrt", metadata={"help": "Learning rate schedule."})
    warmup_steps: float = field(default=4_000, metadata={"help": "Steps of linear warm-up."})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "Label smoothing of the training loss."})
    # Validation, checkpoints and logging
    eval_strategy: str = field(default="steps", metadata={"help": "When to validate: steps, epoch or no."})
    eval_steps: float = field(default=1_000, metadata={"help": "Steps between validations."})
    save_strategy: str = field(
        default="steps", metadata={"help": "When to save a checkpoint: no, steps, epoch or best."}
    )
    save_steps: float = field(default=1_000, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Number of checkpoints to keep; 2 are the best and the last one."}
    )
    load_best_model_at_end: bool | None = field(  # type: ignore[assignment] # None until `__post_init__`
        default=None,
        metadata={"help": "Load the best checkpoint when training ends; by default if there is validation."},
    )
    metric_for_best_model: str | None = field(
        default="bleu", metadata={"help": "Validation metric that selects the best checkpoint."}
    )
    greater_is_better: bool | None = field(
        default=None, metadata={"help": "Whether a larger value of that metric is better; by default by its name."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "End the run when metric_for_best_model has not improved for so many validations."},
    )
    early_stopping_threshold: float = field(
        default=0.0, metadata={"help": "How much the metric must improve to count as improved."}
    )
    predict_with_generate: bool = field(default=True, metadata={"help": "Translate in validation, for BLEU."})
    generation_num_beams: int | None = field(
        default=1, metadata={"help": "Beam size in validation; 1 is greedy search."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Sentences per validation batch."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between log lines."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Leave non-finite losses out of the log; they stop training in any case."}
    )
    report_to: str | None = field(
        default="none", metadata={"help": "Experiment trackers, such as tensorboard or wandb; or none."}
    )

    def __post_init__(self) -> None:
        """Check the arguments, and fill in those that depend on others.

        Raises:
            UserError: An argument is out of its range, can't be obeyed, or contradicts another.
        """
        check_values(self)
        if not (self.bf16 or self.fp16):  # else they count
            precision = os.environ.get("ACCELERATE_MIXED_PRECISION")  # of `accelerate launch`
            self.bf16, self.fp16 = precision == "bf16", precision == "fp16"
        self._set_length_of_run()
        if self.early_stopping_patience is not None and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"  # as transformers does for load_best_model_at_end
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = not self.metric_for_best_model.endswith(LOWER_IS_BETTER)  # "de_loss", of data "de"
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = "no" not in (self.eval_strategy, self.save_strategy)
        if (self.bf16 or "LOCAL_RANK" in os.environ) and not torch.accelerator.is_available():
            # Else transformers refuses bf16, and accelerate does not connect the processes: each trains by itself.
            self.use_cpu = True
        super().__post_init__()
        if self.lr_scheduler_type in FOLLOWING_SCHEDULES:
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode} | cast(dict[str, Any], self.lr_scheduler_kwargs or {})
        check_combinations(self)
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()

    def _set_length_of_run(self) -> None:
        """Set the one of `max_steps` and `num_train_epochs` that does not count to -1."""
        steps, epochs = cast(float | None, self.max_steps), self.num_train_epochs
        if steps is None:
            steps = PAPER_STEPS if epochs in (None, -1) else -1
        epochs = -1 if epochs is None else epochs
        if steps != -1 and steps not in COUNT:
            raise UserError(f"max_steps is {steps}; it must be {COUNT}")
        if epochs != -1 and epochs not in EPOCHS:
            raise UserError(f"num_train_epochs is {epochs}; it must be {EPOCHS}")
        if steps != -1 and epochs != -1:
            raise UserError(f"max_steps is {steps} and num_train_epochs is {epochs:g}; give only one of them")
        if steps == epochs == -1:
            raise UserError(f"max_steps is -1; it must be {COUNT}, or give num_train_epochs")
        self.max_steps, self.num_train_epochs = int(steps), epochs


def set_paper_learning_rate(args: PaperTrainingArguments, d_model: int, total_steps: int) -> None:
    """Set `learning_rate` to `noam_peak` unless it was given; warn if it was given without a warm-up.

    Args:
        args: The training arguments.
        d_model: The model's width.
        total_steps: Number of optimizer steps, for a warm-up that is a share of it.

    Raises:
        UserError: There is neither a learning rate nor a warm-up.
    """
    warmup_steps = args.get_warmup_steps(total_steps)
    if args.learning_rate is None and warmup_steps < 1:
        raise UserError(
            "a post-norm Transformer diverges without warm-up, and the paper's learning rate follows from it; set "
            "warmup_steps to at least 1 (the paper's is 4000), or give learning_rate yourself"
        )
    if args.learning_rate is None:
        args.learning_rate = noam_peak(d_model, warmup_steps)
    elif warmup_steps < 1:
        logger.warning("There is no warm-up (warmup_steps is 0): a new post-norm Transformer is likely to diverge.")


# Total steps (table 3), and the number of last checkpoints that are averaged (section 6.1). "tiny" is not in the paper:
# its batch, warm-up and 8,000 updates are Wu et al.'s (2021) on Multi30k.
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": {"max_steps": 8_000, "save_total_limit": 10, "per_device_train_tokens": 4_096, "warmup_steps": 2_000},
    "base": {"max_steps": PAPER_STEPS, "save_total_limit": 5},
    "big": {"max_steps": 300_000, "save_total_limit": 20},
}


def paper_arguments(preset: str, output_dir: str, **overrides: Any) -> PaperTrainingArguments:
    """Return the paper's training arguments for a preset (section 5), with its learning rate.

    All checkpoints that the paper averages are kept. Dropout (table 3) is part of `VanillaTransformerConfig.preset`.

    Args:
        preset: "base" or "big", or "tiny".
        output_dir: The run's folder.
        **overrides: Further arguments of `PaperTrainingArguments`.

    Raises:
        ValueError: There is no such preset.
        UserError: There is neither a learning rate nor a warm-up.
    """
    d_model = VanillaTransformerConfig.preset(preset).d_model
    settings = RECIPES[preset] | {"load_best_model_at_end": False} | overrides
    if "num_train_epochs" in overrides and "max_steps" not in overrides:
        del settings["max_steps"]
    arguments = PaperTrainingArguments(output_dir=output_dir, **settings)
    if arguments.max_steps > 0 or arguments.warmup_steps >= 1:  # otherwise the trainer knows the number of steps
        set_paper_learning_rate(arguments, d_model, arguments.max_steps)
    return arguments

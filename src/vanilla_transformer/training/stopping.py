"""The end of a run before its last step: validation that no longer improves, or a limit in minutes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils import broadcast
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, SchedulerType

from .options import metric_name
from .resuming import STATE_NAME, saved_states

COMPARED_FROM = "compared_from"  # key of the step after which validations are compared, in the settings of a checkpoint
MINUTES = "minutes"  # key of the minutes since the run began, there and in the log
# Schedules whose rates do not depend on the number of steps.
ENDLESS_SCHEDULES = (
    SchedulerType.CONSTANT,
    SchedulerType.CONSTANT_WITH_WARMUP,
    SchedulerType.INVERSE_SQRT,
    SchedulerType.REDUCE_ON_PLATEAU,
    SchedulerType.GREEDY,
)


def logged_minutes(state: TrainerState) -> float:
    """Return the minutes since the run began, as of the last line of the log or of a checkpoint after it."""
    last_line = next((line[MINUTES] for line in reversed(state.log_history) if MINUTES in line), 0.0)
    return max(last_line, (saved_states(state) or {}).get(STATE_NAME, {}).get(MINUTES, 0.0))


def validations_without_improvement(args: Any, state: TrainerState) -> int:
    """Return how many validations there have been since `metric_for_best_model` last improved.

    As with transformers' `EarlyStoppingCallback`, a value improves if it is better than all before by more than
    `early_stopping_threshold`. The count follows from the log, which a checkpoint has.
    """
    first = (saved_states(state) or {}).get(STATE_NAME, {}).get(COMPARED_FROM, -1)
    name = f"eval_{metric_name(args.metric_for_best_model)}"
    sign = 1 if args.greater_is_better else -1
    count, best = 0, -math.inf
    for line in state.log_history:
        if name not in line or line["step"] <= first:
            continue
        value = sign * line[name]
        count = 0 if value - best > args.early_stopping_threshold else count + 1
        best = max(best, value) if value == value else best  # NaN is no improvement
    return count


def find_stop_reason(args: Any, state: TrainerState) -> str | None:
    """Return why a run ends at this state though steps are left, as a clause, or None if it does not.

    Args:
        args: The training arguments.
        state: The state of the run, or of a checkpoint.
    """
    # Plain Seq2SeqTrainingArguments have neither.
    patience, minutes = (getattr(args, name, None) for name in ("early_stopping_patience", "max_minutes"))
    if patience is not None and validations_without_improvement(args, state) >= patience:
        validations = f"{patience:,} validation{'s' if patience > 1 else ''}"
        return f"{metric_name(args.metric_for_best_model)} has not improved for {validations}"
    if minutes is not None and logged_minutes(state) >= minutes:
        return f"the limit of {minutes:g} minutes is reached"
    return None


def describe_stop(args: Any, state: TrainerState) -> str | None:
    """Return a sentence on a run that ended before its last step; None for one that did not."""
    reason = find_stop_reason(args, state)
    if reason is None or state.global_step >= state.max_steps:
        return None
    words = f"Stopped at step {state.global_step:,} of {state.max_steps:,}: {reason}."
    if SchedulerType(args.lr_scheduler_type) not in ENDLESS_SCHEDULES:
        words += f" The schedule {SchedulerType(args.lr_scheduler_type).value} was planned for all {state.max_steps:,}."
    if not args.load_best_model_at_end and state.best_global_step:
        words += f" The best checkpoint is checkpoint-{state.best_global_step}; load_best_model_at_end is False."
    return words


class EarlyStopping(TrainerCallback):
    """End training when validation has not improved for `early_stopping_patience` times in a row, if that is set."""

    def on_evaluate(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Count the validation, whose line is in the log already."""
        patience = getattr(args, "early_stopping_patience", None)  # plain Seq2SeqTrainingArguments have none
        if patience is not None and validations_without_improvement(args, state) >= patience:
            control.should_training_stop = True
            control.should_save = args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.EPOCH)


class TimeLimit(TrainerCallback):
    """End training after `max_minutes`, if that is set, with a validation and a checkpoint as after the last step."""

    def __init__(self, minutes: Callable[[], float]) -> None:
        """Create the callback.

        Args:
            minutes: Returns the minutes since the run began, those before an interruption included.
        """
        self.minutes = minutes

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for the end where the time is up."""
        limit = getattr(args, "max_minutes", None)
        if limit is None:
            return
        is_up = self.minutes() >= limit
        if args.world_size > 1:  # the clocks differ, and the processes must stop at the same step
            is_up = bool(broadcast(torch.tensor([is_up], dtype=torch.int32, device=args.device)).item())
        if is_up:
            control.should_training_stop = control.should_log = True
            control.should_evaluate |= args.eval_strategy == IntervalStrategy.STEPS
            control.should_save |= args.save_strategy == SaveStrategy.STEPS

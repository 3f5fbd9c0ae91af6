"""Compare the settings of a resumed run with those that its checkpoint was trained with."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pickle import UnpicklingError
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from safetensors import SafetensorError
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerState, TrainingArguments

from ..data.bpe_dropout import BpeDropout, BpeDropoutPairs
from ..data.streaming import TokenStream, new_reader
from ..errors import UserError, first_line

logger = logging.getLogger(__name__)

STATE_NAME = "RunSettings"  # key of the settings in the state of a checkpoint
STREAM_SAMPLE = 1_000  # pairs of a stream that its fingerprint is made from

# These decide which pairs are in which batch. A changed value would put the run at another place in the data.
# "shuffle_seed" is data_seed, or seed where that is not given; a seed that has no effect any more is refused too.
BATCHES = (
    *("per_device_train_tokens", "gradient_accumulation_steps", "seed", "shuffle_seed", "processes", "bpe_dropout"),
)
# These may differ between the parts of a streamed run, whose position is a number of batches.
NOT_OF_A_STREAM = ("gradient_accumulation_steps", "processes")
# The optimizer's state has a meaning for this optimizer only.
OPTIMIZER = ("optim", "optim_args", "optim_target_modules")
# These are stored in the state of optimizer or schedule, and are replaced there.
SCHEDULE = (
    *("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon"),
)
# The trainer reads these anew in every run.
FREE = (
    *("max_steps", "num_train_epochs", "label_smoothing_factor", "max_grad_norm", "bf16", "fp16"),
    *("neftune_noise_alpha", "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "predict_with_generate"),
    *("generation_num_beams", "generation_max_length", "logging_steps"),
    *("ema_decay", "max_minutes", "early_stopping_patience", "early_stopping_threshold"),
)


def describe_settings(args: TrainingArguments, processes: int, dropout: BpeDropout | None = None) -> dict[str, Any]:
    """Return the settings of a run that a checkpoint keeps; JSON can hold them.

    Args:
        args: The training arguments.
        processes: Number of processes.
        dropout: BPE-dropout of the training data.
    """
    values: dict[str, Any] = {name: getattr(args, name, None) for name in (*BATCHES, *OPTIMIZER, *SCHEDULE, *FREE)}
    values["shuffle_seed"] = args.seed if args.data_seed is None else args.data_seed
    values["processes"] = processes
    values["bpe_dropout"] = 0.0 if dropout is None else dropout.probability
    return json.loads(json.dumps(values, default=str))


def fingerprint_data(data: Any) -> str | None:
    """Return a digest of the token ids of a data set, or of a stream's first pairs and settings; None for others."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(data, BpeDropoutPairs):
        digest.update(json.dumps(list(data.limits.values())).encode())
        data = data.pairs
    if isinstance(data, TokenStream):
        pairs = list(islice(iter(new_reader(data.pairs, epoch=0)), STREAM_SAMPLE))
        settings = [list(data.limits), data.buffer_size, data.tokenizer.backend_tokenizer.to_str()]
        settings += [] if data.weights is None else [list(data.weights)]
        digest.update(json.dumps([pairs, settings]).encode())
    elif isinstance(data, Dataset):
        columns = [name for name in ("input_ids", "labels") if name in data.column_names]
        if not columns:
            return None
        for batch in data.select_columns(columns).with_format("arrow").iter(batch_size=10_000):
            for column in columns:
                lists = batch[column].combine_chunks()
                for values in (pc.list_value_length(lists), pc.list_flatten(lists)):
                    digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False), dtype=np.int64).tobytes())
    else:
        return None
    return digest.hexdigest()


def compare_settings(before: dict[str, Any], now: dict[str, Any], checkpoint: str, streaming: bool) -> set[str]:
    """Refuse changed settings that can't be obeyed, and warn about those that are.

    Args:
        before: The settings of the checkpoint.
        now: The settings of this run.
        checkpoint: Name of the checkpoint, for the messages.
        streaming: Whether the data is a stream.

    Returns:
        Names of the settings that have changed.

    Raises:
        UserError: With the setting, its value and the value in the checkpoint.
    """
    before = {"bpe_dropout": 0.0, "ema_decay": None} | before  # which older checkpoints do not know
    changed = {name for name in now if name in before and before[name] != now[name]}
    fixed = [*OPTIMIZER, *(name for name in BATCHES if not (streaming and name in NOT_OF_A_STREAM))]
    for name in fixed:
        if name in changed:
            option = "data_seed" if name == "shuffle_seed" else name
            raise UserError(
                f"{option} is {now[name]}, but {checkpoint} was trained with {before[name]}; resume with "
                f"{before[name]}, or start a new run in another folder with model_name_or_path {checkpoint}"
            )
    if "train_data" in changed:
        raise UserError(
            f"the training data, its weights, tokenizer or length limits differ from those of {checkpoint}; resume "
            f"with the same, or start a new run in another folder with model_name_or_path {checkpoint}"
        )
    for name in sorted(changed):
        if name == "eval_data":
            logger.warning(
                "The validation data differs from that of %s; the best checkpoint is chosen anew", checkpoint
            )
        else:
            logger.warning("%s is %s from now on; %s had %s", name, now[name], checkpoint, before[name])
    return changed


def check_schedule_change(changed: set[str], scheduler: Any) -> None:
    """Refuse to change optimizer or schedule where the schedule is not a function of the step.

    Raises:
        UserError: With the setting.
    """
    if names := sorted(changed & set(SCHEDULE)):
        if not isinstance(scheduler, LambdaLR):
            raise UserError(
                f"{', '.join(names)} can't change on resuming, as the schedule has a state of its own; give the values "
                "of before"
            )


def apply_schedule(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, fresh_groups: list[dict[str, Any]]) -> None:
    """Replace the hyperparameters that were loaded with a checkpoint by those of this run.

    Args:
        optimizer: The optimizer, after its state was loaded.
        scheduler: The schedule, after its state was loaded; its functions are those of this run.
        fresh_groups: The hyperparameters of the optimizer's groups before its state was loaded.
    """
    for group, fresh, function in zip(optimizer.param_groups, fresh_groups, scheduler.lr_lambdas, strict=True):
        group.update(fresh)
        group["lr"] = fresh["initial_lr"] * function(scheduler.last_epoch)
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return the hyperparameters of an optimizer's groups, without the parameters."""
    return [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]


def saved_states(state: TrainerState) -> dict[str, Any]:
    """Return the part of the state that checkpoints keep for callbacks; declared as a list, it is a dict once made."""
    return cast(dict[str, Any], state.stateful_callbacks)


_READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, EOFError, UnpicklingError, SafetensorError)


@contextmanager
def readable(checkpoint: str, files: str) -> Iterator[None]:
    """Turn errors of reading a checkpoint's files into a `UserError`."""
    try:
        yield
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        EOFError,
        UnpicklingError,
        SafetensorError,
    ) as error:
        raise UserError(
            f"can't continue from {checkpoint}: its {files} can't be read ({first_line(error)}); "
            "continue from the checkpoint before it with resume_from_checkpoint"
        ) from error


def check_optimizer_state(optimizer: torch.optim.Optimizer, checkpoint: str) -> None:
    """Refuse an optimizer state of another model; the optimizer's kernels do not check it.

    Raises:
        UserError: A moment has another shape than its parameter.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for name, value in optimizer.state.get(parameter, {}).items():
                # Not exp_avg_sq_row and exp_avg_sq_col: Adafactor's are of the rows and columns.
                if name in ("exp_avg", "exp_avg_sq") and torch.is_tensor(value) and value.shape != parameter.shape:
                    raise UserError(
                        f"can't continue from {checkpoint}: its optimizer.pt does not fit the model; continue from the "
                        "checkpoint before it with resume_from_checkpoint"
                    )

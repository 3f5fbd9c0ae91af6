"""The record of a run: `run.json` in its folder, copied to averaged models and shown on the model card."""

import json
import os
import platform
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .. import __version__
from ..data.secrets import mask_secrets
from ..errors import UserError
from ..inference.model_files import RECORD_NAME
from .stopping import describe_stop, logged_minutes

RECORD_PART_NAME = "run.part"  # until it is complete
# Training arguments that influence the model.
_RECIPE = (
    *("per_device_train_tokens", "gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "warmup_steps"),
    *("adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm", "label_smoothing_factor"),
    *(
        "max_steps",
        "num_train_epochs",
        "ema_decay",
        "max_minutes",
        "early_stopping_patience",
        "early_stopping_threshold",
        "optim",
        "seed",
        "data_seed",
        "bf16",
        "fp16",
        "load_best_model_at_end",
        "metric_for_best_model",
    ),
)


class RunRecorder(TrainerCallback):
    """Write `run.json` into the run's folder, at the beginning, with each checkpoint and at the end of training.

    Sections of the record: "command", the command line; the given ones, such as "model" and "data"; "recipe", the
    arguments that influence the model; "result", with steps, epochs, minutes, the last validation and the step of the
    best one; "machine"; "versions"; and "finished", whether the run's model is saved. It never contains a Hub token.
    """

    def __init__(self, command: Sequence[str], **sections: dict[str, Any]) -> None:
        """Create the callback.

        Args:
            command: The program and its arguments.
            **sections: Further sections, which JSON can hold.
        """
        self.command = command
        self.sections = sections

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write a first record, from which a run that is killed before its first checkpoint takes its options."""
        self.on_save(args, state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write the record beside a new checkpoint."""
        if state.is_world_process_zero and args.output_dir is not None:
            write_record(args.output_dir, self.record(args, state))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the final record."""
        self.on_save(args, state, control)

    def finish(self, args: TrainingArguments, state: TrainerState) -> None:
        """Write the final record of a run whose model is saved: the run is finished."""
        if state.is_world_process_zero and args.output_dir is not None:
            write_record(args.output_dir, self.record(args, state) | {"finished": True})

    def record(self, args: TrainingArguments, state: TrainerState) -> dict[str, Any]:
        """Return the content of `run.json` at this point of the run."""
        command = shlex.join(self.command)
        on_gpu = args.device.type == "cuda"
        return {
            "command": command.replace(args.hub_token, "...") if args.hub_token else command,
            **self.sections,
            "recipe": {name: getattr(args, name) for name in _RECIPE}
            | {"warmup_steps": args.get_warmup_steps(state.max_steps), "max_steps": state.max_steps or args.max_steps},
            "finished": False,
            "result": {
                "steps": state.global_step,
                "epochs": state.epoch,
                "minutes": logged_minutes(state) or None,
                "stopped": describe_stop(args, state),
                "validation": next((line for line in reversed(state.log_history) if "eval_loss" in line), None),
                "best_step": state.best_global_step,
            },
            "machine": {
                "device": torch.cuda.get_device_name(args.device) if on_gpu else args.device.type,
                "processes": args.world_size,
                "threads": torch.get_num_threads(),
            },
            "versions": {
                "vanilla_transformer": __version__,
                "python": platform.python_version(),
                **{library.__name__: str(library.__version__) for library in (torch, transformers, tokenizers)},
            },
        }


def write_record(folder: str | Path, record: dict[str, Any]) -> None:
    """Write `run.json` atomically, replacing an existing one, with access tokens masked."""
    path = Path(folder, RECORD_NAME)
    part = path.with_name(RECORD_PART_NAME)
    part.write_text(mask_secrets(json.dumps(record, ensure_ascii=False, indent=2)) + "\n", encoding="utf-8")
    os.replace(part, path)


def read_record(folder: str | Path) -> dict[str, Any]:
    """Read the record of the run that a model comes from.

    Args:
        folder: Folder of a run, of an averaged model, or of a checkpoint, whose record is in the run's folder; or a
            link to one.

    Returns:
        The record that `RunRecorder` wrote. For a checkpoint or an average it also has "weights", the names of the
        checkpoints. Empty if there is no record.

    Raises:
        UserError: The record can't be read.
    """
    folder = Path(folder).resolve()
    is_checkpoint = re.fullmatch(r"checkpoint-\d+", folder.name) is not None
    path = (folder.parent if is_checkpoint else folder) / RECORD_NAME
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} can't be read: {error}; restore it, or remove it to go on without it") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} holds no JSON object; restore it, or remove it to go on without it")
    return record | {"weights": [folder.name]} if is_checkpoint else record

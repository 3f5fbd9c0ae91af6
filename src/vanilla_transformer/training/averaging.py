"""Checkpoint averaging (section 6.1: the last 5 checkpoints for base models, the last 20 for big ones)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.files import check_not_in_use, new_folder
from ..errors import UserError
from ..inference.loading import load
from .checkpoints import complete_checkpoints
from .record import read_record, write_record
from .starting import FREE_FIELDS


def last_checkpoints(run_dir: str | Path, count: int) -> list[Path]:
    """Return the last `count` complete checkpoints of a run, oldest first.

    Args:
        run_dir: A training run's output folder, with folders named checkpoint-<step>.
        count: Number of checkpoints.

    Raises:
        UserError: The run has fewer checkpoints, or `count` is below 1.
    """
    checkpoints = complete_checkpoints(run_dir)
    if not 1 <= count <= len(checkpoints):
        raise UserError(
            f"{run_dir} has {len(checkpoints)} checkpoints, so the last {count} can't be averaged; train with a larger "
            "--save_total_limit, or average fewer"
        )
    return checkpoints[-count:]


def describe_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return what must be the same in models whose weights are averaged: the config without dropout, the tokenizer."""
    config = model.config.to_dict()
    free = {*FREE_FIELDS, "dtype", "torch_dtype", "transformers_version", "_name_or_path", "use_cache", "auto_map"}
    described = {name: value for name, value in config.items() if name not in free}
    return described | {"tokenizer": cast(Any, tokenizer).backend_tokenizer.to_str()}


def average_checkpoints(checkpoints: Sequence[str | Path], output_dir: str | Path) -> PreTrainedModel:
    """Write the mean of the checkpoints' weights as an ordinary model folder, with code, tokenizer and all.

    Weights are summed in float32, with one checkpoint in memory at a time. Config, generation config, tokenizer and
    dtype are those of the last checkpoint. The record of its run is copied.

    Args:
        checkpoints: Folders of models with the same architecture.
        output_dir: New or empty folder for the averaged model.

    Returns:
        The averaged model, in the dtype of the last checkpoint.

    Raises:
        UserError: There are no checkpoints, one does not load, two differ in config, tokenizer or
            shapes, or `output_dir` is not empty.
    """
    output_dir = Path(output_dir)
    check_not_in_use(output_dir, "average")
    if not checkpoints:
        raise UserError("there is nothing to average; give at least one checkpoint")
    record = read_record(checkpoints[-1])

    sums: dict[str, torch.Tensor] = {}
    first: dict[str, Any] = {}
    for checkpoint in checkpoints:
        model, tokenizer = load(str(checkpoint), device="cpu")
        described = describe_model(model, tokenizer)
        first = first or described
        if different := [name for name in first | described if first.get(name) != described.get(name)]:
            raise UserError(f"{checkpoint} has another {different[0]} than {checkpoints[0]}; average one run's only")
        weights = dict(model.named_parameters())
        sums = sums or {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
        if {name: sum.shape for name, sum in sums.items()} != {name: weight.shape for name, weight in weights.items()}:
            raise UserError(f"{checkpoint} has weights of other shapes than {checkpoints[0]}; average one run's only")
        for name, weight in weights.items():
            sums[name] += weight.detach()

    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(sums[name] / len(checkpoints))
    with new_folder(output_dir, "average") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if record:
            write_record(folder, record | {"weights": [Path(checkpoint).name for checkpoint in checkpoints]})
    return model

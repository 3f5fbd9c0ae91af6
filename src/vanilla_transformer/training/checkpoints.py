"""Find complete checkpoints, which are folders named checkpoint-<step>, and choose one to resume from."""

import json
import logging
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from ..data.files import check_writable, in_use
from ..errors import UserError

logger = logging.getLogger(__name__)


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to the end: the Trainer writes its state last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def complete_checkpoints(run_dir: str | Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first, and warn about incomplete ones.

    Args:
        run_dir: A training run's output folder.
    """
    steps = {
        int(match[1]): path
        for path in Path(run_dir).glob("*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    }
    complete = []
    for _, checkpoint in sorted(steps.items()):
        if is_complete(checkpoint):
            complete.append(checkpoint)
        else:
            logger.warning("%s was not written to the end and is skipped", checkpoint)
    return complete


def checkpoint_to_resume(output_dir: str | Path, resume_from: str | None) -> str | None:
    """Return the checkpoint to continue from, or None for a new run.

    Args:
        output_dir: The run's folder.
        resume_from: None for a new run, "last" for the last complete checkpoint of the run, or a checkpoint's folder.

    Raises:
        UserError: A new run would write into a folder that is not empty, there is no complete checkpoint to resume
            from, or the folder can't be written to.
    """
    output_dir = Path(output_dir)
    if resume_from is None:
        if in_use(output_dir):
            raise UserError(
                f"{output_dir} already exists and is not empty; give another --output_dir, or continue the run in it "
                "with --resume_from_checkpoint"
            )
        check_writable(output_dir)
        return None
    check_writable(output_dir)
    if resume_from == "last":
        checkpoints = complete_checkpoints(output_dir)
        if not checkpoints:
            raise UserError(
                f"there is no complete checkpoint in {output_dir} to resume from; leave out --resume_from_checkpoint "
                "to start anew"
            )
        return str(checkpoints[-1])
    if not is_complete(Path(resume_from)):
        raise UserError(
            f"{resume_from} is not a complete checkpoint: it has no readable {TRAINER_STATE_NAME}; give a folder named "
            "checkpoint-<step>, or no value for the last complete one"
        )
    return resume_from

"""Checkpoints of a run: folders named checkpoint-<step>, written as a whole, checked, and chosen to resume from."""

import json
import logging
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import filelock
from safetensors import SafetensorError, safe_open
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME, TRAINER_STATE_NAME

from ..data.files import check_writable, in_use
from ..errors import UserError
from ..inference.model_files import RECORD_NAME
from .record import RECORD_PART_NAME

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
# A checkpoint, or the final model, is written here and renamed when it is complete.
STAGING_NAME = "tmp-checkpoint"
STAGING_MODEL_NAME = "tmp-model"
LOCK_NAME = ".lock"
# What a run that was killed before its first checkpoint may leave in its folder; "runs" are TensorBoard's logs.
LEFTOVERS = {STAGING_NAME, STAGING_MODEL_NAME, LOCK_NAME, RECORD_NAME, RECORD_PART_NAME, "runs"}


def lock_run(output_dir: str | Path) -> filelock.BaseFileLock:
    """Lock a run's folder against other runs; the lock ends with the process, however it ends.

    Returns:
        The lock, acquired. It is released by `release()`, and when no reference to it is left.

    Raises:
        UserError: Another run holds the lock.
    """
    lock = filelock.FileLock(Path(output_dir, LOCK_NAME))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise UserError(f"another run writes into {output_dir}; wait until it ends, or give another folder") from error
    except OSError as error:
        raise UserError(f"can't write into {output_dir}: {error.strerror}; give another folder") from error
    return lock


@contextmanager
def remove_if_unused(folder: str | Path) -> Iterator[None]:
    """Remove a folder, and the folders above it, that were made in the `with` block and then not used.

    A folder counts as unused if it holds no more than the lock.
    """
    folder = Path(folder).absolute()
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        try:
            if new and {path.name for path in folder.iterdir()} <= {LOCK_NAME}:
                (folder / LOCK_NAME).unlink(missing_ok=True)
                for path in new:
                    path.rmdir()
        except OSError:  # somebody else uses it
            pass


def checksum(file: Path) -> int:
    """Return the CRC-32 of a file."""
    crc = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            crc = zlib.crc32(block, crc)
    return crc


def write_manifest(checkpoint: Path) -> None:
    """Write the list of a checkpoint's files, each with its size and checksum."""
    files = {
        str(file.relative_to(checkpoint)): {"bytes": file.stat().st_size, "crc32": checksum(file)}
        for file in sorted(checkpoint.rglob("*"))
        if file.is_file() and file.name != MANIFEST_NAME
    }
    (checkpoint / MANIFEST_NAME).write_text(json.dumps(files, indent=2) + "\n", encoding="utf-8")


def commit_checkpoint(staging: Path, checkpoint: Path) -> None:
    """Make a checkpoint that was written below `staging` appear under its name, complete."""
    written = staging / checkpoint.name
    write_manifest(written)
    if checkpoint.exists():  # of the same step, from before the run was resumed
        checkpoint.rename(staging / "replaced")
    written.rename(checkpoint)
    shutil.rmtree(staging)


def _read_json(file: Path) -> object:
    """Return the content of a JSON file, or None if it can't be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def is_complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint has all its files, in their sizes.

    A checkpoint without a manifest, from the stock trainer, is complete if it has the state that is written last.
    """
    if not isinstance(_read_json(checkpoint / TRAINER_STATE_NAME), dict):
        return False
    if not (checkpoint / MANIFEST_NAME).exists():
        return True
    files = _read_json(checkpoint / MANIFEST_NAME)
    return isinstance(files, dict) and all(
        (checkpoint / name).is_file() and (checkpoint / name).stat().st_size == entry["bytes"]
        for name, entry in files.items()
    )


def _steps(run_dir: str | Path) -> dict[int, Path]:
    """Return the checkpoints of a run by their step, in order, complete or not."""
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in Path(run_dir).glob("checkpoint-*"))
    return dict(sorted((int(match[1]), path) for match, path in matches if match))


def complete_checkpoints(run_dir: str | Path) -> list[Path]:
    """List the complete checkpoints of a run, oldest first, and warn about incomplete ones.

    Args:
        run_dir: A training run's output folder.
    """
    complete = []
    for checkpoint in _steps(run_dir).values():
        if is_complete(checkpoint):
            complete.append(checkpoint)
        else:
            logger.warning("%s was not written to the end and is skipped", checkpoint)
    return complete


def last_good_checkpoint(run_dir: str | Path) -> Path | None:
    """Return the last complete checkpoint with finite weights, or None."""
    return next((path for path in reversed(complete_checkpoints(run_dir)) if _has_finite_weights(path)), None)


def read_log(folder: str | Path) -> list[Any]:
    """Read the log of a run, `state.log_history`, up to its last complete checkpoint.

    Args:
        folder: Folder of a run, or of one of its checkpoints.

    Returns:
        The lines, as far as JSON goes unchecked; none if there is no log that can be read.
    """
    folder = Path(folder)
    checkpoints = [folder] if (folder / TRAINER_STATE_NAME).is_file() else complete_checkpoints(folder)
    state = _read_json(checkpoints[-1] / TRAINER_STATE_NAME) if checkpoints else None
    log = state.get("log_history") if isinstance(state, dict) else None
    return log if isinstance(log, list) else []


def _has_finite_weights(checkpoint: Path) -> bool:
    """Return whether the weights, or those of PEFT's adapter, can be read and are finite."""
    files = list(checkpoint.glob("*.safetensors"))
    try:
        return bool(files) and all(map(_is_finite, files))
    except (OSError, SafetensorError):
        return False


def _is_finite(file: Path) -> bool:
    with safe_open(file, framework="pt") as weights:
        return all(bool(weights.get_tensor(name).isfinite().all()) for name in weights.keys())  # noqa: SIM118


def find_damage(checkpoint: Path, processes: int = 1) -> str | None:
    """Return what is wrong with a checkpoint that training is to continue from, as a clause, or None.

    Args:
        checkpoint: The folder.
        processes: Number of processes of the run. Each has a file for the state of its random number generators.
    """
    manifest = _read_json(checkpoint / MANIFEST_NAME)
    files = manifest if isinstance(manifest, dict) else {}
    for name, entry in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != entry["bytes"] or checksum(file) != entry["crc32"]:
            return f"{file} is damaged: its size or checksum is not the one it was written with"
    if any(checkpoint.glob("global_step*/")):  # DeepSpeed's files, in place of the optimizer's and the schedule's
        return None
    optimizer = [checkpoint / OPTIMIZER_NAME, checkpoint / OPTIMIZER_NAME_BIN]
    if not any(file.is_file() for file in optimizer) and not any(checkpoint.glob("optimizer*/")):
        return f"{optimizer[0]} is missing"
    generators = sorted(checkpoint.glob("rng_state*.pth"))
    expected = "rng_state.pth" if processes == 1 else "rng_state_0.pth"
    for file in (checkpoint / SCHEDULER_NAME, checkpoint / expected):
        if not file.is_file() and (file.name != expected or not generators):
            return f"{file} is missing"
    return None


def _names(output_dir: Path) -> set[str]:
    """Return the names of what is in a folder; none if there is no folder."""
    return {path.name for path in output_dir.iterdir()} if output_dir.is_dir() else set()


def _has_only_leftovers(output_dir: Path) -> bool:
    """Return whether a folder holds only what a run leaves that was killed before its first checkpoint."""
    names = _names(output_dir)
    return LOCK_NAME in names and names <= LEFTOVERS


def checkpoint_to_resume(output_dir: str | Path, resume_from: str | None, processes: int = 1) -> str | None:
    """Return the checkpoint to continue from, or None for a run from the beginning.

    A folder in which a run was killed before its first checkpoint was complete counts as empty, with and without
    `resume_from`.

    Args:
        output_dir: The run's folder.
        resume_from: None for a new run, "last" for the last complete checkpoint of the run, or a checkpoint's folder.
        processes: Number of processes of the run.

    Raises:
        UserError: A new run would write into a folder that is not empty, there is no complete checkpoint to resume
            from, the checkpoint is damaged, or the folder can't be written to.
    """
    output_dir = Path(output_dir)
    checkpoint = None
    if resume_from is None:
        if in_use(output_dir) and not _has_only_leftovers(output_dir):
            raise UserError(
                f"{output_dir} already exists and is not empty; give another output_dir, or continue the run in it "
                "with resume_from_checkpoint"
            )
    elif resume_from == "last":
        checkpoint = _last_checkpoint(output_dir)
        if checkpoint is not None:
            check_undamaged(checkpoint, processes)
    else:
        checkpoint = resume_from
        check_undamaged(checkpoint, processes)
        if Path(checkpoint).resolve().parent == output_dir.resolve():
            _warn_of_later_checkpoints(Path(checkpoint))
        elif in_use(output_dir) and not _has_only_leftovers(output_dir):
            raise UserError(
                f"{output_dir} is not empty, and {checkpoint} is of another run; give another output_dir, or no value "
                f"of resume_from_checkpoint to continue the run in {output_dir}"
            )
    check_writable(output_dir)
    return checkpoint


def _last_checkpoint(output_dir: Path) -> str | None:
    """Return the last complete checkpoint, or None if the run was killed before its first.

    Raises:
        UserError: There is none, and no such run.
    """
    if checkpoints := complete_checkpoints(output_dir):
        return str(checkpoints[-1])
    incomplete = {path.name for path in _steps(output_dir).values()}
    names = _names(output_dir)
    if not names or not names <= LEFTOVERS | incomplete:
        raise UserError(
            f"there is no complete checkpoint in {output_dir} to resume from; "
            + (
                "give the folder of a run, or another output_dir for a new one"
                if names
                else "leave out resume_from_checkpoint to start the run"
            )
        )
    logger.warning("%s has no complete checkpoint yet: the run starts from the beginning", output_dir)
    return None


def _step_of(checkpoint: Path) -> int:
    """Return the step of a complete checkpoint, whatever its folder is called."""
    return cast(dict[str, Any], _read_json(checkpoint / TRAINER_STATE_NAME)).get("global_step", 0)


def _warn_of_later_checkpoints(checkpoint: Path) -> None:
    """Warn where a run goes back to an earlier checkpoint: the later ones stay, and may be taken for its own."""
    last = max(_steps(checkpoint.parent), default=0)
    if last > _step_of(checkpoint):
        logger.warning(
            "%s has later checkpoints, up to checkpoint-%d: until this run is past them, resume_from_checkpoint "
            "without a value continues from the last of them; remove them to prevent that",
            checkpoint.parent,
            last,
        )


def check_undamaged(checkpoint: str | Path, processes: int = 1) -> None:
    """Refuse an incomplete or damaged checkpoint, and name the one before it.

    Args:
        checkpoint: The folder.
        processes: Number of processes of the run.

    Raises:
        UserError: With the damaged or missing file.
    """
    checkpoint = Path(checkpoint)
    if not is_complete(checkpoint):
        raise UserError(
            f"{checkpoint} is not a complete checkpoint: it has no readable {TRAINER_STATE_NAME}, or files are "
            "missing; give a folder named checkpoint-<step>, or no value for the last complete one"
        )
    damage = find_damage(checkpoint, processes)
    if damage is None:
        return
    step = _step_of(checkpoint)
    earlier = [path for other, path in _steps(checkpoint.parent).items() if other < step and is_complete(path)]
    remedy = (
        f"continue from the checkpoint before it with resume_from_checkpoint {earlier[-1]}"
        if earlier
        else "no checkpoint before it is left; start a new run, or fine-tune the model with model_name_or_path"
    )
    raise UserError(f"can't continue from {checkpoint.name}: {damage}; {remedy}")

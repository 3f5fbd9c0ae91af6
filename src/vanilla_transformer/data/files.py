"""Output files and folders; nothing that exists is overwritten."""

import tempfile
from pathlib import Path
from typing import IO

from ..errors import UserError


def in_use(folder: Path) -> bool:
    """Return whether a folder holds anything, or is a file, so that writing into it could overwrite something."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def check_not_in_use(folder: str | Path, purpose: str) -> None:
    """Refuse to write into a folder that is in use.

    Raises:
        UserError: It is in use; the sentence asks for another folder for the `purpose`, a noun.
    """
    if in_use(Path(folder)):
        raise UserError(f"{folder} already exists and is not empty; give another folder for the {purpose}")


def check_writable(folder: Path) -> None:
    """Create a folder if necessary and try to write into it, to fail early and not at the first checkpoint.

    Raises:
        UserError: It can't be created or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise UserError(f"can't write into {folder}: {error.strerror}; give another --output_dir") from error


def open_output(path: str, binary: bool = False) -> IO:
    """Create a file and open it for writing, as UTF-8 text unless `binary`.

    Raises:
        UserError: The file exists already, or can't be created.
    """
    try:
        return open(path, "xb") if binary else open(path, "x", encoding="utf-8", newline="\n")
    except FileExistsError as error:
        raise UserError(f"the output file {path} exists already; name a new one, or remove it first") from error
    except OSError as error:
        raise UserError(f"can't write the output file {path}: {error.strerror}; check the path") from error

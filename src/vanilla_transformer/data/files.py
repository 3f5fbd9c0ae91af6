"""Output files and folders: they appear complete under their name or not at all, and replace nothing that exists.

What is being written has a name that ends in `.part`, in the same folder, and is renamed when it is complete.
"""

import errno
import gzip
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ..errors import UserError
from .text_files import is_gzip

# Names of compressed files that would hold plain text.
_NOT_WRITTEN = (".bz2", ".xz", ".lzma", ".zst", ".zip", ".tgz", ".7z")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def check_output_name(path: str | os.PathLike) -> None:
    """Refuse a name that says what the file would not be.

    Raises:
        UserError: It ends as that of a compressed file, but not in `.gz`, or it is "-".
    """
    if os.fspath(path) == "-":
        raise UserError('the output file is "-", which would be a file of that name; leave it out for standard output')
    if Path(path).suffix.lower() in _NOT_WRITTEN:
        raise UserError(
            f"the output file {path} would not be compressed, whatever its name says; give one that ends in .gz, or in "
            "nothing of the kind"
        )


def check_new_output(path: str | os.PathLike) -> None:
    """Refuse a path at which no new file can be written, before anything is computed.

    Raises:
        UserError: The file exists, its folder does not or can't be written into, or as in `check_output_name`.
    """
    check_output_name(path)
    path = Path(path)
    if os.path.lexists(path):
        raise _exists(path)
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"can't write the output file {path}: {path.parent} is no folder to write into; check the path")


@contextmanager
def new_output(path: str | os.PathLike, *, binary: bool = False, keep_partial: bool = False) -> Iterator[IO[Any]]:
    """Open a new file for writing; it appears at `path` when the block ends without an error.

    Text is UTF-8 with line feeds. A name that ends in `.gz` makes a gzip file.

    Args:
        path: A file that does not exist.
        binary: Whether the file takes bytes instead of text.
        keep_partial: Whether an error leaves what was written in `partial_path(path)`, to continue from; by default
            nothing is left.

    Raises:
        UserError: The file (or, with `keep_partial`, its partial file) exists, can't be created, or the disk is full;
            or as in `check_output_name`.
    """
    check_output_name(path)
    path = Path(path)
    if os.path.lexists(path):
        raise _exists(path)
    partial = partial_path(path) if keep_partial else _unique_partial(path)
    try:
        file = _open_new(partial, binary, compress=is_gzip(path))
    except FileExistsError as error:
        raise UserError(f"{partial} holds an unfinished output; continue it, or remove it first") from error
    except OSError as error:
        raise UserError(f"can't write the output file {path}: {error.strerror}; check the path") from error
    try:
        with file:
            yield file
        publish(partial, path)
    except BaseException as error:
        if not keep_partial:
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise UserError(
                f"can't write the output file {path}: {error.strerror}; free some space, or give another path"
            ) from error
        raise


def partial_path(path: str | os.PathLike) -> Path:
    """Return where `new_output(path, keep_partial=True)` leaves what an interrupted run has written."""
    path = Path(path)
    return path.with_name(f"{path.name}.part")


def publish(partial: Path, path: Path) -> None:
    """Rename a complete partial file to its final name.

    Raises:
        UserError: There is a file of that name by now.
    """
    try:
        os.link(partial, path)  # fails where `path` exists; a rename would replace it
    except FileExistsError as error:
        raise _exists(path) from error
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise _exists(path) from None
        os.rename(partial, path)
    else:
        partial.unlink()


@contextmanager
def new_folder(folder: str | os.PathLike, purpose: str) -> Iterator[Path]:
    """Yield an empty folder to fill; its content appears at `folder` when the block ends without an error.

    After an error nothing is left, and folders above it that were created are removed.

    Args:
        folder: A folder that does not exist or is empty.
        purpose: A noun for the error message, as in `check_not_in_use`.

    Raises:
        UserError: The folder is in use, can't be created, or the disk is full.
    """
    folder = Path(os.path.abspath(folder))  # "." has no name
    check_not_in_use(folder, purpose)
    exists = folder.exists()  # an empty folder may be a mount point, which can't be replaced: it is filled instead
    missing_parents = [parent for parent in folder.parents if not parent.exists()]
    partial = _unique_partial(folder / folder.name if exists else folder)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        message = f"can't write into {folder}: {error.strerror}; give another folder for the {purpose}"
        raise UserError(message) from error
    try:
        yield partial
        if exists:
            # The config comes last: a folder without one is no model to any program.
            for child in sorted(partial.iterdir(), key=lambda child: child.name == "config.json"):
                child.rename(folder / child.name)
            partial.rmdir()
        else:
            check_not_in_use(folder, purpose)
            partial.rename(folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in missing_parents:  # from the innermost outwards
            with suppress(OSError):  # not empty, as another program uses it
                parent.rmdir()
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            raise UserError(f"can't write into {folder}: {error.strerror}; free some space") from error
        raise


def _open_new(path: Path, binary: bool, compress: bool) -> IO[Any]:
    encoding, newline = (None, None) if binary else ("utf-8", "\n")
    open_file: Any = gzip.open if compress else open
    return open_file(path, "xb" if binary else "xt", encoding=encoding, newline=newline)


def _unique_partial(path: Path) -> Path:
    """Return a name beside `path` that no other process uses."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")


def _exists(path: str | Path) -> UserError:
    return UserError(f"the output file {path} exists already; name a new one, or remove it first")

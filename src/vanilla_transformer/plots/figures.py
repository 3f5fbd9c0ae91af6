"""Write figures of matplotlib to files."""

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.files import check_new_output, new_output
from ..errors import UserError, first_line, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
DPI = 200


def check_picture(path: str) -> None:
    """Refuse a path that no picture can be written to, or a missing matplotlib, before anything is computed.

    Raises:
        UserError: The ending is none of `FORMATS`, the file exists, its folder does not, or matplotlib is missing.
    """
    _find_format(path)
    check_new_output(path)
    require("matplotlib.figure", "plots")


def save_figure(figure: "Figure", path: str) -> None:
    """Write a figure to a new file in the format of its ending; it appears whole or not at all.

    Raises:
        UserError: The ending is none of `FORMATS`, or the file exists or can't be written.
    """
    ending = _find_format(path)
    with new_output(path, binary=True) as file:
        figure.savefig(file, format=ending, dpi=DPI)


def replace_picture(figure: "Figure", path: str | Path) -> None:
    """Write a figure as a PNG; an older one of that name is replaced by the whole new one, or stays.

    Raises:
        UserError: The file can't be written.
    """
    path = Path(path)
    picture = BytesIO()
    figure.savefig(picture, dpi=150, format="png")
    partial = path.with_name(f"{path.name}.part")
    try:
        partial.write_bytes(picture.getbuffer())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"can't write the picture {path}: {error.strerror or first_line(error)}") from error


def _find_format(path: str) -> str:
    """Return the format that a path's ending names."""
    ending = Path(path).suffix.removeprefix(".").lower()
    if ending not in FORMATS:
        raise UserError(f"the output file {path} must end in one of .{', .'.join(FORMATS)}")
    return ending

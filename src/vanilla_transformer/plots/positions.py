"""A picture of the sinusoidal positions."""

from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from ..errors import UserError, require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_LENGTH = 100_000  # a float32 each, times the width of the model


def check_length(length: int) -> None:
    """Refuse a number of positions that can't be drawn.

    Raises:
        UserError: With the number and what is allowed.
    """
    if not 1 <= length <= MAX_LENGTH:
        raise UserError(f"the number of positions is {length:,}; it must be from 1 to {MAX_LENGTH:,}")


def plot_positions(model: PreTrainedModel, length: int) -> "Figure":
    """Draw the sinusoidal positions (section 3.5): a row for each position, a column for each dimension.

    Args:
        model: The model that adds them, of this package or loaded with the code that came with it.
        length: How many positions, from 0.

    Returns:
        A matplotlib figure, for `save_figure`.

    Raises:
        UserError: No position to draw, or matplotlib is not installed.
    """
    check_length(length)
    config = model.config
    position, width = "pos", "d"
    if config.position_convention == "fairseq":
        position, width = f"(pos+{config.pad_token_id + 1})", "(d-2)"
    positions = model.get_encoder().positions(torch.arange(length, device=model.device)).cpu().numpy()
    figure = require("matplotlib.figure", "plots").Figure((10, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, first, function, dimension in zip(axes, (0, 1), ("sin", "cos"), ("2i", "2i+1"), strict=True):
        image = axis.imshow(
            positions[:, first::2],
            vmin=-1,
            vmax=1,
            cmap="viridis",
            aspect="auto",
            interpolation="nearest",
            extent=(first - 1, first + config.d_model - 1, length - 0.5, -0.5),
        )
        formula = rf"\{function}({position}\,/\,10000^{{2i/{width}}})"
        axis.set_title(rf"$PE(pos, {dimension}) = {formula}$", fontsize=12)
        axis.set_xlabel(f"{'even' if first == 0 else 'odd'} dimensions")
    axes[0].set_ylabel("position")
    figure.suptitle(f"Sinusoidal positions, d = {config.d_model}", fontsize=14)
    figure.colorbar(image, ax=axes)
    return figure

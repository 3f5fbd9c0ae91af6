"""A picture of how a run went."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import require
from .figures import replace_picture


def plot_run(log_history: Sequence[dict[str, float]], path: str | Path) -> None:
    """Draw loss and BLEU against steps, with the minutes on top where the log has them, as a PNG.

    Args:
        log_history: The lines of a Trainer's log, `trainer.state.log_history`.
        path: The file to write; one that is there is replaced.

    Raises:
        UserError: matplotlib is not installed, or the file can't be written.
    """
    figure = require("matplotlib.figure", "plots").Figure(figsize=(8, 4.5), layout="constrained")
    loss_axis = figure.subplots()
    bleu_axis = loss_axis.twinx()
    curves = (
        ("loss", "training loss", loss_axis, "C0", "-"),
        ("eval_loss", "validation loss", loss_axis, "C1", "o-"),
        ("eval_bleu", "validation BLEU", bleu_axis, "C2", "o-"),
    )
    for name, label, axis, color, style in curves:
        points = [(line["step"], line[name]) for line in log_history if name in line]
        steps, values = [step for step, _ in points], [value for _, value in points]
        axis.plot(steps, values, style, label=label, color=color, markersize=3)
    loss_axis.set(xlabel="step", ylabel="nats per target token")
    bleu_axis.set(ylabel="BLEU", ylim=(0, None))
    minutes = {line["step"]: line["minutes"] for line in log_history if "minutes" in line}
    if len(minutes) > 1:
        steps, times = np.array(list(minutes.items())).T
        axis = loss_axis.secondary_xaxis("top", xlabel="minutes")
        ticks = require("matplotlib.ticker", "plots").MaxNLocator(8).tick_values(0, times[-1])
        shown = [tick for tick in ticks if times[0] <= tick <= times[-1]]
        axis.set_xticks(np.interp(shown, times, steps), labels=[f"{tick:g}" for tick in shown])
    figure.legend(loc="outside upper center", ncols=len(curves))
    replace_picture(figure, path)

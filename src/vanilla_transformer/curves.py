"""A picture of how a run went."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure


def plot_run(log_history: Sequence[dict[str, float]], path: str | Path) -> None:
    """Draw loss and BLEU against steps, as a PNG.

    Args:
        log_history: The lines of a Trainer's log, `trainer.state.log_history`.
        path: The file to write; one that is there is replaced.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
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
    figure.legend(loc="outside upper center", ncols=len(curves))
    figure.savefig(path, dpi=150, format="png")

"""The picture of a run: each minute stands at the step that was reached then."""

import numpy as np
import pytest

from vanilla_transformer.plots import run
from vanilla_transformer.plots.run import plot_run

pytest.importorskip("matplotlib")


def test_minutes_stand_where_they_passed(monkeypatch, tmp_path):
    """The axis goes a little beyond the first and the last step, where no minutes are known."""
    steps = np.arange(100, 1100, 100)
    minutes = np.cumsum([5, 5, 5, 5, 5, 10, 10, 10, 10, 10])  # half as fast after the middle
    log = [{"step": int(step), "minutes": float(time), "loss": 3.0} for step, time in zip(steps, minutes, strict=True)]
    figures = []
    monkeypatch.setattr(run, "replace_picture", lambda figure, _: figures.append(figure))
    plot_run(log, tmp_path / "training.png")
    figures[0].draw_without_rendering()
    axis = figures[0].axes[0]
    (top,) = axis.child_axes
    assert top.get_xlim() == axis.get_xlim() and axis.get_xlim()[0] < 100
    shown = {
        float(label.get_text()): place for label, place in zip(top.get_xticklabels(), top.get_xticks(), strict=True)
    }
    assert len(shown) > 3 and all(5 <= minute <= 75 for minute in shown)
    for minute, place in shown.items():
        assert place == pytest.approx(np.interp(minute, minutes, steps))

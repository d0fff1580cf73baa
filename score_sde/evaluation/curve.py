"""Distances against the training step, or against the length of the average."""

from pathlib import Path
from typing import Any

from score_sde.runtime.disk import replacing


def save_curve(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes a PNG with a panel for each distance: a line an average over steps, or over averages of a single step.

    Args:
      path: of the PNG.
      rows: the figures of each checkpoint and average, as `evaluate` writes them under "curve".
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    names = [name for name in rows[0] if name.startswith(("fd_", "sliced_")) and name.endswith("_ratio")]
    steps = sorted({row["step"] for row in rows})
    figure = Figure(figsize=(5 * len(names), 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        if len(steps) > 1:
            for average in _averages(rows):
                line = [(row["step"], row[name]) for row in rows if row["average"] == average]
                panel.plot(*zip(*line, strict=True), marker="o", label=_said(average))
            panel.set_xlabel("step")
            panel.legend()
        else:
            panel.plot([_said(row["average"]) for row in rows], [row[name] for row in rows], marker="o", color="black")
            panel.set_xlabel(f"average, at step {steps[0]}")
        panel.set_ylabel(f"{name} ({rows[0]['num_samples']} samples)")
        panel.set_yscale("log")
        panel.axhline(1.0, color="gray", linestyle=":")
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _averages(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    return list({_said(row["average"]): row["average"] for row in rows}.values())


def _said(average: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in average.items())

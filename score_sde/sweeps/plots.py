"""One plot per axis of a sweep: metrics against its values, with one line per combination of the other axes."""

import math
from pathlib import Path
from typing import Any


def save_axes(rows: list[Any], metrics: list[str], workdir: Path) -> list[Path]:
    """Write axis_<key>.png for each key with several values, with means and standard deviations over seeds.

    Args:
      rows: Rows of `report.group_by_overrides`.
      metrics: Names of the metrics; each has its own panel.
      workdir: Folder of the sweep.

    Returns:
      The paths of the plots.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    paths = []
    for key in dict.fromkeys(key for row in rows for key in row.overrides):
        values = list(dict.fromkeys(row.overrides[key] for row in rows if key in row.overrides))
        if len(values) < 2:
            continue
        figure = Figure(figsize=(5 * len(metrics), 4), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        for panel, name in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
            for others, line in _lines(rows, key).items():
                _plot_line(panel, key, values, line, name, others)
            panel.set_xlabel(key)
            panel.set_ylabel(name)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7)
        path = workdir / f"axis_{key}.png"
        figure.savefig(path, format="png")
        paths.append(path)
    return paths


def as_label(text: str) -> str:
    """Escape text for Matplotlib, which parses mathematics between dollars and hides labels with an underscore."""
    return f"{' ' if text.startswith('_') else ''}{text}".replace("$", r"\$")


def _plot_line(panel: Any, key: str, values: list[Any], line: list[Any], name: str, others: str) -> None:
    """Plot a line over an axis: numbers at their values, other values at equal distances."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    finite = [row for row in line if math.isfinite(row.mean(name))]
    if not finite:
        return
    positions = [row.overrides[key] if numbers else values.index(row.overrides[key]) for row in finite]
    means = [row.mean(name) for row in finite]
    stds = [row.std(name) if math.isfinite(row.std(name)) else 0.0 for row in finite]
    panel.errorbar(positions, means, stds, marker="o", capsize=3, label=as_label(others) or None)
    if not numbers:
        panel.set_xticks(range(len(values)), [as_label(str(value)) for value in values])


def _lines(rows: list[Any], key: str) -> dict[str, list[Any]]:
    """Group the rows that set the key by their other overrides."""
    lines: dict[str, list[Any]] = {}
    for row in rows:
        if key in row.overrides:
            others = ", ".join(str(value) for name, value in row.overrides.items() if name != key)
            lines.setdefault(others, []).append(row)
    return lines

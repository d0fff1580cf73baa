"""A plot for each axis of a sweep: the metrics against its values, with every other setting a line."""

import math
from pathlib import Path
from typing import Any


def save_axes(rows: list[Any], metrics: list[str], workdir: Path) -> list[Path]:
    """Writes axis_<key>.png for each key with several values; means with standard deviations over seeds.

    Args:
      rows: of `report.rows_of`.
      metrics: their names, a panel each.
      workdir: the sweep's folder.

    Returns:
      The paths.
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
                _draw(panel, key, values, line, name, others)
            panel.set_xlabel(key)
            panel.set_ylabel(name)
            if panel.get_legend_handles_labels()[0]:
                panel.legend(fontsize=7)
        path = workdir / f"axis_{key}.png"
        figure.savefig(path, format="png")
        paths.append(path)
    return paths


def as_label(text: str) -> str:
    """Text for a plot, which would read mathematics between dollars and leave a leading underscore out."""
    return f"{' ' if text.startswith('_') else ''}{text}".replace("$", r"\$")


def _draw(panel: Any, key: str, values: list[Any], line: list[Any], name: str, others: str) -> None:
    """A line over an axis: numbers where they lie, words side by side."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    shown = [row for row in line if math.isfinite(row.mean(name))]
    if not shown:
        return
    places = [row.overrides[key] if numbers else values.index(row.overrides[key]) for row in shown]
    spread = [row.std(name) if math.isfinite(row.std(name)) else 0.0 for row in shown]
    panel.errorbar(
        places, [row.mean(name) for row in shown], spread, marker="o", capsize=3, label=as_label(others) or None
    )
    if not numbers:
        panel.set_xticks(range(len(values)), [as_label(str(value)) for value in values])


def _lines(rows: list[Any], key: str) -> dict[str, list[Any]]:
    """The rows that have the key, by what else they set."""
    lines: dict[str, list[Any]] = {}
    for row in rows:
        if key in row.overrides:
            others = ", ".join(str(value) for name, value in row.overrides.items() if name != key)
            lines.setdefault(others, []).append(row)
    return lines

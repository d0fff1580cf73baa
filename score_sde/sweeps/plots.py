"""One plot per axis of a sweep: metrics against its values, with one series per combination of the other axes."""

import math
from pathlib import Path
from typing import Any

from score_sde.evaluation.style import in_words, new_figure, place_legend, save_figure, series


def save_axes(rows: list[Any], metrics: list[str], workdir: Path) -> list[Path]:
    """Write axis_<key>.png for each key with several values, with means and standard deviations over seeds.

    Args:
      rows: Rows of `report.group_by_overrides`.
      metrics: Names of the metrics; each has its own panel.
      workdir: Folder of the sweep.

    Returns:
      The paths of the plots.
    """
    paths = []
    for key in dict.fromkeys(key for row in rows for key in row.overrides):
        values = list(dict.fromkeys(row.overrides[key] for row in rows if key in row.overrides))
        if len(values) < 2:
            continue
        figure, panels = new_figure(len(metrics))
        lines = _lines(rows, key)
        for panel, name in zip(panels, metrics, strict=True):
            for n, (others, line) in enumerate(lines.items()):
                _plot_line(panel, key, values, line, name, others, n, len(lines))
            panel.set_xlabel(as_label(in_words(key)))
            panel.set_ylabel(as_label(in_words(name)))
        other_keys = dict.fromkeys(name for row in rows for name in row.overrides if name != key)
        place_legend(*panels, title=as_label(", ".join(map(in_words, other_keys))))
        figure.suptitle("mean and standard deviation over seeds", fontsize=10)
        path = workdir / f"axis_{key}.png"
        save_figure(path, figure)
        paths.append(path)
    return paths


def as_label(text: str) -> str:
    """Escape text for Matplotlib, which parses mathematics between dollars and hides labels with an underscore."""
    return f"{' ' if text.startswith('_') else ''}{text}".replace("$", r"\$")


def _plot_line(
    panel: Any, key: str, values: list[Any], line: list[Any], name: str, others: str, n: int, num_lines: int
) -> None:
    """Plot series n over an axis: a line over numbers, or separate points over other values at equal distances."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    style = series(n)
    if numbers:
        panel.ticklabel_format(axis="x", scilimits=(-3, 5))
    else:
        panel.set_xticks(range(len(values)), [as_label(str(value)) for value in values])
        style["linestyle"] = "none"
    finite = [row for row in line if math.isfinite(row.mean(name))]
    if not finite:
        return
    shift = 0.0 if numbers else 0.4 * ((n + 0.5) / num_lines - 0.5)  # points of one category would hide each other
    positions = [(row.overrides[key] if numbers else values.index(row.overrides[key])) + shift for row in finite]
    means = [row.mean(name) for row in finite]
    stds = [row.std(name) if math.isfinite(row.std(name)) else 0.0 for row in finite]
    panel.errorbar(positions, means, stds, capsize=3, label=as_label(others) or None, **style)


def _lines(rows: list[Any], key: str) -> dict[str, list[Any]]:
    """Group the rows that set the key by their other overrides."""
    lines: dict[str, list[Any]] = {}
    for row in rows:
        if key in row.overrides:
            others = ", ".join(str(value) for name, value in row.overrides.items() if name != key)
            lines.setdefault(others, []).append(row)
    return lines

"""Plotting style: colors and markers that the color-blind can tell apart, and legends next to the axes."""

import math
import re
from pathlib import Path
from typing import Any

from score_sde.runtime.disk import replacing

# Okabe and Ito 2008, without yellow, which is faint on white. The first 7 * 13 series have distinct pairs.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<P>X*phd"
LINES = ("-", "--", ":")
NAMES = {
    "fd": "Fréchet distance",
    "kid": "kernel distance",
    "ratio": "relative to test data",
    "test_train": "test data",
    "nfe": "number of network evaluations",
    "sde": "SDE",
    "wasserstein": "Wasserstein distance",
}


def series(n: int) -> dict[str, Any]:
    """Return the keyword arguments of Matplotlib's `plot` and `errorbar` for the series with index n."""
    return {
        "color": COLORS[n % len(COLORS)],
        "marker": MARKERS[n % len(MARKERS)],
        "linestyle": LINES[n // len(COLORS) % len(LINES)],
        "linewidth": 1.2,
        "markersize": 5,
    }


def place_legend(*panels: Any, title: str | None = None) -> None:
    """Add one legend for all series of the panels, to the right of the last panel."""
    handles: dict[str, Any] = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if handles:
        panels[-1].legend(
            handles.values(),
            handles.keys(),
            title=title,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            fontsize=8,
            ncols=math.ceil(len(handles) / 20),
        )


def new_figure(num_panels: int = 1, width: float = 5.0, height: float = 4.0) -> tuple[Any, list[Any]]:
    """Return a Matplotlib figure outside pyplot's global state, and its panels side by side.

    Args:
      num_panels: Number of panels.
      width: Width of one panel in inches, with a legend if it has one.
      height: Height in inches.
    """
    from matplotlib.figure import Figure  # slow to import, and needed for plots only

    figure = Figure(figsize=(width * num_panels, height), dpi=100, layout="constrained")
    return figure, list(figure.subplots(1, num_panels, squeeze=False)[0])


def save_figure(path: Path, figure: Any) -> None:
    """Write a figure as a PNG, whole or not at all."""
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def in_words(name: str) -> str:
    """Return the name of a metric or config key in words, as an axis label.

    "fd_classifier_1000.mean" becomes "Fréchet distance (classifier features, 1000 samples)" on two lines, and
    "model.kwargs.channels" becomes "model channels".
    """
    distance = re.fullmatch(r"(fd|kid|overlap)_(\w+)_(\d+|ratio|test_train)(?:\.(\w+))?", name)
    if distance:
        kind, features, data, part = distance.groups()
        names = [NAMES[kind]] if kind in NAMES else []
        names += [part.replace("_", " ")] if part not in (None, "mean") else []
        return f"{', '.join(names)}\n({features} features, {NAMES.get(data, f'{data} samples')})"
    words = re.split(r"[._]", name.replace(".kwargs", ""))
    return " ".join(NAMES.get(word, word) for word in words)

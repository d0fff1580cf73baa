"""Self-contained HTML report of a sweep: table, plots, learning curves, sample grids and trials."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde.evaluation.style import new_figure, place_legend, series
from score_sde.sweeps.plots import as_label
from score_sde.sweeps.trials import records

STYLE = """body { font-family: sans-serif; margin: 2em; } table { border-collapse: collapse; }
td, th { border: 1px solid #ccc; padding: 0.3em 0.6em; text-align: left; vertical-align: top; }
img { max-width: 100%; image-rendering: pixelated; } .grids { display: flex; flex-wrap: wrap; gap: 1em; }
figure { margin: 0; width: 16em; } .failed { color: #b00; }"""


def render_html(rows: list[Any], cells: list[list[str]], plots: list[Path], sweep: ConfigDict) -> str:
    """Return the text of the report, which refers to no other file.

    Args:
      rows: Rows of `report.group_by_overrides`.
      cells: Cells of the table in HTML, with the header first.
      plots: Paths of the plots (PNG).
      sweep: Settings of the sweep.
    """
    sections = [
        f"<h1>{escape(sweep.base)}: {len(rows)} settings, {len(sweep.seeds)} seed(s)</h1>",
        _table(cells),
        "<h2>Axes</h2>",
        *(_image(path) for path in plots),
        "<h2>Learning curves</h2>",
        f'<img src="{_curves(rows)}" alt="loss against step">',
        "<h2>Samples of the first seed</h2>",
        f'<div class="grids">{"".join(_grid(row) for row in rows)}</div>',
        "<h2>Trials: overrides and status</h2>",
        _trials(rows),
    ]
    body = "\n".join(sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>sweep</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _table(cells: list[list[str]]) -> str:
    """Return an HTML table; the header comes first."""
    head, *body = cells
    lines = ["".join(f"<th>{cell}</th>" for cell in head)]
    for line in body:
        lines.append("".join(f"<td>{cell}</td>" for cell in line))
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def _image(path: Path) -> str:
    return f'<img src="{_data(path.read_bytes())}" alt="{escape(path.stem)}">'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _grid(row: Any) -> str:
    """Return the newest sample grid of a row's first trial."""
    grids = [path for path in (row.trials[0].folder / "samples").glob("step_*.png") if path.stem.count("_") == 1]
    name = escape(", ".join(map(str, row.overrides.values())) or "base")
    grid = _image(max(grids)) if grids else "none yet"
    return f"<figure>{grid}<figcaption>{name}</figcaption></figure>"


def _curves(rows: list[Any]) -> str:
    figure, (panel,) = new_figure(width=9.0, height=5.0)
    for i, row in enumerate(rows):
        for n, trial in enumerate(row.trials):
            log = records(trial.folder)
            if log:
                steps, losses = zip(*((record["step"], record["loss"]) for record in log), strict=True)
                name = as_label(", ".join(map(str, row.overrides.values()))) if n == 0 else None
                panel.plot(steps, losses, markevery=0.1, label=name, **series(i))
    positive = all(value > 0 for line in panel.get_lines() for value in line.get_ydata())  # a bound may not be
    panel.set(xlabel="training step", ylabel="loss", yscale="log" if positive else "linear")
    place_legend(panel)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return _data(out.getvalue())


def _trials(rows: list[Any]) -> str:
    lines = [["overrides", "seed", "status", "seconds", "attempts", "folder"]]
    for row in rows:
        for trial, state in zip(row.trials, row.states, strict=True):
            overrides = "; ".join(f"{key}={value}" for key, value in trial.overrides.items()) or "none"
            status = f"{state['status']}: {state['error']}" if state["error"] else state["status"]
            cost = [f"{state['seconds']:.0f}", str(state["attempts"])]
            lines.append([escape(cell) for cell in (overrides, str(trial.seed), status, *cost, trial.folder.name)])
    return _table(lines)

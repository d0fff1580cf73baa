"""Report of a sweep: results.csv, a table in Markdown and LaTeX, one plot per axis, and an HTML page."""

import csv
import html
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from score_sde.runtime.disk import write_atomically
from score_sde.sweeps.check import parse_metric
from score_sde.sweeps.html_report import render_html
from score_sde.sweeps.plots import save_axes
from score_sde.sweeps.trials import Trial, describe_damage, metric, read_state

LATEX = str.maketrans(
    {character: rf"\{character}" for character in "&%$#_{}"}
    | {
        character: rf"\text{name}{{}}"
        for character, name in {
            "\\": "backslash",
            "~": "asciitilde",
            "^": "asciicircum",
            "<": "less",
            ">": "greater",
            "|": "bar",
        }.items()
    }
)


class Row(NamedTuple):
    """Trials that differ only in their seed."""

    overrides: dict[str, Any]
    trials: list[Trial]
    states: list[dict[str, Any]]
    values: dict[str, list[float]]  # metric -> one value per finished trial

    def mean(self, name: str) -> float:
        """Return the mean of a metric over seeds; NaN without a finished trial."""
        return float(np.mean(self.values[name])) if self.values[name] else math.nan

    def std(self, name: str) -> float:
        """Return the standard deviation of a metric over seeds; NaN for fewer than two."""
        return float(np.std(self.values[name], ddof=1)) if len(self.values[name]) > 1 else math.nan


def write_report(trials: list[Trial], sweep: ConfigDict, workdir: Path) -> Path:
    """Write the report of the results so far; return the path of the HTML page."""
    workdir.mkdir(parents=True, exist_ok=True)
    rows = group_by_overrides(trials, sweep)
    write_atomically(workdir / "results.csv", as_csv(rows, sweep))
    write_atomically(workdir / "table.md", as_markdown(rows, sweep))
    write_atomically(workdir / "table.tex", as_latex(rows, sweep))
    plots = save_axes(rows, collected_metrics(sweep), workdir)
    path = workdir / "index.html"
    write_atomically(path, render_html(rows, as_cells(rows, sweep, "<b>{}</b>", escape=html.escape), plots, sweep))
    return path


def collected_metrics(sweep: ConfigDict) -> list[str]:
    """Return the names of the metrics that the sweep collects."""
    return [parse_metric(spec)[0] for spec in sweep.metrics]


def group_by_overrides(trials: list[Trial], sweep: ConfigDict) -> list[Row]:
    """Group trials by their overrides, with the metrics of those that are done."""
    grouped: dict[str, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(repr(sorted(trial.overrides.items())), []).append(trial)
    rows = []
    for group in grouped.values():
        states = [_state(trial, collected_metrics(sweep)) for trial in group]
        done = [trial.folder for trial, state in zip(group, states, strict=True) if state["status"] == "done"]
        columns = {name: [metric(folder, name) for folder in done] for name in collected_metrics(sweep)}
        values = {name: [value for value in column if value is not None] for name, column in columns.items()}
        rows.append(Row(group[0].overrides, group, states, values))
    return rows


def _state(trial: Trial, metrics: list[str]) -> dict[str, Any]:
    """Return a trial's state; its status is "damaged" if it is done but its results can't be read."""
    state = read_state(trial.folder)
    damage = describe_damage(trial.folder, metrics) if state["status"] == "done" else ""
    return state | {"status": "damaged", "error": damage} if damage else state


def as_csv(rows: list[Row], sweep: ConfigDict) -> str:
    """Return a CSV table with one line per trial: overrides, seed, status, metrics and cost."""
    keys = override_keys(rows)
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    head = ["seed", "status", *collected_metrics(sweep), "seconds", "chip_hours", "attempts", "commit", "folder"]
    lines.writerow(map(_quote_formula, [*keys, *head]))
    for row in rows:
        for trial, state in zip(row.trials, row.states, strict=True):
            done = state["status"] == "done"
            results = [metric(trial.folder, name) if done else None for name in collected_metrics(sweep)]
            cost = [f"{state['seconds']:.1f}", f"{chip_hours([state], sweep):.5f}", state["attempts"]]
            cells = [
                *(trial.overrides.get(key, "") for key in keys),
                trial.seed,
                state["status"],
                *("" if value is None else value for value in results),
                *cost,
                state.get("commit", ""),
                trial.folder.name,
            ]
            lines.writerow(map(_quote_formula, cells))
    return out.getvalue()


def as_cells(
    rows: list[Row],
    sweep: ConfigDict,
    bold: str = "**{}**",
    separator: str = " ± ",
    escape: Callable[[str], str] = str,
) -> list[list[str]]:
    """Return the cells of the table: a header and one row per set of overrides, with the best means in bold.

    Args:
      rows: Rows of `group_by_overrides`.
      sweep: Settings of the sweep.
      bold: Format string for the best mean of each metric.
      separator: Text between a mean and its standard deviation.
      escape: Function that escapes plain text for the format of the table.
    """
    keys = override_keys(rows)
    best = {name: _best(rows, name, larger) for name, larger in map(parse_metric, sweep.metrics)}
    cells = [[*map(escape, [*keys, *collected_metrics(sweep)]), "seeds", "chip-hours", "commit"]]
    for row in rows:
        line = [escape(str(row.overrides.get(key, ""))) for key in keys]
        for name in collected_metrics(sweep):
            cell = _format_mean(row.mean(name), row.std(name), separator)
            line.append(bold.format(cell) if row is best[name] else cell)
        line.append(_format_seeds(row))
        line.append(f"{chip_hours(row.states, sweep):.3f}")
        line.append(escape(", ".join(sorted({str(state["commit"]) for state in row.states if state.get("commit")}))))
        cells.append(line)
    return cells


def as_markdown(rows: list[Row], sweep: ConfigDict) -> str:
    """Return the table in Markdown."""
    head, *body = as_cells(rows, sweep, escape=_escape_markdown)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_latex(rows: list[Row], sweep: ConfigDict) -> str:
    """Return the table in LaTeX, for the booktabs package."""
    cells = as_cells(rows, sweep, r"\textbf{{{}}}", r" $\pm$ ", _escape_latex)
    titles, *entries = (" & ".join(line) + r" \\" for line in cells)
    begin = rf"\begin{{tabular}}{{{'l' * len(override_keys(rows))}{'r' * (len(collected_metrics(sweep)) + 2)}l}}"
    return "\n".join([begin, r"\toprule", titles, r"\midrule", *entries, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _quote_formula(cell: Any) -> Any:
    """Quote a cell of a CSV file that a spreadsheet would evaluate as a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))


def _escape_latex(text: str) -> str:
    return " ".join(text.split()).translate(LATEX)


def override_keys(rows: list[Row]) -> list[str]:
    """Return every key that some trial overrides, in order of appearance."""
    return list(dict.fromkeys(key for row in rows for key in row.overrides))


def chip_hours(states: list[dict[str, Any]], sweep: ConfigDict) -> float:
    """Return the hours of GPUs or TPU chips, without either of CPU cores, that the trials reserved."""
    chips = (sweep.gpus or sweep.tpus or sweep.cpus) * sweep.hosts
    return chips * sum(state["seconds"] for state in states) / 3600


def _best(rows: list[Row], name: str, larger: bool) -> Row | None:
    finite = [row for row in rows if math.isfinite(row.mean(name))]
    return (max if larger else min)(finite, key=lambda row: row.mean(name)) if len(finite) > 1 else None


def _format_mean(mean: float, std: float, separator: str) -> str:
    """Format a mean with as many digits as its standard deviation justifies."""
    if not math.isfinite(mean):
        return "-"
    if not math.isfinite(std) or std == 0:
        return f"{mean:.4g}"
    digits = min(max(1 - math.floor(math.log10(std)), 0), 6)
    return f"{mean:.{digits}f}{separator}{std:.{digits}f}"


def _format_seeds(row: Row) -> str:
    """Format the number of finished seeds and the status of the others."""
    count = sum(state["status"] == "done" for state in row.states)
    others = [state["status"] for state in row.states if state["status"] != "done"]
    unfinished = ", ".join(f"{others.count(status)} {status}" for status in dict.fromkeys(others))
    return f"{count} ({unfinished})" if unfinished else str(count)

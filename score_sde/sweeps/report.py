"""What a sweep ends in: results.csv, a table for a paper in Markdown and LaTeX, a plot an axis, and one page."""

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
from score_sde.sweeps.check import metric_of
from score_sde.sweeps.page import page
from score_sde.sweeps.plots import save_axes
from score_sde.sweeps.trials import Trial, damage, metric, read_state

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
    """Trials that differ in their seed alone."""

    overrides: dict[str, Any]
    trials: list[Trial]
    states: list[dict[str, Any]]
    values: dict[str, list[float]]  # metric -> a value a finished trial

    def mean(self, name: str) -> float:
        return float(np.mean(self.values[name])) if self.values[name] else math.nan

    def std(self, name: str) -> float:
        """Over seeds; NaN of fewer than two."""
        return float(np.std(self.values[name], ddof=1)) if len(self.values[name]) > 1 else math.nan


def write_report(trials: list[Trial], sweep: ConfigDict, workdir: Path) -> Path:
    """Writes the report of what there is so far; returns the page's path."""
    workdir.mkdir(parents=True, exist_ok=True)
    rows = rows_of(trials, sweep)
    write_atomically(workdir / "results.csv", as_csv(rows, sweep))
    write_atomically(workdir / "table.md", as_markdown(rows, sweep))
    write_atomically(workdir / "table.tex", as_latex(rows, sweep))
    plots = save_axes(rows, names(sweep), workdir)
    path = workdir / "index.html"
    write_atomically(path, page(rows, as_cells(rows, sweep, "<b>{}</b>", escape=html.escape), plots, sweep))
    return path


def names(sweep: ConfigDict) -> list[str]:
    """The metrics without what is better."""
    return [metric_of(asked)[0] for asked in sweep.metrics]


def rows_of(trials: list[Trial], sweep: ConfigDict) -> list[Row]:
    """The trials by their overrides; values are of those that are done."""
    grouped: dict[str, list[Trial]] = {}
    for trial in trials:
        grouped.setdefault(repr(sorted(trial.overrides.items())), []).append(trial)
    rows = []
    for group in grouped.values():
        states = [_state(trial, names(sweep)) for trial in group]
        done = [trial.folder for trial, state in zip(group, states, strict=True) if state["status"] == "done"]
        found = {name: [metric(folder, name) for folder in done] for name in names(sweep)}
        values = {name: [value for value in column if value is not None] for name, column in found.items()}
        rows.append(Row(group[0].overrides, group, states, values))
    return rows


def _state(trial: Trial, metrics: list[str]) -> dict[str, Any]:
    """Returns a trial's state; "damaged" if it is done and its results can't be read."""
    state = read_state(trial.folder)
    wrong = damage(trial.folder, metrics) if state["status"] == "done" else ""
    return state | {"status": "damaged", "error": wrong} if wrong else state


def as_csv(rows: list[Row], sweep: ConfigDict) -> str:
    """A line a trial: its overrides, seed, status, metrics, and what it took."""
    keys = keys_of(rows)
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    head = ["seed", "status", *names(sweep), "seconds", "chip_hours", "attempts", "commit", "folder"]
    lines.writerow(map(_no_formula, [*keys, *head]))
    for row in rows:
        for trial, state in zip(row.trials, row.states, strict=True):
            done = state["status"] == "done"
            measured = [metric(trial.folder, name) if done else None for name in names(sweep)]
            took = [f"{state['seconds']:.1f}", f"{chip_hours([state], sweep):.5f}", state["attempts"]]
            cells = [
                *(trial.overrides.get(key, "") for key in keys),
                trial.seed,
                state["status"],
                *("" if value is None else value for value in measured),
                *took,
                state.get("commit", ""),
                trial.folder.name,
            ]
            lines.writerow(map(_no_formula, cells))
    return out.getvalue()


def as_cells(
    rows: list[Row],
    sweep: ConfigDict,
    bold: str = "**{}**",
    between: str = " ± ",
    escape: Callable[[str], str] = str,
) -> list[list[str]]:
    """The table: a header and a row for each set of overrides; the best mean of each metric is bold.

    Args:
      rows: of `rows_of`.
      sweep: its settings.
      bold: the format of the best.
      between: what stands between a mean and its standard deviation.
      escape: makes plain text of what the table's format would read as its own.
    """
    keys = keys_of(rows)
    best = {name: _best(rows, name, more) for name, more in map(metric_of, sweep.metrics)}
    cells = [[*map(escape, [*keys, *names(sweep)]), "seeds", "chip-hours", "commit"]]
    for row in rows:
        line = [escape(str(row.overrides.get(key, ""))) for key in keys]
        for name in names(sweep):
            said = _number(row.mean(name), row.std(name), between)
            line.append(bold.format(said) if row is best[name] else said)
        line.append(_seeds(row))
        line.append(f"{chip_hours(row.states, sweep):.3f}")
        line.append(escape(", ".join(sorted({str(state["commit"]) for state in row.states if state.get("commit")}))))
        cells.append(line)
    return cells


def as_markdown(rows: list[Row], sweep: ConfigDict) -> str:
    """The table in Markdown."""
    head, *body = as_cells(rows, sweep, escape=_in_markdown)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def as_latex(rows: list[Row], sweep: ConfigDict) -> str:
    """The table in LaTeX, for the booktabs package."""
    cells = as_cells(rows, sweep, r"\textbf{{{}}}", r" $\pm$ ", _in_latex)
    titles, *entries = (" & ".join(line) + r" \\" for line in cells)
    begin = rf"\begin{{tabular}}{{{'l' * len(keys_of(rows))}{'r' * (len(names(sweep)) + 2)}l}}"
    return "\n".join([begin, r"\toprule", titles, r"\midrule", *entries, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _no_formula(cell: Any) -> Any:
    """A cell of a CSV file, quoted where a spreadsheet would compute it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))


def _in_latex(text: str) -> str:
    return " ".join(text.split()).translate(LATEX)


def keys_of(rows: list[Row]) -> list[str]:
    """Every key that some trial overrides, in their order."""
    return list(dict.fromkeys(key for row in rows for key in row.overrides))


def chip_hours(states: list[dict[str, Any]], sweep: ConfigDict) -> float:
    """Of GPUs or TPU chips, and without either of CPU cores: what the trials held while their programs ran."""
    chips = (sweep.gpus or sweep.tpus or sweep.cpus) * sweep.hosts
    return chips * sum(state["seconds"] for state in states) / 3600


def _best(rows: list[Row], name: str, more: bool) -> Row | None:
    measured = [row for row in rows if math.isfinite(row.mean(name))]
    return (max if more else min)(measured, key=lambda row: row.mean(name)) if len(measured) > 1 else None


def _number(mean: float, std: float, between: str) -> str:
    """To the digits that the spread leaves."""
    if not math.isfinite(mean):
        return "-"
    if not math.isfinite(std) or std == 0:
        return f"{mean:.4g}"
    digits = min(max(1 - math.floor(math.log10(std)), 0), 6)
    return f"{mean:.{digits}f}{between}{std:.{digits}f}"


def _seeds(row: Row) -> str:
    """How many are done, and what became of the others."""
    count = sum(state["status"] == "done" for state in row.states)
    others = [state["status"] for state in row.states if state["status"] != "done"]
    said = ", ".join(f"{others.count(status)} {status}" for status in dict.fromkeys(others))
    return f"{count} ({said})" if said else str(count)

"""Generator of the tables in docs/configuration.md, from the defaults of configs and the dictionaries of functions.

python -m docs.generate
"""

import ast
import dataclasses
import inspect
import io
import tokenize
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from score_sde.data.datasets import DATASETS
from score_sde.ddpm import SCHEDULES
from score_sde.evaluation.extractors import EXTRACTORS
from score_sde.experiment.tasks import TASKS
from score_sde.inverse import INVERSE_METHODS
from score_sde.models import MODELS
from score_sde.models.pretrained import FAMILIES
from score_sde.parameterization import PRECONDITIONINGS, PREDICTIONS
from score_sde.score_matching import OBJECTIVES
from score_sde.sde import SDES
from score_sde.solvers import ADAPTIVE, ODE_METHODS, SOLVERS, SPACINGS
from score_sde.thresholding import THRESHOLDS
from score_sde.time_samplers import TIME_SAMPLERS
from score_sde.training.devices import STRATEGIES
from score_sde.training.loss import FLOW_MAP_OBJECTIVES, classification_loss, ddpm_hybrid_loss, ddpm_loss, flow_map_loss
from score_sde.training.optimizer import LR_SCHEDULES, OPTIMIZERS
from score_sde.weightings import WEIGHTINGS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"
DEFAULTS = ROOT / "score_sde" / "experiment" / "defaults.py"
MARK = "<!-- The rest is written by `python -m docs.generate`. -->\n"

ALL_OBJECTIVES = OBJECTIVES | {
    "ddpm": ddpm_loss,
    "ddpm_hybrid": ddpm_hybrid_loss,
    "classification": classification_loss,
    **dict.fromkeys(FLOW_MAP_OBJECTIVES, flow_map_loss),
}

CHOICES: dict[str, Any] = {
    "data.name": DATASETS,
    "sde.name": [*SDES, *SCHEDULES],
    "model.name": MODELS,
    "model.prediction": PREDICTIONS,
    "model.preconditioning": PRECONDITIONINGS,
    "model.family": FAMILIES,
    "loss.objective": ALL_OBJECTIVES,
    "loss.weighting": WEIGHTINGS,
    "loss.time_sampler": TIME_SAMPLERS,
    "optimizer.name": OPTIMIZERS,
    "optimizer.schedule": LR_SCHEDULES,
    "training.strategy": STRATEGIES,
    "sampling.solver": [*SOLVERS, *ADAPTIVE],
    "sampling.spacing": SPACINGS,
    "sampling.end": ["t_min", "zero"],
    "sampling.threshold": ["auto", *THRESHOLDS],
    "sampling.task": TASKS,
    "sampling.method": INVERSE_METHODS,
    "evaluation.features": EXTRACTORS,
    "likelihood.divergence": ["hutchinson", "exact"],
    "likelihood.method": ODE_METHODS,
}

# Heading, dictionary, key of the arguments, and arguments that the config sets elsewhere.
FUNCTIONS: list[tuple[str, Mapping[str, Any], str, tuple[str, ...]]] = [
    ("Processes", SDES | SCHEDULES, "sde.kwargs", ()),
    ("Networks", MODELS, "model.kwargs", ("parent", "name")),
    (
        "Objectives",
        ALL_OBJECTIVES,
        "loss.objective_kwargs",
        ("truth", "model", "rule", "schedule", "sample_times", "classifier", "t_min"),
    ),
    ("Weightings", WEIGHTINGS, "loss.weighting_kwargs", ()),
    ("Time samplers", TIME_SAMPLERS, "loss.time_sampler_kwargs", ()),
    ("Solvers", SOLVERS | ADAPTIVE, "sampling.kwargs", ()),
    ("Time grids", SPACINGS, "sampling.spacing_kwargs", ()),
    ("Thresholds", THRESHOLDS, "sampling.threshold_kwargs", ()),
    ("Tasks", TASKS, "sampling.task_kwargs", ("event_shape",)),
    ("Methods", INVERSE_METHODS, "sampling.method_kwargs", ("solver", "denoiser", "sde", "problem")),
    ("Data sets", DATASETS, "data.kwargs", ("split", "path", "channels")),
]


def text() -> str:
    """Return the page: its present introduction, and new tables."""
    parts = [PAGE.read_text().partition(MARK)[0] + MARK, "## Keys\n"]
    for group, rows in keys(DEFAULTS.read_text()):
        table = [
            [
                f"`{key}`",
                f"`{default}`",
                "; ".join(filter(None, (meaning, choices(f"{group}.{key}", f"{default} {meaning}")))),
            ]
            for key, default, meaning in rows
        ]
        heading = f"### {group}\n"
        parts.append("\n".join([heading, *markdown(["key", "default", "meaning"], table), ""]))
    parts.append("## Choices and their arguments\n")
    for heading, functions, key, hidden in FUNCTIONS:
        table = [[f"`{name}`", arguments(made, hidden), summary(made)] for name, made in functions.items()]
        lines = markdown(["name", f"`{key}`", "description"], table)
        parts.append("\n".join([f"### {heading}\n", *lines, ""]))
    return "\n".join(parts)


def keys(source: str) -> Iterator[tuple[str, list[tuple[str, str, str]]]]:
    """Yield each group of `default()` with its (key, default, comment); those without a group are "general"."""
    function = next(node for node in ast.parse(source).body if getattr(node, "name", "") == "default")
    defaults = next(node for node in ast.walk(function) if isinstance(node, ast.Dict))
    comments, lines = comments_by_line(source), source.splitlines()

    def row(key, value):
        first = key.lineno
        while lines[first - 2].lstrip().startswith("#"):
            first -= 1
        above = " ".join(comments[n] for n in range(first, key.lineno))
        return key.value, ast.unparse(value), above or comments.get(value.end_lineno, "")

    items = list(zip(defaults.keys, defaults.values, strict=True))
    yield "general", [row(key, value) for key, value in items if not isinstance(value, ast.Dict)]
    for key, value in items:
        if isinstance(value, ast.Dict):
            yield key.value, [row(*item) for item in zip(value.keys, value.values, strict=True)]


def comments_by_line(source: str) -> dict[int, str]:
    """Return the comment of each line that has one."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def choices(key: str, meaning: str) -> str:
    """Return a phrase with the names that a key accepts, "" if there are none or `meaning` lists all of them."""
    names = CHOICES.get(key, ())
    return "" if all(name in meaning for name in names) else f"one of {', '.join(names)}"


def arguments(made: Any, hidden: tuple[str, ...]) -> str:
    """Return the arguments of a function, a partial or a Flax module that a config can set, with their defaults."""
    if inspect.isclass(made) and dataclasses.is_dataclass(made):
        fields = [(field.name, field.default) for field in dataclasses.fields(made)]
    else:
        fixed = made.keywords if isinstance(made, partial) else {}
        parameters = inspect.signature(made).parameters.values()
        fields = [
            (parameter.name, parameter.default)
            for parameter in parameters
            if parameter.name not in fixed and parameter.kind is not parameter.VAR_KEYWORD
        ]
    shown = [(name, default) for name, default in fields if name not in hidden]
    none = (inspect.Parameter.empty, dataclasses.MISSING)
    return ", ".join(f"`{name}`" if default in none else f"`{name}={default!r}`" for name, default in shown)


def summary(made: Any) -> str:
    """Return the first line of a docstring, without "Return"."""
    documented = made.func if isinstance(made, partial) else made
    line = (inspect.getdoc(documented) or "").partition("\n")[0].removeprefix("Return ")
    return line[:1].upper() + line[1:]


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    """Return the lines of a table."""
    lines = [header, ["---"] * len(header), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


if __name__ == "__main__":
    PAGE.write_text(text())

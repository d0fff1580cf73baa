"""Measured order of every solver: error against the closed form on Gaussian data, in float64.

python benchmarks/solver_convergence.py [--picture=PATH]

The data are N(0.4, 0.6^2) and the SDE is vp. Deterministic solvers have the error of x against the exact flow.
Stochastic solvers have that of mean and standard deviation, which are computed without sampling. The order is the slope
over four doublings. `--picture` plots error against evaluations.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import jax
import numpy as np
from absl import app, flags

from benchmarks.report import show
from score_sde.analytic import flow_error, solver_error
from score_sde.evaluation.style import new_figure, place_legend, save_figure, series
from score_sde.sde import vp
from score_sde.solvers import (
    SOLVERS,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    edm_stochastic,
    exponential_sde,
    stochastic_runge_kutta,
    time_grid,
    unipc,
)

DATA = {"mean": 0.4, "std": 0.6}
DETERMINISTIC = {  # name -> (solver, order)
    **{name: (SOLVERS[name](), order) for name, order in (("euler", 1), ("heun", 2), ("rk4", 4), ("ddim", 1))},
    **{f"dpm_solver_pp_{order}m": (dpm_solver_pp(order), order) for order in (2, 3)},
    **{f"dpm_solver_pp_{order}s": (dpm_solver_pp(order, multistep=False), order) for order in (2, 3)},
    **{f"unipc_{order}": (unipc(order), order) for order in (1, 2, 3)},
    **{f"deis_{order}": (deis(order), order) for order in (1, 2, 3)},
    "deis_3_in_t": (deis(3, variable="t"), 3),
}
STOCHASTIC = {
    **{name: (SOLVERS[name](), 1) for name in ("euler_maruyama", "reverse_diffusion", "ancestral")},
    "exponential_sde": (exponential_sde(), 1),
    **{f"dpm_solver_pp_sde_{order}": (dpm_solver_pp_sde(order), order) for order in (1, 2)},
    "stochastic_runge_kutta": (stochastic_runge_kutta(), 2),
    "edm_stochastic": (edm_stochastic(s_churn=10.0), 2),
}

FLAGS = flags.FLAGS
flags.DEFINE_string("picture", None, "where to write the plot, a PNG")


def rows(solvers, measure, spacing, steps):
    for name, (solver, order) in solvers.items():
        errors = [measure(solver, vp(), time_grid(vp(), n, spacing), **DATA) for n in steps]
        slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
        row = {"solver": name, "spacing": spacing, "NFE a step": solver.nfe_per_step, "order": order}
        yield row | {"measured": float(slope)} | {f"{n} steps": e for n, e in zip(steps, errors, strict=True)}


def draw(path, tables):
    figure, panels = new_figure(2, width=7.0, height=5.0)
    titles = ("probability flow: error of x", "reverse SDE: error of mean and standard deviation")
    for panel, title, table in zip(panels, titles, tables, strict=True):
        for n, row in enumerate(table):
            errors = {int(key.split()[0]): value for key, value in row.items() if key.endswith(" steps")}
            nfe = [row["NFE a step"] * steps for steps in errors]
            panel.loglog(nfe, list(errors.values()), label=f"{row['solver']}: {row['measured']:.2f}", **series(n))
        panel.set(title=title, xlabel="number of network evaluations", ylabel="error")
        panel.grid(alpha=0.3)
        place_legend(panel, title="measured order")
    save_figure(Path(path), figure)


def main(argv):
    del argv
    with jax.enable_x64(True):
        tables = (
            list(rows(DETERMINISTIC, flow_error, "log_snr", (32, 64, 128, 256, 512))),
            list(rows(STOCHASTIC, solver_error, "quadratic", (50, 100, 200, 400, 800))),
        )
    show("Orders on the probability flow", tables[0])
    show("Weak orders on the reverse SDE", tables[1])
    if FLAGS.picture:
        draw(FLAGS.picture, tables)


if __name__ == "__main__":
    app.run(main)

"""`--mode=certify`: how far from its own fine solution each solver ends, on this network; no truth is needed.

Deterministic solvers start from the same latents, and are held against Runge-Kutta of order 4 on a very fine grid.
Stochastic ones follow the same Brownian paths at every resolution, and are held against their own finest solution.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError, not_none
from score_sde.evaluation.provenance import provenance
from score_sde.evaluation.results import check_figures, write_figures
from score_sde.experiment import Experiment
from score_sde.runtime.disk import replacing
from score_sde.sde import SDE, prior_sample
from score_sde.solvers import (
    SOLVERS,
    Solver,
    ancestral,
    check_times,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    euler_maruyama,
    exponential_sde,
    reverse_diffusion,
    rk4,
    stochastic_runge_kutta,
    time_grid,
    unipc,
)
from score_sde.training.load import trained
from score_sde.training.metrics import progress_bar

DETERMINISTIC: dict[str, Callable[[], Solver]] = {
    **{name: SOLVERS[name] for name in ("euler", "ddim", "heun", "rk4")},
    "dpm_solver_pp 2M": partial(dpm_solver_pp, 2),
    "dpm_solver_pp 3M": partial(dpm_solver_pp, 3),
    "dpm_solver_pp 2S": partial(dpm_solver_pp, 2, multistep=False),
    "dpm_solver_pp 3S": partial(dpm_solver_pp, 3, multistep=False),
    "unipc 2": partial(unipc, 2),
    "unipc 3": partial(unipc, 3),
    "deis 3": partial(deis, 3),
}
STOCHASTIC: dict[str, Callable[[], Solver]] = {
    "euler_maruyama": euler_maruyama,
    "reverse_diffusion": reverse_diffusion,
    "ancestral": ancestral,
    "exponential_sde": exponential_sde,
    "dpm_solver_pp_sde 2": partial(dpm_solver_pp_sde, 2),
    "stochastic_runge_kutta": stochastic_runge_kutta,
}
CLOSE = 0.01  # "within 1%"


def certify(experiment: Experiment, workdir: Path) -> str:
    """Measures every solver on this network; writes certify.png, and the table to evaluation.json under "certify".

    Returns:
      The table, and the cheapest solver within 1%.

    Raises:
      UserError: the network may not be asked between a chain's steps or gives NaN, or the folder has no checkpoint.
    """
    if experiment.knows_the_chain_alone:
        raise UserError(
            "certify refines grids, and this network was trained at a chain's steps alone (set "
            "--config.sampling.off_grid=True if it may be asked between them)"
        )
    check_figures(workdir)
    how, sde = experiment.certify, experiment.sde
    params, step = trained(experiment, workdir)
    keys = jax.random.split(jax.random.key(experiment.config["seed"]), how["num_samples"])
    x = jax.vmap(lambda key: prior_sample(sde, key, experiment.event_shape))(keys)
    denoiser = partial(not_none(experiment.denoiser), labels=experiment.label_of(jnp.arange(how["num_samples"])))
    rows, own_error = deterministic_table(sde, denoiser, params, x, how)
    strong = stochastic_table(sde, denoiser, params, x, keys, how)
    close = [row for row in rows if row["distance"] < CLOSE and own_error < CLOSE]
    cheapest = min(close, key=lambda row: row["nfe"], default=None)
    figures = provenance(experiment, step) | {"settings": how, "reference_own_error": own_error}
    figures |= {"cheapest_within_1_percent": cheapest}
    write_figures(workdir, {"certify": figures | {"deterministic": rows, "stochastic": strong}})
    save_plot(workdir / "certify.png", rows, strong)
    return _text(rows, strong, own_error, cheapest, how) + f"\nthe plot is {workdir / 'certify.png'}"


def make_runner(solver: Solver, sde: SDE, make_denoiser: Callable, longest: int) -> Callable:
    """(params, x, times, noise=None) -> x at times[-1], compiled once for all grids of at most `longest` steps."""

    @jax.jit
    def run(params, x, times, steps, noise):
        denoiser = make_denoiser(params)

        def advance(n, state):
            source = None if noise is None else noise[n]
            return solver.step(sde, denoiser, state, times[n], times[n + 1], source)

        return jax.lax.fori_loop(0, steps, advance, solver.init(x)).x

    def padded(params, x, times, noise=None):
        steps = len(times) - 1
        times = np.pad(np.asarray(times, np.float32), (0, longest - steps), mode="edge")
        if noise is not None:
            noise = jnp.pad(noise, ((0, longest - steps),) + ((0, 0),) * x.ndim)
        return np.asarray(run(params, x, times, steps, noise))

    return padded


def deterministic_table(sde: SDE, make_denoiser: Callable, params: Any, x: jax.Array, how: dict) -> tuple[list, float]:
    """Distances to the reference, |x - reference| / |reference|, and the reference's own, from half as many steps.

    Args:
      sde: the forward process.
      make_denoiser: params -> denoiser.
      params: the network's.
      x: (n, *event) latents at t_max.
      how: config.certify: nfe, spacings, reference_steps.

    Returns:
      (one {"solver", "spacing", "budget", "steps", "nfe", "distance"} for each, the reference's own distance).
    """
    reference_run = make_runner(rk4(), sde, make_denoiser, how["reference_steps"])
    reference, half = (
        reference_run(params, x, time_grid(sde, steps, "karras"))
        for steps in (how["reference_steps"], how["reference_steps"] // 2)
    )
    if not np.isfinite(reference).all():
        raise UserError("the network gives NaN or infinity on its way from noise to data: nothing can be certified")
    rows = []
    names = [name for name, make in DETERMINISTIC.items() if _runs(make(), sde)]
    with progress_bar(len(names), 0, "solver", "probability flow") as bar:
        for name in names:
            solver = DETERMINISTIC[name]()
            run = make_runner(solver, sde, make_denoiser, max(how["nfe"]))
            for budget in sorted(how["nfe"]):
                steps = budget // solver.nfe_per_step
                for spacing in how["spacings"] if steps else ():
                    end = run(params, x, time_grid(sde, steps, spacing))
                    rows.append(
                        {
                            "solver": name,
                            "spacing": spacing,
                            "budget": budget,
                            "steps": steps,
                            "nfe": steps * solver.nfe_per_step,
                            "distance": _distance(end, reference),
                        }
                    )
            bar.update()
    return rows, _distance(half, reference)


def stochastic_table(
    sde: SDE, make_denoiser: Callable, params: Any, x: jax.Array, keys: jax.Array, how: dict
) -> list[dict[str, Any]]:
    """Distances to each solver's own finest solution along the same Brownian paths, and the strong order they show.

    The noise of a step from t to t' is (W(t) - W(t')) / sqrt(t - t') of one path W a sample, from Diffrax's virtual
    Brownian tree, so that a finer grid fills in what a coarser one has seen.

    Returns:
      One {"solver", "steps", "distances", "strong_order"} for each.
    """
    steps = sorted(how["refinements"])
    names = [name for name, make in STOCHASTIC.items() if _runs(make(), sde)]
    grids = [time_grid(sde, n, "karras") for n in steps]
    paths = [brownian_noise(sde, keys, x, times, grids[-1]) for times in grids] if names else []
    rows = []
    with progress_bar(len(names), 0, "solver", "reverse SDE") as bar:
        for name in names:
            run = make_runner(STOCHASTIC[name](), sde, make_denoiser, steps[-1])
            *ends, finest = (run(params, x, times, noise) for times, noise in zip(grids, paths, strict=True))
            distances = [_distance(end, finest) for end in ends]
            order = -np.polyfit(np.log(steps[:-1]), np.log(distances), 1)[0]
            rows.append({"solver": name, "steps": steps[:-1], "distances": distances, "strong_order": float(order)})
            bar.update()
    return rows


def brownian_noise(sde: SDE, keys: jax.Array, x: jax.Array, times: np.ndarray, finest: np.ndarray) -> jax.Array:
    """(num_steps, n, *event) standard normal noise: the increments of one Brownian path a sample over its steps.

    The path is resolved to half the shortest step of the finest grid: with another resolution it is another path.
    """
    shape = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    low, high = float(times[-1]), float(times[0])
    tolerance = max(float((-np.diff(finest)).min()) / 2, 2e-7 * high)  # but for float32's rounding

    def path(key):
        tree = diffrax.VirtualBrownianTree(low, high, tol=tolerance, shape=shape, key=key)

        def increment(t, t_next):
            return tree.evaluate(t_next, t) / jnp.sqrt(t - t_next)

        ends = jnp.clip(jnp.asarray(times, x.dtype), low, high)
        return jax.vmap(increment)(ends[:-1], ends[1:])

    return jax.jit(jax.vmap(path, out_axes=1))(keys)


def _runs(solver: Solver, sde: SDE) -> bool:
    try:
        check_times(np.array([sde.t_max, sde.t_min]), sde, solver.needs_signal)
    except UserError:
        return False  # alpha = 0 at t_max
    return True


def _distance(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def best_spacings(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Of each solver and each budget of evaluations the row with the nearest spacing."""
    best: dict[str, dict[int, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["distance"], reverse=True):
        best.setdefault(row["solver"], {})[row["budget"]] = row
    return {name: dict(sorted(best[name].items())) for name in DETERMINISTIC if name in best}


def save_plot(path: Path, rows: Sequence[dict[str, Any]], strong: Sequence[dict[str, Any]]) -> None:
    """Distance against evaluations of the deterministic solvers, and against steps of the stochastic ones, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    first, second = figure.subplots(1, 2)
    for n, (name, points) in enumerate(best_spacings(rows).items()):
        nfe, distance = zip(*((row["nfe"], row["distance"]) for row in points.values()), strict=True)
        first.loglog(nfe, distance, marker="o^s"[n % 3], label=name, lw=1)
    first.axhline(CLOSE, color="gray", ls=":")
    first.set(title="probability flow, best spacing", xlabel="evaluations of the network", ylabel="distance")
    for row in strong:
        second.loglog(row["steps"], row["distances"], "o-", lw=1, label=f"{row['solver']}: {row['strong_order']:.2f}")
    second.set(title="reverse SDE, one Brownian path refined: strong order", xlabel="steps")
    for panel, shown in ((first, rows), (second, strong)):
        if shown:
            panel.legend(fontsize=8)
        panel.grid(alpha=0.3)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")


def _text(rows, strong, own_error: float, cheapest, how: dict) -> str:
    budgets = sorted(how["nfe"])
    lines = ["| solver | " + " | ".join(f"{n} NFE" for n in budgets) + " |", "|" + " --- |" * (len(budgets) + 1)]
    for name, points in best_spacings(rows).items():
        cells = {budget: f"{row['distance']:.2%} ({row['spacing']})" for budget, row in points.items()}
        lines.append(f"| {name} | " + " | ".join(cells.get(n, "") for n in budgets) + " |")
    lines += [f"{row['solver']}: strong order {row['strong_order']:.2f}" for row in strong]
    lines.append(f"the reference, {how['reference_steps']} steps of rk4, is {own_error:.2g} from half as many")
    if own_error >= CLOSE:
        lines.append("the reference itself is not within 1%: give more --config.certify.reference_steps")
    elif cheapest is None:
        lines.append("nothing here is within 1%: give more in --config.certify.nfe")
    else:
        lines.append(
            f"the cheapest within 1% is {cheapest['solver']} on {cheapest['spacing']}, {cheapest['nfe']} evaluations "
            f"({cheapest['distance']:.2%})"
        )
    return "\n".join(lines)

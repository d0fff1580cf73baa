"""Discretization error of each solver on a network, relative to a fine-grid reference (the mode `certify`).

Deterministic solvers start from the same latents, and are compared with 4th-order Runge-Kutta on a very fine grid.
Stochastic solvers follow the same Brownian paths at every resolution, and are compared with their finest solution.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.errors import UserError
from score_sde.evaluation.options import BenchmarkOptions
from score_sde.evaluation.style import new_figure, place_legend, save_figure, series
from score_sde.model import DiffusionModel, check_continuous_time
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
    flow_map_steps,
    reverse_diffusion,
    rk4,
    stochastic_runge_kutta,
    time_grid,
    unipc,
)
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
TOLERANCE = 0.01  # distance to the reference of a solver that is "within 1%"


def certify(
    model: DiffusionModel,
    params: Any,
    options: BenchmarkOptions,
    seed: int,
    plot_path: Path,
    labels: Callable[[Any], Any] = lambda indices: None,
) -> tuple[dict[str, Any], str]:
    """Measure every solver on a network, and plot the errors.

    Args:
      model: Diffusion model.
      params: Parameters of the model.
      options: Options of the benchmark.
      seed: Seed of latents and Brownian paths.
      plot_path: Path of the PNG.
      labels: Function from indices of samples to their classes.

    Returns:
      The results, and a text with the table and the cheapest solver within 1%.

    Raises:
      UserError: if the network was trained at discrete timesteps only, or gives NaN or infinity.
    """
    check_continuous_time(model, "certify")
    sde = model.sde
    keys = jax.random.split(jax.random.key(seed), options.num_samples)
    x = jax.vmap(lambda key: prior_sample(sde, key, model.event_shape))(keys)
    denoiser = partial(model.denoiser, labels=labels(jnp.arange(options.num_samples)) if model.num_classes else None)
    solvers = DETERMINISTIC | ({"flow_map_steps": flow_map_steps} if getattr(model.module, "two_times", False) else {})
    rows, reference_error = deterministic_table(sde, denoiser, params, x, options, solvers)
    strong = stochastic_table(sde, denoiser, params, x, keys, options)
    close = [row for row in rows if row["distance"] < TOLERANCE and reference_error < TOLERANCE]
    cheapest = min(close, key=lambda row: row["nfe"], default=None)
    results = {"settings": options._asdict(), "reference_own_error": reference_error}
    results |= {"cheapest_within_1_percent": cheapest, "deterministic": rows, "stochastic": strong}
    save_plot(plot_path, rows, strong)
    return results, _text(rows, strong, reference_error, cheapest, options)


def make_runner(solver: Solver, sde: SDE, make_denoiser: Callable, max_steps: int) -> Callable:
    """Return (params, x, times, noise=None) -> x at times[-1], compiled once for all grids of up to `max_steps` steps.

    Args:
      solver: Solver.
      sde: Forward process.
      make_denoiser: Function from parameters to a denoiser.
      max_steps: Maximum number of steps of a grid.
    """

    @jax.jit
    def run(params, x, times, steps, noise):
        denoiser = make_denoiser(params)

        def advance(n, state):
            step_noise = None if noise is None else noise[n]
            return solver.step(sde, denoiser, state, times[n], times[n + 1], step_noise)

        return jax.lax.fori_loop(0, steps, advance, solver.init(x)).x

    def padded(params, x, times, noise=None):
        steps = len(times) - 1
        times = np.pad(np.asarray(times, np.float32), (0, max_steps - steps), mode="edge")
        if noise is not None:
            noise = jnp.pad(noise, ((0, max_steps - steps),) + ((0, 0),) * x.ndim)
        return np.asarray(run(params, x, times, steps, noise))

    return padded


def deterministic_table(
    sde: SDE,
    make_denoiser: Callable,
    params: Any,
    x: jax.Array,
    options: BenchmarkOptions,
    solvers: Mapping[str, Callable[[], Solver]] = DETERMINISTIC,
) -> tuple[list, float]:
    """Measure the distance |x - reference| / |reference| of every deterministic solver, spacing and budget.

    Args:
      sde: Forward process.
      make_denoiser: Function from parameters to a denoiser.
      params: Parameters of the network.
      x: (n, *event) latents at t_max.
      options: Options of the benchmark.
      solvers: Functions that return the solvers, by their names.

    Returns:
      One {"solver", "spacing", "budget", "steps", "nfe", "distance"} per measurement, and the error of the reference,
      its distance to the solution with half as many steps.

    Raises:
      UserError: if the network gives NaN or infinity.
    """
    reference_run = make_runner(rk4(), sde, make_denoiser, options.reference_steps)
    reference, half = (
        reference_run(params, x, time_grid(sde, steps, "karras"))
        for steps in (options.reference_steps, options.reference_steps // 2)
    )
    if not np.isfinite(reference).all():
        raise UserError(
            "certify: expected finite samples, got NaN or infinity from the network on the way from noise to data"
        )
    rows = []
    names = [name for name, make in solvers.items() if _runs(make(), sde)]
    with progress_bar(len(names), 0, "solver", "probability flow") as bar:
        for name in names:
            solver = solvers[name]()
            run = make_runner(solver, sde, make_denoiser, max(options.nfe))
            for budget in sorted(options.nfe):
                steps = budget // solver.nfe_per_step
                for spacing in options.spacings if steps else ():
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
    sde: SDE, make_denoiser: Callable, params: Any, x: jax.Array, keys: jax.Array, options: BenchmarkOptions
) -> list[dict[str, Any]]:
    """Measure each stochastic solver's distances to its finest solution on the same Brownian paths.

    The noise of a step from t to t' is (W(t) - W(t')) / sqrt(t - t'), with one path W per sample from Diffrax's virtual
    Brownian tree. A finer grid thus refines the path of a coarser one.

    Args:
      sde: Forward process.
      make_denoiser: Function from parameters to a denoiser.
      params: Parameters of the network.
      x: (n, *event) latents at t_max.
      keys: (n,) keys of the paths.
      options: Options of the benchmark.

    Returns:
      One {"solver", "steps", "distances", "strong_order"} per solver, with the strong order fitted to the distances.
    """
    steps = sorted(options.sde_num_steps)
    names = [name for name, make in STOCHASTIC.items() if _runs(make(), sde)]
    grids = [time_grid(sde, n, "karras") for n in steps]
    paths = [brownian_noise(keys, x, times, grids[-1]) for times in grids] if names else []
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


def brownian_noise(keys: jax.Array, x: jax.Array, times: np.ndarray, finest: np.ndarray) -> jax.Array:
    """Return (num_steps, n, *event) standard normal noise, the scaled increments of one Brownian path per sample.

    The increments are divided by sqrt(t - t_next). The path is resolved to half the shortest step of the finest grid.
    Grids to compare need the same ends and the same `finest`, otherwise their paths differ.

    Args:
      keys: (n,) keys of the paths.
      x: (n, *event) array, for its shape and dtype.
      times: (num_steps + 1,) grid.
      finest: Finest grid that is compared.
    """
    import diffrax  # imported here, because the import takes half a second

    shape = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    low, high = float(times[-1]), float(times[0])
    tolerance = max(float((-np.diff(finest)).min()) / 2, 2e-7 * high)  # at least the rounding of float32

    def path(key):
        tree = diffrax.VirtualBrownianTree(low, high, tol=tolerance, shape=shape, key=key)

        def increment(t, t_next):
            return tree.evaluate(t_next, t) / jnp.sqrt(t - t_next)

        ends = jnp.clip(jnp.asarray(times, x.dtype), low, high)
        return jax.vmap(increment)(ends[:-1], ends[1:])

    return jax.jit(jax.vmap(path, out_axes=1))(keys)


def _runs(solver: Solver, sde: SDE) -> bool:
    try:
        check_times(np.array([sde.t_max, sde.t_min]), sde, solver.requires_nonzero_alpha)
    except UserError:
        return False  # alpha = 0 at t_max
    return True


def _distance(x: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(x - reference) / np.linalg.norm(reference))


def best_spacings(rows: Sequence[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the row with the best spacing of each solver and each budget of evaluations."""
    best: dict[str, dict[int, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["distance"], reverse=True):
        best.setdefault(row["solver"], {})[row["budget"]] = row
    return {name: dict(sorted(best[name].items())) for name in DETERMINISTIC if name in best}


def save_plot(path: Path, rows: Sequence[dict[str, Any]], strong: Sequence[dict[str, Any]]) -> None:
    """Write a PNG of distance against NFE for deterministic solvers, and against steps for stochastic solvers."""
    figure, (first, second) = new_figure(2, width=7.0, height=5.0)
    for n, (name, points) in enumerate(best_spacings(rows).items()):
        nfe, distance = zip(*((row["nfe"], row["distance"]) for row in points.values()), strict=True)
        first.loglog(nfe, distance, label=name, **series(n))
    first.axhline(TOLERANCE, color="gray", ls=":", label=f"{TOLERANCE:.0%}")
    first.set(title="probability flow, best spacing", xlabel="number of network evaluations")
    first.set_ylabel("relative distance to the reference solution")
    for n, row in enumerate(strong):
        second.loglog(row["steps"], row["distances"], label=f"{row['solver']}: {row['strong_order']:.2f}", **series(n))
    second.set(title="reverse SDE, refined along one Brownian path", xlabel="number of steps")
    second.set_ylabel("relative distance to the finest solution")
    for panel, title in ((first, None), (second, "strong order")):
        place_legend(panel, title=title)
        panel.grid(alpha=0.3)
    save_figure(path, figure)


def _text(rows, strong, reference_error: float, cheapest, options: BenchmarkOptions) -> str:
    budgets = sorted(options.nfe)
    lines = ["| solver | " + " | ".join(f"{n} NFE" for n in budgets) + " |", "|" + " --- |" * (len(budgets) + 1)]
    for name, points in best_spacings(rows).items():
        cells = {budget: f"{row['distance']:.2%} ({row['spacing']})" for budget, row in points.items()}
        lines.append(f"| {name} | " + " | ".join(cells.get(n, "") for n in budgets) + " |")
    lines += [f"{row['solver']}: strong order {row['strong_order']:.2f}" for row in strong]
    lines.append(f"the reference, {options.reference_steps} steps of rk4, is {reference_error:.2g} from half as many")
    if reference_error >= TOLERANCE:
        lines.append("the reference itself is not within 1%; increase reference_steps")
    elif cheapest is None:
        lines.append("nothing here is within 1%; add a larger budget to nfe")
    else:
        lines.append(
            f"the cheapest within 1% is {cheapest['solver']} on {cheapest['spacing']}, {cheapest['nfe']} evaluations "
            f"({cheapest['distance']:.2%})"
        )
    return "\n".join(lines)

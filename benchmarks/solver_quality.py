"""Samples of a Gaussian mixture with few evaluations, compared with solvers of diffusers and k-diffusion.

python benchmarks/solver_quality.py [--nfe=5,10,20,50] [--samples=4000] [--all]

The denoiser is exact, the SDE is vp, and all solvers have the same latents and noise, in float64 (float32 within
diffusers). The mixtures have 3 components in 2 dimensions and 5 in 64. The metrics are the sliced Wasserstein distance
to exact samples (64 directions) and the difference of the mean negative log-likelihood from that of the mixture. Each
solver has every grid that fits the budget: Karras's, quadratic and uniform in log-SNR, ending at t_min or with a last
step to 0, and for the peers with and without lower orders at the end. The table has the best grid.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import app, flags

from benchmarks.peer_samplers import PLANE, Mixture, given_noise, k_diffusion_sampling, run_scheduler, x0
from benchmarks.report import show
from score_sde.evaluation.metrics import sliced_wasserstein
from score_sde.models import create
from score_sde.parameterization import make_denoiser
from score_sde.sde import vp
from score_sde.solvers import (
    ancestral,
    ddim,
    deis,
    dpm_solver_pp,
    dpm_solver_pp_sde,
    edm_stochastic,
    euler,
    heun,
    rk4,
    solve,
    stochastic_runge_kutta,
    time_grid,
    unipc,
)

FLAGS = flags.FLAGS
flags.DEFINE_list("nfe", ["5", "10", "20", "50"], "evaluations of the denoiser")
flags.DEFINE_integer("samples", 4000, "samples each")
flags.DEFINE_bool("all", False, "also print every solver, not the best alone")

SDE = vp()
GRIDS = [(spacing, end) for spacing in ("karras", "log_snr", "quadratic") for end in ("t_min", "zero")]
OURS = {
    "euler": euler(),
    "heun": heun(),
    "rk4": rk4(),
    "ddim": ddim(),
    "dpm_solver_pp 2M": dpm_solver_pp(2),
    "dpm_solver_pp 3M": dpm_solver_pp(3),
    "dpm_solver_pp 3M reach=3": dpm_solver_pp(3, reach=3.0),
    "dpm_solver_pp 2S": dpm_solver_pp(2, multistep=False),
    "dpm_solver_pp 3S": dpm_solver_pp(3, multistep=False),
    "unipc 2": unipc(2),
    "unipc 2 bh1": unipc(2, "bh1"),
    "unipc 3": unipc(3),
    "unipc 3 reach=3": unipc(3, reach=3.0),
    "unipc 3 bh1 reach=3": unipc(3, "bh1", reach=3.0),
    "deis 2": deis(2),
    "deis 2 t": deis(2, variable="t"),
    "deis 3": deis(3),
    "deis 3 reach=inf": deis(3, reach=np.inf),
    "deis 3 t reach=inf": deis(3, variable="t", reach=np.inf),
    "deis 3 plain start reach=inf": deis(3, corrected_start=False, reach=np.inf),
    "ancestral": ancestral(),
    "dpm_solver_pp_sde 2": dpm_solver_pp_sde(2),
    "stochastic_runge_kutta": stochastic_runge_kutta(),
    "edm_stochastic": edm_stochastic(s_churn=2.0),
}
K_DIFFUSION = {  # name -> (evaluations a step, keyword arguments)
    "sample_euler": (1, {}),
    "sample_heun": (2, {}),
    "sample_dpm_2": (2, {}),
    "sample_lms": (1, {}),
    "sample_dpmpp_2m": (1, {}),
    "sample_dpmpp_2s_ancestral": (2, {"eta": 0.0}),
    "sample_euler_ancestral": (1, {"noise": True}),
    "sample_dpmpp_2m_sde": (1, {"noise": True}),
    "sample_dpmpp_3m_sde": (1, {"noise": True}),
    "sample_dpmpp_3m_sde eta=0": (1, {"noise": True, "eta": 0.0}),
}


def sixty_four() -> Mixture:
    rng = np.random.default_rng(0)
    return Mixture(rng.uniform(-1, 1, (5, 64)), rng.uniform(0.1, 0.5, 5), rng.dirichlet(np.full(5, 5.0)))


def steps_within(nfe: int, each: int, end: str) -> int:
    """Return the number of steps within a budget of evaluations; the last step, to 0, takes one."""
    return 1 + (nfe - 1) // each if end == "zero" else nfe // each


def our_samples(mixture: Mixture, latents: np.ndarray, noise: np.ndarray, nfe: int):
    model = create("mixture", **{name: part.tolist() for name, part in mixture._asdict().items()})
    denoiser = make_denoiser(lambda x, level: model.apply({}, x, level), SDE, preconditioning="log_snr")
    for name, solver in OURS.items():
        for spacing, end in GRIDS:
            steps = steps_within(nfe, solver.nfe_per_step, end)
            if steps < 1 or (steps == 1 and end == "zero"):
                continue
            times = time_grid(SDE, steps, spacing, end)
            given = jnp.asarray(noise[:steps]) if solver.stochastic else None
            run = jax.jit(lambda x, given, times=times, solver=solver: solve(
                solver, SDE, denoiser, x, times, noise=given, denoise=False
            ).x)  # fmt: skip
            yield f"{name}, {spacing}, {end}", np.asarray(run(jnp.asarray(latents), given))


def levels_of(times: np.ndarray) -> np.ndarray:
    times = jnp.asarray(times)
    return np.asarray(SDE.sigma(times) / SDE.alpha(times), np.float64)


def k_diffusion_samples(mixture: Mixture, latents: np.ndarray, noise: np.ndarray, nfe: int):
    library = k_diffusion_sampling()
    for label, (each, kwargs) in K_DIFFUSION.items():
        for spacing, end in GRIDS:
            steps = steps_within(nfe, each, end)
            if steps < 2:
                continue
            levels = levels_of(time_grid(SDE, steps, spacing, end))
            options = {key: value for key, value in kwargs.items() if key != "noise"}
            if "noise" in kwargs or "ancestral" in label:
                options["noise_sampler"] = given_noise(noise)
            x = library.__dict__[label.split()[0]](
                lambda x, s, **_: x0(x, 1.0, float(s[0]), mixture),
                torch.tensor(latents * np.sqrt(1 + levels[0] ** 2)),
                torch.tensor(levels),
                disable=True,
                **options,
            )
            yield f"{label}, {spacing}, {end}", x.numpy() / np.sqrt(1 + levels[-1] ** 2)


def diffusers_samples(mixture: Mixture, latents: np.ndarray, nfe: int):
    def kinds(final: str, lower: bool):
        plain = {"prediction_type": "sample", "lower_order_final": lower}
        plain["final_sigmas_type"] = final
        for order in (2, 3):
            for kind in ("midpoint", "heun"):
                options = plain | {"solver_order": order, "solver_type": kind}
                if order == 2 or kind == "midpoint":
                    yield f"DPMSolverMultistep {order} {kind}", diffusers.DPMSolverMultistepScheduler(**options)
            yield f"DPMSolverSinglestep {order}", diffusers.DPMSolverSinglestepScheduler(**plain, solver_order=order)
            for kind in ("bh1", "bh2"):
                yield (
                    f"UniPC {order} {kind}",
                    diffusers.UniPCMultistepScheduler(**plain, solver_order=order, solver_type=kind),
                )
            options = {"prediction_type": "sample", "solver_order": order, "lower_order_final": lower}
            yield f"DEIS {order}", diffusers.DEISMultistepScheduler(**options)

    for spacing, end in GRIDS:
        levels = levels_of(time_grid(SDE, nfe, spacing, end))
        for lower in (False, True):
            for label, scheduler in kinds("zero" if end == "zero" else "sigma_min", lower):
                if not lower and end == "zero":
                    continue  # refused by diffusers
                try:
                    path = run_scheduler(scheduler, levels, latents, mixture)
                except (ValueError, IndexError, RuntimeError):
                    continue  # DEIS has no step to 0
                yield f"{label}{' lower final' if lower else ''}, {spacing}, {end}", path[-1]


def log_density(mixture: Mixture, x: np.ndarray) -> np.ndarray:
    means, stds, weights = mixture
    squares = ((x[:, None] - means) ** 2).sum(-1) / stds**2
    logs = np.log(weights) - 0.5 * (squares + x.shape[1] * np.log(2 * np.pi * stds**2))
    return np.logaddexp.reduce(logs, axis=1)


def draws(mixture: Mixture, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    component = rng.choice(len(mixture.weights), n, p=mixture.weights)
    return mixture.means[component] + mixture.stds[component, None] * rng.standard_normal((n, mixture.means.shape[1]))


def main(argv):
    del argv
    rows, everything = [], []
    with jax.enable_x64(True):
        for mixture in (PLANE, sixty_four()):
            dimension, n = mixture.means.shape[1], FLAGS.samples
            rng = np.random.default_rng(1)
            latents = rng.standard_normal((n, dimension)) * float(SDE.sigma(1.0))
            budgets = [int(nfe) for nfe in FLAGS.nfe]
            noise = rng.standard_normal((max(budgets), n, dimension))
            data, other = draws(mixture, n, 2), draws(mixture, n, 3)
            truth = log_density(mixture, data).mean()

            def score(x, data=data, truth=truth, mixture=mixture):
                if not np.isfinite(x).all():
                    return np.inf, np.inf
                distance = sliced_wasserstein(x, data, num_directions=64)
                return distance, abs(float(log_density(mixture, x).mean() - truth))

            floor = score(other)
            for nfe in budgets:
                families = {
                    "ours": our_samples(mixture, latents, noise, nfe),
                    "k-diffusion": k_diffusion_samples(mixture, latents, noise, nfe),
                    "diffusers": diffusers_samples(mixture, latents, nfe),
                }
                scores = {family: {name: score(x) for name, x in made} for family, made in families.items()}
                for family, table in scores.items():
                    for name, (distance, nats) in table.items():
                        everything.append(
                            {"d": dimension, "NFE": nfe, "who": family, "solver": name, "SW": distance, "NLL": nats}
                        )
                for which, measure in enumerate(("sliced Wasserstein", "NLL - truth, nats")):
                    row = {"dimensions": dimension, "NFE": nfe, "measure": measure}
                    for family, table in scores.items():
                        best = min(table, key=lambda name: table[name][which])
                        row |= {family: table[best][which], f"best of {family}": best}
                    rows.append(row | {"two draws of data": floor[which]})
    if FLAGS.all:
        show("Every solver and grid", everything)
    show(f"The best of each at few evaluations, {FLAGS.samples} samples", rows)


if __name__ == "__main__":
    app.run(main)

"""Weighted particles: guidance on a mixture compared with exact samples, and the cost of a particle.

python benchmarks/particles.py [--picture=PATH] [--nocost]

A class with two modes is guided away from the other class. The first table has the share of the left mode and the
sliced Wasserstein distance to exact samples, for plain guidance and for populations of particles, of which each gives
one sample. The second one has the time of weighted particles over that of plain samples, on the digits' network at the
same number of network evaluations: the median of 5 interleaved rounds.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.report import interleaved, median, show
from configs.common import digits
from score_sde.analytic import mixture_denoiser
from score_sde.evaluation.metrics import sliced_wasserstein
from score_sde.evaluation.style import COLORS, new_figure, save_figure
from score_sde.experiment import make_experiment
from score_sde.particles import product, solve_weighted
from score_sde.sde import prior_sample, vp
from score_sde.solvers import exponential_sde, solve, time_grid

FLAGS = flags.FLAGS
flags.DEFINE_string("picture", None, "where to write the plot, a PNG")
flags.DEFINE_integer("samples", 2000, "samples of each kind")
flags.DEFINE_integer("steps", 400, "solver steps")
flags.DEFINE_float("scale", 3.0, "guidance scale")
flags.DEFINE_list("particles", ["4", "16", "64"], "particles of a population")
flags.DEFINE_bool("cost", True, "also measure the time")

SDE = vp()
# Two modes of the guided class, and one of the other.
MEANS, STDS, WEIGHTS = (
    [[-0.9, 0.4], [0.9, 0.4], [-0.4, -0.9]],
    [0.35, 0.35, 0.45],
    [0.3, 0.3, 0.4],
)
EVERYTHING = mixture_denoiser(SDE, MEANS, STDS, WEIGHTS)
CLASS = mixture_denoiser(SDE, MEANS[:2], STDS[:2])


def exact(number: int, seed: int) -> np.ndarray:
    """Return samples of p_c^w / p^(w - 1), drawn from a fine grid."""
    ticks = np.linspace(-3, 3, 601)
    plane = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    points = jnp.asarray(plane, jnp.float32)
    logs = FLAGS.scale * CLASS.log_prob(points, SDE.t_min) + (1 - FLAGS.scale) * EVERYTHING.log_prob(points, SDE.t_min)
    density = np.exp(np.asarray(logs, np.float64) - float(logs.max()))
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(plane), number, p=density / density.sum())
    return plane[chosen] + rng.uniform(-0.5, 0.5, (number, 2)) * (ticks[1] - ticks[0])


def guided(particles: int) -> tuple[np.ndarray, float]:
    """Return samples and the mean effective sample size; one particle has no weights."""
    target = product(SDE, [CLASS, EVERYTHING], (FLAGS.scale, 1 - FLAGS.scale))
    x = prior_sample(SDE, jax.random.key(0), (FLAGS.samples * particles, 2))
    times, key = time_grid(SDE, FLAGS.steps), jax.random.key(1)
    solution = jax.jit(
        lambda x: solve_weighted(exponential_sde(), SDE, target, x, times, key, particles, denoise=True)
    )(x)
    chosen = jax.random.categorical(jax.random.key(2), solution.log_weights.reshape(-1, particles))
    samples = solution.x[jnp.arange(len(chosen)) * particles + chosen]
    return np.asarray(samples), float(solution.effective_sample_size.mean())


def cost_rows():
    config = digits()
    config.model.kwargs.num_classes, config.model.kwargs.label_dropout = 10, 0.1
    model = make_experiment(config, jax.local_devices()).model
    params, rows = model.init(jax.random.key(0)), 64
    denoisers = [model.denoiser(params, labels=jnp.full(rows, label)) for label in (3, -1)]
    target, times = product(SDE, denoisers, (2.0, -1.0)), time_grid(SDE, 20)
    x = prior_sample(SDE, jax.random.key(0), (rows, *model.event_shape))
    composed = lambda x, t: target.evaluate(x, t).pair  # noqa: E731
    kinds = {
        "plain": jax.jit(
            lambda x: solve(exponential_sde(), SDE, composed, x, times, jax.random.key(1), denoise=True).x
        ),
        "weighted": jax.jit(
            lambda x: solve_weighted(exponential_sde(), SDE, target, x, times, jax.random.key(1), 16, denoise=True).x
        ),
    }
    for run in kinds.values():
        run(x).block_until_ready()  # compiles
    seconds = interleaved({name: lambda run=run: run(x).block_until_ready() for name, run in kinds.items()}, 5)
    medians = {name: median(values) for name, values in seconds.items()}
    return [
        {"kind": name, "ms": 1e3 * value, "over plain": value / medians["plain"]} for name, value in medians.items()
    ]


def main(argv):
    del argv
    truth = exact(FLAGS.samples, 0)
    kinds = {"exact": (exact(FLAGS.samples, 1), None), "plain guidance": guided(1)}
    kinds |= {f"{number} particles": guided(int(number)) for number in FLAGS.particles}
    rows = []
    for name, (samples, size) in kinds.items():
        row = {"kind": name, "share of the left mode": float((samples[:, 0] < 0).mean())}
        row |= {"sliced Wasserstein": sliced_wasserstein(samples, truth)}
        rows.append(row | {"effective sample size": "" if size is None or name == "plain guidance" else f"{size:.1f}"})
    show(f"Guidance of scale {FLAGS.scale:g}, {FLAGS.steps} steps, {FLAGS.samples} samples", rows)
    if FLAGS.picture:
        plotted = {name: samples for name, (samples, _) in kinds.items() if name in ("exact", "plain guidance")}
        plotted |= {name: samples for name, (samples, _) in list(kinds.items())[-1:]}
        figure, panels = new_figure(3)
        for panel, (name, samples) in zip(panels, plotted.items(), strict=True):
            panel.scatter(*samples.T, s=2, color=COLORS[0])
            panel.set(title=name, xlim=(-2.2, 2.2), ylim=(-1.2, 2.0), xlabel="first coordinate")
        panels[0].set(ylabel="second coordinate")
        save_figure(Path(FLAGS.picture), figure)
    if FLAGS.cost:
        show("Time of 64 particles, 20 steps, two predictions each", cost_rows())


if __name__ == "__main__":
    app.run(main)

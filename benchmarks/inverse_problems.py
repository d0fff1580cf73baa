"""Error of each method for inverse problems against posteriors in closed form.

python benchmarks/inverse_problems.py [--samples=4000] [--steps=400] [--dimensions=2,64] [--nomixture] [--methods=dps]

Gaussian data have independent features of one variance ("isotropic") or correlated ones. Half of the features, or means
of pairs, are measured with noise 0, 0.05 and 0.5. The errors are those of the mean, in standard deviations of the
posterior, and of the covariance, relative to its norm. "exact draws" has the expected errors of as many exact samples,
sqrt(1 / n) and sqrt((trace^2 / norm^2 + 1) / n); "exact" marks errors within 3 times these. A mixture in 2 dimensions
has the sliced Wasserstein distance to exact samples. "two exact draws" is the mean distance of 100 pairs of exact sets,
and "90% of them below" its 90% quantile.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks.report import show
from score_sde import analytic, operators
from score_sde.evaluation.metrics import sliced_wasserstein
from score_sde.inverse import Problem, solve_inverse_problem
from score_sde.sde import prior_sample, vp
from score_sde.solvers import ddim, exponential_sde, time_grid

FLAGS = flags.FLAGS
flags.DEFINE_integer("samples", 4000, "samples of each posterior")
flags.DEFINE_integer("steps", 400, "steps of the solver: DDIM, for repaint and dps ancestral")
flags.DEFINE_list("dimensions", ["2", "64"], "of the Gaussian data; even")
flags.register_validator("dimensions", lambda given: all(int(word) % 2 == 0 for word in given), "must be even")
flags.DEFINE_bool("mixture", True, "also measure on a mixture")
flags.DEFINE_list("methods", [], "methods to measure; none: all")

STD = 0.5  # of the Gaussian data
MEANS, STDS, WEIGHTS = np.array([[-0.8, -0.5], [0.7, -0.2], [0.1, 0.9]]), (0.1, 0.2, 0.3), (0.5, 0.3, 0.2)
METHODS = {  # name -> (method, solver, arguments)
    "replacement": ("replacement", ddim(), {}),
    "repaint, 5 repeats": ("repaint", ddim(eta=1.0), {"repeats": 5}),
    "dps, step 0.1": ("dps", ddim(eta=1.0), {"step_size": 0.1}),
    "dps, step 1": ("dps", ddim(eta=1.0), {"step_size": 1.0}),
    "pigdm": ("pigdm", ddim(), {"sigma_data": STD}),
    "ddrm, eta 0.85": ("ddrm", ddim(), {"eta": 0.85}),
    "ddrm, eta 0": ("ddrm", ddim(), {"eta": 0.0}),
} | {
    f"twisted, {n} particle{'s' * (n > 1)}": ("twisted", exponential_sde(), {"num_particles": n, "sigma_data": STD})
    for n in (1, 4, 16, 64)
}


def selected():
    return {name: chosen for name, chosen in METHODS.items() if not FLAGS.methods or chosen[0] in FLAGS.methods}


def covariance_of(kind, dimension):
    """Return the covariance of features of variance STD^2; the correlation decays by 0.9 per position."""
    if kind == "isotropic":
        return STD**2 * np.eye(dimension)
    places = np.arange(dimension)
    return STD**2 * 0.9 ** np.abs(places[:, None] - places[None])


def run(method, solver, how, denoiser, problem, x):
    """Return samples as rows; from each population of particles, one is drawn by weight."""
    sde, particles = vp(), how.get("num_particles", 1)
    times, key = time_grid(sde, FLAGS.steps), jax.random.key(1)
    x = prior_sample(sde, jax.random.key(0), (len(x) * particles, x.shape[1]))
    problem = problem._replace(y=jnp.repeat(problem.y, particles, axis=0))

    @jax.jit
    def sampled(x):
        solution = solve_inverse_problem(solver, sde, denoiser, x, times, problem, key, method, denoise=True, **how)
        if method != "twisted":
            return solution.x
        chosen = jax.random.categorical(jax.random.key(2), solution.log_weights.reshape(-1, particles))
        return solution.x[jnp.arange(len(chosen)) * particles + chosen]

    return np.asarray(sampled(x))


def gaussian_rows(dimension):
    sde, rng = vp(), np.random.default_rng(dimension)
    mean = 0.3 * rng.standard_normal(dimension)
    x = prior_sample(sde, jax.random.key(0), (FLAGS.samples, dimension))
    matrices = {"half seen": np.eye(dimension)[::2], "means of pairs": np.kron(np.eye(dimension // 2), [[0.5, 0.5]])}
    for kind in ("isotropic", "correlated"):
        covariance = covariance_of(kind, dimension)
        truth = rng.multivariate_normal(mean, covariance)
        denoiser = analytic.correlated_gaussian_denoiser(sde, mean, covariance)
        for seen, a in matrices.items():
            for noise in (0.0, 0.05, 0.5):
                y = a @ truth + noise * rng.standard_normal(len(a))
                law = analytic.gaussian_posterior(mean, covariance, a, y, noise)
                problem = Problem(
                    operators.matrix(a, (dimension,)),
                    jnp.broadcast_to(jnp.asarray(y, x.dtype), (len(x), len(y))),
                    noise,
                )
                exact = np.sqrt(np.array([1, np.trace(law[1]) ** 2 / np.sum(law[1] ** 2) + 1]) / len(x))
                row = {"d": dimension, "data": kind, "seen": seen, "noise": noise, "exact draws": _cell(exact)}
                for name, chosen in selected().items():
                    found = analytic.moment_errors(run(*chosen, denoiser, problem, x), *law)
                    right = all(error < 3 * least for error, least in zip(found, exact, strict=True))
                    row[name] = _cell(found) + (" exact" if right else "")
                yield row


def _cell(errors):
    return ", ".join(f"{error:.2g}" for error in errors)


def mixture_posterior(a, y, noise, n, rng):
    """Return exact samples of p(x0 | y) of the mixture, whose components are weighted by their evidence."""
    parts, weights = [], []
    for mean, std, weight in zip(MEANS, STDS, WEIGHTS, strict=True):
        covariance = std**2 * np.eye(2)
        parts.append(analytic.gaussian_posterior(mean, covariance, a, y, noise))
        variance = float((a @ covariance @ a.T).item() + noise**2)
        off = float((y - a @ mean).item())
        weights.append(weight * np.exp(-0.5 * off**2 / variance) / np.sqrt(variance))
    chosen = rng.choice(3, n, p=np.array(weights) / sum(weights))
    return np.stack([rng.multivariate_normal(*parts[k], method="svd") for k in chosen])


def mixture_rows():
    sde, rng, pairs = vp(), np.random.default_rng(0), np.random.default_rng(1)
    denoiser = analytic.mixture_denoiser(sde, MEANS, STDS, WEIGHTS)
    x, a, y = prior_sample(sde, jax.random.key(0), (FLAGS.samples, 2)), np.array([[0.0, 1.0]]), np.array([-0.2])
    for noise in (0.0, 0.05, 0.5):
        exact = mixture_posterior(a, y, noise, len(x), rng)
        own = [
            sliced_wasserstein(*(mixture_posterior(a, y, noise, len(x), pairs) for _ in range(2))) for _ in range(100)
        ]
        problem = Problem(operators.matrix(a, (2,)), jnp.full((len(x), 1), y[0]), noise)
        row = {"noise": noise, "two exact draws": np.mean(own), "90% of them below": np.quantile(own, 0.9)}
        for name, chosen in selected().items():
            row[name] = sliced_wasserstein(run(*chosen, denoiser, problem, x), exact)
        yield row


def main(argv):
    del argv
    for dimension in map(int, FLAGS.dimensions):
        show(
            f"Posterior of Gaussian data, {FLAGS.steps} steps, {FLAGS.samples} samples", list(gaussian_rows(dimension))
        )
    if FLAGS.mixture:
        show(f"Posterior of a mixture, {FLAGS.steps} steps, {FLAGS.samples} samples", list(mixture_rows()))


if __name__ == "__main__":
    app.run(main)

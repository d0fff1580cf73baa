"""Errors of the predictions x0, v and epsilon for data on a plane, by the number of dimensions.

python benchmarks/dimensions.py [--dimensions=2,8,32,128,512] [--steps=5000] [--picture=PATH]

Trains `configs/subspace.py` for each prediction and number of dimensions. "error" is |v_hat - v|^2, on average over
the test split and over log-SNRs from -6 to 6. "exact denoiser" is its error, which no network can undercut. "distance
to plane" is the root mean square over samples. "in the plane" is the sliced Wasserstein distance between samples and
the test split there.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging

from benchmarks.report import show
from configs import subspace
from score_sde import perturb, t_from_log_snr
from score_sde.data.toys import random_basis
from score_sde.evaluation.metrics import sliced_wasserstein
from score_sde.evaluation.style import new_figure, place_legend, save_figure, series
from score_sde.experiment import make_experiment
from score_sde.experiment.modes import train
from score_sde.training.load import load_params

FLAGS = flags.FLAGS
flags.DEFINE_list("dimensions", ["2", "8", "32", "128", "512"], "dimensions of the data, which lie in a plane")
flags.DEFINE_list("predictions", ["x0", "v", "epsilon"], "predictions to compare")
flags.DEFINE_integer("steps", 5000, "train steps")
flags.DEFINE_string("picture", None, "file of the plot, a PNG")
LEVELS = np.linspace(-6, 6, 13)


def mean_error(denoiser, sde, x0):
    """Return the mean over the levels of |v_hat - v|^2 = |x0_hat - x0|^2 + |eps_hat - eps|^2; alpha^2 + sigma^2 = 1."""

    @jax.jit
    def error(x0, level, key):
        t = jnp.full(len(x0), t_from_log_snr(sde, level))
        x, epsilon = perturb(sde, key, x0, t)
        found = denoiser(x, t)
        return jnp.mean(jnp.sum((found.x0 - x0) ** 2 + (found.epsilon - epsilon) ** 2, axis=1))

    keys = jax.random.split(jax.random.key(0), len(LEVELS))
    return float(np.mean([error(x0, level, key) for level, key in zip(LEVELS, keys, strict=True)]))


def measure(dimensions, prediction):
    """Train one network and return its row."""
    config = subspace.get_config()
    config.data.channels, config.model.prediction = dimensions, prediction
    config.training.num_steps = config.training.checkpoint_every = config.training.sample_every = FLAGS.steps
    experiment = make_experiment(config, jax.local_devices())
    with tempfile.TemporaryDirectory() as workdir:
        train(experiment, Path(workdir))
        params, _ = load_params(experiment.training, experiment.config, Path(workdir))
    sde, x0 = experiment.model.sde, jnp.asarray(experiment.load("test").examples.images)
    (batch,) = experiment.sampler.batches(params, 4000)
    drawn = np.asarray(batch.x)
    basis = random_basis(dimensions, 2)
    return {
        "dimensions": dimensions,
        "prediction": prediction,
        "error": mean_error(experiment.model.denoiser(params), sde, x0),
        "exact denoiser": mean_error(experiment.exact_denoiser, sde, x0),
        "distance to plane": float(np.sqrt(np.mean(np.sum((drawn - drawn @ basis @ basis.T) ** 2, axis=1)))),
        "in the plane": float(sliced_wasserstein(drawn @ basis, np.asarray(x0[:4000]) @ basis)),
    }


def save_curves(path, rows):
    """Plot the errors against the number of dimensions."""
    figure, (panel,) = new_figure(1, width=6.0)
    for index, prediction in enumerate(FLAGS.predictions):
        points = [(row["dimensions"], row["error"]) for row in rows if row["prediction"] == prediction]
        panel.plot(*zip(*points, strict=True), label=prediction, **series(index))
    exact = {row["dimensions"]: row["exact denoiser"] for row in rows}
    panel.plot(*zip(*exact.items(), strict=True), color="gray", linestyle=":", label="exact denoiser")
    panel.set(xscale="log", yscale="log", xlabel="dimensions", ylabel="mean squared error of v")
    panel.set_xticks(list(exact), map(str, exact))
    place_legend(panel, title="prediction")
    save_figure(Path(path), figure)


def main(argv):
    del argv
    logging.set_verbosity(logging.ERROR)  # hides the messages of Orbax
    rows = [
        measure(dimensions, prediction) for dimensions in map(int, FLAGS.dimensions) for prediction in FLAGS.predictions
    ]
    show(f"Errors of predictions after {FLAGS.steps} steps on a plane in several dimensions", rows)
    if FLAGS.picture:
        save_curves(FLAGS.picture, rows)


if __name__ == "__main__":
    app.run(main)

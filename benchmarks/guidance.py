"""Fidelity and diversity of guided digits, measured by a support vector machine that is trained on real images.

python benchmarks/guidance.py --workdir=runs/vp_digits_conditional [--picture=PATH]
python benchmarks/guidance.py --workdir=runs/vp_digits --guide=runs/vp_digits_classifier
python benchmarks/guidance.py --scales=2 --particles=1,4,16 --solver=exponential_sde --steps=100

The run must be trained, and the guide exported. Fidelity ("seen as asked") is the fraction of samples that the machine
assigns to their class. Diversity is the mean pixel distance between two samples of a class, averaged over classes.
Precision and recall compare pixels with the test images. The last rows are for real images. `--picture` plots fidelity
and diversity against the scale. With particles above 1 the samples are weighted (`score_sde/particles.py`).
"""

import sys
import time
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import jax
import numpy as np
from absl import app, flags

from benchmarks.report import saved_config, show
from benchmarks.svm import fit_svm, top_class
from configs.vp_digits_conditional import get_config
from score_sde.data import load_examples, to_levels, to_unit_range
from score_sde.evaluation.metrics import precision_recall
from score_sde.evaluation.style import new_figure, save_figure, series
from score_sde.experiment import make_experiment
from score_sde.training.load import load_params

FLAGS = flags.FLAGS
flags.DEFINE_string("workdir", "runs/vp_digits_conditional", "the run")
flags.DEFINE_string("guide", "", "a classifier's or a weaker network's run; none: classifier-free guidance")
flags.DEFINE_list("scales", ["0", "0.5", "1", "1.5", "2", "3", "5"], "guidance scales")
flags.DEFINE_list("particles", ["1"], "weighted particles per sample; applies only to scales above 1")
flags.DEFINE_string("solver", "", "solver; none: the config's")
flags.DEFINE_integer("steps", 0, "solver steps; 0: the config's")
flags.DEFINE_integer("samples", 1000, "samples a scale, of each class in turn")
flags.DEFINE_string("picture", None, "where to write the plot, a PNG")


def scaled(source):
    images, labels = load_examples(source)
    return to_unit_range(images, source.levels), labels


def draw(config, scale, particles, levels):
    """Return samples of a guidance scale at the data's levels, their labels, and their cost."""
    config.sampling.guidance_scale, config.sampling.particles = scale, particles
    experiment = make_experiment(config, jax.local_devices())
    params, _ = load_params(experiment.training, experiment.config, Path(FLAGS.workdir))
    start = time.perf_counter()
    batches = list(experiment.sampler.batches(params, FLAGS.samples))
    took = {"NFE": float(batches[0].nfe[0]), "seconds": time.perf_counter() - start}
    if FLAGS.particles != ["1"]:
        sizes = [batch.effective_sample_size for batch in batches if particles > 1]
        took["effective sample size"] = float(np.concatenate(sizes).mean()) if sizes else None
    images = to_unit_range(to_levels(np.concatenate([batch.x for batch in batches]), levels), levels)
    return images, np.asarray(experiment.sampler.labels(np.arange(FLAGS.samples))), took


def diversity(images, labels):
    """Return the mean distance between two images of a class, averaged over classes."""
    spread = []
    for label in np.unique(labels):
        own = images[labels == label].reshape(-1, images[0].size)
        spread.append(float(np.mean([np.linalg.norm(a - b) for a, b in combinations(own[:100], 2)])))
    return spread


def row_of(name, machine, test, images, labels, took=None):
    found, sure = top_class(machine, images)
    spread = diversity(images, labels)
    row = {"scale": name, "seen as asked": float(np.mean(found == labels)), "top-class probability": float(sure.mean())}
    row |= {"diversity": float(np.mean(spread))}
    if test is not None:
        overlap = precision_recall(*(pixels.reshape(len(pixels), -1) for pixels in (test, images)))
        row |= {"precision": overlap.precision, "recall": overlap.recall}
    row |= took or {}
    return row | {f"of {label}": value for label, value in enumerate(spread)}


def save_picture(path, rows, real, num_samples):
    figure, panels = new_figure(2)
    scales = [row["scale"] for row in rows]
    fidelity = np.array([row["seen as asked"] for row in rows])
    of_classes = np.array([[value for key, value in row.items() if key.startswith("of ")] for row in rows])
    errors = {
        "seen as asked": 2 * np.sqrt(fidelity * (1 - fidelity) / num_samples),
        "diversity": of_classes.std(1, ddof=1),
    }
    labels = (
        "fidelity: fraction of samples in the target class,\nwith two standard errors",
        "diversity: mean distance within a class,\nwith the standard deviation over classes",
    )
    for panel, key, label in zip(panels, errors, labels, strict=True):
        panel.errorbar(scales, [row[key] for row in rows], errors[key], capsize=3, **series(0))
        panel.axhline(real[key], color="gray", linestyle=":")
        panel.set(xlabel="guidance scale (dotted: real test images)", ylabel=label)
        panel.set_ylim(0, 1.1 * max(real[key], *(row[key] for row in rows)))
    save_figure(Path(path), figure)


def main(argv):
    del argv
    config = saved_config(FLAGS.workdir)
    config.sampling = get_config().sampling  # not what the run was last called with
    config.sampling.guidance_weights = FLAGS.guide
    load = make_experiment(config, jax.local_devices()).load
    train, test = load("train"), load("test")
    machine = fit_svm(*scaled(train))
    if FLAGS.solver:
        config.sampling.solver = FLAGS.solver
    if FLAGS.steps:
        config.sampling.num_steps = FLAGS.steps
    pixels, rows = scaled(test)[0], []
    for scale in (float(text) for text in FLAGS.scales):
        for particles in map(int, FLAGS.particles) if scale > 1 else [1]:
            name = scale if FLAGS.particles == ["1"] else f"{scale:g}, {particles} particle{'s' * (particles > 1)}"
            rows.append(row_of(name, machine, pixels, *draw(config, scale, particles, train.levels)))
    real = [row_of("real test", machine, None, *scaled(test)), row_of("real train", machine, pixels, *scaled(train))]
    by = f" by {FLAGS.guide}" if FLAGS.guide else ""
    show(f"Guidance of {Path(FLAGS.workdir).name}{by}, {FLAGS.samples} samples", rows + real)
    if FLAGS.picture:
        save_picture(FLAGS.picture, rows, real[0], FLAGS.samples)


if __name__ == "__main__":
    app.run(main)

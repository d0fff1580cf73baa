"""Few-step sampling: flow maps compared with solvers of a denoiser, by Fréchet distance.

python benchmarks/few_steps.py --parent=runs/vp_digits --maps=runs/flow_map_digits,runs/flow_map_digits_distill
    [--picture=PATH] [--grid=PATH]

The distance to the training split is in the features of the small classifier. The title has the distance of the test
split. Each solver of the parent has its best of several time grids.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs as a file, too

import jax
import numpy as np
from absl import app, flags

from benchmarks.report import saved_config, show
from score_sde.data import to_levels
from score_sde.evaluation.extractors import EXTRACTORS
from score_sde.evaluation.features import make_extract, make_split, real_features
from score_sde.evaluation.image_grid import save_grid
from score_sde.evaluation.metrics import frechet_distance
from score_sde.evaluation.style import new_figure, place_legend, save_figure, series
from score_sde.experiment import make_experiment
from score_sde.experiment.defaults import default
from score_sde.training.load import load_params

FLAGS = flags.FLAGS
flags.DEFINE_string("parent", "runs/vp_digits", "run of a denoiser")
flags.DEFINE_list("maps", ["runs/flow_map_digits", "runs/flow_map_digits_distill"], "runs of flow maps")
flags.DEFINE_list("nfe", ["1", "2", "4", "8", "50"], "network evaluations per sample")
flags.DEFINE_list("solvers", ["ddim", "dpm_solver_pp", "unipc"], "solvers of the parent")
flags.DEFINE_list("spacings", ["uniform", "log_snr"], "spacings of the parent's solvers")
flags.DEFINE_list("starts", ["0", "0.7"], "first times of the parent's grids; 0: t_max of the SDE")
flags.DEFINE_integer("samples", 1000, "samples of each kind")
flags.DEFINE_string("picture", None, "where to write the curves, a PNG")
flags.DEFINE_string("grid", None, "where to write samples of the first map and the parent, a PNG")


class Run:
    """A trained run that can be sampled with any solver."""

    def __init__(self, workdir):
        self.workdir, self.config, self.params = Path(workdir), saved_config(workdir), None
        self.t_max = self.config.sampling.t_max
        self.config.sampling = default().sampling  # not what the run was last called with

    def samples(self, solver, nfe, spacing="uniform", t_max=None):
        """Return sampled pixels, (n, *event), at the levels of the data."""
        t_max = self.t_max if t_max is None else t_max
        self.config.sampling.update(
            solver=solver,
            num_steps=nfe,
            spacing=spacing,
            t_max=t_max,
            denoise=False,
            batch_size=min(FLAGS.samples, 250),
        )
        experiment = make_experiment(self.config, jax.local_devices())
        if self.params is None:
            self.params, _ = load_params(experiment.training, experiment.config, self.workdir)
        drawn = np.concatenate([batch.x for batch in experiment.sampler.batches(self.params, FLAGS.samples)])
        return to_levels(drawn, experiment.load("train").levels)


def make_distance(run):
    """Return a function from pixels to their Fréchet distance, and the distance of the test split."""
    data = run.config.data.to_dict()
    load = make_experiment(run.config, jax.local_devices()).load
    train, test = (make_split(load(name), data, name, 50_000) for name in ("train", "test"))
    extractor = EXTRACTORS["classifier"](train.source, data, "")
    extract = make_extract(extractor)
    real, held_out = (real_features(extract, extractor, split) for split in (train, test))
    return (
        lambda images: frechet_distance(extract(images.__getitem__, len(images)).moments, real.moments),
        frechet_distance(held_out.moments, real.moments),
    )


def save_curves(path, rows, budgets, of_test):
    figure, (panel,) = new_figure(1, width=7.0)
    for index, row in enumerate(rows):
        points = [(nfe, row[f"NFE {nfe}"]) for nfe in budgets if f"NFE {nfe}" in row]
        panel.plot(*zip(*points, strict=True), label=row["samples"].replace("_", " "), **series(index))
    panel.axhline(of_test, color="gray", linestyle=":", label="test split")
    panel.set(xscale="log", yscale="log", xlabel="network evaluations per sample", ylabel="Fréchet distance")
    panel.set_xticks(budgets, map(str, budgets))
    place_legend(panel)
    save_figure(path, figure)


def main(argv):
    del argv
    parent = Run(FLAGS.parent)
    distance, of_test = make_distance(parent)
    budgets = [int(nfe) for nfe in FLAGS.nfe]
    rows, pictures = [], {}
    for solver in FLAGS.solvers:
        row = {"samples": f"{parent.workdir.name}, {solver}"}
        for nfe in budgets:
            grids = [(spacing, float(start)) for spacing in FLAGS.spacings for start in FLAGS.starts]
            drawn = {grid: parent.samples(solver, nfe, *grid) for grid in grids}
            found = {grid: distance(images) for grid, images in drawn.items()}
            row[f"NFE {nfe}"] = min(found.values())
            pictures[parent.workdir.name, solver, nfe] = drawn[min(found, key=found.get)]
        rows.append(row)
    for workdir in FLAGS.maps:
        flow_map = Run(workdir)
        row = {"samples": f"{flow_map.workdir.name}, flow_map_steps"}
        for nfe in (nfe for nfe in budgets if nfe <= 8):
            images = flow_map.samples("flow_map_steps", nfe)
            row[f"NFE {nfe}"], pictures[flow_map.workdir.name, "", nfe] = distance(images), images
        rows.append(row)
    title = (
        f"Fréchet distance of {FLAGS.samples} samples in the classifier's features; the test split's is {of_test:.3g}"
    )
    show(title, rows)
    if FLAGS.picture:
        save_curves(Path(FLAGS.picture), rows, budgets, of_test)
    if FLAGS.grid:
        name = Path(FLAGS.maps[0]).name
        chosen = [pictures[name, "", nfe][:10] for nfe in (1, 4)]
        chosen += [pictures[parent.workdir.name, "ddim", nfe][:10] for nfe in (4, 50)]
        levels = make_experiment(parent.config, jax.local_devices()).load("train").levels
        cells = np.concatenate(chosen).astype(np.float32) * (255 / (levels - 1))
        save_grid(Path(FLAGS.grid), np.rint(cells).astype(np.uint8), columns=10)


if __name__ == "__main__":
    app.run(main)

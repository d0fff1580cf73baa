"""Training and loading with the parts of an experiment, on chosen devices."""

from score_sde.experiment import modes
from score_sde.training import load, loop


def train(experiment, workdir, devices):
    parts = (experiment.training, experiment.load, experiment.batches, modes.make_pictures(experiment, workdir))
    return loop.train(*parts, experiment.config, workdir, devices)


def load_params(experiment, workdir, spec=None):
    return load.load_params(experiment.training, experiment.config, workdir, spec)

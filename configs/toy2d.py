"""Multilayer perceptron on two-dimensional data; training takes less than a minute on two CPU cores.

python launch.py --config=configs/toy2d.py
python launch.py --config=configs/toy2d.py --workdir=runs/moons --config.data.name=two_moons

The data sets are mixture, two_moons, swiss_roll and checkerboard. Plots show data, samples and the score field. Any
SDE, prediction, objective, weighting, time sampler and solver can be tried here. `--mode=evaluate` measures the sliced
Wasserstein distance to the data.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.toy()
    config.data.name = "swiss_roll"
    config.model.name = "mlp"
    config.loss.time_sampler = "stratified"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 200
    config.training.batch_size = 256
    config.training.num_steps = 6000
    config.training.steps_per_call = 50
    config.training.ema_decay = 0.998
    config.training.log_every = 200
    config.training.checkpoint_every = 2000
    config.training.sample_every = 3000
    config.sampling.solver = "ddim"
    config.sampling.num_steps = 100
    return config

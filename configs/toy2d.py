"""A perceptron on two-dimensional data, under a minute on two CPU cores: mixture, two_moons, swiss_roll, checkerboard.

python launch.py --config=configs/toy2d.py
python launch.py --config=configs/toy2d.py --workdir=runs/moons --config.data.name=two_moons

The pictures show data, samples and the score field. Everything in `score_sde/` can be tried here: any SDE, prediction,
objective, weighting, time sampler and solver. `--mode=evaluate` measures the sliced Wasserstein distance to the data.
"""

from configs import common


def get_config():
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

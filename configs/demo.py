"""The demonstration: VP SDE with a small DDPM++ on scikit-learn's handwritten digits (8 x 8), for two CPU cores.

python launch.py --config=configs/demo.py

It trains for 800 steps instead of the 1,500 of configs/vp_digits.py, and its network has one block per level instead of
two. EDM's preconditioning makes the target easier. The peak learning rate is twice as high and falls to zero, so a
longer training also needs a larger optimizer.schedule_kwargs.decay_steps.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.model.preconditioning = "edm"
    config.model.kwargs.num_res_blocks = 1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.schedule_kwargs = {"decay_steps": 800}
    config.training.num_steps = 800
    config.training.sample_every = 400
    config.training.checkpoint_every = 200
    config.training.ema_decay = 0.995
    config.sampling.solver = "exponential_sde"
    config.sampling.num_steps = 100
    return config

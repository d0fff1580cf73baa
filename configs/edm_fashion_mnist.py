"""Class-conditional EDM on Fashion-MNIST (28 x 28), with a small DDPM++ for two CPU cores.

    python launch.py --config=configs/edm_fashion_mnist.py --config.data.path=DIR
    python launch.py --config=configs/edm_fashion_mnist.py --config.data.path=DIR --mode=evaluate

DIR: see configs/vp_fashion_mnist.py.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.fashion_mnist()
    config.sde.name = "edm"
    config.model.kwargs = {
        "channels": 32,
        "multipliers": (1, 2, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (7,),
        "dropout": 0.0,
        "num_classes": 10,
        "label_dropout": 0.1,
    }
    config.loss.weighting = "edm"
    config.loss.time_sampler = "log_normal"
    config.optimizer.schedule = "cosine"
    config.optimizer.schedule_kwargs = {"decay_steps": 8000}
    config.training.num_steps = 8000
    config.training.steps_per_call = 10
    config.training.sample_every = 2000
    config.sampling.spacing = "karras"
    config.sampling.num_samples = 100
    config.sampling.batch_size = 100
    return config

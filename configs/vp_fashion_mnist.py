"""VP SDE with a small DDPM++ on Fashion-MNIST (28 x 28, padded to 32 x 32).

    python launch.py --config=configs/vp_fashion_mnist.py --config.data.path=DIR

DIR holds the four IDX files, train-images-idx3-ubyte.gz and so on, or a folder `fashion_mnist/` prepared by TensorFlow
Datasets. Any data set in the format of MNIST works.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.default()
    config.data.name = "fashion_mnist"
    config.data.image_size = 32
    config.data.channels = 1
    config.model.kwargs = {
        "channels": 32,
        "multipliers": (1, 2, 2),
        "num_res_blocks": 2,
        "attention_resolutions": (16,),
        "dropout": 0.0,
    }
    config.optimizer.warmup_steps = 1000
    config.training.num_steps = 100_000
    config.training.ema_decay = 0.999
    config.training.checkpoint_every = 2000
    config.training.sample_every = 5000
    config.sampling.num_steps = 500
    return config

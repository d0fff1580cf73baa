"""Class-conditional EDM on Fashion-MNIST (28 x 28), with a small DDPM++ for two CPU cores.

    python launch.py --config=configs/edm_fashion_mnist.py --config.data.path=DIR
    python launch.py --config=configs/edm_fashion_mnist.py --config.data.path=DIR --mode=evaluate

DIR: see configs/vp_fashion_mnist.py.

With 1,000 samples and 1,000 real images (`--config.evaluation.num_real=1000`) in the features of the small classifier:
Fréchet distance 0.134, precision 0.875, recall 0.873; test images: 0.106, 0.886, 0.892. With
`--config.sampling.guidance_scale=2.0`: 0.229, 0.918, 0.720. No sample is a copy of a training image, and the losses on
training and test images agree within their standard errors. Training took 67 minutes on two CPU cores with jax
0.12.0.1, partly while other jobs ran.
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
        "num_classes": -1,  # from the data
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

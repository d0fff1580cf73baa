"""Exact denoiser of a Gaussian mixture, which needs no training and so isolates the error of the sampler.

python launch.py --config=configs/mixture.py --mode=sample
python launch.py --config=configs/mixture.py --workdir=runs/mixture_edm --mode=evaluate --config.sde.name=edm
--config.sampling.solver=euler_maruyama

It works with any SDE and prediction. The length of the means is the number of dimensions. `evaluate` compares the
samples with exact samples of the mixture.
"""

from configs import common

COMPONENTS = {
    "means": ((-0.8, -0.5), (0.7, -0.2), (0.1, 0.9)),
    "stds": (0.1, 0.2, 0.3),
    "weights": (0.5, 0.3, 0.2),
}


def get_config():
    """Return the config."""
    config = common.toy()
    config.data.name = "mixture"
    config.data.kwargs = dict(COMPONENTS)
    config.model.name = "mixture"
    config.model.kwargs = dict(COMPONENTS)
    config.sampling.solver = "ddim"
    config.sampling.num_steps = 200
    return config

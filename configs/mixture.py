"""The exact denoiser of a Gaussian mixture: nothing to train, so that what follows the network is judged on its own.

python launch.py --config=configs/mixture.py --mode=sample
python launch.py --config=configs/mixture.py --workdir=runs/mixture_edm --mode=evaluate --config.sde.name=edm
--config.sampling.solver=euler_maruyama

Any SDE, any prediction, any number of dimensions (as many as each mean has numbers). `evaluate` holds the samples
against draws from the mixture itself.
"""

from configs import common

COMPONENTS = {
    "means": ((-0.8, -0.5), (0.7, -0.2), (0.1, 0.9)),
    "stds": (0.1, 0.2, 0.3),
    "weights": (0.5, 0.3, 0.2),
}


def get_config():
    config = common.toy()
    config.data.name = "mixture"
    config.data.kwargs = dict(COMPONENTS)
    config.model.name = "mixture"
    config.model.kwargs = dict(COMPONENTS)
    config.sampling.solver = "ddim"
    config.sampling.num_steps = 200
    return config

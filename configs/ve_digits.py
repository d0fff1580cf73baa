"""VE SDE on the digits of configs/vp_digits.py, with the preconditioning of Karras et al. 2022.

python launch.py --config=configs/ve_digits.py

sigma_max is approximately the largest distance between two digits (Song and Ermon 2020, Technique 1).
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.sde.name = "ve"
    config.sde.kwargs = {"sigma_min": 0.01, "sigma_max": 10.0}
    config.model.preconditioning = "edm"
    config.sampling.num_steps = 100
    return config

"""EDM on the digits of configs/vp_digits.py: preconditioning, weighting and noise levels of Karras et al. 2022.

python launch.py --config=configs/edm_digits.py

The values are those of their Table 1.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.sde.name = "edm"
    config.model.preconditioning = "edm"
    config.loss.weighting = "edm"
    config.loss.time_sampler = "log_normal"
    config.loss.time_sampler_kwargs = {"stratified": True}
    config.sampling.spacing = "quadratic"
    return config

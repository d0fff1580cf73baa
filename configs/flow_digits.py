"""Flow matching on the digits of configs/vp_digits.py: straight paths, velocity loss and logit-normal times.

python launch.py --config=configs/flow_digits.py

Lipman et al. 2023, "Flow Matching for Generative Modeling"; the distribution of times is from Esser et al. 2024.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.sde.name = "flow"
    config.model.prediction = "velocity"
    config.loss.weighting = "flow"
    config.loss.time_sampler = "logit_normal"
    config.loss.time_sampler_kwargs = {"stratified": True}
    return config

"""vp_digits for likelihoods: dequantization, likelihood weighting and importance sampling of times.

python launch.py --config=configs/vp_digits_likelihood.py
python launch.py --config=configs/vp_digits_likelihood.py --mode=likelihood
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.digits()
    config.data.dequantize = True
    config.loss.weighting = "likelihood"
    config.loss.time_sampler = "importance"
    config.loss.time_sampler_kwargs = {"stratified": True}
    config.loss.t_min = 1e-3  # the start of the likelihood integral
    config.model.kwargs.dropout = 0.1
    config.training.num_steps = 4000
    return config

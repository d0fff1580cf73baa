"""VP SDE on Fashion-MNIST for likelihoods, with a network that trains in a few hours on two CPU cores.

    python launch.py --config=configs/vp_fashion_mnist_likelihood.py --config.data.path=DIR
    python launch.py --config=configs/vp_fashion_mnist_likelihood.py --config.data.path=DIR --mode=likelihood

DIR: see configs/vp_fashion_mnist.py. EDM's preconditioning makes the target easier for a small network. Likelihoods
start at t = 1e-5, because at vp's default of 1e-3 the noise is wider than one of 256 levels.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.fashion_mnist()
    config.data.dequantize = True
    config.model.kwargs = {
        "channels": 24,
        "multipliers": (1, 2, 4),
        "num_res_blocks": 1,
        "groups": 8,
        "attention_resolutions": (7,),
        "dropout": 0.0,
    }
    config.loss.weighting = "likelihood"
    config.loss.time_sampler = "importance"
    config.sampling.spacing = "log_snr"
    config.likelihood.t_min = 1e-5
    return config

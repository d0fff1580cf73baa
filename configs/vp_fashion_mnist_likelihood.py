"""VP SDE on Fashion-MNIST for likelihoods, with a network that trains in a few hours on two CPU cores.

    python launch.py --config=configs/vp_fashion_mnist_likelihood.py --config.data.path=DIR
    python launch.py --config=configs/vp_fashion_mnist_likelihood.py --config.data.path=DIR --mode=likelihood

DIR: see configs/vp_fashion_mnist.py. EDM's preconditioning makes the target easier for a small network. Likelihoods
start at t = 1e-5, because at vp's default of 1e-3 the noise is wider than one of 256 levels.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.default()
    config.data.name = "fashion_mnist"
    config.data.image_size = 28
    config.data.channels = 1
    config.data.dequantize = True
    config.data.sigma_data = 0.7
    config.model.preconditioning = "edm"
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
    config.loss.time_sampler_kwargs = {"stratified": True}
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 200
    config.training.batch_size = 32
    config.training.num_steps = 12_000
    config.training.ema_decay = 0.998
    config.training.log_every = 100
    config.training.checkpoint_every = 500
    config.training.sample_every = 3000
    config.sampling.solver = "dpm_solver_pp"
    config.sampling.num_steps = 20
    config.sampling.spacing = "log_snr"
    config.likelihood.t_min = 1e-5
    return config

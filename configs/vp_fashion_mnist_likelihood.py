"""VP SDE on Fashion-MNIST for likelihoods, with a small DDPM++ that trains in minutes on a GPU.

    python launch.py --config=configs/vp_fashion_mnist_likelihood.py --config.data.path=DIR
    python launch.py --config=configs/vp_fashion_mnist_likelihood.py --config.data.path=DIR --mode=likelihood

DIR: see configs/vp_fashion_mnist.py. EDM's preconditioning makes the target easier for a small network. Likelihoods
start at t = 1e-5, because at vp's default of 1e-3 the noise is wider than one of 256 levels.

On the first 500 test images (`--config.likelihood.num_examples=500`) it has 2.835 ± 0.037 bits/dim, with 194
evaluations each; histograms need 4.613. Training took 5 minutes on one H200, and the likelihood 45
minutes on two CPU cores, both while other jobs ran.
"""

from configs import common


def get_config():
    """Return the config."""
    config = common.fashion_mnist()
    config.data.dequantize = True
    config.model.kwargs = {
        "channels": 32,
        "multipliers": (1, 2, 4),
        "num_res_blocks": 2,
        "groups": 8,
        "attention_resolutions": (7,),
        "dropout": 0.0,
    }
    config.loss.weighting = "likelihood"
    config.loss.time_sampler = "importance"
    config.optimizer.schedule = "cosine"
    config.optimizer.schedule_kwargs = {"decay_steps": 16_000}
    config.training.batch_size = 128
    config.training.num_steps = 16_000
    config.training.steps_per_call = 20
    config.training.ema_decay = 0.999
    config.training.log_every = 200
    config.training.checkpoint_every = 4000
    config.training.sample_every = 16_000
    config.sampling.spacing = "log_snr"
    config.likelihood.t_min = 1e-5
    return config

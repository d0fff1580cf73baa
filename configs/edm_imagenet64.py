"""Class-conditional EDM on ImageNet 64 x 64: FID 1.36 in 511 evaluations (Karras et al. 2022, Figure 5c); not run here.

    python launch.py --config=configs/edm_imagenet64.py --config.data.path=DIR

DIR: see configs/adm_imagenet64.py. Training takes 2.5 billion images in batches of 4,096, with a warm-up over the first
10 million. The half-life of the EMA is 50 million images (Table 7). The noise of the sampler is that of Table 5.
"""

from configs.common_imagenet64 import imagenet64

BATCH = 4096


def get_config():
    """Return the config."""
    config = imagenet64()
    config.sde.name = "edm"
    config.model.preconditioning = "edm"
    config.model.kwargs.groups = None
    config.loss.weighting = "edm"
    config.loss.time_sampler = "log_normal"
    config.optimizer.warmup_steps = 10_000_000 // BATCH
    config.training.batch_size = BATCH
    config.training.num_steps = 2_500_000_000 // BATCH
    config.training.ema_decay = 0.5 ** (BATCH / 50_000_000)
    config.sampling.solver = "edm_stochastic"
    config.sampling.kwargs = {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}
    config.sampling.num_steps = 256
    config.sampling.spacing = "karras"
    config.sampling.end = "zero"
    config.sampling.denoise = False
    return config

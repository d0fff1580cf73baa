"""EDM on CIFAR-10: FID 1.97, conditional 1.79, with 35 evaluations (Karras et al. 2022, Table 2); not run here.

    python launch.py --config=configs/edm_cifar10.py[:unconditional|conditional] --config.data.path=DIR

DIR: see configs/vp_cifar10.py. The network is their DDPM++ (Table 7, "VP"). Training takes 200 million images in
batches of 512, with a linear warm-up over the first 10 million. The half-life of the EMA is half a million images.
"""

from configs.common_cifar10 import cifar10
from score_sde.errors import lookup

CLASSES = {"unconditional": 0, "conditional": -1}  # -1: from the data
BATCH = 512


def get_config(variant="unconditional"):
    """Return the config."""
    config = cifar10("ncsnpp")
    config.data.random_flip = False  # the augmentations include flips
    config.data.augment = 0.12
    config.sde.name = "edm"
    config.model.preconditioning = "edm"
    config.model.kwargs.update(
        {
            "multipliers": (2, 2, 2),
            "dropout": 0.13,
            "augment_dim": 9,
            "num_classes": lookup("variant", CLASSES, variant, "--config=FILE:VARIANT"),
            "taps": (1, 1),
            "labels_enter": "before",
            "progressive_input": "none",
        }
    )
    config.loss.weighting = "edm"
    config.loss.time_sampler = "log_normal"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 10_000_000 // BATCH
    config.training.batch_size = BATCH
    config.training.num_steps = 200_000_000 // BATCH
    config.training.ema_decay = 0.5 ** (BATCH / 500_000)
    config.sampling.solver = "heun"
    config.sampling.num_steps = 18
    config.sampling.spacing = "karras"
    config.sampling.end = "zero"
    config.sampling.denoise = False
    return config

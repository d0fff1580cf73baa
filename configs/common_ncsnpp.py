"""What NCSN++ on photographs larger than CIFAR-10's shares (score_sde's configs/ve); each config adds its numbers.

score_sde's images lie in [0, 1], ours in [-1, 1]: its sigmas are half of ours.
"""

from typing import NamedTuple

from configs import common


class Photographs(NamedTuple):
    """What differs between data sets."""

    image_size: int
    sigma_max: float  # on score_sde's scale, the largest distance between two images
    model: dict  # keyword arguments of the network
    batch_size: int
    num_steps: int
    sampling_steps: int
    snr: float  # of the Langevin corrector
    ema_decay: float


def ncsnpp(shown: Photographs):
    """NCSN++ with the VE SDE on a folder of images."""
    config = common.default()
    config.data.name = "image_folder"
    config.data.image_size = shown.image_size
    config.data.channels = 3
    config.data.crop = True
    config.data.random_flip = True
    config.sde.name = "ve"
    config.sde.kwargs = {"sigma_min": 2 * 0.01, "sigma_max": 2 * shown.sigma_max}
    config.model.name = "ncsnpp"
    config.model.kwargs = {"embedding": "fourier", "scale_by_sigma": True, "attention_resolutions": (16,)} | shown.model
    config.model.prediction = "score"
    config.model.preconditioning = "log_sigma"
    config.training.batch_size = shown.batch_size
    config.training.num_steps = shown.num_steps
    config.training.ema_decay = shown.ema_decay
    config.sampling.solver = "predictor_corrector"
    config.sampling.kwargs = {"predictor": "reverse_diffusion", "corrector_kwargs": {"snr": shown.snr}}
    config.sampling.num_steps = shown.sampling_steps
    config.sampling.num_samples = 16
    config.sampling.batch_size = 16
    return config

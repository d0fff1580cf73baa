"""Common settings of NCSN++ on photographs larger than CIFAR-10 (configs/ve of score_sde)."""

from typing import Any

from configs import common


def ncsnpp(
    *,
    image_size: int,
    sigma_max: float,
    model: dict[str, Any],
    batch_size: int,
    num_steps: int,
    sampling_steps: int,
    snr: float,
    ema_decay: float,
):
    """Return a config for NCSN++ with the VE SDE on a folder of images.

    Args:
      image_size: Height and width.
      sigma_max: Largest distance between two images in [0, 1], as in score_sde. Our images lie in [-1, 1], so that our
        sigmas are twice those of score_sde.
      model: Keyword arguments of the network.
      batch_size: Global batch size in training.
      num_steps: Number of train steps.
      sampling_steps: Number of predictor-corrector steps.
      snr: Signal-to-noise ratio of the Langevin corrector.
      ema_decay: Decay of the EMA.
    """
    config = common.default()
    config.data.name = "image_folder"
    config.data.image_size = image_size
    config.data.channels = 3
    config.data.crop = True
    config.data.random_flip = True
    config.sde.name = "ve"
    config.sde.kwargs = {"sigma_min": 2 * 0.01, "sigma_max": 2 * sigma_max}
    config.model.name = "ncsnpp"
    config.model.kwargs = {"embedding": "fourier", "scale_by_sigma": True, "attention_resolutions": (16,)} | model
    config.model.prediction = "score"
    config.model.preconditioning = "log_sigma"
    config.training.batch_size = batch_size
    config.training.num_steps = num_steps
    config.training.ema_decay = ema_decay
    config.sampling.solver = "predictor_corrector"
    config.sampling.kwargs = {"predictor": "reverse_diffusion", "corrector_kwargs": {"snr": snr}}
    config.sampling.num_steps = sampling_steps
    config.sampling.num_samples = 16
    config.sampling.batch_size = 16
    return config

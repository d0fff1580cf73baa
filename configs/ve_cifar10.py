"""VE SDE on CIFAR-10: FID 2.38 with NCSN++, 2.20 with its deep variant (Song et al. 2021, Table 3); not run here.

    python launch.py --config=configs/ve_cifar10.py[:ncsnpp|ncsnpp_deep|ddpm|ddpmpp|ddpmpp_deep] --config.data.path=DIR

DIR: see configs/vp_cifar10.py. The networks are conditioned on log sigma through Fourier features, and their output is
divided by sigma (Appendix H). Langevin dynamics corrects the samples after each step (Appendix G). The paper's images
lie in [0, 1] and ours in [-1, 1], so its sigmas, 0.01 and 50, are half of ours.
"""

from configs.common_cifar10 import cifar10


def get_config(variant="ncsnpp"):
    """Return the config."""
    config = cifar10(variant)
    config.sde.name = "ve"
    config.sde.kwargs = {"sigma_min": 2 * 0.01, "sigma_max": 2 * 50.0}
    config.model.prediction = "score"
    config.model.preconditioning = "log_sigma"
    config.model.kwargs.update({"embedding": "fourier", "scale_by_sigma": True})
    config.training.ema_decay = 0.999
    config.sampling.solver = "predictor_corrector"
    config.sampling.kwargs = {"predictor": "reverse_diffusion", "corrector_kwargs": {"snr": 0.16}}
    return config

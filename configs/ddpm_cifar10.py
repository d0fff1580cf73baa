"""Ho et al. 2020 on CIFAR-10, with their network and schedule: FID 3.17, Inception score 9.46 (Table 1); not run here.

    python launch.py --config=configs/ddpm_cifar10.py --config.data.path=DIR

DIR: see configs/vp_cifar10.py.
"""

from configs.common_cifar10 import cifar10


def get_config():
    """Return the config."""
    config = cifar10("ddpm")
    config.sde.name = "ddpm_linear"
    config.loss.objective = "ddpm"
    config.training.num_steps = 800_000
    config.sampling.solver = "ddim"
    config.sampling.num_steps = 999  # steps between the 1,000 timesteps
    config.sampling.kwargs = {"eta": 1.0}  # ancestral sampling with the posterior variance
    return config

"""Ho et al. 2020 on CIFAR-10, their own network and chain: FID 3.17, Inception score 9.46 (Table 1); not run here.

    python launch.py --config=configs/ddpm_cifar10.py --config.data.path=DIR

DIR: see configs/vp_cifar10.py.
"""

from configs.common_cifar10 import cifar10


def get_config():
    config = cifar10("ddpm")
    config.sde.name = "ddpm_linear"
    config.loss.objective = "ddpm"
    config.training.num_steps = 800_000
    config.sampling.solver = "ddim"
    config.sampling.num_steps = 999  # from each of the 1,000 to the next
    config.sampling.kwargs = {"eta": 1.0}  # the chain's own ancestral sampling, with its posterior variance
    return config

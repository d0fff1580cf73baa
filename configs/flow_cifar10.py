"""The straight path of flow matching on CIFAR-10 (Lipman et al. 2023), with the networks of Song et al.; not run here.

    python launch.py --config=configs/flow_cifar10.py[:VARIANT] --config.data.path=DIR

DIR and the variants: see configs/vp_cifar10.py. The paper's network is another, and its number none of this config's.
"""

from configs.common_cifar10 import cifar10


def get_config(variant="ddpmpp"):
    config = cifar10(variant)
    config.sde.name = "flow"
    config.model.prediction = "velocity"
    config.loss.weighting = "flow"
    config.sampling.solver = "adaptive"
    return config

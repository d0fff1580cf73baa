"""Flow matching on CIFAR-10 (Lipman et al. 2023) with straight paths and networks of Song et al. 2021; not run here.

    python launch.py --config=configs/flow_cifar10.py[:VARIANT] --config.data.path=DIR

DIR and the variants: see configs/vp_cifar10.py. The paper has another network, so its FID is not comparable.
"""

from configs.common_cifar10 import cifar10


def get_config(variant="ddpmpp"):
    """Return the config."""
    config = cifar10(variant)
    config.sde.name = "flow"
    config.model.prediction = "velocity"
    config.loss.weighting = "flow"
    config.sampling.solver = "adaptive"
    return config

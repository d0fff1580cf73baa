"""Sub-VP SDE on CIFAR-10: FID 2.61 with DDPM++, 2.41 with its deep variant (Song et al. 2021, Table 3); not run here.

    python launch.py --config=configs/subvp_cifar10.py[:VARIANT] --config.data.path=DIR

DIR and the variants: see configs/vp_cifar10.py.
"""

from configs.common_cifar10 import cifar10


def get_config(variant="ddpmpp"):
    """Return the config."""
    config = cifar10(variant)
    config.sde.name = "sub_vp"
    return config

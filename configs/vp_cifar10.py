"""VP SDE on CIFAR-10: FID 2.55 with DDPM++, 2.41 with its deep variant (Song et al. 2021, Table 3); not run here.

    python launch.py --config=configs/vp_cifar10.py[:ddpm|ddpmpp|ddpmpp_deep|ncsnpp|ncsnpp_deep]

CIFAR-10 is downloaded to ~/tensorflow_datasets, or read from --config.data.path=DIR, where DIR holds `cifar10/` of
TensorFlow Datasets (as array_record) or `cifar-10-binary.tar.gz`.
"""

from configs.common_cifar10 import cifar10


def get_config(variant="ddpmpp"):
    """Return the config."""
    return cifar10(variant)

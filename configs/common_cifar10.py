"""Common settings of the experiments on CIFAR-10: the data, and the networks of the papers as variants.

--config=configs/ve_cifar10.py:ncsnpp_deep
"""

from ml_collections import ConfigDict

from configs import common
from score_sde.errors import lookup

# Song et al. 2021, Appendix H: "deep" doubles the residual blocks per level.
UNET = {"channels": 128, "multipliers": (1, 2, 2, 2), "attention_resolutions": (16,), "dropout": 0.1}
POSITIONAL = {"embedding": "positional", "scale_by_sigma": False}  # NCSN++ for SDEs other than VE
NETWORKS = {
    "ddpm": ("ddpm", UNET | {"num_res_blocks": 2}),
    "ddpmpp": ("ddpmpp", UNET | {"num_res_blocks": 4}),
    "ddpmpp_deep": ("ddpmpp", UNET | {"num_res_blocks": 8}),
    "ncsnpp": ("ncsnpp", UNET | POSITIONAL | {"num_res_blocks": 4}),
    "ncsnpp_deep": ("ncsnpp", UNET | POSITIONAL | {"num_res_blocks": 8}),
}


def cifar10(variant: str) -> ConfigDict:
    """Return a config with the data and a network of `NETWORKS`."""
    config = common.default()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.random_flip = True
    config.model.name, config.model.kwargs = lookup("variant", NETWORKS, variant, "--config=FILE:VARIANT")
    return config

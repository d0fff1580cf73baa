"""Flax networks, called as `module.apply(variables, x, noise_level, labels=None, train=False)`.

They are independent of SDEs and losses. A new network is a module and an entry of `MODELS`.
"""

import flax.linen as nn

from score_sde.errors import build
from score_sde.models.classifier import Classifier
from score_sde.models.dit import DiT
from score_sde.models.edm2 import EDM2
from score_sde.models.mixture import Mixture
from score_sde.models.mlp import MLP, EnergyMLP
from score_sde.models.ncsnv2 import NCSNv2
from score_sde.models.unet import ADM, DDPM, DDPMpp, NCSNpp

MODELS = {
    "mlp": MLP,
    "energy_mlp": EnergyMLP,
    "mixture": Mixture,
    "ddpm": DDPM,
    "ddpmpp": DDPMpp,
    "ncsnpp": NCSNpp,
    "ncsnv2": NCSNv2,
    "adm": ADM,
    "edm2": EDM2,
    "dit": DiT,
    "classifier": Classifier,
}


def create(name: str, **kwargs) -> nn.Module:
    """Return the network `name` with the attributes `kwargs`.

    Raises:
      UserError: if the name or an attribute is unknown; the message lists the known ones.
    """
    return build("model", MODELS, name, kwargs)

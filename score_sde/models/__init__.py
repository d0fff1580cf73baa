"""Flax networks, called as module.apply(variables, x, noise_level, labels=None, train=False).

They know neither SDEs nor losses. A new one is a module and an entry of `MODELS`.
"""

import flax.linen as nn

from score_sde.errors import build
from score_sde.models.mixture import Mixture
from score_sde.models.mlp import MLP, EnergyMLP
from score_sde.models.unet import ADM, DDPM, DDPMpp, NCSNpp

MODELS = {
    "ddpm": DDPM,
    "ddpmpp": DDPMpp,
    "ncsnpp": NCSNpp,
    "adm": ADM,
    "mlp": MLP,
    "energy_mlp": EnergyMLP,
    "mixture": Mixture,
}


def create(name: str, **kwargs) -> nn.Module:
    """The network `name` with these attributes; a `UserError` lists the known names or attributes of a wrong one."""
    return build("model", MODELS, name, kwargs, "--config.model")

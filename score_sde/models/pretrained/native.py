"""Networks of this project, from a safetensors file written by `pretrained.save`."""

from collections.abc import Mapping
from typing import Any

from score_sde.models.pretrained.family import Family, Target
from score_sde.models.pretrained.layouts import WeightMapping, same


def target(config: Mapping[str, Any]) -> Target:
    """Return the training setup of the run."""
    model, sde = config["model"], config["sde"]
    return Target(
        sde["name"], sde["kwargs"], model["prediction"], model["preconditioning"], {}, config.get("sigma_data")
    )


FAMILY = Family(
    model=lambda config: (config["model"]["name"], config["model"]["kwargs"]),
    mappings=lambda config, names: {tuple(name.split("/")): WeightMapping((name,), same) for name in names},
    target=target,
    arrays=dict,
    unused=lambda name: False,
    image_size=lambda config: config["image_size"],
    channels=lambda config, arrays: config["channels"],
)

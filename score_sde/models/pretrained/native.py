"""Networks of this project, from a safetensors file written by `pretrained.save`."""

from collections.abc import Mapping
from typing import Any

from score_sde.models.pretrained.family import Family, TrainingSetup
from score_sde.models.pretrained.layouts import WeightMapping, same


def training_setup(config: Mapping[str, Any]) -> TrainingSetup:
    """Return the training setup of the run."""
    model, sde = config["model"], config["sde"]
    return TrainingSetup(
        sde["name"], sde["kwargs"], model["prediction"], model["preconditioning"], {}, config.get("sigma_data")
    )


FAMILY = Family(
    model=lambda config: (config["model"]["name"], config["model"]["kwargs"]),
    mappings=lambda config, names: {tuple(name.split("/")): WeightMapping((name,), same) for name in names},
    training_setup=training_setup,
    arrays=dict,
    unused=lambda name: False,
    image_size=lambda config: config["image_size"],
    channels=lambda config, arrays: config["channels"],
)

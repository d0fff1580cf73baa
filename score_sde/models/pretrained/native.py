"""Networks of this project, from a safetensors file written by `pretrained.save`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from score_sde.models.pretrained.family import Family, Target, height_and_width, unwrap
from score_sde.models.pretrained.layouts import WeightMapping, same


def target(config: Mapping[str, Any]) -> Target:
    """Return the training setup of the run."""
    model, sde = config["model"], config["sde"]
    return Target(
        sde["name"], sde["kwargs"], model["prediction"], model["preconditioning"], {}, config.get("sigma_data")
    )


def image_size(config: Mapping[str, Any]) -> tuple[int, ...]:
    """Return (height, width) of the images; () for data that are vectors, which have image_size 0."""
    size = config["image_size"]
    return () if size == 0 else height_and_width("native", "image_size", size)


FAMILY = Family(
    model=lambda config: (config["model"]["name"], config["model"]["kwargs"]),
    mappings=lambda config, names: {tuple(name.split("/")): WeightMapping((name,), same) for name in names},
    target=target,
    arrays=partial(unwrap, "native"),
    unused=lambda name: False,
    image_size=image_size,
    channels=lambda config, arrays: config["channels"],
)

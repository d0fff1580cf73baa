"""Folders that diffusers writes: a config and weights in one file or in shards, as safetensors or .bin.

Names have an optional variant: diffusion_pytorch_model.fp16.safetensors, or for shards
diffusion_pytorch_model.safetensors.index.fp16.json next to diffusion_pytorch_model.fp16-00001-of-00002.safetensors.
"""

import re
from pathlib import Path
from typing import Any

from score_sde.errors import UserError, cut
from score_sde.runtime import weight_files

STEM = "diffusion_pytorch_model"
FORMATS = ("safetensors", "bin")  # the first one is preferred
SHARD = re.compile(r"-\d+-of-\d+\.")
AUTOENCODERS = ("vae", "vqvae", "movq")  # components that make a pipeline's network one of latents


def read(path: str | Path) -> weight_files.Weights:
    """Read a diffusers folder, with the configs of its network and scheduler, or a file as `weight_files.read` does.

    Weights without a variant are preferred.

    Raises:
      UserError: if a file is missing or damaged, or it is ambiguous which weights are meant.
    """
    return weight_files.read(path, _read_folder)


def _read_folder(path: Path) -> weight_files.Weights:
    """Read what `save_pretrained` writes for a UNet2DModel, or for a pipeline with one."""
    root = path / "unet" if (path / "unet").is_dir() else path
    if not (root / "config.json").is_file():
        raise UserError(f"diffusers: expected a folder with a config.json next to the weights, got {root}")
    config = weight_files.read_json(root / "config.json")
    pipeline = root.parent if root.name == "unet" else root
    for scheduler in (pipeline / "scheduler" / "scheduler_config.json", root / "scheduler_config.json"):
        if scheduler.is_file():
            config["scheduler"] = weight_files.read_json(scheduler)
    if (pipeline / "model_index.json").is_file():
        parts = weight_files.read_json(pipeline / "model_index.json")
        latent = [name for name in AUTOENCODERS if parts.get(name) not in (None, [None, None])]
        if latent:
            raise UserError(f"diffusers: expected a pipeline on pixels, got one on latents of its {latent[0]}")
    file = _find_weights(root)
    arrays = _read_shards(file) if file.suffix == ".json" else weight_files.read(file).arrays
    return weight_files.Weights(arrays, "diffusers", config)


def _find_weights(root: Path) -> Path:
    """Return the file with a folder's weights, or the index of its shards."""
    found: dict[tuple[str, str], list[Path]] = {}
    shards = []
    for file in sorted(root.glob(f"{STEM}*")):
        stem, *parts = file.name.split(".")
        kind = next((kind for kind in FORMATS if kind in parts), None)
        if kind and parts[-1] == kind and SHARD.search(file.name):
            shards.append(file.name)
        elif stem == STEM and kind and (parts[-1] == kind or (parts[-1] == "json" and "index" in parts)):
            variant = ".".join(part for part in parts if part not in (*FORMATS, "index", "json"))
            found.setdefault((variant, kind), []).append(file)
    variants = sorted({variant for variant, _ in found})
    if not found:
        given = f"{cut(shards[0])} without an index" if shards else "none"
        raise UserError(f"diffusers: expected {STEM}.safetensors, .bin or the index of shards in {root}, got {given}")
    if len(variants) > 1 and "" not in variants:
        raise UserError(
            f"diffusers: expected weights of one variant in {root}, got {cut(', '.join(variants))}; remove the others"
        )
    files = next(found[variants[0], kind] for kind in FORMATS if (variants[0], kind) in found)
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise UserError(f"diffusers: expected one file or one index of weights in {root}, got {names}; remove one")
    return files[0]


def _read_shards(index: Path) -> dict[str, Any]:
    """Read the arrays that an index locates in files of its folder."""
    located = weight_files.read_json(index).get("weight_map")
    if not isinstance(located, dict) or not located or not all(isinstance(name, str) for name in located.values()):
        raise UserError(f"diffusers: expected a weight_map from arrays to files in {index}, got {cut(repr(located))}")
    shards = {}
    for name in sorted(set(located.values())):
        if Path(name).name != name or not name.endswith(tuple(f".{kind}" for kind in FORMATS)):
            raise UserError(f"diffusers: expected {index} to name files of its folder, got {cut(repr(name))}")
        if not (index.parent / name).is_file():
            raise UserError(f"diffusers: expected the shard {cut(name)} of {index}, got no such file")
        shards[name] = weight_files.read(index.parent / name).arrays
    wrong = [array for array, name in located.items() if array not in shards[name]]
    wrong += [str(array) for name, arrays in shards.items() for array in arrays if located.get(array) != name]
    if wrong:
        raise UserError(
            f"diffusers: expected {index} to locate every array of its shards, got {len(wrong)} in another file or in "
            f"none: {cut(', '.join(wrong))}"
        )
    return {array: shards[name][array] for array, name in located.items()}

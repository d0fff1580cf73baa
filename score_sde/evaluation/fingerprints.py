"""Short hashes of what a figure came from: figures of different ones are not comparable."""

from collections.abc import Mapping
from typing import Any

from score_sde.data import Source
from score_sde.errors import UserError
from score_sde.fingerprints import of_arrays, of_file, of_values

__all__ = ["check_same", "of_arrays", "of_file", "of_split", "of_values"]


def of_split(source: Source, data: Mapping[str, Any], split: str, number: int | None = None) -> str:
    """Of a split's first images: the data set, how they are cut and resized, how many there are, and a look at four.

    Args:
      source: the split.
      data: config.data.
      split: its name.
      number: how many images count; None: all.
    """
    number = len(source.examples) if number is None else min(number, len(source.examples))
    chosen = {key: data[key] for key in ("name", "kwargs", "image_size", "channels", "crop")}
    looked_at = [source.examples[i]["image"] for i in sorted({0, number // 3, number // 2, number - 1})]
    return of_values(chosen, split, number, of_arrays(looked_at))


def check_same(ours: dict[str, Any], theirs: dict[str, Any], whose: str) -> None:
    """Refuses to compare figures that came from different data, features or numbers of samples.

    Args:
      ours: the hashes and numbers that these figures come from.
      theirs: of the others; what one of the two lacks is different.
      whose: where the others are from, for the message.

    Raises:
      UserError: they differ, with where.
    """
    different = [name for name in ours if ours[name] != theirs.get(name)]
    if different:
        said = "; ".join(f"{name}: {ours[name]} here, {theirs.get(name)} there" for name in different)
        raise UserError(f"figures of {whose} are not comparable with these ({said})")

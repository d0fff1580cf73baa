"""Image files decoded to the pixels that a viewer shows.

Color profiles (ICC) are left alone: pixels are taken as sRGB, as most viewers and all data sets here do.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps

from score_sde.errors import UserError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def parse_color(name: str) -> tuple[int, int, int]:
    """Returns the RGB value of a color, "white" or "#ff8000".

    Raises:
      UserError: if there is no such color.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"background: expected a color such as 'white' or '#ff8000', got {name!r}", "background"
        ) from error


def decode(path: Path, channels: int, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Decodes an image file: upright, 8 bits, with transparency composited over a background.

    Args:
      path: The file, of any format and mode that Pillow reads with at most 16 bits per channel.
      channels: 1 for gray, 3 for RGB, 4 to keep the transparency.
      background: RGB value behind transparent pixels.

    Returns:
      (height, width, channels) uint8.

    Raises:
      UserError: if the file can't be decoded; the message names it.
    """
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path} is not an image file (repair or remove it)")
    try:
        with Image.open(path) as image:
            shown = _to_eight_bits(ImageOps.exif_transpose(image))
            if shown.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in shown.info:
                shown = shown.convert("RGBA")
                if channels != 4:
                    shown = Image.alpha_composite(Image.new("RGBA", shown.size, (*background, 255)), shown)
            pixels = np.asarray(shown.convert(MODES[channels]))
    except Exception as error:  # a damaged file makes Pillow raise errors of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} can't be decoded as an image: {reason} (repair or remove it)") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Returns a 16-bit gray image as the nearest of 256 levels, v / 257, which Pillow would clip at 255."""
    if image.mode not in (*SIXTEEN_BITS, "F"):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError(f"expected at most 16 bits per channel, got Pillow's mode {image.mode}")
    gray = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return gray

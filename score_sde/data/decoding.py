"""Decoding of image files to the pixels that an image viewer shows.

Color profiles (ICC) are ignored: pixels are taken as sRGB, as in most viewers and in all data sets here.
"""

from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageOps

from score_sde.errors import UserError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # modes of Pillow, by number of channels
SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def parse_color(name: str) -> tuple[int, int, int]:
    """Return the RGB value of a color such as "white" or "#ff8000".

    Raises:
      UserError: if the name is not a color.
    """
    try:
        return ImageColor.getrgb(name)[:3]
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"background: expected a color such as 'white' or '#ff8000', got {name!r}", "background"
        ) from error


def decode(path: Path, channels: int, background: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """Decode an image file to 8 bits, in its EXIF orientation, with transparency composited over a background.

    Args:
      path: File of any format and mode that Pillow reads, with at most 16 bits per channel.
      channels: Number of channels: 1 for gray, 3 for RGB, 4 for RGB with transparency.
      background: RGB value behind transparent pixels.

    Returns:
      Image in uint8, (height, width, channels).

    Raises:
      UserError: if the file can't be decoded.
    """
    if not path.is_file():  # opening a named pipe would block
        raise UserError(f"{path} is not an image file (repair or remove it)")
    try:
        with Image.open(path) as image:
            upright = _to_eight_bits(ImageOps.exif_transpose(image))
            if upright.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in upright.info:
                upright = upright.convert("RGBA")
                if channels != 4:
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, (*background, 255)), upright)
            pixels = np.asarray(upright.convert(MODES[channels]))
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} can't be decoded as an image: expected at most {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, "
            "Pillow's limit (shrink it, for example with ImageMagick: `mogrify -resize 50% FILE`)"
        ) from error
    except Exception as error:  # a damaged file makes Pillow raise errors of many kinds
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{path} can't be decoded as an image: {reason} (repair or remove it)") from error
    return pixels.reshape(*pixels.shape[:2], channels)


def check_single(path: Path) -> None:
    """Raise UserError if a file holds several images, such as pages or frames, of which `decode` takes the first."""
    number = 1
    with suppress(Exception), Image.open(path) as image:  # `decode` reports damage
        number = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: a camera's JPEG with its preview
    if number > 1:
        raise UserError(f"image_folder: expected one image per file, got {number} frames or pages in {path}; split it")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale a 16-bit gray image to 8 bits, v / 257 rounded; Pillow would clip it at 255."""
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

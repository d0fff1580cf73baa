"""Image grids."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from score_sde.errors import cut, escape
from score_sde.runtime.disk import replacing


def grid(images: np.ndarray, margin: int = 1, columns: int | None = None) -> np.ndarray:
    """Arrange images in a grid, row by row.

    Args:
      images: (n, height, width, channels) uint8 images.
      margin: Number of black pixels around each image.
      columns: Number of images per row; None for a grid that is as square as possible.

    Returns:
      (grid height, grid width, channels) uint8 image; cells without an image are black.
    """
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n)) if columns is None else columns
    rows = math.ceil(n / columns)
    cells = np.zeros((rows * columns, height + margin, width + margin, channels), np.uint8)
    cells[:n, margin:, margin:] = images
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    sheet = cells.reshape(rows * (height + margin), columns * (width + margin), channels)
    return np.pad(sheet, ((0, margin), (0, margin), (0, 0)))


def by_class(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
    """Return images for a grid with one row per class, padded with black images, and its number of columns.

    Args:
      images: (n, height, width, channels) uint8 images.
      labels: (n,) integer classes.
    """
    classes, counts = np.unique(labels, return_counts=True)
    cells = np.zeros((len(classes), counts.max(), *images.shape[1:]), np.uint8)
    for row, label in zip(cells, classes, strict=True):
        members = images[labels == label]
        row[: len(members)] = members
    return cells.reshape(-1, *images.shape[1:]), int(counts.max())


def save_grid(
    path: Path, images: np.ndarray, columns: int | None = None, min_side: int = 512, row_titles: Sequence[str] = ()
) -> None:
    """Write a grid of (n, height, width, channels) uint8 images as a PNG, enlarged to a side of at least `min_side`.

    The titles, one per row, stand to the left of the grid. Images that are not gray, RGB or RGBA are plotted as their
    channels side by side, in gray.
    """
    if images.shape[-1] not in (1, 3, 4):
        images = np.concatenate(np.split(images, images.shape[-1], axis=-1), axis=2)
    sheet = grid(images, columns=columns)
    factor = max(1, math.ceil(min_side / max(sheet.shape[:2])))
    sheet = sheet.repeat(factor, 0).repeat(factor, 1)
    if row_titles:
        sheet = np.concatenate([_titles(row_titles, sheet.shape[0], sheet.shape[2]), sheet], axis=1)
    with replacing(path) as partial:
        Image.fromarray(sheet[..., 0] if sheet.shape[-1] == 1 else sheet).save(partial)


def _titles(titles: Sequence[str], height: int, channels: int) -> np.ndarray:
    """Draw white titles on black, evenly spaced over a height, (height, width, channels) uint8."""
    row = height / len(titles)
    font = ImageFont.load_default(max(8, min(16, 0.8 * row)))
    shown = [cut(escape(title), 24) for title in titles]
    width = math.ceil(max(map(font.getlength, shown))) + 8
    image = Image.new("L", (width, height))
    for n, title in enumerate(shown):
        ImageDraw.Draw(image).text((4, (n + 0.5) * row), title, fill=255, font=font, anchor="lm")
    pixels = np.asarray(image)[..., None].repeat(channels, axis=-1)
    if channels == 4:
        pixels[..., 3] = 255
    return pixels

"""Where each image lands in a grid."""

import numpy as np
import pytest
from PIL import Image

from score_sde.evaluation.image_grid import grid, save_grid


def test_images_lie_in_reading_order_with_a_margin():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 2, 3, 1), np.uint8)
    sheet = grid(images)[..., 0]
    assert sheet.shape == (2 * 3 + 1, 3 * 4 + 1)
    for i in range(5):
        row, column = divmod(i, 3)
        np.testing.assert_array_equal(sheet[3 * row + 1 : 3 * row + 3, 4 * column + 1 : 4 * column + 4], i + 1)
    assert sheet.sum() == images.sum()  # margins and the empty place are black


def test_the_file_is_enlarged_by_whole_pixels(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    save_grid(tmp_path / "a.png", images, min_side=50)
    saved = np.asarray(Image.open(tmp_path / "a.png"))
    assert saved.shape == (57, 57, 3)  # 19 pixels a side, three times
    np.testing.assert_array_equal(saved[1::3, 1::3], grid(images))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_row_titles_stand_left_of_their_rows(tmp_path, channels):
    images = np.full((4, 40, 40, channels), 255, np.uint8)
    save_grid(tmp_path / "plain.png", images, columns=2, min_side=1)
    save_grid(tmp_path / "titled.png", images, columns=2, min_side=1, row_titles=["cat", "\x1b[31m"])
    plain, titled = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "titled"))
    margin = titled.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(titled[:, margin:], plain)
    upper, lower = np.split(titled[: titled.shape[0] // 2 * 2, :margin], 2)
    assert upper.max() == lower.max() == 255 and (upper[0] == upper[0, 0]).all()  # text, and a margin above it

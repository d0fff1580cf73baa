"""Pretrained feature extractors: bit-exact preprocessing, and missing or wrong weights."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from score_sde.data import Dataset
from score_sde.data.examples import Arrays
from score_sde.errors import UserError
from score_sde.evaluation.extractors import EXTRACTORS, choose, dinov2, inception

F = np.float32


def tensorflow_resize(image, side):
    """`resize_bilinear` of TensorFlow 1, pixel by pixel as its kernel computes it, every number a float32."""
    height, width, channels = image.shape
    scales = F(height) / F(side), F(width) / F(side)
    out = np.zeros((side, side, channels), F)
    for y in range(side):
        place_y = F(y) * scales[0]
        top, lerp_y = int(np.floor(place_y)), place_y - np.floor(place_y)
        bottom = min(top + 1, height - 1)
        for x in range(side):
            place_x = F(x) * scales[1]
            left, lerp_x = int(np.floor(place_x)), place_x - np.floor(place_x)
            right = min(left + 1, width - 1)
            for c in range(channels):
                corners = (F(image[i, j, c]) for i in (top, bottom) for j in (left, right))
                top_left, top_right, bottom_left, bottom_right = corners
                upper = top_left + (top_right - top_left) * lerp_x
                lower = bottom_left + (bottom_right - bottom_left) * lerp_x
                out[y, x, c] = upper + (lower - upper) * lerp_y
    return out


@pytest.mark.parametrize(("shape", "side"), [((8, 8, 1), 23), ((32, 32, 3), 37), ((13, 40, 3), 21), ((9, 9, 1), 9)])
def test_the_resize_is_tensorflow_1s_bit_for_bit(shape, side):
    images = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    found = inception.resize(images, side)
    assert found.dtype == F
    np.testing.assert_array_equal(found, np.stack([tensorflow_resize(image, side) for image in images]))


def test_the_corner_of_a_resized_image_is_its_corner():
    """Only top left corners are aligned, unlike in a resize about pixel centers."""
    images = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    expected = np.array([[0, 0.5, 1, 1], [1, 1.5, 2, 2], [2, 2.5, 3, 3], [2, 2.5, 3, 3]], F)
    np.testing.assert_array_equal(inception.resize(images, 4)[0, ..., 0], expected)
    assert inception.prepare(np.full((1, 4, 4, 3), 255, np.uint8)).max() == F(127 / 128)
    assert inception.prepare(np.zeros((1, 4, 4, 3), np.uint8)).min() == -1


def test_positions_are_kept_where_they_fit():
    """Constant positions stay constant; tests/peers compares with PyTorch."""
    same = np.random.default_rng(0).standard_normal((1, 1 + 16**2, 3)).astype(F)
    assert dinov2.positions(same) is same
    even = np.broadcast_to(np.float32((1, 2, 3)), (1, 1 + 37**2, 3))
    moved = dinov2.positions(even)
    assert moved.shape == (1, 1 + 16**2, 3)
    np.testing.assert_allclose(moved, even[:, : 1 + 16**2], rtol=1e-6)


def test_missing_and_other_weights_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shape = (8, 8, 3)
    source = Dataset(Arrays(np.zeros((2, *shape), np.uint8), np.zeros(2)), shape, 256, 10)
    for name, library in (("inception", inception), ("dinov2", dinov2)):
        with pytest.raises(UserError, match=f"download {library.WEIGHTS_URL}.*put it there.*set {name}"):
            choose((name,), source, {name: ""})
        with pytest.raises(UserError, match="not at nowhere"):
            choose((name,), source, {name: "nowhere"})
        save_file({"fc.weight": np.zeros((3, 4), F), "fc.bias": np.zeros(3, F)}, str(tmp_path / "other.safetensors"))
        with pytest.raises(UserError, match=f"holds other weights than {library.WEIGHTS_FILE}"):
            EXTRACTORS[name](source, {}, str(tmp_path / "other.safetensors"))
        (tmp_path / library.WEIGHTS_FILE).write_bytes(b"no weights")
        with pytest.raises(UserError, match="is not in the zip format"):
            EXTRACTORS[name](source, {}, str(tmp_path / library.WEIGHTS_FILE))

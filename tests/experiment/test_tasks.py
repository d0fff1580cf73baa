"""Masks of inverse problems, read from files."""

import numpy as np
import pytest
from PIL import Image

from score_sde.errors import UserError
from score_sde.experiment.tasks import inpaint

SHAPE = (4, 4, 1)


@pytest.mark.parametrize(
    "mask",
    [
        np.full((4, 4), "1"),
        np.full((4, 4), None),
        np.ones((3, 4)),
        np.full((4, 4), 0.5),
        np.full((4, 4), 1j),
        np.eye(4)[0],
    ],
)
def test_masks_that_are_none_are_named(tmp_path, mask):
    path = tmp_path / "mask.npy"
    np.save(path, mask, allow_pickle=True)
    with pytest.raises(UserError, match=str(path)):
        inpaint(SHAPE, str(path))


@pytest.mark.parametrize("raw", [b"", b"nothing", b"\x93NUMPY\x01\x00v\x00{"])
@pytest.mark.parametrize("name", ["mask.npy", "mask.png"])
def test_damaged_masks_are_named(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=name):
        inpaint(SHAPE, str(tmp_path / name))


def test_sixteen_bit_masks_are_white_above_half(tmp_path):
    values = np.tile(np.array([0, 32_000, 33_500, 65_535], np.uint16), (4, 1))
    Image.fromarray(values).save(tmp_path / "mask.png")
    x = np.ones((1, *SHAPE), np.float32)
    seen = inpaint(SHAPE, str(tmp_path / "mask.png")).forward(x)
    np.testing.assert_array_equal(np.asarray(seen)[0, 0, :, 0], [0, 0, 1, 1])

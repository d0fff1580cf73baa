"""Augmentations move pixels as their affine map says, and their parameters describe that map."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.data.augmentation import AUGMENT_DIM, augment_each, resample, sample_affine

SIZE = 17  # odd: the center is a pixel
KEYS = jax.random.split(jax.random.key(0), 512)


def bump(x, y, width=1.5):
    """A smooth image with its top at (x, y) from the center."""
    grid = np.arange(SIZE) - SIZE // 2
    return np.exp(-((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2) / (2 * width**2))[..., None].astype(np.float32)


def center_of(image):
    grid = np.arange(SIZE) - SIZE // 2
    mass = np.asarray(image)[..., 0]
    return (mass * grid[None]).sum() / mass.sum(), (mass * grid[:, None]).sum() / mass.sum()


def test_zero_probability_only_flips_horizontally():
    image = np.random.default_rng(0).normal(size=(8, 6, 3)).astype(np.float32)
    images, parameters = jax.jit(lambda keys: augment_each(keys, jnp.stack([image] * len(keys)), 0.0))(KEYS)
    assert parameters.shape == (len(KEYS), AUGMENT_DIM) and not np.asarray(parameters[:, 1:]).any()
    for augmented, flipped in zip(np.asarray(images), np.asarray(parameters[:, 0]), strict=True):
        np.testing.assert_allclose(augmented, image[:, ::-1] if flipped else image, atol=1e-5)
    assert abs(float(parameters[:, 0].mean()) - 0.5) < 4 * 0.5 / np.sqrt(len(KEYS))


@pytest.mark.parametrize(
    ("matrix", "to"),
    [
        (np.diag([-1.0, 1.0, 1.0]), (-2.0, 1.0)),
        (np.array([[1.0, 0, -1.5], [0, 1, 0.5], [0, 0, 1]]), (3.5, 0.5)),
        (np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), (-1.0, 2.0)),  # a quarter turn
    ],
)
def test_resample_follows_the_affine_map(matrix, to):
    """A bump at (2, 1) moves to the point that the map takes to (2, 1), up to the interpolation."""
    moved = jax.jit(resample)(bump(2.0, 1.0), np.float32(matrix))
    np.testing.assert_allclose(center_of(moved), to, atol=0.02)


def test_borders_are_reflected():
    image = np.broadcast_to(np.arange(5, dtype=np.float32)[None, :, None], (5, 5, 1))
    shifted = jax.jit(resample)(image, np.float32([[1, 0, 2], [0, 1, 0], [0, 0, 1]]))
    np.testing.assert_allclose(shifted[0, :, 0], [2, 3, 4, 3, 2], atol=1e-5)


def test_parameters_determine_the_map():
    """The map can be computed from the nine parameters."""
    matrices, parameters = jax.jit(jax.vmap(lambda key: sample_affine(key, 0.7, (16, 24))))(KEYS)
    for matrix, (flip_x, flip_y, scale, cos, sin, along, across, shift_x, shift_y) in zip(
        np.asarray(matrices, np.float64), np.asarray(parameters, np.float64), strict=True
    ):
        turn = np.array([[cos + 1, -sin], [sin, cos + 1]])
        length = np.hypot(along, across)
        direction = np.array([along, across]) / length if length else np.array([1.0, 0.0])
        frame = np.array([[direction[0], direction[1]], [-direction[1], direction[0]]])  # rotation by minus its angle
        # The parameters don't determine the sign of the stretch, because the opposite direction changes their sign too.
        # One of the two signs fits.
        candidates = [
            np.diag([1 - 2 * flip_x, 1 - 2 * flip_y])
            @ (2.0 ** (-0.2 * scale) * turn)
            @ (frame @ np.diag([2.0 ** (-0.2 * length), 2.0 ** (0.2 * length)]) @ frame.T)
        ]
        candidates.append(
            np.diag([1 - 2 * flip_x, 1 - 2 * flip_y])
            @ (2.0 ** (-0.2 * scale) * turn)
            @ (frame @ np.diag([2.0 ** (0.2 * length), 2.0 ** (-0.2 * length)]) @ frame.T)
        )
        fitting = [candidate for candidate in candidates if np.abs(candidate - matrix[:2, :2]).max() < 1e-5]
        assert fitting
        np.testing.assert_allclose(matrix[:2, 2], -matrix[:2, :2] @ [shift_x * 3, shift_y * 2], atol=1e-5)


def test_augmentations_have_their_probabilities():
    _, parameters = jax.vmap(lambda key: sample_affine(key, 0.25, (8, 8)))(KEYS)
    frequencies = np.asarray(parameters != 0).mean(0)
    expected = np.array([0.5, 0.125, 0.25, 0.25, 0.25, 0.25, 0.125, 0.25, 0.25])  # half of the stretches lie along x
    assert (np.abs(frequencies - expected) < 4 * np.sqrt(expected * (1 - expected) / len(KEYS))).all()

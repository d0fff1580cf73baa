"""EDM's augmentations: what they do to an image, and what they say that they did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.data.augmentation import AUGMENT_DIM, augment_each, draw_map, resample

SIZE = 17  # odd: the centre is a pixel
KEYS = jax.random.split(jax.random.key(0), 512)


def bump(x, y, width=1.5):
    """A smooth image with its top at (x, y) from the centre."""
    grid = np.arange(SIZE) - SIZE // 2
    return np.exp(-((grid[None] - x) ** 2 + (grid[:, None] - y) ** 2) / (2 * width**2))[..., None].astype(np.float32)


def centre_of(image):
    grid = np.arange(SIZE) - SIZE // 2
    mass = np.asarray(image)[..., 0]
    return (mass * grid[None]).sum() / mass.sum(), (mass * grid[:, None]).sum() / mass.sum()


def test_with_no_probability_images_are_mirrored_or_as_they_were():
    image = np.random.default_rng(0).normal(size=(8, 6, 3)).astype(np.float32)
    images, done = jax.jit(lambda keys: augment_each(keys, jnp.stack([image] * len(keys)), 0.0))(KEYS)
    assert done.shape == (len(KEYS), AUGMENT_DIM) and not np.asarray(done[:, 1:]).any()
    for shown, mirrored in zip(np.asarray(images), np.asarray(done[:, 0]), strict=True):
        np.testing.assert_allclose(shown, image[:, ::-1] if mirrored else image, atol=1e-5)
    assert abs(float(done[:, 0].mean()) - 0.5) < 4 * 0.5 / np.sqrt(len(KEYS))


@pytest.mark.parametrize(
    ("matrix", "to"),
    [
        (np.diag([-1.0, 1.0, 1.0]), (-2.0, 1.0)),
        (np.array([[1.0, 0, -1.5], [0, 1, 0.5], [0, 0, 1]]), (3.5, 0.5)),
        (np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), (-1.0, 2.0)),  # by a quarter
    ],
)
def test_an_image_is_seen_through_its_map(matrix, to):
    """A bump at (2, 1) goes to the place that the map takes to (2, 1); cubic interpolation moves its centre by less."""
    seen = resample(jnp.asarray(bump(2.0, 1.0)), jnp.asarray(matrix, jnp.float32))
    np.testing.assert_allclose(centre_of(seen), to, atol=0.02)


def test_edges_are_mirrored():
    image = jnp.arange(5.0)[None, :, None] * jnp.ones((5, 1, 1))
    shifted = resample(image, jnp.asarray([[1.0, 0, 2.0], [0, 1, 0], [0, 0, 1]]))
    np.testing.assert_allclose(shifted[0, :, 0], [2, 3, 4, 3, 2], atol=1e-5)


def test_each_number_says_what_the_map_does():
    """From the nine numbers alone the map can be put together again."""
    matrices, done = jax.vmap(lambda key: draw_map(key, 0.7, (16, 24)))(KEYS)
    for matrix, (flip_x, flip_y, scale, cos, sin, along, across, shift_x, shift_y) in zip(
        np.asarray(matrices, np.float64), np.asarray(done, np.float64), strict=True
    ):
        turn = np.array([[cos + 1, -sin], [sin, cos + 1]])
        length = np.hypot(along, across)
        direction = np.array([along, across]) / length if length else np.array([1.0, 0.0])
        frame = np.array([[direction[0], direction[1]], [-direction[1], direction[0]]])  # by minus its angle
        # A stretch of the sign of its normal draw; with its direction turned around both signs look the same, but for
        # which axis is stretched: along its direction.
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
        fitting = [each for each in candidates if np.abs(each - matrix[:2, :2]).max() < 1e-5]
        assert fitting
        np.testing.assert_allclose(matrix[:2, 2], -matrix[:2, :2] @ [shift_x * 3, shift_y * 2], atol=1e-5)


def test_probabilities_are_kept():
    _, done = jax.vmap(lambda key: draw_map(key, 0.25, (8, 8)))(KEYS)
    shares = np.asarray(done != 0).mean(0)
    expected = np.array([0.5, 0.125, 0.25, 0.25, 0.25, 0.25, 0.125, 0.25, 0.25])  # half the stretches are along x
    assert (np.abs(shares - expected) < 4 * np.sqrt(expected * (1 - expected) / len(KEYS))).all()

"""Toy distributions have their densities, and a split is the same whenever it is loaded."""

import numpy as np
import pytest

from score_sde.data import load, to_unit_range
from score_sde.data.toys import random_basis
from score_sde.errors import UserError
from score_sde.evaluation.metrics import sliced_wasserstein

MIXTURE = {"means": ((-1.0, 0.0), (1.0, 0.5)), "stds": (0.1, 0.3), "weights": (1.0, 3.0)}
TOYS = {"mixture": MIXTURE, "two_moons": {}, "swiss_roll": {}, "checkerboard": {}}


def points(name, split="train", **kwargs):
    dataset = load(name, split, 0, 2, kwargs=TOYS[name] | kwargs)
    return dataset, dataset.examples.images, dataset.examples.labels


@pytest.mark.parametrize("name", TOYS)
def test_splits_are_fixed_and_differ_with_one_distribution(name):
    dataset, train, labels = points(name)
    assert (train.shape, train.dtype, dataset.image_shape, dataset.levels) == ((10_000, 2), np.float32, (2,), None)
    np.testing.assert_array_equal(points(name)[1], train)
    _, test, _ = points(name, "test")
    assert not np.array_equal(train, test)
    assert sliced_wasserstein(train, test) < 4 * train.std() / np.sqrt(10_000)  # about the error of a mean
    assert 0.3 < train.std() < 1.2
    assert set(labels) == set(range(dataset.num_classes))
    assert points(name, num_examples=7)[1].shape == (7, 2)
    np.testing.assert_array_equal(to_unit_range(train, dataset.levels), train)


def test_mixture_has_its_components():
    _, x, labels = points("mixture")
    for k, fraction in enumerate((0.25, 0.75)):
        component = x[labels == k]
        assert abs(len(component) / 10_000 - fraction) < 4 * np.sqrt(fraction * (1 - fraction) / 10_000)
        std = MIXTURE["stds"][k]
        np.testing.assert_allclose(component.mean(0), MIXTURE["means"][k], atol=4 * std / np.sqrt(len(component)))
        assert abs(np.std(component - component.mean(0)) / std - 1) < 4 / np.sqrt(4 * len(component))


def test_a_subspace_has_the_mixtures_points():
    """In 40 dimensions, and in as many as the mixture has."""
    for channels in (40, 2):
        train = load("subspace", "train", 0, channels, kwargs=MIXTURE)
        basis = random_basis(channels, 2)
        np.testing.assert_allclose(basis.T @ basis, np.eye(2), atol=1e-12)
        expected = points("mixture")[1]
        np.testing.assert_allclose(train.examples.images, expected @ basis.T, atol=1e-6)
        np.testing.assert_array_equal(train.examples.labels, points("mixture")[2])


def test_checkerboard_fills_every_second_square():
    _, x, labels = points("checkerboard")
    column, row = np.floor((x.T + 1) * 2).astype(int)
    assert ((column + row) % 2 == 0).all()
    assert len({(c, r) for c, r in zip(column, row, strict=True)}) == 8
    counts = np.bincount(labels, minlength=8)
    assert np.abs(counts - 1250).max() < 5 * np.sqrt(1250)


def test_moons_and_roll_lie_on_their_curves():
    _, x, labels = points("two_moons", noise=0.0)
    angle_free = x / 0.65 + np.array([0.5, 0.25])
    center = np.where(labels[:, None] == 0, 0.0, np.array([1.0, 0.5]))
    np.testing.assert_allclose(np.linalg.norm(angle_free - center, axis=1), 1.0, atol=1e-5)
    _, x, _ = points("swiss_roll", noise=0.0)
    radius = np.linalg.norm(x, axis=1)
    angle = np.arctan2(x[:, 1], x[:, 0])
    turns = (4.5 * np.pi * radius - angle) / (2 * np.pi)  # radius = angle / (4.5 pi), up to whole turns
    np.testing.assert_allclose(turns, np.round(turns), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: load("two_moons", "train", 8, 2), r"expected data of shape \(8, 8, 2\), got \(2,\)"),
        (lambda: load("two_moons", "train", 0, 3), r"expected data of shape \(3,\), got \(2,\)"),
        (lambda: load("digits", "train", 0, 1), r"expected data of shape \(1,\), got \(8, 8, 1\)"),
        (lambda: load("two_moons", "train", 0, 2, kwargs={"nois": 1}), "Did you mean 'noise'"),
        (lambda: load("two_moons", "train", 0, 2, path="somewhere"), "toy data are sampled"),
        (lambda: load("checkerboard", "train", 0, 2, kwargs={"num_examples": 0}), "num_examples >= 1"),
        (lambda: load("mixture", "train", 0, 2, kwargs={"means": ((0, 0),), "stds": (1, 1)}), "1 means, 2 stds"),
        (lambda: load("mixture", "train", 0, 2), "can't take"),
        (lambda: load("subspace", "train", 0, 1, kwargs=MIXTURE), "channels >= 2, .* got 1"),
        (lambda: load("subspace", "train", 0, 2, kwargs={"means": (), "stds": ()}), "0 means"),
    ],
)
def test_invalid_arguments_raise(call, words):
    with pytest.raises(UserError, match=words):
        call()

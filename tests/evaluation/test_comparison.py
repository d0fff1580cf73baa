"""Real digits pass for digits and noise does not, and features depend neither on batches nor on devices."""

import jax
import numpy as np
import pytest

from configs import vp_digits
from score_sde.data import Source, images_of, load
from score_sde.data.examples import Arrays
from score_sde.errors import UserError
from score_sde.evaluation import features
from score_sde.evaluation.comparison import check_comparison, compare
from score_sde.evaluation.evaluate import save_neighbours
from score_sde.evaluation.small_classifier import fit, fitted


@pytest.fixture(scope="module")
def digits():
    """(the training split's first 1,000 images, the others, the test split's), and a classifier of the split."""
    train = load("digits", "train", 8, 1)
    return train, images_of(train)[0], *images_of(load("digits", "test", 8, 1)), fit(train)


def test_real_digits_pass_for_digits_and_noise_does_not(digits):
    _, train, test, labels, classifier = digits
    figures = compare([train[1000:1250], train[1250:]], train[:1000], test, labels, 17, classifier)
    assert figures["classifier"]["test_accuracy"] > 0.97
    assert abs(figures["top_class_probability_samples"] - figures["top_class_probability_test"]) < 0.05
    assert min(figures["class_shares"]) > 0.04
    assert abs(sum(figures["class_shares"]) - 1) < 1e-9
    distance = figures["fd_pixels_250"]
    assert distance["minimum_of_2"] <= distance["mean"] <= distance["minimum_of_2"] + 2 * distance["std"]
    for name in ("pixels", "classifier"):
        assert figures[f"overlap_{name}_250"]["precision"] > 0.8
    noise = np.random.default_rng(0).integers(0, 17, (250, 8, 8, 1), np.uint8)
    worse = compare([noise], train[:1000], test, labels, 17, classifier)
    assert worse["fd_pixels_ratio"] > 10 * figures["fd_pixels_ratio"]
    assert worse["fd_classifier_ratio"] > 10 * figures["fd_classifier_ratio"]
    for name in ("pixels", "classifier"):
        assert worse[f"kid_{name}_250"]["mean"] > 10 * abs(figures[f"kid_{name}_250"]["mean"])
    assert worse["overlap_pixels_250"]["precision"] == 0
    assert worse["fd_pixels_250"]["std"] is None


def test_a_split_against_itself(digits):
    _, train, _, _, classifier = digits
    figures = compare([train], train, train[:500], np.zeros(500), 17, classifier)
    for name in ("pixels", "classifier"):
        assert abs(figures[f"fd_{name}_1500"]["mean"]) < 1e-6 * figures[f"fd_{name}_test_train"]
        assert figures[f"overlap_{name}_1500"]["recall"] == 1


def test_moments_do_not_depend_on_batches_or_devices(digits, monkeypatch):
    """1,500 images in batches of 512 on eight devices, 64 on one and 37 on one: nothing dropped, nothing twice."""
    _, train, _, _, classifier = digits
    for apply in (features.pixels, features.of_classifier(classifier)):
        found = [features.make_extract(apply, 17)(train)]
        monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        found.append(features.make_extract(apply, 17)(train))
        monkeypatch.undo()
        assert found[0].moments.count == found[1].moments.count == 1500
        np.testing.assert_array_equal(found[0].vectors, found[1].vectors)
        np.testing.assert_allclose(found[0].moments.mean, found[1].moments.mean, rtol=1e-9, atol=1e-12)
        scale = np.abs(found[0].moments.covariance).max()
        np.testing.assert_allclose(found[0].moments.covariance, found[1].moments.covariance, rtol=0, atol=1e-9 * scale)
        whole = np.asarray(found[0].vectors, np.float64)
        np.testing.assert_allclose(found[0].moments.covariance, np.cov(whole.T), rtol=0, atol=1e-9 * scale)
    monkeypatch.setattr(features, "ROWS", 37)
    other = features.make_extract(features.pixels, 17)(train)
    np.testing.assert_allclose(other.moments.mean, train.reshape(1500, -1).mean(0) / 8 - 1, rtol=1e-6, atol=1e-6)


def test_a_classifier_is_trained_once(digits, tmp_path, monkeypatch):
    train, *_, classifier = digits
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = vp_digits.get_config().to_dict()["data"]
    calls = []
    monkeypatch.setattr("score_sde.evaluation.small_classifier.fit", lambda source: calls.append(1) or classifier)
    first, second = fitted(train, data), fitted(train, data)
    assert calls == [1]
    assert first.fingerprint == second.fingerprint == classifier.fingerprint
    fitted(train, data | {"crop": True})  # other images, another classifier
    assert calls == [1, 1]


def test_data_without_classes_are_compared_in_pixels_alone(digits):
    _, train, test, labels, _ = digits
    figures = compare([train[:100]], train[100:], test, labels, 17, None)
    assert not any("class" in name for name in figures)
    assert figures["fd_pixels_ratio"] > 0
    large = np.zeros((2, 128, 128, 3), np.uint8)
    with pytest.raises(UserError, match="no features"):
        check_comparison(100, large.shape[1:], 1)
    check_comparison(100, large.shape[1:], 2)
    with pytest.raises(UserError, match="at least 6, got 5"):
        check_comparison(5, (8, 8, 1), 10)
    with pytest.raises(UserError, match="several classes"):
        fit(Source(Arrays(large, np.zeros(2)), large.shape[1:], 256, 1))


def test_a_copied_image_is_shown_beside_itself(digits, tmp_path):
    from PIL import Image

    _, train, *_ = digits
    save_neighbours(tmp_path / "n.png", train[:2], train, 17)
    shown = np.asarray(Image.open(tmp_path / "n.png"))
    factor = shown.shape[1] // (6 * 9 + 1)
    small = shown[::factor, ::factor]
    np.testing.assert_array_equal(small[1:9, 1:9], small[1:9, 10:18])
    assert not np.array_equal(small[1:9, 10:18], small[1:9, 19:27])

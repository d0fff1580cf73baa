"""Real digits pass for digits and noise does not, and features depend neither on batches nor on devices."""

import jax
import numpy as np
import pytest

from configs import vp_digits
from score_sde.data import Dataset, load, load_examples
from score_sde.data.examples import Arrays
from score_sde.errors import UserError
from score_sde.evaluation import features, results
from score_sde.evaluation.comparison import check_count, classifier_metrics, compute_metrics
from score_sde.evaluation.evaluate import save_neighbors
from score_sde.evaluation.extractors import EXTRACTORS, choose, small_classifier
from score_sde.evaluation.extractors.small_classifier import fit, load_or_fit

DATA = vp_digits.get_config().to_dict()["data"]


def extracted(extractor, images):
    return features.make_extract(extractor)(images.__getitem__, len(images))


@pytest.fixture(scope="module")
def digits():
    """The training split, its images, the test split's and their labels, and a classifier of the training split."""
    train = load("digits", "train", 8, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_classifier, "STEPS", 200)
        classifier = fit(train)
    return train, load_examples(train)[0], *load_examples(load("digits", "test", 8, 1)), classifier


@pytest.fixture(scope="module")
def extractors(digits):
    train, *_, made = digits
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("score_sde.evaluation.extractors.load_or_fit", lambda source, data: made)
        return {name: EXTRACTORS[name](train, DATA, "") for name in ("classifier", "pixels")}


def figures_of(extractors, draws, real, test):
    """(The figures in both features, the classifier's features of the first draw and of the test split)."""
    figures, seen = {}, []
    for name, extractor in extractors.items():
        drawn = [extracted(extractor, samples) for samples in draws]
        held_out = extracted(extractor, test)
        figures |= compute_metrics(name, drawn, extracted(extractor, real), held_out)
        seen += [drawn[0], held_out] if name == "classifier" else []
    return figures, seen


@pytest.mark.slow
def test_real_digits_pass_for_digits_and_noise_does_not(digits, extractors):
    _, train, test, labels, _ = digits
    figures, seen = figures_of(extractors, [train[1000:1250], train[1250:]], train[:1000], test)
    figures |= classifier_metrics(*seen, labels, "made here")
    assert figures["classifier"]["test_accuracy"] > 0.97
    assert abs(figures["top_class_probability_samples"] - figures["top_class_probability_test"]) < 0.05
    assert min(figures["class_shares"]) > 0.04
    assert abs(sum(figures["class_shares"]) - 1) < 1e-9
    assert 1 < figures["classifier_score_250"]["mean"] < 10
    distance = figures["fd_pixels_250"]
    assert distance["minimum_of_2"] <= distance["mean"] <= distance["minimum_of_2"] + 2 * distance["std"]
    for name in ("pixels", "classifier"):
        assert figures[f"overlap_{name}_250"]["precision"] > 0.8
    noise = np.random.default_rng(0).integers(0, 17, (250, 8, 8, 1), np.uint8)
    worse, _ = figures_of(extractors, [noise], train[:1000], test)
    assert worse["fd_pixels_ratio"] > 10 * figures["fd_pixels_ratio"]
    assert worse["fd_classifier_ratio"] > 10 * figures["fd_classifier_ratio"]
    for name in ("pixels", "classifier"):
        assert worse[f"kid_{name}_250"]["mean"] > 10 * abs(figures[f"kid_{name}_250"]["mean"])
    assert worse["overlap_pixels_250"]["precision"] == 0
    assert worse["fd_pixels_250"]["std"] is None
    assert "pixels_score_250" not in worse  # they know no classes


def test_a_split_against_itself(digits, extractors):
    _, train, *_ = digits
    figures, _ = figures_of(extractors, [train], train, train[:500])
    for name in ("pixels", "classifier"):
        assert abs(figures[f"fd_{name}_1500"]["mean"]) < 1e-6 * figures[f"fd_{name}_test_train"]
        assert figures[f"overlap_{name}_1500"]["recall"] == 1


def test_moments_do_not_depend_on_batches_or_devices(digits, extractors, monkeypatch):
    """1,500 images in batches of 512 on eight devices, 64 on one and 37 on one: nothing dropped, nothing twice."""
    _, train, *_ = digits
    for extractor in extractors.values():
        found = [extracted(extractor, train)]
        monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
        found.append(extracted(extractor, train))
        monkeypatch.setattr(features, "MOMENT_CHUNK", 1)
        found.append(extracted(extractor, train))
        monkeypatch.undo()
        scale = np.abs(found[0].moments.covariance).max()
        for other in found[1:]:
            assert found[0].moments.num_vectors == other.moments.num_vectors == 1500
            np.testing.assert_array_equal(found[0].vectors, other.vectors)
            np.testing.assert_allclose(found[0].moments.mean, other.moments.mean, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found[0].moments.covariance, other.moments.covariance, rtol=0, atol=1e-9 * scale)
        whole = np.asarray(found[0].vectors, np.float64)
        np.testing.assert_allclose(found[0].moments.covariance, np.cov(whole.T), rtol=0, atol=1e-9 * scale)
    monkeypatch.setattr(features, "BATCH_PER_DEVICE", 37)
    other = extracted(extractors["pixels"], train)
    np.testing.assert_allclose(other.moments.mean, train.reshape(1500, -1).mean(0) / 8 - 1, rtol=1e-6, atol=1e-6)


def test_a_splits_features_are_computed_once_and_told_apart(digits, extractors, monkeypatch, tmp_path):
    train, images, *_ = digits
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(features, "NUM_STORED_FEATURES", 700)
    split = features.make_split(train, DATA, "train", 1000)
    assert split.num_images == 1000
    extractor, calls = extractors["pixels"], []
    extract = features.make_extract(extractor)

    def counted(*args):
        calls.append(args)
        return extract(*args)

    first, second = (features.real_features(counted, extractor, split) for _ in range(2))
    assert len(calls) == 1
    assert first.moments.num_vectors == 1000
    assert first.vectors.shape == (700, 64)
    whole = extracted(extractor, images[:1000])
    for found in (first, second):
        np.testing.assert_array_equal(found.vectors, whole.vectors[:700])
        for part, expected in zip(found.moments, whole.moments, strict=True):
            np.testing.assert_array_equal(part, expected)
    hashes = {split.fingerprint}
    for data, name, number in ((DATA | {"crop": True}, "train", 1000), (DATA, "test", 1000), (DATA, "train", 999)):
        hashes.add(features.make_split(train, data, name, number).fingerprint)
    assert len(hashes) == 4  # what is cut, the split and the number of images all count
    other = features.real_features(counted, extractor._replace(fingerprint="another"), split)
    assert len(calls) == 2
    np.testing.assert_array_equal(other.vectors, first.vectors)


def test_figures_of_different_data_are_refused_a_comparison():
    ours = {"data": {"train": {"number": 10, "hash": "a"}}, "features": {"pixels": "b"}, "num_samples": 100}
    results.check_comparable(ours, ours | {"step": 3}, "runs/other")
    for other in ({"data": {"train": {"number": 10, "hash": "c"}}}, {"features": {}}, {"num_samples": 50}):
        with pytest.raises(UserError, match=f"runs/other are not comparable.*{next(iter(other))}: .* here, .* there"):
            results.check_comparable(ours, ours | other, "runs/other")


def test_a_classifier_is_trained_once(digits, tmp_path, monkeypatch):
    train, *_, classifier = digits
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls = []
    place = "score_sde.evaluation.extractors.small_classifier.fit"
    monkeypatch.setattr(place, lambda source: calls.append(1) or classifier)
    first, second = load_or_fit(train, DATA), load_or_fit(train, DATA)
    assert calls == [1]
    assert first.fingerprint == second.fingerprint == classifier.fingerprint
    load_or_fit(train, DATA | {"crop": True})  # other images, another classifier
    assert calls == [1, 1]


def test_what_images_can_be_compared_in():
    files = {"inception": "", "dinov2": ""}
    sources = {
        shape: Dataset(Arrays(np.zeros((2, *shape[0]), np.uint8), np.zeros(2)), shape[0], 256, shape[1])
        for shape in (((8, 8, 1), 10), ((8, 8, 1), 1), ((128, 128, 3), 10), ((128, 128, 3), 1), ((8, 8, 2), 1))
    }
    small, unlabelled, large, neither, odd = sources.values()
    assert choose((), small, files) == ("classifier", "pixels")
    assert choose((), unlabelled, files) == ("pixels",)
    assert choose((), large, files) == ("classifier",)
    assert choose(("pixels",), small, files) == ("pixels",)
    with pytest.raises(UserError, match=r"too large to compare in pixels.*inception"):
        choose((), neither, files)
    with pytest.raises(UserError, match="at most 4096 values"):
        choose(("pixels",), large, files)
    with pytest.raises(UserError, match="no classes"):
        choose(("classifier",), unlabelled, files)
    with pytest.raises(UserError, match="Did you mean 'inception'"):
        choose(("incepton",), small, files)
    with pytest.raises(UserError, match="photographs, not images of 2 channels"):
        choose(("dinov2",), odd, files)
    with pytest.raises(UserError, match="at least 6, got 5"):
        check_count(5, "samples", "evaluation.num_samples")
    with pytest.raises(UserError, match="several classes"):
        fit(neither)


def test_a_copied_image_is_shown_beside_itself(digits, tmp_path):
    from PIL import Image

    _, train, *_ = digits
    save_neighbors(tmp_path / "n.png", train[:2], train, 17)
    shown = np.asarray(Image.open(tmp_path / "n.png"))
    factor = shown.shape[1] // (6 * 9 + 1)
    small = shown[::factor, ::factor]
    np.testing.assert_array_equal(small[1:9, 1:9], small[1:9, 10:18])
    assert not np.array_equal(small[1:9, 10:18], small[1:9, 19:27])

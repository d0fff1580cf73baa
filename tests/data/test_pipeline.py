"""The batch of step n is a function of (seed, n); every epoch visits every image once."""

import numpy as np
import pytest

from score_sde.data import Dataset, batches
from score_sde.data.examples import Arrays

NUM = 20


@pytest.fixture
def source():
    """Images that say which they are: their left column holds their number, the rest is 0."""
    images = np.zeros((NUM, 2, 3, 1), np.uint8)
    images[:, :, 0, 0] = np.arange(NUM)[:, None]
    return Dataset(Arrays(images, np.arange(NUM)), (2, 3, 1), 256, NUM)


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def test_every_epoch_visits_every_image_once_in_an_order_of_its_own(source):
    labels = np.concatenate([b["label"].ravel() for b in take(batches(source, seed=0, batch_size=5), 8)])
    first, second = labels[:NUM], labels[NUM:]
    assert sorted(first) == sorted(second) == list(range(NUM))
    assert list(first) != list(second)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("first_step", [1, 3, 7])
def test_a_resume_goes_on_with_the_very_next_batch(source, first_step, flip):
    """Also across the end of an epoch, which 6 doesn't divide."""
    whole = take(batches(source, seed=1, batch_size=6, random_flip=flip), 10)
    rest = take(batches(source, seed=1, batch_size=6, first_step=first_step, random_flip=flip), 10 - first_step)
    for expected, batch in zip(whole[first_step:], rest, strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])
        np.testing.assert_array_equal(batch["label"], expected["label"])


@pytest.mark.parametrize("hosts", [1, 2, 5])
@pytest.mark.parametrize("flip", [False, True])
def test_hosts_read_their_rows_alone_and_together_the_batch(source, hosts, flip):
    """Also from the middle of an epoch; two epochs visit each image twice, whoever reads it."""
    whole = take(batches(source, seed=3, batch_size=10, random_flip=flip, first_step=1), 3)
    each = 10 // hosts
    parts = [
        take(batches(source, 3, 10, first_step=1, random_flip=flip, rows=slice(each * host, each * (host + 1))), 3)
        for host in range(hosts)
    ]
    for step, expected in enumerate(whole):
        for name, array in expected.items():
            found = np.concatenate([part[step][name] for part in parts], axis=1)
            np.testing.assert_array_equal(found, array)
    seen = [
        index
        for host in range(hosts)
        for batch in take(batches(source, 3, 10, rows=slice(each * host, each * (host + 1))), 2 * NUM // 10)
        for index in batch["index"].ravel()
    ]
    assert sorted(seen) == sorted([*range(NUM)] * 2)


def test_a_host_opens_no_example_of_another(source):
    opened = []

    class Watched:
        def __len__(self):
            return NUM

        def __getitem__(self, index):
            opened.append(index)
            return source.examples[index]

    (batch,) = take(batches(source._replace(examples=Watched()), 0, 10, rows=slice(0, 2)), 1)
    ahead = take(batches(source, 0, 10, rows=slice(0, 2)), 50)  # what threads may have read ahead
    allowed = {int(index) for each in ahead for index in each["index"].ravel()}
    assert batch["image"].shape[1] == 2
    assert set(opened) <= allowed


def test_processes_that_read_give_the_batches_of_threads(source):
    expected = take(batches(source, 4, 6, random_flip=True, first_step=2), 3)
    found = take(batches(source, 4, 6, random_flip=True, first_step=2, num_workers=2), 3)
    for a, b in zip(expected, found, strict=True):
        for name, array in a.items():
            np.testing.assert_array_equal(b[name], array)


def test_steps_a_call_only_stack_batches(source):
    single = take(batches(source, seed=2, batch_size=4), 6)
    stacked = take(batches(source, seed=2, batch_size=4, steps_per_call=3), 2)
    assert stacked[0]["image"].shape == (3, 4, 2, 3, 1)
    assert stacked[0]["image"].dtype == np.uint8
    for name in ("image", "label"):
        np.testing.assert_array_equal(
            np.concatenate([b[name] for b in stacked]), np.concatenate([b[name] for b in single])
        )


def test_another_seed_is_another_order(source):
    orders = [next(batches(source, seed=seed, batch_size=NUM))["label"].tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_flips_are_mirror_images_of_half_the_visits(source):
    flipped = []
    for batch in take(batches(source, seed=0, batch_size=NUM, random_flip=True), 50):
        for image, label in zip(batch["image"][0, :, :, :, 0], batch["label"][0], strict=True):
            left, right = image[:, 0], image[:, -1]
            assert {tuple(left), tuple(right)} == {(0, 0), (label, label)}
            if label:
                flipped.append(bool((right == label).all()))
    n = len(flipped)
    assert abs(np.mean(flipped) - 0.5) < 4 * 0.5 / np.sqrt(n)

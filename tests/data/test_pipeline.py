"""The batch of step n is a function of (seed, n); every epoch visits every image once."""

import numpy as np
import pytest

from score_sde.data import Dataset, batches
from score_sde.data.examples import Arrays

NUM = 20


@pytest.fixture
def dataset():
    """Images that identify themselves: the left column holds the index, the rest is 0."""
    images = np.zeros((NUM, 2, 3, 1), np.uint8)
    images[:, :, 0, 0] = np.arange(NUM)[:, None]
    return Dataset(Arrays(images, np.arange(NUM)), (2, 3, 1), 256, NUM)


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def test_every_epoch_visits_every_image_once_in_a_new_order(dataset):
    labels = np.concatenate([b["label"].ravel() for b in take(batches(dataset, seed=0, batch_size=5), 8)])
    first, second = labels[:NUM], labels[NUM:]
    assert sorted(first) == sorted(second) == list(range(NUM))
    assert list(first) != list(second)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("first_step", [1, 3, 7])
def test_resume_continues_with_the_next_batch(dataset, first_step, flip):
    """Also across the end of an epoch, which is not a multiple of the batch size."""
    whole = take(batches(dataset, seed=1, batch_size=6, random_flip=flip), 10)
    rest = take(batches(dataset, seed=1, batch_size=6, first_step=first_step, random_flip=flip), 10 - first_step)
    for expected, batch in zip(whole[first_step:], rest, strict=True):
        np.testing.assert_array_equal(batch["image"], expected["image"])
        np.testing.assert_array_equal(batch["label"], expected["label"])


@pytest.mark.parametrize("processes", [1, 2, 5])
@pytest.mark.parametrize("flip", [False, True])
def test_processes_read_disjoint_rows_of_the_batch(dataset, processes, flip):
    """Also from the middle of an epoch; in two epochs all processes together visit each image twice."""
    whole = take(batches(dataset, seed=3, batch_size=10, random_flip=flip, first_step=1), 3)
    rows = 10 // processes
    local = [
        take(
            batches(dataset, 3, 10, first_step=1, random_flip=flip, rows=slice(rows * process, rows * (process + 1))), 3
        )
        for process in range(processes)
    ]
    for step, expected in enumerate(whole):
        for name, array in expected.items():
            actual = np.concatenate([calls[step][name] for calls in local], axis=1)
            np.testing.assert_array_equal(actual, array)
    visited = [
        index
        for process in range(processes)
        for batch in take(batches(dataset, 3, 10, rows=slice(rows * process, rows * (process + 1))), 2 * NUM // 10)
        for index in batch["index"].ravel()
    ]
    assert sorted(visited) == sorted([*range(NUM)] * 2)


def test_process_reads_no_example_of_another(dataset):
    indices = []

    class Recorder:
        def __len__(self):
            return NUM

        def __getitem__(self, index):
            indices.append(index)
            return dataset.examples[index]

    (batch,) = take(batches(dataset._replace(examples=Recorder()), 0, 10, rows=slice(0, 2)), 1)
    ahead = take(batches(dataset, 0, 10, rows=slice(0, 2)), 50)  # includes what the threads may have read ahead
    allowed = {int(index) for call in ahead for index in call["index"].ravel()}
    assert batch["image"].shape[1] == 2
    assert set(indices) <= allowed


@pytest.mark.slow
def test_reader_processes_and_threads_give_the_same_batches(dataset):
    expected = take(batches(dataset, 4, 6, random_flip=True, first_step=2), 3)
    actual = take(batches(dataset, 4, 6, random_flip=True, first_step=2, num_workers=2), 3)
    for a, b in zip(expected, actual, strict=True):
        for name, array in a.items():
            np.testing.assert_array_equal(b[name], array)


def test_steps_per_call_only_stack_batches(dataset):
    single = take(batches(dataset, seed=2, batch_size=4), 6)
    stacked = take(batches(dataset, seed=2, batch_size=4, steps_per_call=3), 2)
    assert stacked[0]["image"].shape == (3, 4, 2, 3, 1)
    assert stacked[0]["image"].dtype == np.uint8
    for name in ("image", "label"):
        np.testing.assert_array_equal(
            np.concatenate([b[name] for b in stacked]), np.concatenate([b[name] for b in single])
        )


def test_seed_changes_the_order(dataset):
    orders = [next(batches(dataset, seed=seed, batch_size=NUM))["label"].tolist() for seed in (0, 1)]
    assert orders[0] != orders[1]


def test_flips_mirror_half_of_the_visits(dataset):
    flipped = []
    for batch in take(batches(dataset, seed=0, batch_size=NUM, random_flip=True), 50):
        for image, label in zip(batch["image"][0, :, :, :, 0], batch["label"][0], strict=True):
            left, right = image[:, 0], image[:, -1]
            assert {tuple(left), tuple(right)} == {(0, 0), (label, label)}
            if label:
                flipped.append(bool((right == label).all()))
    n = len(flipped)
    assert abs(np.mean(flipped) - 0.5) < 4 * 0.5 / np.sqrt(n)

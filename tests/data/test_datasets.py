"""Every data set, on real or hand-made files of its format."""

import gzip
import struct
import sys

import numpy as np
import pytest

from score_sde.data import load
from score_sde.errors import UserError
from tests.tiny_cifar10 import write_cifar10


def test_digits_are_those_of_scikit_learn_in_a_fixed_split():
    from sklearn.datasets import load_digits

    train, test = (load("digits", split, 8, 1) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples)) == (1500, 297)
    assert (train.image_shape, train.levels, train.num_classes) == ((8, 8, 1), 17, 10)
    ours = [dataset.examples[i] for dataset in (train, test) for i in range(len(dataset.examples))]
    assert ours[0]["image"].dtype == np.uint8
    theirs = load_digits()
    rows = sorted((*example["image"].ravel().tolist(), example["label"]) for example in ours)
    assert rows == sorted(map(tuple, np.column_stack([theirs.data, theirs.target]).tolist()))
    again = load("digits", "train", 8, 1)
    np.testing.assert_array_equal(again.examples[7]["image"], train.examples[7]["image"])


def write_idx(path, array):
    raw = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    with (gzip.open if path.suffix == ".gz" else open)(path, "wb") as file:
        file.write(raw)


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for prefix, n, end in (("train", 6, ".gz"), ("t10k", 3, "")):
        arrays[prefix] = rng.integers(0, 256, (n, 28, 28), np.uint8), rng.permutation(10)[:n].astype(np.uint8)
        write_idx(tmp_path / f"{prefix}-images-idx3-ubyte{end}", arrays[prefix][0])
        write_idx(tmp_path / f"{prefix}-labels-idx1-ubyte{end}", arrays[prefix][1])
    return tmp_path, arrays


@pytest.mark.parametrize("name", ["idx", "fashion_mnist"])
def test_idx_files_are_read_and_padded(idx_folder, name):
    folder, arrays = idx_folder
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images, labels = arrays[prefix]
        dataset = load(name, split, 32, 1, str(folder))
        assert dataset.image_shape == (32, 32, 1)
        for i in range(len(images)):
            example = dataset.examples[i]
            assert example["label"] == labels[i]
            np.testing.assert_array_equal(example["image"], np.pad(images[i], 2)[..., None])


@pytest.fixture
def tfds_folder(tmp_path):
    return tmp_path, write_cifar10(tmp_path)


def test_tensorflow_datasets_are_read_without_tensorflow(tfds_folder):
    folder, images = tfds_folder
    train, test = (load("cifar10", split, 32, 3, str(folder)) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples), train.num_classes) == (12, 5, 10)
    for i in range(12):
        np.testing.assert_array_equal(train.examples[i]["image"], images[i])
        assert train.examples[i]["label"] == i % 10
    np.testing.assert_array_equal(test.examples[0]["image"], images[12])
    assert "tensorflow" not in sys.modules
    again = load("tfds", "test", 32, 3, str(folder), {"name": "cifar10"})
    np.testing.assert_array_equal(again.examples[0]["image"], images[12])
    with pytest.raises(UserError, match=r"splits .*train"):
        load("tfds", "test", 32, 3, str(folder), {"name": "cifar10", "test_split": "validation"})
    with pytest.raises(UserError, match=r"TensorFlow Datasets: .*kwargs\.name"):
        load("tfds", "train", 32, 3, str(folder), {"name": "cifar1O"})


def test_missing_data_set_raises_with_the_command_that_prepares_it(tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network
    with pytest.raises(UserError, match=r"can't be downloaded .*tfds build cifar10 --file_format=array_record"):
        load("cifar10", "train", 32, 3, str(tmp_path))
    with pytest.raises(UserError, match=r"tfds build cifar100 --file_format=array_record --data_dir=.*copy"):
        load("tfds", "train", 32, 3, str(tmp_path), {"name": "cifar100"})
    with pytest.raises(UserError, match="neither IDX files"):
        load("fashion_mnist", "train", 32, 1, str(tmp_path))
    with pytest.raises(UserError, match="no train-images-idx3-ubyte"):
        load("idx", "train", 32, 1, str(tmp_path))


def test_damaged_idx_files_raise(idx_folder):
    folder, _ = idx_folder
    labels = folder / "t10k-labels-idx1-ubyte"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-1])
    with pytest.raises(UserError, match="cut short"):
        load("idx", "test", 32, 1, str(folder))
    for damaged in (b"not an idx file", b"", whole[:3]):
        labels.write_bytes(damaged)
        with pytest.raises(UserError, match="not an IDX file"):
            load("idx", "test", 32, 1, str(folder))
    zipped = folder / "train-labels-idx1-ubyte.gz"
    zipped.write_bytes(zipped.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged"):
        load("idx", "train", 32, 1, str(folder))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digit", "train", 8, 1), "Did you mean 'digits'"),
        (("digits", "validation", 8, 1), "known: train, test"),
        (("digits", "train", 8, 3), "1 channels, not 3"),
        (("digits", "train", 4, 1), "at most 4x4, got 8x8; .*set crop=True or image_size"),
        (("digits", "train", 8, 1, "somewhere"), "ships with scikit-learn"),
    ],
)
def test_invalid_arguments_raise(arguments, words):
    with pytest.raises(UserError, match=words):
        load(*arguments)

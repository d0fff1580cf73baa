"""Images of one's own: folders of pictures and .npz files; cut and resized where they have other sizes."""

import numpy as np
import pytest
from PIL import Image

from score_sde.data import load
from score_sde.errors import UserError


def picture(path, shape, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full(shape, value, np.uint8)
    Image.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path):
    """Ten cats of 12x8 grey pictures, ten dogs of 8x16 in colour."""
    for i in range(10):
        picture(tmp_path / "cats" / f"{i}.png", (12, 8), 20 + i)
        picture(tmp_path / "dogs" / f"{i}.PNG", (8, 16, 3), 120 + i)
    return tmp_path


def test_a_folder_of_pictures(folder):
    train, test = (load("image_folder", split, 8, 3, str(folder)) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples), train.num_classes) == (18, 2, 2)
    assert (train.image_shape, train.levels) == ((8, 8, 3), 256)
    examples = [source.examples[i] for source in (train, test) for i in range(len(source.examples))]
    assert sorted(int(example["image"].mean()) for example in examples) == [*range(20, 30), *range(120, 130)]
    for example in examples:
        assert example["image"].shape == (8, 8, 3) and example["image"].dtype == np.uint8
        assert example["label"] == int(example["image"].mean() > 100)


def test_colours_turn_grey(folder):
    source = load("image_folder", "train", 8, 1, str(folder), {"channels": 1})
    assert source.examples[0]["image"].shape == (8, 8, 1)


def test_sub_folders_name_the_splits(tmp_path):
    picture(tmp_path / "train" / "a" / "0.jpg", (8, 8, 3), 10)
    picture(tmp_path / "val" / "a" / "0.jpg", (8, 8, 3), 200)
    train, test = (load("image_folder", split, 8, 3, str(tmp_path)) for split in ("train", "test"))
    assert train.examples[0]["image"].mean() < 20 and test.examples[0]["image"].mean() > 190


def test_classes_are_those_of_the_training_folder(tmp_path):
    for name in ("train/a", "train/b", "train/c", "test/a", "test/c"):
        picture(tmp_path / name / "0.png", (8, 8, 3), 10)
    test = load("image_folder", "test", 8, 3, str(tmp_path))
    assert [test.examples[i]["label"] for i in range(2)] == [0, 2] and test.num_classes == 3
    picture(tmp_path / "test" / "d" / "0.png", (8, 8, 3), 10)
    with pytest.raises(UserError, match="of which class is 'd'"):
        load("image_folder", "test", 8, 3, str(tmp_path))
    picture(tmp_path / "train" / "loose.png", (8, 8, 3), 10)
    with pytest.raises(UserError, match=r"of which class is 'loose\.png'"):
        load("image_folder", "train", 8, 3, str(tmp_path))


def test_the_middle_is_cut_out_and_resized(tmp_path):
    image = np.zeros((8, 24), np.uint8)
    image[:, 8:16] = 200  # the square about the centre
    (tmp_path / "all").mkdir()
    for i in range(4):
        Image.fromarray(image).save(tmp_path / "all" / f"{i}.png")
    source = load("image_folder", "train", 4, 1, str(tmp_path), {"channels": 1, "test_share": 0.25})
    np.testing.assert_array_equal(source.examples[0]["image"], np.full((4, 4, 1), 200))


def test_what_is_wrong_with_a_folder_is_said(tmp_path, folder):
    with pytest.raises(UserError, match="no folder"):
        load("image_folder", "train", 8, 3, "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.png"):
        load("image_folder", "train", 8, 3, str(tmp_path / "empty"))
    with pytest.raises(UserError, match="leaves a split of 20 empty"):
        load("image_folder", "train", 8, 3, str(folder), {"test_share": 0.0})
    broken = next((folder / "cats").iterdir())
    broken.write_bytes(b"nothing")
    source = load("image_folder", "train", 8, 3, str(folder), {"test_share": 0.05})
    with pytest.raises(UserError, match="can't be decoded"):
        [source.examples[i] for i in range(len(source.examples))] + [
            load("image_folder", "test", 8, 3, str(folder), {"test_share": 0.05}).examples[0]
        ]


KERAS = ("x_train", "y_train", "x_test", "y_test")


@pytest.mark.parametrize("names", [("train_images", "train_labels", "test_images", "test_labels"), KERAS])
def test_arrays_with_splits(tmp_path, names):
    arrays = [np.full((6, 8, 8), 1, np.uint8), np.arange(6)[:, None], np.full((2, 8, 8), 2, np.uint8), np.zeros(2, int)]
    np.savez(tmp_path / "data.npz", **dict(zip(names, arrays, strict=True)))
    train, test = (load("npz", split, 8, 1, str(tmp_path / "data.npz")) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples), train.num_classes) == (6, 2, 6)
    assert train.examples[5]["label"] == 5 and test.examples[0]["image"].max() == 2


def test_arrays_without_splits_and_of_points(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.arange(20 * 64).reshape(20, 8, 8, 1).astype(np.uint8))
    parts = [load("npz", split, 8, 1, str(tmp_path / "images.npz")) for split in ("train", "test")]
    assert [len(part.examples) for part in parts] == [18, 2]
    np.savez(tmp_path / "points.npz", images=np.random.default_rng(0).normal(size=(20, 3)))
    source = load("npz", "train", 0, 3, str(tmp_path / "points.npz"))
    assert (source.image_shape, source.levels) == ((3,), None)


def test_arrays_that_are_no_images_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", data=np.zeros(3))
    with pytest.raises(UserError, match="holds data, none of"):
        load("npz", "train", 8, 1, str(tmp_path / "other.npz"))
    np.savez(tmp_path / "floats.npz", images=np.zeros((4, 8, 8, 1)))
    with pytest.raises(UserError, match="needed are uint8 images"):
        load("npz", "train", 8, 1, str(tmp_path / "floats.npz"))
    cut = tmp_path / "cut.npz"
    cut.write_bytes((tmp_path / "floats.npz").read_bytes()[:100])
    with pytest.raises(UserError, match="can't be read"):
        load("npz", "train", 8, 1, str(cut))
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(UserError, match="a single array"):
        load("npz", "train", 8, 1, str(tmp_path / "one.npy"))
    np.savez(tmp_path / "code.npz", images=np.array([{}, {}], object))
    with pytest.raises(UserError, match="can't be read"):
        load("npz", "train", 8, 1, str(tmp_path / "code.npz"))


def test_other_sizes_are_cut_and_resized_where_that_is_asked_for(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.full((10, 12, 20, 1), 7, np.uint8))
    with pytest.raises(UserError, match=r"larger than 8.*data\.crop=True"):
        load("npz", "train", 8, 1, str(tmp_path / "data.npz"))
    source = load("npz", "train", 8, 1, str(tmp_path / "data.npz"), cropped=True)
    np.testing.assert_array_equal(source.examples[0]["image"], np.full((8, 8, 1), 7))

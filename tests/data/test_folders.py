"""User-provided data: image folders and .npz files, cropped and resized if their images have other sizes."""

import json

import numpy as np
import pytest
from PIL import Image

from score_sde.data import load
from score_sde.data.examples import MissingSplit
from score_sde.errors import UserError
from score_sde.evaluation.image_grid import save_grid


def write_image(path, shape, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full(shape, value, np.uint8)
    Image.fromarray(image).save(path)


@pytest.fixture
def folder(tmp_path):
    """Ten gray 12x8 images of the class cats, and ten RGB 8x16 images of the class dogs."""
    for i in range(10):
        write_image(tmp_path / "cats" / f"{i}.png", (12, 8), 20 + i)
        write_image(tmp_path / "dogs" / f"{i}.PNG", (8, 16, 3), 120 + i)
    return tmp_path


def test_image_folder(folder):
    train, test = (load("image_folder", split, 8, 3, str(folder)) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples), train.num_classes) == (18, 2, 2)
    assert (train.image_shape, train.levels) == ((8, 8, 3), 256)
    examples = [dataset.examples[i] for dataset in (train, test) for i in range(len(dataset.examples))]
    assert sorted(int(example["image"].mean()) for example in examples) == [*range(20, 30), *range(120, 130)]
    for example in examples:
        assert example["image"].shape == (8, 8, 3) and example["image"].dtype == np.uint8
        assert example["label"] == int(example["image"].mean() > 100)


@pytest.mark.parametrize(("train", "test"), [("Train", "Test"), ("Training", "Testing"), ("train_set", "test_set")])
def test_split_folders_have_usual_names(tmp_path, train, test):
    for name in ("cat", "dog"):
        write_image(tmp_path / train / name / "0.png", (8, 8), 1)
        write_image(tmp_path / test / name / "0.png", (8, 8), 2)
    write_image(tmp_path / "loose.png", (8, 8), 3)
    for split, value in (("train", 1), ("test", 2)):
        dataset = load("image_folder", split, 8, 1, str(tmp_path))
        assert [(example["image"].max(), example["label"]) for example in dataset.examples] == [(value, 0), (value, 1)]
        assert dataset.class_names == ("cat", "dog")
        assert dataset.ignored == {"images outside the split folders": 1}


def test_ambiguous_folders_raise(tmp_path):
    for name in ("bus", "car", "train"):
        write_image(tmp_path / "vehicles" / name / "0.png", (8, 8), 1)
        write_image(tmp_path / "shards" / f"0000{len(name)}" / f"{name}.png", (8, 8), 1)
    vehicles, shards = str(tmp_path / "vehicles"), str(tmp_path / "shards")
    with pytest.raises(
        UserError, match=r"\(bus, car, train\) can be splits or classes.*layout=splits or layout=classes"
    ):
        load("image_folder", "train", 8, 1, vehicles)
    kwargs = {"test_share": 0.4}
    assert load("image_folder", "train", 8, 1, vehicles, kwargs | {"layout": "classes"}).num_classes == 3
    split = load("image_folder", "train", 8, 1, vehicles, {"layout": "splits"})
    assert (len(split.examples), split.ignored) == (1, {"images outside the split folders": 2})
    with pytest.raises(MissingSplit, match="no subfolder test"):
        load("image_folder", "test", 8, 1, vehicles, {"layout": "splits"})
    with pytest.raises(UserError, match="classes, or shards"):
        load("image_folder", "train", 8, 1, shards)
    assert load("image_folder", "train", 8, 1, shards, kwargs | {"layout": "pile"}).num_classes == 1


def test_dataset_json_decides_labels(tmp_path):
    for i in range(6):
        write_image(tmp_path / f"{i // 3:05d}" / f"{i}.png", (8, 8), i)
    labels = [[f"{i // 3:05d}/{i}.png", 2 * (i % 2)] for i in range(6)]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    dataset = load("image_folder", "train", 8, 1, str(tmp_path), {"test_share": 0.2})
    assert dataset.class_counts[1] == 0 and dataset.class_names == ("0", "1", "2")
    for example in dataset.examples:
        assert example["label"] == 2 * (example["image"].max() % 2)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels[1:]}))
    with pytest.raises(UserError, match=r"dataset.json to label each image .*0\.png"):
        load("image_folder", "train", 8, 1, str(tmp_path))
    for content in ('{"labels": [["a", -1]]}', '{"labels": [["a", [0, 1]]]}', "[]", "{"):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(UserError, match=r"expected .* in .*dataset\.json"):
            load("image_folder", "train", 8, 1, str(tmp_path))


def test_every_format_is_read_and_other_files_counted(tmp_path):
    for suffix in ("png", "jfif", "ppm", "tga"):
        write_image(tmp_path / "cat" / f"0.{suffix}", (8, 8), 100)
    for name in ("notes.txt", "more.txt", "README"):
        (tmp_path / "cat" / name).write_text("text")
    dataset = load("image_folder", "train", 8, 1, str(tmp_path), {"test_share": 0.25})
    assert len(dataset.examples) == 3 and dataset.ignored == {".txt": 2, "no suffix": 1}
    pages = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 1)]
    pages[0].save(tmp_path / "cat" / "pages.tiff", save_all=True, append_images=pages[1:])
    with pytest.raises(UserError, match=r"one image per file, got 2 frames or pages in .*pages\.tiff"):
        load("image_folder", "train", 8, 1, str(tmp_path))


def test_test_images_without_class_raise(tmp_path):
    for name in ("train/a/0.png", "train/b/0.png", "test/9.png"):
        write_image(tmp_path / name, (8, 8), 1)
    with pytest.raises(UserError, match=r"cannot infer the class of '9\.png'"):
        load("image_folder", "test", 8, 1, str(tmp_path))


def test_test_labels_beyond_training_raise(tmp_path):
    images = np.zeros((6, 8, 8), np.uint8)
    path, labels = str(tmp_path / "data.npz"), np.arange(6)
    np.savez(path, train_images=images, train_labels=labels % 3, test_images=images, test_labels=labels % 5)
    assert load("npz", "train", 8, 1, path).num_classes == 3
    with pytest.raises(UserError, match=r"expected test labels below 3, .* got 4"):
        load("npz", "test", 8, 1, path)
    np.savez(path, train_images=images)
    with pytest.raises(MissingSplit):
        load("npz", "test", 8, 1, path)


def test_class_names_of_arrays(tmp_path):
    arrays = {"images": np.zeros((20, 8, 8), np.uint8), "labels": np.arange(20) % 2}
    np.savez(tmp_path / "data.npz", **arrays, class_names=["shirt", "shoe"])
    assert load("npz", "train", 8, 1, str(tmp_path / "data.npz")).class_names == ("shirt", "shoe")
    np.savez(tmp_path / "data.npz", **arrays, class_names=["shirt"])
    with pytest.raises(UserError, match="expected 2 class_names"):
        load("npz", "train", 8, 1, str(tmp_path / "data.npz"))


def test_colors_are_converted_to_gray(folder):
    dataset = load("image_folder", "train", 8, 1, str(folder))
    assert dataset.examples[0]["image"].shape == (8, 8, 1)


def test_subfolders_name_the_splits(tmp_path):
    write_image(tmp_path / "train" / "a" / "0.jpg", (8, 8, 3), 10)
    write_image(tmp_path / "val" / "a" / "0.jpg", (8, 8, 3), 200)
    train, test = (load("image_folder", split, 8, 3, str(tmp_path)) for split in ("train", "test"))
    assert train.examples[0]["image"].mean() < 20 and test.examples[0]["image"].mean() > 190


def test_classes_are_those_of_the_training_folder(tmp_path):
    for name in ("train/a", "train/b", "train/c", "test/a", "test/c"):
        write_image(tmp_path / name / "0.png", (8, 8, 3), 10)
    test = load("image_folder", "test", 8, 3, str(tmp_path))
    assert [test.examples[i]["label"] for i in range(2)] == [0, 2] and test.num_classes == 3
    write_image(tmp_path / "test" / "d" / "0.png", (8, 8, 3), 10)
    with pytest.raises(UserError, match="cannot infer the class of 'd'"):
        load("image_folder", "test", 8, 3, str(tmp_path))
    write_image(tmp_path / "train" / "loose.png", (8, 8, 3), 10)
    with pytest.raises(UserError, match=r"cannot infer the class of 'loose\.png'"):
        load("image_folder", "train", 8, 3, str(tmp_path))


def test_center_is_cropped_and_resized(tmp_path):
    image = np.zeros((8, 24), np.uint8)
    image[:, 8:16] = 200  # the square about the center
    (tmp_path / "all").mkdir()
    for i in range(4):
        Image.fromarray(image).save(tmp_path / "all" / f"{i}.png")
    dataset = load("image_folder", "train", 4, 1, str(tmp_path), {"test_share": 0.25})
    np.testing.assert_array_equal(dataset.examples[0]["image"], np.full((4, 4, 1), 200))


def test_invalid_folders_raise(tmp_path, folder):
    with pytest.raises(UserError, match="no folder"):
        load("image_folder", "train", 8, 3, "nowhere")
    with pytest.raises(UserError, match=r"0 < test_share < 1, got 0.0"):
        load("image_folder", "train", 8, 3, str(folder), {"test_share": 0.0})
    with pytest.raises(UserError, match=r"test_share=0\.01 of 20 examples leaves a split empty"):
        load("image_folder", "train", 8, 3, str(folder), {"test_share": 0.01})
    with pytest.raises(UserError, match="expected 1, 3, 4 channels, got 2"):
        load("image_folder", "train", 8, 2, str(folder))
    with pytest.raises(UserError, match="expected a color"):
        load("image_folder", "train", 8, 3, str(folder), {"background": "blak"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder .*empty holds no image"):
        load("image_folder", "train", 8, 3, str(folder))
    with pytest.raises(UserError, match="no image that Pillow reads"):
        load("image_folder", "train", 8, 3, str(tmp_path / "empty"))
    (tmp_path / "empty").rmdir()
    broken = folder / "cats" / "3.png"
    broken.write_bytes(b"nothing")
    for split in ("train", "test"):  # also if the damaged file is in the other split
        with pytest.raises(UserError, match=r"3.png can't be decoded"):
            load("image_folder", split, 8, 3, str(folder))
    broken.unlink()
    broken.symlink_to("nowhere.png")
    with pytest.raises(UserError, match=r"3.png can't be read"):
        load("image_folder", "train", 8, 3, str(folder))


def test_links_are_followed_and_hidden_names_skipped(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    root = tmp_path / "root"
    for i in range(5):
        write_image(elsewhere / f"{i}.png", (8, 8), 10)
        write_image(root / "real" / f"{i}.png", (8, 8), 200)
        write_image(root / ".ipynb_checkpoints" / f"{i}.png", (8, 8), 100)
        write_image(root / "real" / ".thumbnails" / f"{i}.png", (8, 8), 100)
    write_image(root / "real" / ".hidden.png", (8, 8), 100)
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)  # an endless loop
    (elsewhere / "twice").symlink_to(elsewhere)
    dataset = load("image_folder", "train", 8, 1, str(root))
    assert dataset.num_classes == 2
    files = dataset.examples.examples.paths
    paths = {path.relative_to(root).as_posix() for path in files}
    assert all(path.startswith(("linked/", "real/")) and ".thumbnails" not in path for path in paths)
    assert len([path for path in paths if path.count("/") == 1]) >= 8
    for i in range(len(dataset.examples)):
        assert dataset.examples[i]["image"].mean() == (200 if files[i].parent.name == "real" else 10)


KERAS = ("x_train", "y_train", "x_test", "y_test")


@pytest.mark.parametrize("names", [("train_images", "train_labels", "test_images", "test_labels"), KERAS])
def test_arrays_with_splits(tmp_path, names):
    arrays = [np.full((6, 8, 8), 1, np.uint8), np.arange(6)[:, None], np.full((2, 8, 8), 2, np.uint8), np.zeros(2, int)]
    np.savez(tmp_path / "data.npz", **dict(zip(names, arrays, strict=True)))
    train, test = (load("npz", split, 8, 1, str(tmp_path / "data.npz")) for split in ("train", "test"))
    assert (len(train.examples), len(test.examples), train.num_classes) == (6, 2, 6)
    assert train.examples[5]["label"] == 5 and test.examples[0]["image"].max() == 2


def test_arrays_without_splits_and_points(tmp_path):
    np.savez(tmp_path / "images.npz", images=np.arange(20 * 64).reshape(20, 8, 8, 1).astype(np.uint8))
    parts = [load("npz", split, 8, 1, str(tmp_path / "images.npz")) for split in ("train", "test")]
    assert [len(part.examples) for part in parts] == [18, 2]
    np.savez(tmp_path / "points.npz", images=np.random.default_rng(0).normal(size=(20, 3)))
    dataset = load("npz", "train", 0, 3, str(tmp_path / "points.npz"))
    assert (dataset.image_shape, dataset.levels) == ((3,), None)


def test_arrays_that_are_not_images_raise(tmp_path):
    np.savez(tmp_path / "other.npz", data=np.zeros(3))
    with pytest.raises(UserError, match="holds data, none of"):
        load("npz", "train", 8, 1, str(tmp_path / "other.npz"))
    np.savez(tmp_path / "floats.npz", images=np.zeros((4, 8, 8, 1)))
    with pytest.raises(UserError, match="expected uint8 images"):
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


def test_other_sizes_are_cropped_only_on_request(tmp_path):
    np.savez(tmp_path / "data.npz", images=np.full((10, 12, 20, 1), 7, np.uint8))
    with pytest.raises(UserError, match=r"at most 8x8, got 12x20.*set crop=True"):
        load("npz", "train", 8, 1, str(tmp_path / "data.npz"))
    dataset = load("npz", "train", 8, 1, str(tmp_path / "data.npz"), crop=True)
    np.testing.assert_array_equal(dataset.examples[0]["image"], np.full((8, 8, 1), 7))


@pytest.mark.parametrize("channels", [2, 5])
def test_other_numbers_of_channels_are_cropped_and_plotted(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (10, 12, 8, channels), np.uint8)
    np.savez(tmp_path / "data.npz", images=images)
    dataset = load("npz", "train", 8, channels, str(tmp_path / "data.npz"), crop=True)
    assert dataset.examples[0]["image"].shape == (8, 8, channels)
    save_grid(tmp_path / "grid.png", images[:1], min_side=1)
    plotted = np.asarray(Image.open(tmp_path / "grid.png"))
    np.testing.assert_array_equal(plotted[1:-1, 1:-1], np.concatenate(np.moveaxis(images[0], -1, 0), axis=1))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"labels": np.full(6, 0.5)}, "expected 6 integers from 0 as labels, got 6 of float64"),
        ({"labels": np.full(6, -1)}, "integers from 0"),
        ({"labels": np.full(6, 2.0**40)}, "integers from 0"),
        ({"labels": np.full(6, np.nan)}, "integers from 0"),
        ({"labels": np.array(list("abcdef"))}, "got 6 of <U1"),
        ({"labels": np.arange(5)}, "expected 6 integers .*, got 5"),
        ({"images": np.full((6, 3), 1j)}, "real numbers .*got complex128"),
        ({"images": np.full((6, 3), "a")}, "real numbers .*got <U1"),
        ({"images": np.full((6, 3), np.nan)}, "expected finite float32 numbers, got 0 of 18"),
        ({"images": np.full((6, 3), 1e300)}, "expected finite float32 numbers"),
        ({"images": np.zeros((0, 3))}, r"got float64 \(0, 3\)"),
        ({"images": np.float32(1.0)}, r"got float32 \(\)"),
    ],
)
def test_invalid_arrays_raise(tmp_path, arrays, words):
    whole = {"images": np.zeros((6, 3), np.float32), "labels": np.arange(6)}
    np.savez(tmp_path / "data.npz", **(whole | arrays))
    with pytest.raises(UserError, match=words):
        load("npz", "train", 0, 3, str(tmp_path / "data.npz"))


def test_integral_labels_of_any_type_are_read(tmp_path):
    np.savez(tmp_path / "data.npz", x_train=np.zeros((3, 8, 8), np.uint8), y_train=np.array([[0.0], [2.0], [1.0]]))
    dataset = load("npz", "train", 8, 1, str(tmp_path / "data.npz"))
    assert [dataset.examples[i]["label"] for i in range(3)] == [0, 2, 1] and dataset.num_classes == 3

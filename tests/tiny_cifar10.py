"""A tiny cifar10 in TensorFlow Datasets' array_record format, written without TensorFlow."""

import io
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2


def write_cifar10(root: Path) -> np.ndarray:
    """Writes cifar10 as `tfds build` would, 12 random images to train and 5 to test; returns all 17, uint8."""
    version = str(tfds.builder_cls("cifar10").VERSION)
    folder = root / "cifar10" / version
    folder.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    images = np.random.default_rng(0).integers(0, 256, (17, 32, 32, 3), np.uint8)
    infos = []
    for split, chosen in (("train", range(12)), ("test", range(12, 17))):
        writer = ArrayRecordWriter(str(folder / f"cifar10-{split}.array_record-00000-of-00001"), "group_size:1")
        for i in chosen:
            png = io.BytesIO()
            Image.fromarray(images[i]).save(png, "png")
            feature = {
                "id": tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[b"%d" % i])),
                "image": tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=[png.getvalue()])),
                "label": tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=[i % 10])),
            }
            example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=feature))
            writer.write(example.SerializeToString())
        writer.close()
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name="cifar10", split=split, filetype_suffix="array_record"
        )
        infos.append(
            tfds.core.SplitInfo(name=split, shard_lengths=[len(chosen)], num_bytes=1, filename_template=template)
        )
    tfds.folder_dataset.write_metadata(
        data_dir=str(folder),
        features=features,
        split_infos=infos,
        filename_template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        check_data=False,
    )
    return images

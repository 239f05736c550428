"""Shards as DeepLab's own scripts write them (build_data.py), for tests."""

import io
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

SIZES = ((40, 56), (33, 72), (48, 33), (40, 56))  # of picture i: SIZES[i % 4]


def encoded(pixels: np.ndarray, image_format: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, image_format)
    return stream.getvalue()


def example(
    i: int, *, classes: int = 21, sides: bool = True, label: bool = True, image_format: str = "jpg"
) -> dict[str, list]:
    """Picture i as features by key, with the keys in the order of build_data.py."""
    rng = np.random.default_rng(i)
    height, width = SIZES[i % len(SIZES)]
    labels = rng.integers(0, classes, (height, width)).astype(np.uint8)
    labels[0] = 255
    picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    features: dict[str, list] = {
        "image/encoded": [encoded(picture, "png" if image_format == "png" else "jpeg")],
        "image/filename": [f"2007_{i:06d}".encode()],
        "image/format": [image_format.encode()],
    }
    if sides:
        features |= {"image/height": [height], "image/width": [width]}
    features["image/channels"] = [3]
    if label:
        features["image/segmentation/class/encoded"] = [encoded(labels, "png")]
        features["image/segmentation/class/format"] = [b"png"]
    return features


def serialized(features: dict[str, list]) -> bytes:
    def feature(values: list) -> tf.train.Feature:
        if values and isinstance(values[0], bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    named = {key: feature(values) for key, values in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=named)).SerializeToString()


def write_shards(
    directory: Path,
    split: str,
    examples: list[dict[str, list]],
    *,
    count: int,
    suffix: str = ".tfrecord",
) -> list[Path]:
    """Writes the examples in turn into <split>-NNNNN-of-NNNNN<suffix>."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{split}-{k:05d}-of-{count:05d}{suffix}" for k in range(count)]
    for k, path in enumerate(paths):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for features in examples[k::count]:
                writer.write(serialized(features))
    return paths

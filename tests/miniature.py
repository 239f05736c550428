"""A tiny dataset in the Cityscapes layout for tests, and a way to spoil its records."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

SIZE = (40, 72)


def write_pair(
    root: Path, split: str, name: str, image: np.ndarray, label_ids: np.ndarray
) -> tuple[Path, Path]:
    """Writes image (uint8 [H, W, 3]) and label ids (uint8 [H, W]); returns both paths."""
    image_path = root / "leftImg8bit" / split / "town" / f"town_{name}_leftImg8bit.png"
    label_path = root / "gtFine" / split / "town" / f"town_{name}_gtFine_labelIds.png"
    for path, pixels in ((image_path, image), (label_path, label_ids)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return image_path, label_path


def write_cityscapes(
    root: Path, *, train: int = 4, val: int = 2, size: tuple[int, int] = SIZE, seed: int = 0
) -> Path:
    """Writes random images with label ids 0..33 of which image and label i tell i.

    Image i (counted over both splits) has the value i in its whole red channel; in its label map
    the ids are random, but the first row is 7 (road).
    """
    rng = np.random.default_rng(seed)
    for i in range(train + val):
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        image[..., 0] = i
        label_ids = rng.integers(0, 34, size).astype(np.uint8)
        label_ids[0] = 7
        write_pair(root, "train" if i < train else "val", f"{i:06d}_000019", image, label_ids)
    return root


def change_records(file: str, change: Callable[[int, dict], None]) -> None:
    """Rewrites a shard; change(i, features) may alter the tf.train.Feature map of record i."""
    serialized = [record.numpy() for record in tf.data.TFRecordDataset(file)]
    with tf.io.TFRecordWriter(file) as writer:
        for i, one in enumerate(serialized):
            example = tf.train.Example.FromString(one)
            change(i, example.features.feature)
            writer.write(example.SerializeToString())


def set_label(features: dict, label: np.ndarray) -> None:
    """Replaces the label map of a record by uint8 [H, W]."""
    encoded = tf.io.encode_png(label[..., None]).numpy()
    features["image/segmentation/class/encoded"].bytes_list.value[0] = encoded

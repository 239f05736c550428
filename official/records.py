"""The record contract: what one example holds, and what the description beside the shards says.

A data directory holds `dataset_info.json`, `features.json`, `metadata.json` and TFRecord shards,
all written by tensorflow-datasets. Every record is a tf.Example with the keys that DeepLab and the
TensorFlow Model Garden read:

    image/encoded                     bytes of a PNG or JPEG file, 8 bits per channel
    image/filename                    bytes, the image's path in its source without the suffix
    image/format                      bytes, "png" or "jpeg"
    image/height, /width, /channels   int64
    image/segmentation/class/encoded  bytes of a PNG of one 8-bit channel: 0..num_classes-1,
                                      or the ignore label
    image/segmentation/class/format   bytes, "png"
"""

import dataclasses
import hashlib
import json
import os
import re
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from official.errors import RunError

IGNORE_LABEL = 255
METADATA_FORMAT = 1

_KEYS = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/filename": tf.io.FixedLenFeature([], tf.string),
    "image/segmentation/class/encoded": tf.io.FixedLenFeature([], tf.string),
}

# A record in a file: length (uint64, little endian), CRC of the length (4 bytes), data, CRC of the
# data (4 bytes).
_LENGTH = struct.Struct("<Q")
_FRAME_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a dataset.

    Attributes:
      num_examples: number of records.
      files: paths of the TFRecord shards, in order.
      sizes: distinct image sizes as (height, width, number of images), sorted.
    """

    num_examples: int
    files: tuple[str, ...]
    sizes: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Description:
    """What a data directory says about itself.

    Attributes:
      name: the source dataset, for example "cityscapes".
      data_dir: the directory.
      class_names: one name per class, in the order of the labels.
      palette: one (red, green, blue), 0..255, per class.
      ignore_label: the label of void pixels.
      splits: the splits by name.
      options: the converter's options that shaped the records.
    """

    name: str
    data_dir: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_label: int
    splits: dict[str, Split]
    options: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """Number of classes, void not counted."""
        return len(self.class_names)

    def split(self, name: str) -> Split:
        """The split called `name`. Raises RunError, listing the splits, if there is none."""
        if name not in self.splits:
            raise RunError(
                f"{self.data_dir} has no split {name!r}: it has {', '.join(sorted(self.splits))}"
            )
        return self.splits[name]

    def fingerprint(self) -> str:
        """12 hex digits, equal for equal content wherever the directory lies."""
        content = {
            "name": self.name,
            "class_names": self.class_names,
            "ignore_label": self.ignore_label,
            "splits": {k: (s.num_examples, sorted(s.sizes)) for k, s in self.splits.items()},
            "options": self.options,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def metadata(
    name: str,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    options: dict[str, Any],
) -> dict[str, Any]:
    """The metadata that a converter stores beside its shards; it fills `sizes` while it writes.

    `sizes` maps a split's name to a list of [height, width, number of images].
    """
    return {
        "format": METADATA_FORMAT,
        "name": name,
        "class_names": list(class_names),
        "palette": [list(color) for color in palette],
        "ignore_label": IGNORE_LABEL,
        "options": options,
        "sizes": {},
    }


def read_description(data_dir: str) -> Description:
    """Reads the description of a directory that tfrecords_tools.convert wrote.

    Raises:
      RunError: the directory is no such dataset, or one of its shards is missing.
    """
    remedy = "--data_dir takes the --output_dir that tfrecords_tools.convert was given"
    if not os.path.isfile(os.path.join(data_dir, "dataset_info.json")):
        raise RunError(f"{data_dir} holds no dataset (no dataset_info.json in it): {remedy}")
    try:
        info = tfds.builder_from_directory(data_dir).info
        meta = info.metadata
        if not meta or meta.get("format") != METADATA_FORMAT:
            raise ValueError("its metadata.json is not of this project's format")
        splits = {
            name: Split(
                num_examples=split.num_examples,
                files=tuple(os.path.join(data_dir, os.path.basename(f)) for f in split.filepaths),
                sizes=tuple(sorted((int(h), int(w), int(n)) for h, w, n in meta["sizes"][name])),
            )
            for name, split in info.splits.items()
        }
        description = Description(
            name=meta["name"],
            data_dir=data_dir,
            class_names=tuple(meta["class_names"]),
            palette=tuple((int(r), int(g), int(b)) for r, g, b in meta["palette"]),
            ignore_label=int(meta["ignore_label"]),
            splits=splits,
            options=dict(meta["options"]),
        )
    except Exception as error:  # tfds and json raise many kinds for a damaged directory
        raise RunError(f"{data_dir} cannot be read as a dataset ({error}): {remedy}") from error
    for split in splits.values():
        for file in split.files:
            if not os.path.isfile(file):
                raise RunError(f"{file} is missing: convert the dataset again")
    return description


def explain(error: tf.errors.OpError) -> str:
    """What a TensorFlow error says in one line, without the names of its operations."""
    about_the_graph = ("Graph execution error", "Detected at node", "File ", "<stack traces")
    lines = [line.strip() for line in error.message.splitlines()]
    text = " ".join(line for line in lines if not line.startswith(about_the_graph))
    text = re.sub(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*|assertion failed:", " ", text)
    return " ".join(text.split()).strip("[] ")


def parse_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses one record.

    Args:
      serialized: scalar string, one serialised tf.Example.

    Returns:
      "image", "label": scalar strings, the encoded files; "filename": scalar string.
    """
    parsed = tf.io.parse_single_example(serialized, _KEYS)
    return {
        "image": parsed["image/encoded"],
        "label": parsed["image/segmentation/class/encoded"],
        "filename": parsed["image/filename"],
    }


def index_records(files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Finds every record of `files` by walking the record headers; record data are not read.

    Returns:
      File number (int32 [n]) and byte offset in that file (int64 [n]) of each record, in order.

    Raises:
      RunError: a file is cut off or is no TFRecord file.
    """
    numbers, offsets = [], []
    for number, file in enumerate(files):
        size, offset = os.path.getsize(file), 0
        with open(file, "rb") as stream:
            while offset < size:
                stream.seek(offset)
                header = stream.read(_LENGTH.size)
                end = size + 1
                if len(header) == _LENGTH.size:
                    end = offset + _FRAME_BYTES + _LENGTH.unpack(header)[0]
                if end > size:
                    raise RunError(f"{file} is cut off or damaged: convert the dataset again")
                numbers.append(number)
                offsets.append(offset)
                offset = end
    return np.array(numbers, np.int32), np.array(offsets, np.int64)


def read_record(file: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """Reads the record that starts at byte `offset` of `file` (scalars); works in tf.data's map."""
    variant = tf.raw_ops.TFRecordDatasetV2(
        filenames=file[tf.newaxis],
        compression_type="",
        buffer_size=tf.constant(256 * 1024, tf.int64),
        byte_offsets=offset[tf.newaxis],
    )
    records = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string))
    return records.take(1).get_single_element()

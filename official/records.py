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

Directories of shards that DeepLab's own scripts wrote are read too (deeplab_shards.py). They carry
no description, their filenames may have suffixes, and images without labels may lack the label map.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from official import datasets, deeplab_shards
from official.errors import RunError, UsageError, explain, shorten
from official.files import read_small
from official.progress import Progress
from official.sizes import Sizes

IGNORE_LABEL = 255
METADATA_FORMAT = 1
LONGEST_NAME = 200
"""So many characters has the name of a class at most."""

_KEYS = {
    "image/encoded": tf.io.FixedLenFeature([], tf.string),
    "image/filename": tf.io.FixedLenFeature([], tf.string),
    "image/segmentation/class/encoded": tf.io.FixedLenFeature([], tf.string, default_value=""),
}

# A record in a file: length (uint64, little endian), CRC of the length (4 bytes), data, CRC of the
# data (4 bytes).
_LENGTH = struct.Struct("<Q")
_FRAME_BYTES = 16
_DATA_OFFSET = 12
# How compressed files begin.
_COMPRESSED = {
    b"\x1f\x8b": "GZIP",
    **dict.fromkeys((b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"), "ZLIB"),
}


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
        """Gives the split of that name; raises RunError, which lists the splits, if none has it."""
        if name not in self.splits:
            raise RunError(
                f"{self.data_dir} has no split {name!r}: it has {', '.join(sorted(self.splits))}"
            )
        return self.splits[name]

    def most_frequent_size(self) -> tuple[int, int]:
        """Height and width that most images have, the largest if as many have others."""
        counts: collections.Counter[tuple[int, int]] = collections.Counter()
        for split in self.splits.values():
            for height, width, number in split.sizes:
                counts[height, width] += number
        return max(counts, key=lambda size: (counts[size], size))

    def files(self) -> list[Path]:
        """All files that make it up."""
        names = ("dataset_info.json", "features.json", "metadata.json")
        shards = (Path(file) for split in self.splits.values() for file in split.files)
        return [*(Path(self.data_dir, name) for name in names), *shards]

    def fingerprint(self) -> str:
        """Hashes what the description says, but for the directory: 12 hex digits."""
        content = {
            "name": self.name,
            "class_names": self.class_names,
            "ignore_label": self.ignore_label,
            "splits": {k: (s.num_examples, sorted(s.sizes)) for k, s in self.splits.items()},
            "options": self.options,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def make_metadata(
    name: str,
    class_names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
    options: dict[str, Any],
) -> dict[str, Any]:
    """Makes the metadata that a converter stores beside its shards, with `sizes` still empty.

    The converter fills them in while it writes.

    `sizes` maps a split's name to a list of [height, width, number of images].
    """
    return {
        "format": METADATA_FORMAT,
        "name": name,
        "class_names": list(class_names),
        "palette": [list(colour) for colour in palette],
        "ignore_label": IGNORE_LABEL,
        "options": options,
        "sizes": {},
    }


def read_description(
    data_dir: str, num_classes: int | None = None, ignore_label: int | None = None
) -> Description:
    """Reads the description of a directory that tfrecords_tools.convert wrote.

    If DeepLab's own scripts wrote it, finds out what can be found out.

    Args:
        data_dir: the directory.
        num_classes: number of classes of data without description; not looked at if there is one.
        ignore_label: void label of data without description, None for 255; not looked at if there
            is one.

    Raises:
        UsageError: data without description and without num_classes, or impossible numbers.
        RunError: the directory is no such dataset, or one of its shards is missing or damaged.
    """
    remedy = "--data_dir takes the --output_dir that tfrecords_tools.convert was given"
    if not os.path.isfile(os.path.join(data_dir, "dataset_info.json")):
        shards = deeplab_shards.find_shards(data_dir)
        if shards:
            return _describe_shards(data_dir, shards, num_classes, ignore_label)
        raise RunError(f"{data_dir} holds no dataset (no dataset_info.json in it): {remedy}")
    try:
        for name in ("dataset_info.json", "features.json", "metadata.json"):
            read_small(os.path.join(data_dir, name))
        info = tfds.builder_from_directory(data_dir).info
        meta = info.metadata
        if not meta or meta.get("format") != METADATA_FORMAT:
            raise ValueError("its metadata.json is not of this project's format")
        splits = {
            name: Split(
                num_examples=split.num_examples,
                files=tuple(os.path.join(data_dir, os.path.basename(f)) for f in split.filepaths),
                sizes=tuple(sorted((h, w, n) for h, w, n in meta["sizes"][name])),
            )
            for name, split in info.splits.items()
        }
        description = Description(
            name=meta["name"],
            data_dir=data_dir,
            class_names=tuple(meta["class_names"]),
            palette=tuple((r, g, b) for r, g, b in meta["palette"]),
            ignore_label=meta["ignore_label"],
            splits=splits,
            options=dict(meta["options"]),
        )
        _check_classes(description)
        _check_splits(splits)
        Sizes.from_options(description.options)
    except Exception as error:  # tfds and json raise many kinds for a damaged directory
        what = shorten(explain(error), 200)
        raise RunError(f"{data_dir} cannot be read as a dataset ({what}): {remedy}") from error
    for split in splits.values():
        for file in split.files:
            if not os.path.isfile(file):
                name = os.path.join(data_dir, shorten(os.path.basename(file)))
                raise RunError(f"{name} is missing: convert the dataset again")
    return description


def _check_classes(description: Description) -> None:
    """Raises ValueError if names and colours are not what they should be."""
    names, palette = description.class_names, description.palette
    for name in (description.name, *names):
        if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME):
            raise ValueError(
                "a name in its metadata.json is no text of up to "
                f"{LONGEST_NAME} characters that can be printed: {shorten(name, 60)}"
            )
    if not 0 < len(names) <= 256 or len(palette) != len(names):
        raise ValueError(f"its metadata.json has {len(names)} classes and {len(palette)} colours")
    for value in (*itertools.chain(*palette), description.ignore_label):
        if type(value) is not int or not 0 <= value <= 255:
            raise ValueError(
                "a colour or the void label in its metadata.json is not in 0..255: "
                f"{shorten(value, 60)}"
            )


def _check_splits(splits: Mapping[str, Split]) -> None:
    """Raises ValueError if there are none, or their numbers are not what they should be."""
    if not splits:
        raise ValueError("it has no split")
    for name, split in splits.items():
        numbers = [number for size in split.sizes for number in size]
        if not all(type(number) is int and 0 < number < 2**31 for number in numbers):
            raise ValueError(f"a size of {name} in its metadata.json is not of numbers above 0")
        count = sum(number for _, _, number in split.sizes)
        if not count == split.num_examples > 0:
            raise ValueError(
                f"{name} has {split.num_examples} examples, but sizes of {count} in metadata.json"
            )


def _describe_shards(
    data_dir: str,
    shards: dict[str, tuple[str, ...]],
    num_classes: int | None,
    ignore_label: int | None,
) -> Description:
    if num_classes is None:
        raise UsageError(
            f"--data_dir={data_dir} holds shards without a description (dataset_info.json), as "
            "DeepLab's scripts write them: give --num_classes, and --ignore_label if void is not "
            f"{IGNORE_LABEL}"
        )
    ignore_label = IGNORE_LABEL if ignore_label is None else ignore_label
    if not 2 <= num_classes <= 256:
        raise UsageError(f"--num_classes={num_classes} must be 2 to 256: labels have 8 bits")
    if not 0 <= ignore_label <= 255:
        raise UsageError(f"--ignore_label={ignore_label} must be 0 to 255: labels have 8 bits")
    class_names, palette = _name_classes(num_classes)
    return Description(
        # Not the directory's name: a run must know its data again when the directory is moved.
        name="deeplab_shards",
        data_dir=data_dir,
        class_names=class_names,
        palette=palette,
        ignore_label=ignore_label,
        splits={split: _measure(split, files) for split, files in shards.items()},
        options={},
    )


def _name_classes(num_classes: int) -> tuple[tuple[str, ...], tuple[datasets.Colour, ...]]:
    """Guesses classes' names and colours from their number, by the datasets that DeepLab reads."""
    known = (
        (datasets.CITYSCAPES_NAMES, datasets.CITYSCAPES_PALETTE),
        (datasets.VOC_NAMES, datasets.VOC_PALETTE),
        (datasets.ADE20K_NAMES, datasets.ADE20K_PALETTE),
        # DeepLab's script keeps ADE20K's numbers, of which 0 is void: --ignore_label=0.
        (("void", *datasets.ADE20K_NAMES), ((0, 0, 0), *datasets.ADE20K_PALETTE)),
    )
    for names, palette in known:
        if len(names) == num_classes:
            return names, palette
    names = tuple(f"class {number}" for number in range(num_classes))
    return names, datasets.make_distinct_palette(num_classes)


def _measure(split: str, files: tuple[str, ...]) -> Split:
    """Counts the records and the sizes of their images, which are not read."""
    numbers, offsets = index_records(files)
    sizes: collections.Counter[tuple[int, int]] = collections.Counter()
    with Progress(f"sizes of {split}", len(offsets)) as progress:
        for number in np.unique(numbers):
            with (
                open(files[number], "rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                for offset in offsets[numbers == number].tolist():
                    start = offset + _DATA_OFFSET
                    end = start + _LENGTH.unpack_from(data, offset)[0]
                    try:
                        sizes[deeplab_shards.read_image_size(data, start, end)] += 1
                    except ValueError as error:
                        raise RunError(
                            f"{files[number]}: the record at byte {offset} cannot be used: {error}"
                        ) from error
                    progress.advance()
    if not sizes:
        raise RunError(f"{files[0]}: split {split!r} has no record")
    return Split(len(offsets), files, tuple(sorted((*size, n) for size, n in sizes.items())))


def parse_example(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Parses one record.

    Args:
        serialized: scalar string, one serialised tf.Example.

    Returns:
        "image", "label": scalar strings, the encoded files, "label" empty if there is none;
        "filename": scalar string, without the suffix and the path's beginning (/, ./, ../) that the
        records of DeepLab's scripts may have.
    """
    parsed = tf.io.parse_single_example(serialized, _KEYS)
    filename = tf.strings.regex_replace(parsed["image/filename"], r"^(\.{0,2}/)+", "")
    return {
        "image": parsed["image/encoded"],
        "label": parsed["image/segmentation/class/encoded"],
        "filename": tf.strings.regex_replace(filename, r"(?i)\.(png|jpe?g)$", ""),
    }


def index_records(files: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Finds every record of `files` by walking the record headers; record data are not read.

    Returns:
        File number (int32 [n]) and byte offset in that file (int64 [n]) of each record, in order.

    Raises:
        RunError: a file is cut off, compressed or no TFRecord file.
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
                    if offset == 0 and header[:2] in _COMPRESSED:
                        raise RunError(
                            f"{file} is compressed ({_COMPRESSED[header[:2]]}), which is not read: "
                            "write it without compression, or unpack it under the same name"
                        )
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

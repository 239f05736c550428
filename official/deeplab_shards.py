"""Shards that DeepLab's own scripts write (build_voc2012_data.py and its like): finds and measures.

They are called <split>-00000-of-00004.tfrecord, and nothing beside them says what they hold.
"""

import mmap
import os
import re
import sys
from collections.abc import Collection, Iterator

import tensorflow as tf
from google.protobuf.message import DecodeError

from official.errors import RunError
from official.images import read_size

# No dot in a split's name: <dataset>-<split>.tfrecord-00000-of-00001 is tensorflow-datasets' way.
_SHARD = re.compile(r"(?P<split>[^.]+)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.tfrecords?)?")
# What DeepLab's readers take too: <split>-*. Of unknown number, so nothing can be missed.
_UNNUMBERED = re.compile(r"(?P<split>[^.-]+)-[^.]*\.tfrecords?")
_SIDES = ("image/height", "image/width")
# The wire type of all fields of a tf.Example that stand above the values.
_LENGTH_DELIMITED = 2


def find_shards(data_dir: str) -> dict[str, tuple[str, ...]]:
    """Finds the shards in a directory: paths in order, by split; empty if there are none.

    A warning on stderr says which splits are not there as a whole.

    Raises:
        RunError: a split's shards are those of two conversions.
    """
    found: dict[str, dict[str, re.Match[str]]] = {}
    unnumbered: dict[str, list[str]] = {}
    names = sorted(os.listdir(data_dir)) if os.path.isdir(data_dir) else []
    for name in names:
        shard = _SHARD.fullmatch(name)
        if shard:
            found.setdefault(shard["split"], {})[name] = shard
        elif other := _UNNUMBERED.fullmatch(name):
            unnumbered.setdefault(other["split"], []).append(name)
    for split, shards in found.items():
        first = next(iter(shards.values()))
        suffix, count = first["suffix"] or "", first["count"]
        width = len(first["number"])
        wanted = [f"{split}-{i:0{width}}-of-{count}{suffix}" for i in range(int(count))]
        missing = [name for name in wanted if name not in shards]
        if missing:  # Part of a download is normal, and enough to try things with.
            print(
                f"warning: split {split!r} has {len(wanted)} shards, {len(missing)} of which are "
                f"not there ({missing[0]}{', ...' if len(missing) > 1 else ''})",
                file=sys.stderr,
            )
        more = sorted({*shards, *unnumbered.get(split, [])} - set(wanted))
        if more:
            raise RunError(
                f"{os.path.join(data_dir, more[0])} is none of the {len(wanted)} shards of split "
                f"{split!r} that lie beside it: remove what belongs to another conversion"
            )
    return {
        split: tuple(os.path.join(data_dir, name) for name in shards)
        for split, shards in sorted({**found, **unnumbered}.items())
    }


def read_image_size(data: bytes | mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """Reads height and width of the image in the tf.Example that data[start:end] holds.

    They are what the record says, found without reading the image; if it says nothing, the image's
    header is asked, which is slow because the whole image is read.

    Raises:
        ValueError: it holds no tf.Example with an image.
    """
    sides = _read_features(data, start, end, _SIDES)
    values = [sides[key].int64_list.value for key in _SIDES if key in sides]
    if len(values) == 2 and all(len(value) == 1 and value[0] > 0 for value in values):
        return values[0][0], values[1][0]
    image = _read_features(data, start, end, ("image/encoded",)).get("image/encoded")
    if image is None or len(image.bytes_list.value) != 1:
        raise ValueError("there is no image/encoded")
    return read_size(image.bytes_list.value[0])


def _read_features(
    data: bytes | mmap.mmap, start: int, end: int, keys: Collection[str]
) -> dict[str, tf.train.Feature]:
    """Reads the features of some keys of a serialised tf.Example, and skips all others."""
    found = {}
    for _, features_start, features_end in _walk_fields(data, start, end):
        for _, entry_start, entry_end in _walk_fields(data, features_start, features_end):
            entry = {number: span for number, *span in _walk_fields(data, entry_start, entry_end)}
            if not {1, 2} <= entry.keys():
                raise ValueError("a feature without key or value")
            key = data[slice(*entry[1])].decode()
            if key in keys:
                try:
                    found[key] = tf.train.Feature.FromString(data[slice(*entry[2])])
                except DecodeError:
                    raise ValueError("it is no tf.Example") from None
    return found


def _walk_fields(data: bytes | mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Walks the fields of a protocol buffer that all have a length: (number, start, end) each."""
    while start < end:
        tag, start = _read_varint(data, start, end)
        if tag & 7 != _LENGTH_DELIMITED:
            raise ValueError("it is no tf.Example")
        length, start = _read_varint(data, start, end)
        if start + length > end:
            raise ValueError("it is no tf.Example")
        yield tag >> 3, start, start + length
        start += length


def _read_varint(data: bytes | mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """Reads a protocol buffer's integer: seven bits to a byte, the lowest first.

    Returns:
        the integer, and the place after it.
    """
    value = 0
    for place in range(start, end):
        value |= (data[place] & 0x7F) << 7 * (place - start)
        if data[place] < 0x80:
            return value, place + 1
    raise ValueError("it is no tf.Example")

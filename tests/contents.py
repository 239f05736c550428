"""What a converted dataset holds, for tests of converters."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from official.records import parse_example, read_description


def contents(data_dir: Path, split: str) -> dict[str, tuple[bytes, np.ndarray]]:
    """Name -> the image's bytes and its label map (uint8 [H, W]), in the order of the records."""
    files = read_description(str(data_dir)).split(split).files
    found = {}
    for serialized in tf.data.TFRecordDataset(files):
        record = parse_example(serialized)
        label = tf.io.decode_png(record["label"]).numpy()[..., 0]
        found[record["filename"].numpy().decode()] = record["image"].numpy(), label
    return found

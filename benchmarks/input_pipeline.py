"""How fast the training pipeline is, beside what it cannot do without: decoding the files.

    python benchmarks/input_pipeline.py [--images=16] [--seconds=5]

For each shape of data, images/s of reading and decoding alone (the limit) and of the whole pipeline
(decoded, scaled, cropped, flipped, batched), both with all cores, in turns. The last line is JSON.
"""

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image

from official import input_pipeline
from official.command_line import run_app
from official.images import decode_image, decode_label
from official.records import Description, Split

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
# name -> (format, height, width, crop, longer side to which images are resized first): Cityscapes
# in full for the retraining and at half size for the search, VOC, small images of ADE20K.
SHAPES = {
    "PNG 1024 x 2048, crop 769": ("png", 1024, 2048, 769, None),
    "PNG 512 x 1024, crop 321": ("png", 512, 1024, 321, None),
    "JPEG 375 x 500, crop 513": ("jpeg", 375, 500, 513, None),
    "JPEG 1024 x 2048, crop 321": ("jpeg", 1024, 2048, 321, None),
    "JPEG 300 x 400, crop 513": ("jpeg", 300, 400, 513, None),
    "JPEG 300 x 400 to 513, crop 513": ("jpeg", 300, 400, 513, 513),
}
ROUNDS = 3


def make_photo(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Makes shapes of all sizes under a camera's noise: they compress about as a photo does."""
    image = np.zeros([height, width, 3])
    for size in (256, 64, 16, 4):
        coarse = rng.uniform(0, 255, (height // size + 2, width // size + 2, 3)).astype("uint8")
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image += np.asarray(layer) * (size / 340)
    image += rng.normal(0, 1.5, image.shape)
    return Image.fromarray(np.clip(image, 0, 255).astype("uint8"))


def make_label(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Makes a label map with regions of 19 classes."""
    coarse = rng.integers(0, 19, (height // 48 + 1, width // 48 + 1)).astype("uint8")
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def write_records(
    directory: str, count: int, image_format: str, height: int, width: int
) -> Description:
    """Writes `count` different images and labels into one file of records."""
    rng = np.random.default_rng(0)
    file = os.path.join(directory, f"{image_format}-{height}-{width}.tfrecord")
    with tf.io.TFRecordWriter(file) as writer:
        for number in range(count):
            features = {
                "image/encoded": encode(make_photo(rng, height, width), image_format),
                "image/filename": f"{number:04d}".encode(),
                "image/segmentation/class/encoded": encode(make_label(rng, height, width), "png"),
            }
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in features.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    names = tuple(f"class {index}" for index in range(19))
    split = Split(count, (file,), ((height, width, count),))
    return Description("benchmark", directory, names, ((0, 0, 0),) * 19, 255, {"train": split}, {})


def encode(image: Image.Image, image_format: str) -> bytes:
    """Encodes a file: "png" or "jpeg"."""
    stream = io.BytesIO()
    image.save(stream, image_format, **({"quality": 92} if image_format == "jpeg" else {}))
    return stream.getvalue()


def decode_alone(description: Description) -> Iterator[object]:
    """Decodes all images and labels, endlessly, and does nothing else with them."""
    chosen, read = input_pipeline.make_record_reader(description, "train")
    dataset = tf.data.Dataset.from_tensor_slices(chosen).repeat()

    def size(record: tf.Tensor) -> tf.Tensor:
        encoded = read(record)
        image = decode_image(encoded["image"])
        return tf.size(image) + tf.size(decode_label(encoded["label"], ""))

    dataset = dataset.map(size, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return iter(dataset.batch(1).prefetch(tf.data.AUTOTUNE))


def feed_training(
    description: Description, crop: int, resize_longer_side: int | None = None
) -> Iterator[object]:
    """Makes what training is fed with."""
    return iter(
        input_pipeline.make_train_batches(
            *(description, "train"),
            seed=0,
            batch_size=1,
            crop_size=(crop, crop),
            scales=SCALES,
            random_crop=True,
            flip=True,
            resize_longer_side=resize_longer_side,
        )
    )


def measure_rate(iterator: Iterator[object], seconds: float) -> float:
    """Measures elements per second, after a few that start threads and fill buffers."""
    for _ in range(4):
        next(iterator)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(iterator)
        count += 1
    return count / (time.perf_counter() - start)


def main() -> None:
    """Measures every shape and prints a table and JSON."""
    values = flags.FLAGS
    print(f"{os.cpu_count()} cores; images/s, best of {ROUNDS} rounds in turns")
    print(f"{'data':<32}{'decode alone':>14}{'pipeline':>10}{'share':>8}")
    results = {}
    for name, (image_format, height, width, crop, longer_side) in SHAPES.items():
        with tempfile.TemporaryDirectory() as directory:
            description = write_records(directory, values.images, image_format, height, width)
            limits, rates = [], []
            for _ in range(ROUNDS):
                limits.append(measure_rate(decode_alone(description), values.seconds / ROUNDS))
                batches = feed_training(description, crop, longer_side)
                rates.append(measure_rate(batches, values.seconds / ROUNDS))
        limit, pipeline = max(limits), max(rates)
        print(f"{name:<32}{limit:>14.1f}{pipeline:>10.1f}{pipeline / limit:>8.0%}", flush=True)
        results[name] = {"decode_images_per_s": limit, "pipeline_images_per_s": pipeline}
    print(json.dumps(results))


if __name__ == "__main__":
    flags.DEFINE_integer("images", 16, "different images per shape", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "per shape and kind", lower_bound=0.01)
    run_app(main)

"""How fast tfrecords_tools.convert is, beside what it cannot do without: reading and decoding.

    python benchmarks/convert.py [--images=64]

For each shape of data, images/s of reading and decoding every image and label map once (the limit)
and of the whole conversion (checked, labels mapped and encoded, records written), both with all
cores, in turns. The last line is JSON.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow_datasets as tfds
from absl import flags

from benchmarks.input_pipeline import encode, make_label, make_photo
from official.command_line import run_app
from official.images import decode_image, decode_label
from official.parallel import map_in_order
from tfrecords_tools.convert import convert

# Different files per shape; the others are copies of them.
DIFFERENT = 8
ROUNDS = 3


def write_cityscapes(root: Path, count: int) -> list[tuple[Path, Path]]:
    """Writes PNG images of 1024 x 2048 and label maps as Cityscapes has them; returns the paths."""
    rng = np.random.default_rng(0)
    different = [
        (encode(make_photo(rng, 1024, 2048), "png"), encode(make_label(rng, 1024, 2048), "png"))
        for _ in range(min(count, DIFFERENT))
    ]
    paths = []
    for number in range(count):
        name = f"train/town/town_{number:06d}_000019"
        paths.append(
            (
                root / "leftImg8bit" / f"{name}_leftImg8bit.png",
                root / "gtFine" / f"{name}_gtFine_labelIds.png",
            )
        )
        _write(paths[-1], different[number % DIFFERENT])
    return paths


def write_voc(root: Path, count: int) -> list[tuple[Path, Path]]:
    """Writes JPEG images of 375 x 500 and label maps as PASCAL VOC has them; returns the paths."""
    rng = np.random.default_rng(0)
    different = [
        (encode(make_photo(rng, 375, 500), "jpeg"), encode(make_label(rng, 375, 500), "png"))
        for _ in range(min(count, DIFFERENT))
    ]
    home = root / "VOCdevkit" / "VOC2012"
    paths = []
    for number in range(count):
        name = f"2012_{number:06d}"
        paths.append(
            (home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png")
        )
        _write(paths[-1], different[number % DIFFERENT])
    names = home / "ImageSets" / "Segmentation" / "train.txt"
    names.parent.mkdir(parents=True)
    names.write_text("\n".join(image.stem for image, _ in paths))
    return paths


# name -> (dataset, what writes it, images of this shape per --images)
SHAPES: dict[str, tuple[str, Callable[[Path, int], list[tuple[Path, Path]]], int]] = {
    "PNG 1024 x 2048": ("cityscapes", write_cityscapes, 1),
    "JPEG 375 x 500": ("voc2012", write_voc, 20),
}


def read_and_decode(paths: list[tuple[Path, Path]]) -> None:
    """Reads and decodes every image and label map, with all cores."""

    def one(pair: tuple[Path, Path]) -> None:
        decode_image(pair[0].read_bytes())
        decode_label(pair[1].read_bytes(), "")

    for _ in map_in_order(one, paths):
        pass


def measure_seconds(function: Callable[..., object], *arguments: object) -> float:
    """Measures how long function(*arguments) takes; what it prints is not shown."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    """Measures every shape and prints a table and JSON."""
    tfds.disable_progress_bar()
    print(f"{os.cpu_count()} cores; images/s, best of {ROUNDS} rounds in turns")
    print(f"{'data':<18}{'read, decode':>14}{'convert':>10}{'share':>8}")
    results = {}
    for name, (dataset, write, factor) in SHAPES.items():
        count = flags.FLAGS.images * factor
        with tempfile.TemporaryDirectory() as directory:
            source = os.path.join(directory, "source")
            paths = write(Path(source), count)
            limits, rates = [], []
            for turn in range(ROUNDS):
                output = os.path.join(directory, f"data_{turn}")
                limits.append(count / measure_seconds(read_and_decode, paths))
                rates.append(count / measure_seconds(convert, dataset, source, output))
        limit, rate = max(limits), max(rates)
        print(f"{name:<18}{limit:>14.1f}{rate:>10.1f}{rate / limit:>8.0%}", flush=True)
        results[name] = {"decode_images_per_s": limit, "convert_images_per_s": rate}
    print(json.dumps(results))


def _write(paths: tuple[Path, Path], contents: tuple[bytes, bytes]) -> None:
    for path, content in zip(paths, contents, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    flags.DEFINE_integer("images", 64, "large images; of the small ones 20 times as many", 1)
    run_app(main)

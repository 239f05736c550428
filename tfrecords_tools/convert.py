"""Converts a dataset to TFRecords.

    python -m tfrecords_tools.convert --dataset=NAME --source_dir=DIR --output_dir=DIR

The output directory holds `dataset_info.json` and the shards directly and is what every --data_dir
takes.
"""

import collections
import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image

from official.errors import RunError, UsageError, run_app
from official.progress import Progress
from official.records import IGNORE_LABEL, explain, metadata
from tfrecords_tools import cityscapes
from tfrecords_tools.source import Pair, Source, read_image

# To add a dataset, write a module like cityscapes.py and name its `open_source` here.
SOURCES: dict[str, Callable[[Path], Source]] = {"cityscapes": cityscapes.open_source}

# Source files per shard, in bytes; tensorflow-datasets holds one shard's examples in memory.
SHARD_BYTES = 128 * 2**20
# Images that are prepared at the same time.
AHEAD = 32


def make_example(pair: Pair, source: Source, resize_factor: float) -> dict[str, Any] | None:
    """Makes the record of one pair (nested as tensorflow-datasets wants it).

    None if the image shows less than source.min_foreground.

    The image's bytes are kept as they are unless it is resized; then it becomes a PNG, antialiased.
    The label map becomes a PNG of train ids, resized by nearest on the same grid.

    Raises:
      RunError: a file is damaged or the label map has another size than the image.
    """
    encoded, image_format, image = read_image(pair.image)
    values = source.read_label(pair)
    if values is None:
        values = np.full((image.height, image.width), IGNORE_LABEL, np.uint8)
    elif np.count_nonzero((values > 0) & (values != IGNORE_LABEL)) < source.min_foreground:
        return None
    label = Image.fromarray(values)
    if label.size != image.size:
        raise RunError(
            f"{pair.label or 'its label map'} is {label.height} x {label.width}, but its image "
            f"{pair.image} is {image.height} x {image.width}"
        )
    if resize_factor != 1.0:
        width, height = (max(1, round(side * resize_factor)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        label = label.resize((width, height), Image.Resampling.NEAREST)
        encoded, image_format = _encode_png(image), "png"
    return {
        "image": {
            "encoded": encoded,
            "filename": pair.name,
            "format": image_format,
            "height": image.height,
            "width": image.width,
            "channels": len(image.getbands()),
            "segmentation": {"class": {"encoded": _encode_png(label), "format": "png"}},
        }
    }


class RecordBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the pairs of a source as shards, in their order, and counts the images' sizes."""

    VERSION = tfds.core.Version("1.0.0")
    # No checksums of downloads lie beside this file; looking for them would import a package that
    # tensorflow-datasets does not install.
    code_path = None

    def __init__(
        self,
        name: str,
        source: Source,
        resize_factor: float,
        data_dir: str,
        progress: Progress,
    ) -> None:
        self.name = name
        self._source = source
        self._resize_factor = resize_factor
        self._progress = progress
        self._sizes: dict[str, collections.Counter[tuple[int, int]]] = {
            split: collections.Counter() for split in source.splits
        }
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Tensor(shape=(), dtype=np.bytes_)
        number = tfds.features.Tensor(shape=(), dtype=np.int64)
        label = {"class": {"encoded": text, "format": text}}
        image = {
            "encoded": text,
            "filename": text,
            "format": text,
            "height": number,
            "width": number,
            "channels": number,
            "segmentation": label,
        }
        described = metadata(
            self.name,
            self._source.class_names,
            self._source.palette,
            options={"resize_factor": self._resize_factor},
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.name} as records for semantic segmentation",
            features=tfds.features.FeaturesDict({"image": image}),
            metadata=tfds.core.MetadataDict(described),
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> dict[str, list[Any]]:
        del dl_manager  # nothing is downloaded
        return {
            split: [partial(self._examples, split, shard) for shard in shards(pairs)]
            for split, pairs in self._source.splits.items()
        }

    def _examples(self, split: str, pairs: list[Pair]) -> Iterator[tuple[str, dict[str, Any]]]:
        make = partial(make_example, source=self._source, resize_factor=self._resize_factor)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(pairs), AHEAD):
                some = pairs[start : start + AHEAD]
                for pair, example in zip(some, pool.map(make, some), strict=True):
                    self._progress.advance()
                    if example is not None:
                        size = example["image"]["height"], example["image"]["width"]
                        self._sizes[split][size] += 1
                        yield pair.name, example
        self.info.metadata["sizes"][split] = [
            [*size, count] for size, count in sorted(self._sizes[split].items())
        ]


def shards(pairs: list[Pair]) -> list[list[Pair]]:
    """Cuts `pairs` into consecutive shards of about SHARD_BYTES of source files."""
    found: list[list[Pair]] = [[]]
    room = SHARD_BYTES
    for pair in pairs:
        size = pair.image.stat().st_size
        if found[-1] and size > room:
            found.append([])
            room = SHARD_BYTES
        found[-1].append(pair)
        room -= size
    return found


def convert(name: str, source_dir: str, output_dir: str, resize_factor: float = 1.0) -> None:
    """Converts dataset `name` in `source_dir` to records in `output_dir`.

    Everything is written to a directory beside `output_dir` that takes its name when it is
    complete, so `output_dir` is never half a dataset.

    Raises:
      UsageError: no such dataset, or an impossible resize factor.
      RunError: something is wrong with the source or output directory or a file; nothing was
        written.
    """
    if name not in SOURCES:
        raise UsageError(f"--dataset={name} is unknown: there is {', '.join(SOURCES)}")
    if not 0 < resize_factor <= 1:
        raise UsageError(f"--resize_factor={resize_factor:g} must be above 0 and at most 1")
    target = Path(output_dir).resolve()
    _check_target(target)
    if not Path(source_dir).is_dir():
        raise RunError(f"--source_dir={source_dir} is no directory")
    source = SOURCES[name](Path(source_dir))
    for split, pairs in source.splits.items():
        published = source.published.get(split, len(pairs))
        if len(pairs) != published:
            print(f"warning: {split} has {len(pairs)} images here, {published} are published")

    unfinished = target.with_name(f".{target.name}.unfinished")
    if unfinished.exists():
        print(f"removing {unfinished}, which an interrupted conversion left")
        shutil.rmtree(unfinished)
    try:
        unfinished.mkdir(parents=True)
        with Progress("convert", sum(map(len, source.splits.values()))) as progress:
            builder = RecordBuilder(name, source, resize_factor, str(unfinished), progress)
            with contextlib.redirect_stdout(io.StringIO()):  # it talks of downloads
                builder.download_and_prepare()
        os.replace(builder.data_dir, target)
    except OSError as error:
        raise RunError(f"cannot write {target}: {error}") from error
    except tf.errors.OpError as error:  # what TensorFlow's writer of records raises
        raise RunError(f"cannot write {target}: {explain(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    for split, info in builder.info.splits.items():
        sizes = builder.info.metadata["sizes"][split]
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
        print(
            f"{split}: {info.num_examples} images, {len(sizes)} size(s), the largest "
            f"{height} x {width}, {info.num_shards} shard(s)"
        )
    print(f"wrote {output_dir}")


def main() -> None:
    """Reads the flags and converts."""
    values = flags.FLAGS
    tfds.disable_progress_bar()
    convert(values.dataset, values.source_dir, values.output_dir, values.resize_factor)


def _check_target(target: Path) -> None:
    if (target / "dataset_info.json").exists():
        raise RunError(
            f"{target} already holds a dataset: remove it or choose another --output_dir"
        )
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise RunError(
            f"{target} exists and is not an empty directory: choose another --output_dir"
        )


def _encode_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, f"one of: {', '.join(SOURCES)}", required=True)
    flags.DEFINE_string(
        "source_dir", None, "directory of the dataset as its makers publish it", required=True
    )
    flags.DEFINE_string(
        "output_dir", None, "directory to create; it must not hold anything yet", required=True
    )
    flags.DEFINE_float(
        "resize_factor", 1.0, "scales both sides of every image, 0 < factor <= 1; 1 keeps the files"
    )
    run_app(main)

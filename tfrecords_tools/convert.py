"""Converts a dataset to TFRecords.

    python -m tfrecords_tools.convert --dataset=NAME --source_dir=DIR --output_dir=DIR

The output directory holds `dataset_info.json` and the shards directly and is what every --data_dir
takes.
"""

import collections
import contextlib
import dataclasses
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

if __name__ == "__main__":
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import flags
from PIL import Image
from tqdm import tqdm

from official.command_line import run_app
from official.errors import RunError, UsageError, explain
from official.files import check_new_directory, write_directory_atomically
from official.images import encode_png
from official.parallel import map_in_order
from official.paths import define_path
from official.progress import Progress
from official.records import IGNORE_LABEL, make_metadata
from official.sizes import Sizes
from tfrecords_tools import ade20k, cityscapes, coco, folder, voc2012, voc2012_aug
from tfrecords_tools.source import Pair, Source, read_image

# To add a dataset, write a module like cityscapes.py and name its `open_source` here.
SOURCES: dict[str, Callable[[Path], Source]] = {
    "cityscapes": cityscapes.open_source,
    "voc2012": voc2012.open_source,
    "voc2012_aug": voc2012_aug.open_source,
    "ade20k": ade20k.open_source,
    "coco": coco.open_source,
    "folder": folder.open_source,
}

# Source files per shard, in bytes; tensorflow-datasets holds one shard's examples in memory.
SHARD_BYTES = 128 * 2**20
# The flag that names the directory to make.
FLAG = "--output_dir"


@dataclasses.dataclass
class Tally:
    """What became of a split's images.

    Attributes:
        sizes: number of records per (height, width).
        resized: number of images that were resized.
        changes: number of images per change without which no record could hold them.
        marked: names of the images that have a rotation mark.
        left_out: number of images that show less than source.min_foreground.
        bad: name and what is wrong, per bad image or label map that was skipped.
    """

    sizes: collections.Counter[tuple[int, int]] = dataclasses.field(
        default_factory=collections.Counter
    )
    resized: int = 0
    changes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    marked: list[str] = dataclasses.field(default_factory=list)
    left_out: int = 0
    bad: list[tuple[str, str]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Record:
    """One record, nested as tensorflow-datasets wants it, and what was done to the image."""

    example: dict[str, Any]
    resized: bool
    changes: str
    marked: bool


def make_record(pair: Pair, source: Source, sizes: Sizes) -> Record | None:
    """Makes the record of one pair; None if the image shows less than source.min_foreground.

    The image's bytes are kept as they are if a record can hold them and the image is not resized;
    else it becomes a PNG, resized antialiased. The label map becomes a PNG of train ids, resized by
    nearest on the same grid.

    Raises:
        RunError: a file is damaged, of a wrong kind, or the label map has another size than the
            image.
    """
    values = source.read_label(pair)
    if values is not None and source.min_foreground:
        labelled = np.count_nonzero((values > 0) & (values != IGNORE_LABEL))
        if labelled < source.min_foreground:
            return None
    photo = read_image(pair.image, None if values is None else values.shape, source.turned_labels)
    if values is None:
        values = np.full(photo.size, IGNORE_LABEL, np.uint8)
    if values.shape != photo.size:
        raise RunError(
            f"{pair.label or 'its label map'} is {values.shape[0]} x {values.shape[1]}, but its "
            f"image {pair.image} is {photo.size[0]} x {photo.size[1]}"
        )
    label = Image.fromarray(values)
    height, width = sizes.compute_size(photo.size)
    resized = (height, width) != photo.size
    if resized:
        image = photo.decode().resize((width, height), Image.Resampling.LANCZOS)
        label = label.resize((width, height), Image.Resampling.NEAREST)
        encoded, image_format = encode_png(image), "png"
    else:
        encoded, image_format = photo.encode()
    example = {
        "encoded": encoded,
        "filename": os.fsencode(pair.name),
        "format": image_format,
        "height": height,
        "width": width,
        "channels": len(photo.mode),
        "segmentation": {"class": {"encoded": encode_png(label), "format": "png"}},
    }
    return Record({"image": example}, resized, photo.changes, photo.marked)


class RecordBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Writes the pairs of a source as shards, in their order, and keeps a tally of each split."""

    VERSION = tfds.core.Version("1.0.0")
    # No checksums of downloads lie beside this file; looking for them would import a package that
    # tensorflow-datasets does not install.
    code_path = None

    def __init__(
        self,
        name: str,
        source: Source,
        sizes: Sizes,
        skip_bad_files: int,
        data_dir: str,
        progress: Progress,
    ) -> None:
        self.name = name
        self._source = source
        self._sizes = sizes
        self._skip_bad_files = skip_bad_files
        self._progress = progress
        self.tallies = {split: Tally() for split in source.splits}
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
        options = self._sizes.to_options()
        if self._source.min_foreground:
            options["min_labelled_pixels"] = self._source.min_foreground
        described = make_metadata(
            self.name, self._source.class_names, self._source.palette, options
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
            split: [partial(self._examples, split, shard) for shard in cut_into_shards(pairs)]
            for split, pairs in self._source.splits.items()
        }

    def _examples(self, split: str, pairs: list[Pair]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        tally = self.tallies[split]
        make = partial(_try_to_make_record, source=self._source, sizes=self._sizes)
        with contextlib.closing(map_in_order(make, pairs)) as all_made:
            for pair, record in zip(pairs, all_made, strict=True):
                self._progress.advance()
                if isinstance(record, RunError):
                    self._skip(tally, pair, record)
                    continue
                if record is None:
                    tally.left_out += 1
                    continue
                image = record.example["image"]
                tally.sizes[image["height"], image["width"]] += 1
                tally.resized += record.resized
                if record.changes:
                    tally.changes[record.changes] += 1
                if record.marked:
                    tally.marked.append(pair.name)
                yield os.fsencode(pair.name), record.example
        self.info.metadata["sizes"][split] = [
            [*size, count] for size, count in sorted(tally.sizes.items())
        ]
        if tally.bad:
            skipped = self.info.metadata.setdefault("skipped", {})
            skipped[split] = [name for name, _ in tally.bad]

    def _skip(self, tally: Tally, pair: Pair, error: RunError) -> None:
        """Notes a bad file; raises RunError if there are more than may be skipped."""
        if self._skip_bad_files == 0:
            raise RunError(f"{error} (--skip_bad_files=N leaves out up to N bad files)")
        tally.bad.append((pair.name, str(error)))
        count = sum(len(each.bad) for each in self.tallies.values())
        if count > self._skip_bad_files:
            raise RunError(
                f"{count} bad files are more than --skip_bad_files={self._skip_bad_files}; the "
                f"last: {error}"
            )
        tqdm.write(f"skipped: {error}", file=sys.stderr)


def _try_to_make_record(pair: Pair, source: Source, sizes: Sizes) -> Record | RunError | None:
    """`make_record` that returns its error, so that the pairs after a bad one are made too."""
    try:
        return make_record(pair, source, sizes)
    except RunError as error:
        return error


def cut_into_shards(pairs: list[Pair]) -> list[list[Pair]]:
    """Cuts `pairs` into consecutive shards of about SHARD_BYTES of source files."""
    found: list[list[Pair]] = [[]]
    room = SHARD_BYTES
    for pair in pairs:
        # What cannot be found any more is named when it is read.
        size = pair.image.stat().st_size if pair.image.exists() else 0
        if found[-1] and size > room:
            found.append([])
            room = SHARD_BYTES
        found[-1].append(pair)
        room -= size
    return found


def convert(
    name: str,
    source_dir: str,
    output_dir: str,
    resize_factor: float = 1.0,
    *,
    max_side: int | None = None,
    skip_bad_files: int = 0,
    min_labelled_pixels: int | None = None,
) -> None:
    """Converts dataset `name` in `source_dir` to records in `output_dir`.

    `output_dir` is never half a dataset: see files.write_directory_atomically.

    Args:
        name: one of SOURCES.
        source_dir: the dataset as its makers publish it.
        output_dir: the directory to create.
        resize_factor: see Sizes.
        max_side: see Sizes; not together with a resize factor.
        skip_bad_files: number of images that may be left out because they or their label maps are
            bad.
        min_labelled_pixels: images with fewer pixels of the classes 1, 2, ... are left out; None
            for what the dataset's module says.

    Raises:
        UsageError: no such dataset, or an impossible option.
        RunError: something is wrong with the source or output directory or a file; nothing was
            written.
    """
    if name not in SOURCES:
        raise UsageError(f"--dataset={name} is unknown: there is {', '.join(SOURCES)}")
    if not 0 < resize_factor <= 1:
        raise UsageError(f"--resize_factor={resize_factor:g} must be above 0 and at most 1")
    if max_side is not None and max_side < 1:
        raise UsageError(f"--max_side={max_side} must be at least 1")
    if max_side is not None and resize_factor != 1:
        raise UsageError(
            f"--max_side={max_side} and --resize_factor={resize_factor:g}: give one of them"
        )
    if skip_bad_files < 0:
        raise UsageError(f"--skip_bad_files={skip_bad_files} must not be negative")
    if min_labelled_pixels is not None and min_labelled_pixels < 0:
        raise UsageError(f"--min_labelled_pixels={min_labelled_pixels} must not be negative")
    target = Path(output_dir).resolve()
    _check_target(target)
    if not Path(source_dir).is_dir():
        raise RunError(f"--source_dir={source_dir} is no directory")
    source = SOURCES[name](Path(source_dir))
    if min_labelled_pixels is not None:
        source = dataclasses.replace(source, min_foreground=min_labelled_pixels)
    for split, pairs in source.splits.items():
        _check_names(pairs)
        published = source.published.get(split, len(pairs))
        if len(pairs) != published:
            print(f"warning: {split} has {len(pairs)} images here, {published} are published")

    sizes = Sizes(resize_factor, max_side)
    try:
        with (
            write_directory_atomically(target, FLAG) as directory,
            Progress("convert", sum(map(len, source.splits.values()))) as progress,
        ):
            work = directory / "work"
            builder = RecordBuilder(name, source, sizes, skip_bad_files, str(work), progress)
            with contextlib.redirect_stdout(io.StringIO()):  # it talks of downloads
                builder.download_and_prepare()
            for split, tally in builder.tallies.items():
                if not tally.sizes:
                    raise RunError(f"{split}: every image was left out; nothing was written")
            # tensorflow-datasets writes into NAME/VERSION, and has a folder for downloads.
            for path in Path(builder.data_dir).iterdir():
                path.rename(directory / path.name)
            shutil.rmtree(work)
    except tf.errors.OpError as error:  # what TensorFlow's writer of records raises
        raise RunError(f"cannot write {target}: {explain(error)}") from error
    _report(builder)
    print(f"wrote {output_dir}")


def main() -> None:
    """Reads the flags and converts."""
    values = flags.FLAGS
    tfds.disable_progress_bar()
    tf.config.set_visible_devices([], "GPU")  # nothing here needs one, and it would be occupied
    signal.signal(signal.SIGTERM, _terminate)
    convert(
        values.dataset,
        values.source_dir,
        values.output_dir,
        values.resize_factor,
        max_side=values.max_side,
        skip_bad_files=values.skip_bad_files,
        min_labelled_pixels=values.min_labelled_pixels,
    )


def _check_names(pairs: Iterable[Pair]) -> None:
    """Raises RunError if two images would be records of one name."""
    images: dict[str, Path] = {}
    for pair in pairs:
        if pair.name in images:
            raise RunError(
                f"{images[pair.name]} and {pair.image} differ in their suffix alone: rename or "
                "remove one"
            )
        images[pair.name] = pair.image


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # Like Ctrl-C, an exception in the main thread: everything is cleaned up on its way.
    signal.signal(number, signal.SIG_IGN)
    print("error: terminated", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def _report(builder: RecordBuilder) -> None:
    """Prints what was written, and what became of the images that are not as they were."""
    for split, info in builder.info.splits.items():
        tally = builder.tallies[split]
        height, width = (max(size[axis] for size in tally.sizes) for axis in (0, 1))
        print(
            f"{split}: {info.num_examples} images, {len(tally.sizes)} size(s), the largest "
            f"{height} x {width}, {info.num_shards} shard(s)"
        )
        if tally.resized:
            print(f"{split}: {tally.resized} image(s) resized")
        if tally.changes:
            changes = ", ".join(f"{count} {what}" for what, count in tally.changes.most_common())
            print(f"{split}: {tally.changes.total()} image(s) re-encoded as PNG: {changes}")
        if tally.marked:
            print(
                f"warning: {split}: {len(tally.marked)} image(s) have a rotation mark (EXIF), "
                f"which nothing here obeys, the first is {tally.marked[0]}: their pixels are taken "
                "as they are stored"
            )
        if tally.left_out:
            print(f"{split}: {tally.left_out} image(s) left out, with too few labelled pixels")
    bad = [message for tally in builder.tallies.values() for _, message in tally.bad]
    if bad:
        print(f"{len(bad)} bad file(s) were skipped:", *bad, sep="\n  ")


def _check_target(target: Path) -> None:
    if (target / "dataset_info.json").exists():
        raise RunError(f"{target} already holds a dataset: remove it or choose another {FLAG}")
    check_new_directory(target, FLAG)


if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, f"one of: {', '.join(SOURCES)}", required=True)
    define_path(
        "source_dir", None, "directory of the dataset as its makers publish it", required=True
    )
    define_path(
        "output_dir", None, "directory to create; it must not hold anything yet", required=True
    )
    flags.DEFINE_float(
        "resize_factor", 1.0, "scales both sides of every image, 0 < factor <= 1; 1 keeps the files"
    )
    flags.DEFINE_integer(
        "max_side",
        None,
        "for small disks: images of all splits, also of those to evaluate on, whose longer side is "
        "longer are shrunk to it; the others keep their files",
    )
    flags.DEFINE_integer(
        "skip_bad_files",
        0,
        "number of images that may be left out because they or their label maps are damaged, of "
        "different sizes or hold impossible labels; each is listed",
    )
    flags.DEFINE_integer(
        "min_labelled_pixels",
        None,
        "images with fewer pixels that are neither class 0 nor void are left out; 0 keeps all. "
        "Default: 1000 for coco, 0 for all others",
    )
    run_app(main)

"""Reads every record of a split: which labels and sizes it holds, and what is wrong with it."""

import collections
import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import tensorflow as tf

from official.errors import RunError, explain, shorten
from official.images import decode_image, decode_label
from official.parallel import map_in_order
from official.progress import Progress
from official.records import Description, Split, index_records, parse_example, read_record


@dataclasses.dataclass
class Findings:
    """What was found in one split.

    Attributes:
        records: number of records read.
        pixels: int64 [256], number of pixels per label value.
        images: int64 [256], number of images in which the label value occurs.
        around: int64 [256], number of pixels that are not void in those images.
        sizes: number of images per (height, width).
        contents: names of the images per SHA-256 of their decoded pixels.
        errors: one line per error.
    """

    records: int = 0
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    around: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    sizes: collections.Counter[tuple[int, int]] = dataclasses.field(
        default_factory=collections.Counter
    )
    contents: dict[bytes, list[str]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(list)
    )
    errors: list[str] = dataclasses.field(default_factory=list)

    def classes(self, description: Description) -> np.ndarray:
        """Counts pixels per class, int64 [C]; a class whose number is the void label has none."""
        return np.where(is_class(description), self.pixels, 0)[: description.num_classes]

    def shares(self, description: Description) -> np.ndarray:
        """Computes the share of each class in the pixels that are not void, float64 [C]."""
        pixels = self.classes(description)
        return pixels / max(pixels.sum(), 1)


def is_class(description: Description) -> np.ndarray:
    """Which label values are classes: bool [256]."""
    values = np.arange(256)
    return (values < description.num_classes) & (values != description.ignore_label)


def read_split(
    name: str, split: Split, description: Description, *, labels_only: bool = False
) -> Findings:
    """Reads and decodes every record of a split as training does, on all cores.

    Args:
        name: the split's name.
        split: the split.
        description: of its dataset.
        labels_only: leaves images undecoded, which is several times faster: `sizes` and `contents`
            stay empty, and what is wrong with images is not found.
    """
    findings, unlabelled = Findings(), []
    look = partial(_look, description=description, labels_only=labels_only)
    with (
        Progress(f"read {name}", split.num_examples) as progress,
        contextlib.closing(map_in_order(look, _read_records(split, findings))) as records,
    ):
        for record in records:
            findings.records += 1
            findings.pixels += record.counts
            findings.images += record.counts > 0
            valid = record.counts[is_class(description)].sum()
            findings.around += np.where(record.counts > 0, valid, 0)
            filename = record.filename or f"record {findings.records}"
            findings.errors += [f"{filename}: {error}" for error in record.errors]
            if not record.has_label:
                unlabelled.append(filename)
            if record.size:
                findings.sizes[record.size] += 1
                findings.contents[record.content].append(filename)
            progress.advance()
    if findings.records != split.num_examples:
        findings.errors.append(
            f"{name}: {findings.records} records, but the description says {split.num_examples}"
        )
    if 0 < len(unlabelled) < findings.records:  # DeepLab's test shards have no label maps at all
        findings.errors.append(
            f"{name}: {len(unlabelled)} of {findings.records} records have no label map, the first "
            f"is {unlabelled[0]}"
        )
    return findings


@dataclasses.dataclass
class _Record:
    filename: str = ""
    has_label: bool = True
    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    size: tuple[int, int] | None = None
    content: bytes = b""
    errors: list[str] = dataclasses.field(default_factory=list)


def _look(serialized: tf.Tensor, description: Description, labels_only: bool) -> _Record:
    record, label = _Record(), None
    try:
        example = parse_example(serialized)
        record.filename = shorten(example["filename"].numpy().decode(errors="replace"))
        image = None if labels_only else decode_image(example["image"]).numpy()
        if example["label"] != "":
            label = decode_label(example["label"], "").numpy()
    except tf.errors.InvalidArgumentError as error:
        record.errors.append(f"cannot be decoded: {explain(error)}")
        return record
    if image is not None:
        record.size = image.shape[:2]
        content = hashlib.sha256(b"%d " % image.shape[1])
        content.update(image)
        record.content = content.digest()
    if label is None:
        # Only an image's size says how much void that is.
        record.counts[description.ignore_label] = math.prod(record.size or (0,))
    else:
        record.counts = np.bincount(label.ravel(), minlength=256)
        record.errors = find_mismatches(record.counts, label.shape, record.size, description)
    record.has_label = label is not None
    return record


def find_mismatches(
    counts: np.ndarray,
    label_size: tuple[int, ...],
    image_size: tuple[int, ...] | None,
    description: Description,
) -> list[str]:
    """Finds what is wrong with a label map: a line for its size, one for its values.

    Args:
        counts: [256], number of pixels per label value.
        label_size: (height, width).
        image_size: the same of its image; None if that is not known.
        description: of the dataset.
    """
    found = []
    if image_size not in (None, label_size):
        sizes = ("{} x {}".format(*size) for size in (image_size, label_size))
        found.append("the image is {}, but its label map is {}".format(*sizes))
    classes, void = description.num_classes, description.ignore_label
    wrong = [v for v in np.flatnonzero(counts).tolist() if v >= classes and v != void]
    if wrong:
        found.append(f"label {format_ranges(wrong)} is neither 0..{classes - 1} nor {void}")
    return found


def format_ranges(values: Sequence[int]) -> str:
    """Writes ascending numbers: [3, 7, 8, 9] is "3, 7..9"; at most six ranges are named."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    words = [str(first) if first == last else f"{first}..{last}" for first, last in spans]
    more = [f"... {words[-1]}"] if len(words) > 6 else words[5:]
    return ", ".join([*words[:5], *more])


def _read_records(split: Split, findings: Findings) -> Iterator[tf.Tensor]:
    # A damaged record or file does not hide what the others hold.
    for file in split.files:
        try:
            offsets = index_records([file])[1]
        except RunError as error:
            findings.errors.append(str(error))
            continue
        place = 0
        try:
            for record in tf.data.TFRecordDataset(file):
                place += 1
                yield record
        except tf.errors.DataLossError:
            for number, offset in enumerate(offsets[place:], start=place + 1):
                try:
                    yield read_record(tf.constant(file), tf.constant(offset))
                except tf.errors.DataLossError as error:
                    findings.errors.append(f"{file}: record {number} of it: {explain(error)}")

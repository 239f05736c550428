"""COCO 2017 with the classes of PASCAL VOC, for training before VOC.

    annotations/instances_{train,val}2017.json
    {train,val}2017/<file_name>                          or images/{train,val}2017/<file_name>

Twenty of COCO's categories are VOC's classes; what belongs to the others is background. A label map
is painted from an image's annotations in the file's order, each on the pixels that are still
unpainted. A crowd (iscrowd = 1), in which single things were not outlined, is void. The masks are
those of pycocotools, the makers' own package.

Files that other tools wrote in this form may describe an image more than once: its annotations are
put together.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from official import datasets
from official.errors import RunError, shorten
from official.files import find_files
from official.images import MAX_PIXELS, SUFFIXES
from official.records import IGNORE_LABEL
from tfrecords_tools.source import Pair, Source, make_pair

PUBLISHED = {"train": 118287, "val": 5000}
MIN_FOREGROUND = 1000
LONGEST_SIDE = 2**16
"""Of an image, in pixels: what is longer is no JPEG."""
# VOC's classes that COCO calls otherwise.
COCO_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
# COCO's category -> the label, which is the class' number in VOC.
LABELS = {
    COCO_NAMES.get(name, name): label for label, name in enumerate(datasets.VOC_NAMES) if label
}


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One annotation: what is painted on a label map.

    Attributes:
        number: the annotation's id.
        label: 1..20, or 255 for a crowd.
        segmentation: as in the file: polygons, or a run-length code, compressed or not.
    """

    number: int
    label: int
    segmentation: Any


@dataclasses.dataclass
class LabelledImage:
    """An image as a JSON file describes it, with the annotations that matter, in the file's order.

    Attributes:
        file_name: the image file's name.
        size: (height, width).
        annotations: those of VOC's classes.
    """

    file_name: str
    size: tuple[int, int]
    annotations: list[Annotation] = dataclasses.field(default_factory=list)


def open_source(source_dir: Path) -> Source:
    """Finds the dataset in a directory and reads its annotations (train2017: 20 s, 3 GB of memory).

    Raises:
        RunError: there is no split, some of a split's images are missing or not described, a JSON
            file is damaged, or pycocotools is not installed.
    """
    decode = _make_mask_decoder()
    splits: dict[str, list[Pair]] = {}
    described: dict[Path, LabelledImage] = {}
    for split in PUBLISHED:
        json_file = source_dir / "annotations" / f"instances_{split}2017.json"
        folders = [source_dir / f"{split}2017", source_dir / "images" / f"{split}2017"]
        found = [folder for folder in folders if folder.is_dir()]
        if not json_file.is_file():
            print(f"{split}: skipped, no {json_file.relative_to(source_dir)}")
        elif not found:
            print(f"{split}: skipped, no {split}2017 and no images/{split}2017")
        else:
            print(f"reading {json_file} ({json_file.stat().st_size / 1e6:.0f} MB)", flush=True)
            images = read_annotations(json_file)
            splits[split] = _make_pairs(images, found[0], json_file, source_dir)
            described |= {found[0] / name: image for name, image in images.items()}
    if not splits:
        raise RunError(
            f"{source_dir} holds no split of COCO 2017: --source_dir is the directory that holds "
            "annotations, train2017 and val2017"
        )

    def read_label(pair: Pair) -> np.ndarray:
        return paint(described[pair.image], decode)

    return Source(
        datasets.VOC_NAMES,
        datasets.VOC_PALETTE,
        splits,
        read_label,
        PUBLISHED,
        min_foreground=MIN_FOREGROUND,
    )


def read_annotations(json_file: Path) -> dict[str, LabelledImage]:
    """Reads the images of an instances JSON file by their file names.

    Raises:
        RunError: the file is damaged, is of another kind, or has none of the twenty categories; it
            gives an id to two images or categories, or an image two sizes, or names a category or
            an image that is not there.
    """
    try:
        content = json.loads(json_file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        what = shorten(str(error), 200)
        raise RunError(f"{json_file} cannot be read as JSON: {what}") from error
    try:
        labels = _read_categories(_rows(content, "categories"))
        images = _describe_images(_rows(content, "images"), json_file)
        for one in _rows(content, "annotations"):
            category, number = _value(one, "category_id", int, str), _value(one, "id", int, str)
            if category not in labels:
                raise ValueError(f"annotation {shorten(number)} is of a category without a name")
            image = images.get(_value(one, "image_id", int, str))
            if image is None:
                raise ValueError(f"annotation {shorten(number)} is of an image that is not there")
            label = labels[category]
            if label is not None:
                label = IGNORE_LABEL if _value(one, "iscrowd", int, bool) else label
                segmentation = _value(one, "segmentation", list, dict)
                image.annotations.append(Annotation(number, label, segmentation))
    except ValueError as error:
        raise RunError(
            f"{json_file} is no file of instances as COCO publishes it: {error}"
        ) from error
    if not any(label is not None for label in labels.values()):
        raise RunError(f"{json_file} has none of the categories {', '.join(LABELS)}")
    return {image.file_name: image for image in images.values()}


def _rows(content: Any, name: str) -> list[dict[str, Any]]:
    """The list of objects of that name; ValueError if it is none."""
    rows = content.get(name) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name} is no list of objects")
    return rows


def _value(row: dict[str, Any], name: str, *kinds: type) -> Any:
    """What an object has under a name; ValueError if it is of none of the types."""
    if type(row.get(name)) not in kinds:
        raise ValueError(f"{name} is missing or of another type in {shorten(row, 100)}")
    return row[name]


def _read_categories(rows: Sequence[dict[str, Any]]) -> dict[Any, int | None]:
    """Id -> label, or None for those that are no class of VOC."""
    labels: dict[Any, int | None] = {}
    names = set()
    for row in rows:
        number, name = _value(row, "id", int, str), _value(row, "name", str)
        if number in labels or name in names:
            raise ValueError(f"the category {shorten(row, 100)} is there twice, by id or name")
        labels[number] = LABELS.get(name)
        names.add(name)
    return labels


def _describe_images(rows: Sequence[dict[str, Any]], json_file: Path) -> dict[Any, LabelledImage]:
    """Collects the images by their ids; ids of one file get one and the same image."""
    by_name: dict[str, LabelledImage] = {}
    by_id: dict[Any, LabelledImage] = {}
    for row in rows:
        name = _value(row, "file_name", str)
        size = _value(row, "height", int), _value(row, "width", int)
        if min(size) < 1 or max(size) > LONGEST_SIDE or math.prod(size) > MAX_PIXELS:
            raise ValueError(f"no image has the size in {shorten(row, 100)}")
        image = by_name.setdefault(name, LabelledImage(name, size))
        if image.size != size:
            raise RunError(
                f"{json_file} describes {shorten(name)} twice, {image.size[0]} x {image.size[1]} "
                f"and {size[0]} x {size[1]} pixels large: remove the wrong description"
            )
        number = _value(row, "id", int, str)
        if by_id.setdefault(number, image) is not image:
            raise RunError(
                f"{json_file} gives the id {shorten(number)} to "
                f"{shorten(by_id[number].file_name)} and to {shorten(name)}, so nothing tells "
                "whose annotations are whose: give each its own id"
            )
    return by_id


def paint(image: LabelledImage, decode: Callable[[Any, int, int], np.ndarray]) -> np.ndarray:
    """Paints the label map of an image: uint8 [H, W], 0..20 or 255.

    Raises:
        RunError: an annotation is no mask of the image's size.
    """
    labels = np.zeros(image.size, np.uint8)
    for annotation in image.annotations:
        try:
            mask = decode(annotation.segmentation, *image.size)
            labels[(labels == 0) & (mask != 0)] = annotation.label
        except Exception as error:  # pycocotools raises bare ones, and many kinds
            raise RunError(
                f"{shorten(image.file_name)}: annotation {shorten(annotation.number)} is no mask "
                f"of {image.size[0]} x {image.size[1]} pixels: {shorten(str(error), 200)}"
            ) from error
    return labels


def _make_mask_decoder() -> Callable[[Any, int, int], np.ndarray]:
    """Makes a function (segmentation, height, width) -> uint8 [height, width], 1 in the mask."""
    try:
        from pycocotools import mask as masks
    except ImportError:
        raise RunError(
            "--dataset=coco needs the package pycocotools: pip install pycocotools"
        ) from None

    def decode(segmentation: Any, height: int, width: int) -> np.ndarray:
        _check_segmentation(segmentation, height, width)
        if isinstance(segmentation, list):  # polygons, of which a thing may have several
            return masks.decode(masks.merge(masks.frPyObjects(segmentation, height, width)))
        if isinstance(segmentation["counts"], list):  # not compressed
            segmentation = masks.frPyObjects(segmentation, height, width)
        return masks.decode(segmentation)

    return decode


def _check_segmentation(segmentation: Any, height: int, width: int) -> None:
    """Raises ValueError for impossible masks that pycocotools' C code takes without an error."""
    if isinstance(segmentation, list):
        far = 10 * max(height, width)
        for polygon in segmentation:
            numbers = np.array(polygon, np.float64)
            if numbers.ndim != 1 or len(numbers) < 6 or len(numbers) % 2:
                raise ValueError("its polygon is no list of at least three x, y")
            if not np.all(np.abs(numbers) < far):
                raise ValueError("its polygon is far outside")
            # What is painted takes memory as it is long.
            if np.abs(np.diff(numbers.reshape(-1, 2), axis=0)).sum() > 1000 * (height + width):
                raise ValueError("its polygon goes round and round")
        return
    if segmentation["size"] != [height, width]:
        raise ValueError(f"its size is {segmentation['size']}")
    counts = segmentation["counts"]
    runs = counts if isinstance(counts, list) else _read_runs(counts)
    if not all(type(run) is int and run >= 0 for run in runs):
        raise ValueError("a run of it has no length")
    if sum(runs) != height * width:
        raise ValueError(f"its runs have {sum(runs)} pixels")


def _read_runs(counts: str) -> list[int]:
    """Reads the lengths of the runs in a compressed code (maskApi.c, rleFrString).

    A number has five bits to a character, from the lowest on, and from the fourth number on is the
    difference to the number but one before.
    """
    runs: list[int] = []
    value = bits = 0
    for code in (ord(character) - 48 for character in counts):
        if not 0 <= code < 64 or bits > 60:
            raise ValueError("its code is damaged")
        value |= (code & 0x1F) << bits
        bits += 5
        if not code & 0x20:
            if code & 0x10:  # negative
                value -= 1 << bits
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    return runs


def _make_pairs(
    images: Mapping[str, LabelledImage], folder: Path, json_file: Path, source_dir: Path
) -> list[Pair]:
    there = {
        path.relative_to(folder).as_posix()
        for path in find_files(folder)
        if path.suffix.lower() in SUFFIXES
    }
    for names, what in (
        (images.keys() - there, f"is missing, which {json_file} describes"),
        (there - images.keys(), f"is not described in {json_file}"),
    ):
        if names:
            more = f", and {len(names) - 1} more like it" if len(names) > 1 else ""
            message = f"{folder / min(names)} {what}{more}"
            if there.isdisjoint(images):
                raise RunError(message)
            print(f"warning: {message}")
    return [make_pair(folder / name, None, source_dir) for name in sorted(there & images.keys())]

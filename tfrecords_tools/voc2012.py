"""PASCAL VOC 2012, the images of its segmentation task.

    VOCdevkit/VOC2012/JPEGImages/<name>.jpg
    VOCdevkit/VOC2012/SegmentationClass/<name>.png         palette images, the index is the class
    VOCdevkit/VOC2012/ImageSets/Segmentation/<split>.txt   names, one per line

Splits are what the lists train, val, trainval and test name. The object borders (index 255) are
void. Training and test data are two archives that are unpacked into the same folders; the test
images have no labels.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from official import datasets
from official.errors import RunError, shorten
from official.files import read_small
from official.records import IGNORE_LABEL
from tfrecords_tools.source import Pair, Source, make_pair, read_index_png

PUBLISHED = {"train": 1464, "val": 1449, "trainval": 2913, "test": 1456}


def open_source(source_dir: Path) -> Source:
    """Finds the dataset: source_dir holds VOCdevkit, or is VOCdevkit or VOC2012.

    A split without a list, or without any of its images, is skipped with a line.

    Raises:
        RunError: there is no split, or a split without any image or label that its list names.
    """
    root = find_root(source_dir)
    images, labels = find_images(root), find_by_suffix(root / "SegmentationClass", ".png")
    splits = {}
    for split in PUBLISHED:
        path = find_list(root, split)
        if not path.is_file():
            print(f"{split}: skipped, no {path.relative_to(root)}")
            continue
        names = read_list(path)
        if images.keys().isdisjoint(names):
            print(f"{split}: skipped, no image of {path.relative_to(root)} in JPEGImages")
            continue
        names = keep_listed(names, images, path, root / "JPEGImages" / "*.jpg")
        if split != "test":
            names = keep_listed(names, labels, path, root / "SegmentationClass" / "*.png")
        splits[split] = [
            make_pair(images[name], None if split == "test" else labels[name], root)
            for name in names
        ]
    if not splits:
        raise RunError(f"{root} holds no images of a list in ImageSets/Segmentation")
    return Source(datasets.VOC_NAMES, datasets.VOC_PALETTE, splits, read_label, PUBLISHED)


def read_label(pair: Pair) -> np.ndarray | None:
    """Reads the classes: uint8 [H, W], 0..20 or 255; None if there is no label file."""
    if pair.label is None:
        return None
    return check_classes(read_index_png(pair.label), pair.label)


def find_root(source_dir: Path) -> Path:
    """Finds the folder VOC2012. Raises RunError if it is not there."""
    for root in (source_dir / "VOCdevkit" / "VOC2012", source_dir / "VOC2012", source_dir):
        if (root / "ImageSets" / "Segmentation").is_dir():
            return root
    raise RunError(
        f"{source_dir} holds no VOCdevkit/VOC2012/ImageSets/Segmentation: --source_dir is the "
        "directory that holds VOCdevkit, or VOCdevkit or VOC2012 itself"
    )


def find_list(root: Path, split: str) -> Path:
    """Gives the path of the file that lists the images of a split."""
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def read_list(path: Path) -> list[str]:
    """Reads the names in a list of images, one a line, sorted, each once.

    Raises:
        RunError: the file is missing, empty or no text, or a line is no name of a file.
    """
    try:
        lines = read_small(path).decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as a list of images: {error}") from error
    names = set()
    for number, line in enumerate(lines, 1):
        name = line.strip()
        # VOC's lists of single classes have a number after each name, others have paths.
        if len(name.split()) > 1 or "/" in name or not name.isprintable():
            raise RunError(
                f"{path}: line {number}, {shorten(repr(name))}, is no name of an image: write one "
                "a line, without a folder and a suffix"
            )
        names.add(name)
    if not names - {""}:
        raise RunError(f"{path} names no image")
    return sorted(names - {""})


def find_by_suffix(folder: Path, suffix: str) -> dict[str, Path]:
    """Finds the files of a folder that end in `suffix`, by their names without it."""
    return {path.name.removesuffix(suffix): path for path in folder.glob(f"*{suffix}")}


def find_images(root: Path) -> dict[str, Path]:
    """Finds all of VOC's images by name, not only those of the segmentation task."""
    return find_by_suffix(root / "JPEGImages", ".jpg")


def keep_listed(
    names: Sequence[str], there: Collection[str], listed_in: Path, where: Path
) -> list[str]:
    """Keeps those of the names that have a file, and warns of the others: the first, and how many.

    Args:
        names: the names in the list.
        there: the names that have a file.
        listed_in: the list.
        where: path of such a file, with * for the name.

    Raises:
        RunError: none has a file.
    """
    missing = sorted(set(names) - set(there))
    if missing:
        more = f", and {len(missing) - 1} more like it" if len(missing) > 1 else ""
        path = where.with_name(where.name.replace("*", missing[0]))
        message = f"{path} is missing, which {listed_in} names{more}"
        if len(missing) == len(set(names)):
            raise RunError(message)
        print(f"warning: {message}")
    return [name for name in names if name in there]


def check_classes(label: np.ndarray, path: Path) -> np.ndarray:
    """Returns `label` (uint8 [H, W]); raises RunError for values that are no class of VOC."""
    classes = len(datasets.VOC_NAMES)
    wrong = label[(label >= classes) & (label != IGNORE_LABEL)]
    if wrong.size:
        raise RunError(
            f"{path} holds the value {wrong[0]}, which is no class of VOC (0..{classes - 1}, or "
            f"{IGNORE_LABEL} for void)"
        )
    return label

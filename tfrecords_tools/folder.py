"""A user's own images and masks.

    classes.txt                          one class a line; then, if wanted, a tab and r,g,b
    images/<split>/.../<name>.png        or .jpg, .jpeg
    masks/<split>/.../<name>.png         8 bits: the class' line, from 0 on, or 255 for void

The folders in images/ are the splits. A split without a folder in masks/ has no labels: it can be
segmented, not trained on. Linked folders are followed; hidden ones (.name) are left out.
"""

import re
from pathlib import Path

import numpy as np

from official import datasets
from official.errors import RunError, shorten
from official.files import find_files, read_small
from official.images import SUFFIXES
from official.records import IGNORE_LABEL, LONGEST_NAME
from tfrecords_tools.source import Pair, Source, make_pair, match, read_index_png


def open_source(source_dir: Path) -> Source:
    """Finds the dataset in a directory.

    Raises:
        RunError: classes.txt is missing or wrong, there is no split, one has a name that records
            cannot have, two images differ in their suffix alone, or an image or mask of a split
            with masks is without the other.
    """
    class_names, palette = read_classes(source_dir / "classes.txt")
    folders = {folder.name: folder for folder in _find_folders(source_dir / "images")}
    for folder in _find_folders(source_dir / "masks"):
        if folder.name not in folders:
            print(f"{folder.name}: skipped, no images/{folder.name}")
    splits = {}
    for split, folder in folders.items():
        if not re.fullmatch(r"[A-Za-z]\w*", split, re.ASCII) or split == "all":
            raise RunError(
                f"{folder}: a split cannot be called {split!r}: use letters, digits and _, and not "
                "the name all"
            )
        images, others = _find_files(folder, SUFFIXES)
        if others:
            print(
                f"{split}: {len(others)} file(s) that are no {', '.join(SUFFIXES)} are not "
                f"converted, the first: {others[0].relative_to(source_dir)}"
            )
        masks_folder = source_dir / "masks" / split
        if not images:
            print(f"{split}: skipped, no image in images/{split}")
        elif masks_folder.is_dir():
            masks, _ = _find_files(masks_folder, (".png",))
            splits[split] = match(images, masks, source_dir, f"masks/{split}/**/*.png")
        else:
            print(f"{split}: has no labels, as there is no masks/{split}")
            splits[split] = [make_pair(images[key], None, source_dir) for key in sorted(images)]
    if not splits:
        raise RunError(
            f"{source_dir / 'images'} holds no folder with images: the folders in it are the "
            "splits, for example images/train and images/val"
        )

    def read_label(pair: Pair) -> np.ndarray | None:
        return None if pair.label is None else read_mask(pair.label, len(class_names))

    return Source(class_names, palette, splits, read_label, turned_labels=True)


def read_classes(path: Path) -> tuple[tuple[str, ...], tuple[datasets.Colour, ...]]:
    """Reads the names and colours in a classes.txt; distinct colours where it gives none.

    Raises:
        RunError: it is missing, no text or empty, has a name twice or too many, or a colour is
            wrong.
    """
    try:
        lines = read_small(path).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing: write the classes' names into it, one a line, the class of mask "
            "value 0 first"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read as text: {error}") from error
    lines = [line.strip() for line in lines if line.strip()]
    if not lines:
        raise RunError(f"{path} is empty: it needs one class name a line")
    if len(lines) > IGNORE_LABEL:
        raise RunError(
            f"{path} has {len(lines)} classes: at most {IGNORE_LABEL} (0..{IGNORE_LABEL - 1}) fit "
            f"into 8 bits beside {IGNORE_LABEL} for void"
        )
    names, palette = [], list(datasets.make_distinct_palette(len(lines)))
    if lines[0].partition("\t")[0].strip().lower() == "background":
        palette = [(0, 0, 0), *palette[:-1]]
    for i, line in enumerate(lines):
        name, _, colour = (part.strip() for part in line.partition("\t"))
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise RunError(
                f"{path}: {shorten(repr(name), 60)} is no class name: write at most {LONGEST_NAME} "
                "characters that can be printed"
            )
        if name in names:
            raise RunError(f"{path} has the class {name!r} twice: give every class another name")
        names.append(name)
        if colour:
            palette[i] = _read_colour(colour, path)
        elif re.search(r"\S[ ,;]+\d+[ ,;]+\d+[ ,;]+\d+$", name):
            print(
                f"warning: {path}: the whole line {name!r} is taken for a class' name: if it ends "
                "in a colour, write a tab before it, and r,g,b"
            )
    if len(names) == 1:
        print(
            f"warning: {path} names one class, {names[0]}, so a network has nothing to tell apart, "
            "and training will be refused: name a class for the rest too (void is not learnt)"
        )
    return tuple(names), tuple(palette)


def read_mask(path: Path, classes: int) -> np.ndarray:
    """Reads a mask: uint8 [H, W], 0..classes-1 or 255.

    Raises:
        RunError: it is no such PNG or holds other values.
    """
    values = read_index_png(path)
    wrong = np.unique(values[(values >= classes) & (values != IGNORE_LABEL)])
    if wrong.size:
        more = f" (and {wrong.size - 1} other(s))" if wrong.size > 1 else ""
        raise RunError(
            f"{path} holds the value {wrong[0]}{more}, but classes.txt names {classes} classes, "
            f"0..{classes - 1}: add the class there, or write {IGNORE_LABEL} (void) into the mask"
        )
    return values


def _read_colour(text: str, path: Path) -> datasets.Colour:
    parts = [part.strip() for part in text.split(",")]
    values = [int(part) for part in parts if part.isdecimal()]
    if len(parts) != 3 or len(values) != 3 or max(values) > 255:
        raise RunError(
            f"{path}: {shorten(repr(text), 60)} is no colour: write r,g,b, each 0..255, after a tab"
        )
    red, green, blue = values
    return red, green, blue


def _find_folders(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(each for each in parent.iterdir() if each.is_dir() and each.name[0] != ".")


def _find_files(folder: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[Path]]:
    """Finds the files below a folder that are not hidden.

    Returns:
        Those with one of the suffixes, by their path below the folder without it; all others.

    Raises:
        RunError: two files differ in their suffix alone.
    """
    found: dict[str, Path] = {}
    others = []
    for path in find_files(folder):
        if path.suffix.lower() not in suffixes:
            others.append(path)
            continue
        key = path.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise RunError(
                f"{found[key]} and {path} differ in their suffix alone: rename or remove one"
            )
        found[key] = path
    return found, others

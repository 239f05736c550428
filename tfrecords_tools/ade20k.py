"""ADE20K as in the scene parsing benchmark (SceneParse150): 150 classes.

    ADEChallengeData2016/images/{training,validation}/<name>.jpg
    ADEChallengeData2016/annotations/{training,validation}/<name>.png    0 is void, 1..150 a class

The folders become the splits train and val, and label n becomes n - 1. (ADE20K as a whole, with
thousands of classes in folders by scene, is another archive.)
"""

from pathlib import Path

import numpy as np

from official import datasets
from official.errors import RunError
from official.records import IGNORE_LABEL
from tfrecords_tools.source import Pair, Source, match, read_index_png

PUBLISHED = {"train": 20210, "val": 2000}
_FOLDERS = {"train": "training", "val": "validation"}
_CLASSES = len(datasets.ADE20K_NAMES)


def open_source(source_dir: Path) -> Source:
    """Finds the dataset: source_dir holds ADEChallengeData2016 or is it.

    A split without any images, or without any labels, is skipped with a line.

    Raises:
        RunError: there is no split, or an image or label without the other.
    """
    root = source_dir / "ADEChallengeData2016"
    if not root.is_dir():
        root = source_dir
    splits = {}
    for split, folder in _FOLDERS.items():
        patterns = f"images/{folder}/*.jpg", f"annotations/{folder}/*.png"
        images, labels = ({path.stem: path for path in root.glob(which)} for which in patterns)
        if images and labels:
            splits[split] = match(images, labels, root, patterns[1])
        else:
            print(f"{split}: skipped, no {patterns[1] if images else patterns[0]}")
    if not splits:
        raise RunError(
            f"{source_dir} holds no split of ADE20K: --source_dir is the directory that holds "
            "ADEChallengeData2016, or that directory itself"
        )
    return Source(datasets.ADE20K_NAMES, datasets.ADE20K_PALETTE, splits, read_label, PUBLISHED)


def read_label(pair: Pair) -> np.ndarray:
    """Reads the classes: uint8 [H, W], 0..149 or 255."""
    assert pair.label is not None
    numbers = read_index_png(pair.label)
    if numbers.max() > _CLASSES:
        raise RunError(
            f"{pair.label} holds the value {numbers.max()}, which is no class of SceneParse150 "
            f"(1..{_CLASSES}, or 0 for void)"
        )
    return np.array([IGNORE_LABEL, *range(_CLASSES)], np.uint8)[numbers]

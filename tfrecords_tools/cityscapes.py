"""Cityscapes, fine and coarse annotations (and anything laid out like it).

    leftImg8bit/<folder>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    gtFine/<folder>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png
    gtCoarse/<folder>/<city>/<city>_<sequence>_<frame>_gtCoarse_labelIds.png

The fine splits are the folders train, val and test. The coarse splits are the folders train and val
again, called train_coarse and val_coarse, and train_extra, whose images have no fine annotations.

Label ids 0..33 become train ids 0..18; everything that is not evaluated becomes 255. The dataset's
makers withhold the labels of the test split: those files hold void only, and may be missing.
"""

from pathlib import Path

import numpy as np

from official import datasets
from official.errors import RunError
from official.records import IGNORE_LABEL
from tfrecords_tools.source import Pair, Source, make_pair, match, read_index_png

PUBLISHED = {
    "train": 2975,
    "val": 500,
    "test": 1525,
    "train_coarse": 2975,
    "val_coarse": 500,
    "train_extra": 19998,
}
# Whoever has one of these has Cityscapes; toy scenes, and others' data in its layout, do not.
CITIES = (
    *("aachen", "augsburg", "bad-honnef", "bamberg", "bayreuth", "berlin", "bielefeld", "bochum"),
    *("bonn", "bremen", "cologne", "darmstadt", "dortmund", "dresden", "duisburg", "dusseldorf"),
    *("erfurt", "erlangen", "frankfurt", "freiburg", "hamburg", "hanover", "heidelberg"),
    *("heilbronn", "jena", "karlsruhe", "konigswinter", "konstanz", "krefeld", "leverkusen"),
    *("lindau", "mainz", "mannheim", "monchengladbach", "muhlheim-ruhr", "munich", "munster"),
    *("nuremberg", "oberhausen", "saarbrucken", "schweinfurt", "strasbourg", "stuttgart"),
    *("troisdorf", "tubingen", "ulm", "weimar", "wuppertal", "wurzburg", "zurich"),
)
# Split -> directory of the annotations, folder in it and in leftImg8bit.
_FOLDERS = {
    "train": ("gtFine", "train"),
    "val": ("gtFine", "val"),
    "test": ("gtFine", "test"),
    "train_coarse": ("gtCoarse", "train"),
    "val_coarse": ("gtCoarse", "val"),
    "train_extra": ("gtCoarse", "train_extra"),
}


def make_train_id_table() -> np.ndarray:
    """Makes the table label id -> train id: uint8 [34], 255 where the label id is void."""
    table = np.full(datasets.CITYSCAPES_NUM_LABEL_IDS, IGNORE_LABEL, np.uint8)
    table[list(datasets.CITYSCAPES_LABEL_IDS)] = np.arange(len(datasets.CITYSCAPES_LABEL_IDS))
    return table


def open_source(source_dir: Path) -> Source:
    """Finds the dataset in a directory.

    A split without any images, or without any labels, is skipped with a line; only test needs no
    labels. Who has nothing of the coarse annotations reads nothing of them.

    Raises:
        RunError: there is no split, or an image or label without the other.
    """
    coarse = any((source_dir / path).is_dir() for path in ("gtCoarse", "leftImg8bit/train_extra"))
    splits = {}
    for split, (annotations, folder) in _FOLDERS.items():
        if annotations == "gtCoarse" and not coarse:
            continue
        image_pattern = f"leftImg8bit/{folder}/*/*_leftImg8bit.png"
        label_pattern = f"{annotations}/{folder}/*/*_{annotations}_labelIds.png"
        images, labels = (_find(source_dir, pattern) for pattern in (image_pattern, label_pattern))
        if images and labels:
            splits[split] = match(images, labels, source_dir, label_pattern)
        elif images and split == "test":
            splits[split] = [make_pair(images[key], None, source_dir) for key in sorted(images)]
        else:
            print(f"{split}: skipped, no {label_pattern if images else image_pattern}")
    if not splits:
        raise RunError(
            f"{source_dir} holds no split of Cityscapes: --source_dir is the directory that holds "
            "leftImg8bit and gtFine or gtCoarse"
        )
    cities = {pair.image.parent.name for pairs in splits.values() for pair in pairs}
    published = {} if cities.isdisjoint(CITIES) else PUBLISHED
    return Source(
        datasets.CITYSCAPES_NAMES, datasets.CITYSCAPES_PALETTE, splits, read_label, published
    )


def read_label(pair: Pair) -> np.ndarray | None:
    """Reads label ids and maps them to train ids: uint8 [H, W]; None if there is no label file."""
    if pair.label is None:
        return None
    label_ids, table = read_index_png(pair.label), make_train_id_table()
    if label_ids.max() >= len(table):
        raise RunError(
            f"{pair.label} holds the value {label_ids.max()}, which is no Cityscapes label id "
            f"(0..{len(table) - 1})"
        )
    return table[label_ids]


def _find(source_dir: Path, pattern: str) -> dict[str, Path]:
    # Image and label are named alike up to what the pattern's last * is followed by.
    ending = pattern.rpartition("*")[2]
    return {
        f"{path.parent.name}/{path.name.removesuffix(ending)}": path
        for path in source_dir.glob(pattern)
    }

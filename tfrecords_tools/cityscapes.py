"""Cityscapes, fine annotations (and anything laid out like it).

    leftImg8bit/<split>/<city>/<city>_<sequence>_<frame>_leftImg8bit.png
    gtFine/<split>/<city>/<city>_<sequence>_<frame>_gtFine_labelIds.png

Label ids 0..33 become train ids 0..18; everything that is not evaluated becomes 255. The dataset's
makers withhold the labels of the test split: those files hold void only.
"""

from pathlib import Path

import numpy as np

from official import datasets
from official.errors import RunError
from official.records import IGNORE_LABEL
from tfrecords_tools.source import Pair, Source, match, read_index_png

PUBLISHED = {"train": 2975, "val": 500, "test": 1525}
_IMAGE, _LABEL = "_leftImg8bit.png", "_gtFine_labelIds.png"


def train_ids() -> np.ndarray:
    """The table label id -> train id: uint8 [34], 255 where the label id is void."""
    table = np.full(datasets.CITYSCAPES_NUM_LABEL_IDS, IGNORE_LABEL, np.uint8)
    table[list(datasets.CITYSCAPES_LABEL_IDS)] = np.arange(len(datasets.CITYSCAPES_LABEL_IDS))
    return table


def open_source(source_dir: Path) -> Source:
    """Finds the dataset in a directory.

    Raises:
      RunError: there is no image of any split, or an image or label without the other.
    """
    splits = {}
    for split in PUBLISHED:
        images, labels = (
            {
                f"{path.parent.name}/{path.name.removesuffix(suffix)}": path
                for path in (source_dir / folder / split).glob(f"*/*{suffix}")
            }
            for folder, suffix in (("leftImg8bit", _IMAGE), ("gtFine", _LABEL))
        )
        if images or labels:
            splits[split] = match(images, labels, source_dir, f"gtFine/{split}/*/*{_LABEL}")
        else:
            print(f"{split}: skipped, no leftImg8bit/{split}/*/*{_IMAGE}")
    if not splits:
        raise RunError(
            f"no image matches leftImg8bit/{{{','.join(PUBLISHED)}}}/*/*{_IMAGE} in {source_dir}: "
            "--source_dir is the directory that holds leftImg8bit and gtFine"
        )
    return Source(
        datasets.CITYSCAPES_NAMES, datasets.CITYSCAPES_PALETTE, splits, read_label, PUBLISHED
    )


def read_label(pair: Pair) -> np.ndarray:
    """Reads label ids and maps them to train ids: uint8 [H, W]."""
    assert pair.label is not None
    label_ids, table = read_index_png(pair.label), train_ids()
    if label_ids.max() >= len(table):
        raise RunError(
            f"{pair.label} holds the value {label_ids.max()}, which is no Cityscapes label id "
            f"(0..{len(table) - 1})"
        )
    return table[label_ids]

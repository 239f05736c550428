"""PASCAL VOC 2012 with the annotations of SBD (Hariharan et al., Semantic Contours from Inverse
Detectors): the 10,582 training images that most results on VOC are trained with.

    VOCdevkit/VOC2012/...             as in voc2012.py; SBD's images are VOC's, in its JPEGImages

and SBD, either as its makers publish it, at most three folders below --source_dir,

    benchmark_RELEASE/dataset/cls/<name>.mat      GTcls.Segmentation: uint8 [H, W], VOC's classes
    benchmark_RELEASE/dataset/{train,val}.txt     names, one per line

or as it is passed on, converted (used if there is no `cls`),

    VOCdevkit/VOC2012/SegmentationClassAug/<name>.png    grey or palette, the value is the class

The split train_aug is (SBD's train and val and VOC's train) without VOC's val. Images of VOC's
train keep VOC's own annotation, which is finer and has void borders. VOC's splits are converted
too.
"""

import dataclasses
from pathlib import Path

import numpy as np

from official.errors import RunError
from tfrecords_tools import voc2012
from tfrecords_tools.matlab import read_field
from tfrecords_tools.source import Pair, Source, match

PUBLISHED = {"train_aug": 10582, **voc2012.PUBLISHED}


def open_source(source_dir: Path) -> Source:
    """Finds VOC as voc2012.open_source does, and SBD.

    Raises:
        RunError: VOC's train split, its list val or SBD is missing, or some of a split's files.
    """
    voc, root = voc2012.open_source(source_dir), voc2012.find_root(source_dir)
    if "train" not in voc.splits:
        raise RunError(f"train_aug needs VOC's train split, which {root} does not hold")
    train = voc.splits["train"]
    not_of_sbd = {pair.image.stem for pair in train}
    not_of_sbd.update(voc2012.read_list(voc2012.find_list(root, "val")))

    folder, labels = _find_sbd(source_dir, root)
    labels = {name: path for name, path in labels.items() if name not in not_of_sbd}
    images = {name: path for name, path in voc2012.find_images(root).items() if name in labels}
    sbd = match(images, labels, root, "")
    print(f"train_aug: {len(train)} images with VOC's labels, {len(sbd)} with those of {folder}")
    splits = {"train_aug": sorted(train + sbd, key=lambda pair: pair.name), **voc.splits}
    return dataclasses.replace(voc, splits=splits, read_label=read_label, published=PUBLISHED)


def read_label(pair: Pair) -> np.ndarray | None:
    """Reads the classes: uint8 [H, W], 0..20 or 255; None if there is no label file."""
    if pair.label is None or pair.label.suffix != ".mat":
        return voc2012.read_label(pair)
    try:
        values = read_field(pair.label, "GTcls", "Segmentation")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{pair.label} cannot be read as a MATLAB file of GTcls.Segmentation: {error}"
        ) from error
    if values.dtype != np.uint8 or values.ndim != 2:
        raise RunError(
            f"{pair.label} is no label map: GTcls.Segmentation must be uint8 of 2 dimensions, but "
            f"it is {values.dtype} of {values.ndim}"
        )
    return voc2012.check_classes(values, pair.label)


def _find_sbd(source_dir: Path, root: Path) -> tuple[Path, dict[str, Path]]:
    """Finds the folder of SBD's labels, and its label files by name."""
    for depth in range(4):
        for folder in sorted(source_dir.glob("*/" * depth + "cls")):
            if (folder.parent / "train.txt").is_file():
                return folder, _find_mat_files(folder)
    folder = root / "SegmentationClassAug"
    labels = voc2012.find_by_suffix(folder, ".png")
    if not labels:
        raise RunError(
            f"train_aug needs SBD, but {source_dir} holds neither its folder cls with train.txt "
            f"beside it (at most three folders down) nor {folder.relative_to(source_dir)}/*.png"
        )
    return folder, labels


def _find_mat_files(folder: Path) -> dict[str, Path]:
    files, listed = voc2012.find_by_suffix(folder, ".mat"), {}
    for path in (folder.parent / "train.txt", folder.parent / "val.txt"):
        names = voc2012.keep_listed(voc2012.read_list(path), files, path, folder / "*.mat")
        listed.update({name: files[name] for name in names})
    return listed

"""PASCAL VOC 2012, alone and with SBD, from miniatures in the makers' layouts and file formats."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import sparse
from scipy.io import savemat

from official.datasets import make_voc_palette
from official.errors import RunError
from official.records import read_description
from tests.contents import contents
from tfrecords_tools import voc2012, voc2012_aug
from tfrecords_tools.convert import convert

# Typed from the development kit's documentation: the classes in their order, and some colours.
CLASSES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
]
COLOURS = {
    "background": (0, 0, 0),
    "aeroplane": (128, 0, 0),
    "cat": (64, 0, 0),
    "person": (192, 128, 128),
    "tvmonitor": (0, 64, 128),
}
BORDER = (224, 224, 192)

LISTS = {
    "train": ["2007_000032", "2007_000039"],
    "val": ["2007_000033", "2007_000042"],
    "trainval": ["2007_000032", "2007_000033", "2007_000039", "2007_000042"],
}
# SBD's lists mix VOC's train, VOC's val and images that VOC itself does not annotate.
SBD = {
    "train": ["2008_000002", "2007_000039", "2007_000033"],
    "val": ["2007_000042", "2008_000007", "2007_000032"],
}
# By hand: both of VOC's train, and of SBD what is neither in VOC's train nor in its val.
TRAIN_AUG = ["2007_000032", "2007_000039", "2008_000002", "2008_000007"]
NAMES = [*LISTS["trainval"], "2008_000002", "2008_000007", "2008_000008"]  # the last: in no list


def label_of(name: str, *, sbd: bool = False) -> np.ndarray:
    """Class map that differs from image to image and from VOC to SBD; SBD has no void."""
    label = np.full((6, 9), NAMES.index(name) + 1, np.uint8)
    label[:2, 3:] = 15
    if sbd:
        label[4, :5] = 20
    else:
        label[2, :] = 255
    return label


def write_text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def write_png(path: Path, label: np.ndarray, palette: bool = True) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label)
    if palette:
        image.putpalette(np.array(make_voc_palette(256), np.uint8).tobytes())
        assert image.mode == "P"
    image.save(path)


def write_jpeg(root: Path, name: str) -> None:
    root.joinpath("JPEGImages").mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 9, 3), int(name[-2:]), np.uint8)
    Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")


def write_voc(root: Path) -> Path:
    """Writes the archive of the training data as the folder VOC2012."""
    for split, names in LISTS.items():
        write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", *names)
    for name in NAMES:
        write_jpeg(root, name)
    for name in LISTS["trainval"]:
        write_png(root / "SegmentationClass" / f"{name}.png", label_of(name))
    return root


def write_mat(path: Path, segmentation: np.ndarray, variable: str = "GTcls") -> None:
    """Writes one of SBD's cls files: MATLAB 5, with boundaries (sparse) and classes beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    boundaries = np.empty((20, 1), object)
    for i in range(20):
        boundaries[i, 0] = sparse.csc_matrix(segmentation == i + 1, dtype=float)
    there = np.unique(segmentation)[1:, None].astype(np.uint8)
    struct = {
        "Boundaries": boundaries,
        "Segmentation": segmentation,
        "CategoriesPresent": there,
    }
    savemat(path, {variable: struct}, format="5", do_compression=True)


def write_sbd(root: Path) -> Path:
    for split, names in SBD.items():
        write_text(root / f"{split}.txt", *names)
        for name in names:
            write_mat(root / "cls" / f"{name}.mat", label_of(name, sbd=True))
    return root


@pytest.fixture
def source(tmp_path):
    write_voc(tmp_path / "source" / "VOCdevkit" / "VOC2012")
    return tmp_path / "source"


@pytest.fixture
def with_sbd(source):
    write_sbd(source / "benchmark_RELEASE" / "dataset")
    return source


def names_of(pairs):
    return [pair.image.stem for pair in pairs]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_index_is_class_and_border_is_void(source, tmp_path, capsys):
    # What is painted in a class' colour of the kit must arrive as that class' place in CLASSES.
    root, name = source / "VOCdevkit" / "VOC2012", "2007_000039"
    with Image.open(root / "SegmentationClass" / f"{name}.png") as image:
        painted = np.asarray(image.convert("RGB"))
    assert tuple(painted[0, 5]) == COLOURS["person"] and tuple(painted[2, 0]) == BORDER
    convert("voc2012", str(source), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    assert list(description.class_names) == CLASSES and description.num_classes == 21
    for class_name, colour in COLOURS.items():
        assert description.palette[CLASSES.index(class_name)] == colour
    for split, names in LISTS.items():
        records = contents(tmp_path / "data", split)
        assert list(records) == [f"JPEGImages/{each}" for each in names]
        for each in names:
            encoded, label = records[f"JPEGImages/{each}"]
            assert encoded == (root / "JPEGImages" / f"{each}.jpg").read_bytes()
            assert np.array_equal(label, label_of(each))
    label = contents(tmp_path / "data", "train")[f"JPEGImages/{name}"][1]
    assert label[0, 5] == CLASSES.index("person") and np.all(label[2] == 255)
    out = capsys.readouterr().out
    assert "test: skipped, no ImageSets/Segmentation/test.txt" in out
    assert "warning: trainval has 4 images here, 2913 are published" in out


def test_the_test_archive_has_no_labels(source, tmp_path, capsys):
    root = source / "VOCdevkit" / "VOC2012"
    lists = root / "ImageSets" / "Segmentation"
    write_text(lists / "test.txt", "2008_000006", "2008_000011", "")
    assert "test" not in voc2012.open_source(source).splits
    assert "test: skipped, no image of ImageSets/Segmentation/test.txt" in capsys.readouterr().out
    write_jpeg(root, "2008_000006")
    assert names_of(voc2012.open_source(source).splits["test"]) == ["2008_000006"]
    out = capsys.readouterr().out
    assert re.search(r"warning: .*JPEGImages/2008_000011.jpg is missing, .*test.txt names\n", out)
    write_jpeg(root, "2008_000011")
    for split in ("train", "val", "trainval"):
        (lists / f"{split}.txt").unlink()
    convert("voc2012", str(source), str(tmp_path / "data"))
    assert set(read_description(str(tmp_path / "data")).splits) == {"test"}
    records = contents(tmp_path / "data", "test")
    assert list(records) == ["JPEGImages/2008_000006", "JPEGImages/2008_000011"]
    for _, label in records.values():
        assert label.shape == (6, 9) and np.all(label == 255)


@pytest.mark.parametrize("inside", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_source_dir_may_be_each_of_three_folders(source, inside):
    splits = voc2012.open_source(source / inside).splits
    assert {split: names_of(pairs) for split, pairs in splits.items()} == LISTS
    assert [pair.name for pair in splits["val"]] == [f"JPEGImages/{n}" for n in LISTS["val"]]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: [(r / f"SegmentationClass/{n}.png").unlink() for n in LISTS["val"]],
            r"Class/2007_000033.png is missing, which \S*/val.txt names, and 1 more like it",
        ),
        (
            lambda r: shutil.rmtree(r / "JPEGImages"),
            "holds no images of a list in ImageSets/Segmentation",
        ),
        (lambda r: shutil.rmtree(r / "ImageSets"), "holds no VOCdevkit/VOC2012/ImageSets"),
        (lambda r: (r / "ImageSets/Segmentation/val.txt").write_text("\n"), "names no image"),
        *(
            (
                lambda r, line=line: (r / "ImageSets/Segmentation/val.txt").write_text(line),
                r"val.txt: line 2, .* is no name of an image: write one a line",
            )
            for line in (
                "2007_000033\n2007_000042 1\n",
                "2007_000033\n2007_000033 2007_000042",
                "2007_000033\n/JPEGImages/2007_000042.jpg /SegmentationClass/2007_000042.png",
                "2007_000033\n../../2007_000042",
                "2007_000033\n2007_0000\x0042",
                "2007_000033\n" + "x " * 10**5,
            )
        ),
        (
            lambda r: (r / "ImageSets/Segmentation/val.txt").write_text("a\n" * (2**23 + 1)),
            "val.txt cannot be read as a list of images: it is larger than 16 MB",
        ),
        (
            lambda r: (r / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff\xfe\x00"),
            "val.txt cannot be read as a list of images",
        ),
    ],
)
def test_partial_downloads_are_named(source, spoil, message):
    spoil(source / "VOCdevkit" / "VOC2012")
    with pytest.raises(RunError, match=message):
        voc2012.open_source(source)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "2007_000033.png cannot be read as an image"),
        (lambda p: write_png(p, np.full((6, 9), 21, np.uint8)), "2007_000033.png holds .* 21"),
        (lambda p: write_png(p, np.full((6, 9), 254, np.uint8)), "2007_000033.png holds .* 254"),
        # As the kit's pictures look when another program has saved them again: colours, no classes.
        (
            lambda p: Image.open(p).convert("RGB").save(p),
            "2007_000033.png is no label map: .* mode is RGB",
        ),
    ],
)
def test_damaged_labels_are_named(source, tmp_path, spoil, message):
    spoil(source / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000033.png")
    with pytest.raises(RunError, match=message):
        convert("voc2012", str(source), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_train_aug_is_sbd_and_voc_train_without_voc_val(with_sbd, tmp_path, capsys):
    convert("voc2012_aug", str(with_sbd), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    assert set(description.splits) == {"train_aug", "train", "val", "trainval"}
    records = contents(tmp_path / "data", "train_aug")
    assert list(records) == [f"JPEGImages/{name}" for name in TRAIN_AUG]
    for name in TRAIN_AUG:
        # VOC's own annotation where there is one, though SBD has these images too.
        expected = label_of(name, sbd=name not in LISTS["train"])
        assert np.array_equal(records[f"JPEGImages/{name}"][1], expected)
    for split, names in LISTS.items():
        records = contents(tmp_path / "data", split)
        assert list(records) == [f"JPEGImages/{name}" for name in names]
    out = capsys.readouterr().out
    assert "train_aug: 2 images with VOC's labels, 2 with those of" in out
    assert "warning: train_aug has 4 images here, 10582 are published" in out


@pytest.mark.parametrize("place", ["dataset", "SBD", "VOCdevkit/VOCaug/dataset", "."])
def test_sbd_is_found_where_people_put_it(source, place):
    write_sbd(source / place)
    pairs = voc2012_aug.open_source(source).splits["train_aug"]
    assert names_of(pairs) == TRAIN_AUG
    assert pairs[2].label == source / place / "cls" / "2008_000002.mat"


@pytest.mark.parametrize("palette", [True, False])
def test_converted_annotations_give_the_same_set(source, tmp_path, palette):
    # SegmentationClassAug as it is passed on: one PNG per image of SBD and of VOC's train and val,
    # those of VOC with VOC's labels; here they are wrong, to see whose are taken.
    root = source / "VOCdevkit" / "VOC2012"
    for name in NAMES[:-1]:
        write_png(root / "SegmentationClassAug" / f"{name}.png", label_of(name, sbd=True), palette)
    convert("voc2012_aug", str(source), str(tmp_path / "data"))
    records = contents(tmp_path / "data", "train_aug")
    assert list(records) == [f"JPEGImages/{name}" for name in TRAIN_AUG]
    for name in TRAIN_AUG:
        expected = label_of(name, sbd=name not in LISTS["train"])
        assert np.array_equal(records[f"JPEGImages/{name}"][1], expected)


def test_the_makers_files_go_before_converted_ones(with_sbd):
    aug = with_sbd / "VOCdevkit" / "VOC2012" / "SegmentationClassAug"
    write_png(aug / "2008_000002.png", label_of("2008_000002"))
    pairs = voc2012_aug.open_source(with_sbd).splits["train_aug"]
    assert names_of(pairs) == TRAIN_AUG and pairs[2].label.suffix == ".mat"


def test_part_of_sbd_is_enough(with_sbd, capsys):
    (with_sbd / "benchmark_RELEASE/dataset/cls/2008_000007.mat").unlink()
    found = names_of(voc2012_aug.open_source(with_sbd).splits["train_aug"])
    assert found == [n for n in TRAIN_AUG if n != "2008_000007"]
    out = capsys.readouterr().out
    assert re.search(r"warning: .*cls/2008_000007.mat is missing, which \S*dataset/val.txt n", out)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: (s / "benchmark_RELEASE/dataset/val.txt").unlink(), "val.txt cannot be read"),
        (lambda s: shutil.rmtree(s / "benchmark_RELEASE"), "train_aug needs SBD, but"),
        (
            lambda s: (s / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink(),
            "Segmentation/val.txt cannot be read",
        ),
        (
            lambda s: (s / "VOCdevkit/VOC2012/ImageSets/Segmentation/train.txt").unlink(),
            "train_aug needs VOC's train split",
        ),
    ],
)
def test_partial_downloads_of_sbd_are_named(with_sbd, spoil, message):
    spoil(with_sbd)
    with pytest.raises(RunError, match=message):
        voc2012_aug.open_source(with_sbd)


MAT = "cls/2008_000002.mat"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, f"{MAT} cannot be read as a MATLAB file"),
        (lambda p: p.write_bytes(b""), f"{MAT} cannot be read as a MATLAB file"),
        (lambda p: p.write_bytes(p.read_bytes()[:140]), f"{MAT} cannot be read as a MATLAB file"),
        (lambda p: p.write_text("not found" * 50), f"{MAT} cannot be read as a MATLAB file"),
        # The instances' files, which lie beside cls and look the same.
        (
            lambda p: write_mat(p, label_of("2008_000002", sbd=True), "GTinst"),
            f"{MAT} cannot be read as a MATLAB file of GTcls.Segmentation",
        ),
        (lambda p: write_mat(p, np.full((6, 9), 3.0)), f"{MAT} is no label map: .* float64"),
        (lambda p: write_mat(p, np.full((6, 9), 21, np.uint8)), f"{MAT} holds the value 21"),
        (lambda p: write_mat(p, np.full((9, 6), 3, np.uint8)), f"{MAT} is 9 x 6, but its image"),
    ],
)
def test_damaged_files_of_sbd_are_named(with_sbd, tmp_path, spoil, message):
    spoil(with_sbd / "benchmark_RELEASE" / "dataset" / MAT)
    with pytest.raises(RunError, match=message):
        convert("voc2012_aug", str(with_sbd), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_byte_order_mark_is_no_part_of_a_name(source):
    path = source / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "train.txt"
    before = names_of(voc2012.open_source(source).splits["train"])
    path.write_text(path.read_text(), "utf-8-sig")
    assert path.read_bytes()[:3] == b"\xef\xbb\xbf"
    assert names_of(voc2012.open_source(source).splits["train"]) == before

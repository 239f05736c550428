"""Cityscapes' splits: fine, coarse, and test without labels. The labels: test_convert.py."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from official.records import read_description
from tests.contents import contents
from tfrecords_tools import cityscapes
from tfrecords_tools.convert import convert
from tfrecords_tools.toy_scenes import write_dataset

# Label ids, some of each kind, and by hand what labels.py says of them: 7 road 0, 23 sky 10,
# 33 bicycle 18; 0 unlabeled, 6 ground and 29 caravan are not evaluated.
IDS, CLASSES = [0, 6, 7, 23, 29, 33], [255, 255, 0, 10, 255, 18]


def write(root: Path, folder: str, count: int, *annotations: str) -> None:
    """Writes `count` images into a folder of leftImg8bit, and their annotations.

    Image i is of value i; its fine label map is IDS from the i-th on, its coarse one that mirrored.
    """
    for i in range(count):
        name = f"ulm/ulm_{i:06d}_000019"
        files = {f"leftImg8bit/{folder}/{name}_leftImg8bit.png": np.full((2, 6, 3), i, np.uint8)}
        for kind in annotations:
            row = np.roll(np.array(IDS, np.uint8), i)[:: 1 if kind == "gtFine" else -1]
            files[f"{kind}/{folder}/{name}_{kind}_labelIds.png"] = np.tile(row, (2, 1))
        for path, pixels in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / path)


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    write(root, "train", 3, "gtFine", "gtCoarse")
    write(root, "val", 2, "gtFine", "gtCoarse")
    write(root, "test", 1, "gtFine")
    write(root, "train_extra", 4, "gtCoarse")
    return root


def test_the_same_images_have_fine_and_coarse_labels(source, tmp_path, capsys):
    convert("cityscapes", str(source), str(tmp_path / "data"))
    splits = read_description(str(tmp_path / "data")).splits
    counts = {split: info.num_examples for split, info in splits.items()}
    assert counts == {
        "train": 3,
        "val": 2,
        "test": 1,
        "train_coarse": 3,
        "val_coarse": 2,
        "train_extra": 4,
    }
    for split, folder, step in (
        ("train", "train", 1),
        ("train_coarse", "train", -1),
        ("val_coarse", "val", -1),
        ("train_extra", "train_extra", -1),
    ):
        for i, (name, (encoded, label)) in enumerate(contents(tmp_path / "data", split).items()):
            assert name == f"leftImg8bit/{folder}/ulm/ulm_{i:06d}_000019_leftImg8bit"
            assert encoded == (source / f"{name}.png").read_bytes()
            assert label.tolist() == 2 * [np.roll(CLASSES, i)[::step].tolist()]
    out = capsys.readouterr().out
    assert "skipped" not in out
    assert "warning: train_extra has 4 images here, 19998 are published" in out
    assert "warning: train_coarse has 3 images here, 2975 are published" in out
    assert "warning: val_coarse has 2 images here, 500 are published" in out


def test_test_split_without_label_files_is_void(source, tmp_path):
    for path in (source / "gtFine" / "test").rglob("*.png"):
        path.unlink()
    convert("cityscapes", str(source), str(tmp_path / "data"))
    ((name, (_, label)),) = contents(tmp_path / "data", "test").items()
    assert name == "leftImg8bit/test/ulm/ulm_000000_000019_leftImg8bit"
    assert label.shape == (2, 6) and np.all(label == 255)


@pytest.mark.parametrize(
    ("downloaded", "splits", "skipped"),
    [
        # Only the fine annotations: not a word about the coarse ones.
        (
            [("train", "gtFine"), ("val", "gtFine")],
            {"train", "val"},
            ["test: skipped, no leftImg8bit/test/*/*_leftImg8bit.png"],
        ),
        # gtCoarse.zip without the 44 GB of images that most of it is for.
        (
            [("train", "gtFine", "gtCoarse"), ("val", "gtFine", "gtCoarse"), ("test",)],
            {"train", "val", "test", "train_coarse", "val_coarse"},
            ["train_extra: skipped, no leftImg8bit/train_extra/*/*_leftImg8bit.png"],
        ),
        # Those images without gtCoarse.zip.
        (
            [("val", "gtFine"), ("train_extra",)],
            {"val"},
            [
                "train: skipped, no leftImg8bit/train/*/*_leftImg8bit.png",
                "test: skipped, no leftImg8bit/test/*/*_leftImg8bit.png",
                "train_coarse: skipped, no leftImg8bit/train/*/*_leftImg8bit.png",
                "val_coarse: skipped, no gtCoarse/val/*/*_gtCoarse_labelIds.png",
                "train_extra: skipped, no gtCoarse/train_extra/*/*_gtCoarse_labelIds.png",
            ],
        ),
        # Coarse annotations only.
        (
            [("train", "gtCoarse"), ("train_extra", "gtCoarse")],
            {"train_coarse", "train_extra"},
            [
                "train: skipped, no gtFine/train/*/*_gtFine_labelIds.png",
                "val: skipped, no leftImg8bit/val/*/*_leftImg8bit.png",
                "test: skipped, no leftImg8bit/test/*/*_leftImg8bit.png",
                "val_coarse: skipped, no leftImg8bit/val/*/*_leftImg8bit.png",
            ],
        ),
    ],
)
def test_what_was_not_downloaded_is_skipped(tmp_path, capsys, downloaded, splits, skipped):
    for folder, *annotations in downloaded:
        write(tmp_path, folder, 1, *annotations)
    if "train_coarse" in splits and "val_coarse" in splits:
        (tmp_path / "gtCoarse" / "train_extra" / "ulm").mkdir(parents=True)
    assert set(cityscapes.open_source(tmp_path).splits) == splits
    assert capsys.readouterr().out.splitlines() == skipped


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (
            "gtCoarse/train_extra/ulm/ulm_000002_000019_gtCoarse_labelIds.png",
            "train_extra/ulm/ulm_000002_000019_leftImg8bit.png is left out: this image "
            r"has no label \(gtCoarse/train_extra/\*/\*_gtCoarse_labelIds.png\)",
        ),
        (
            "leftImg8bit/train_extra/ulm/ulm_000001_000019_leftImg8bit.png",
            "train_extra/ulm/ulm_000001_000019_gtCoarse_labelIds.png is left out: this label "
            "has no image",
        ),
    ],
)
def test_half_a_pair_is_left_out(source, missing, message, capsys):
    before = {k: len(pairs) for k, pairs in cityscapes.open_source(source).splits.items()}
    (source / missing).unlink()
    after = {k: len(pairs) for k, pairs in cityscapes.open_source(source).splits.items()}
    assert after == before | {"train_extra": before["train_extra"] - 1}
    assert re.search(f"warning: .*{message}", capsys.readouterr().out)


def test_published_numbers_are_those_of_cityscapes_alone(tmp_path, capsys):
    # Toy scenes have cities of their own; a download of which a city is missing has the others.
    write(tmp_path / "part", "train", 3, "gtFine")
    assert cityscapes.open_source(tmp_path / "part").published["train"] == 2975
    write_dataset(str(tmp_path / "toy"), num_train=3, num_val=1, size=(32, 32))
    convert("cityscapes", str(tmp_path / "toy"), str(tmp_path / "data"))
    assert "warning" not in capsys.readouterr().out
    assert len(set(cityscapes.CITIES)) == 50  # Cordts et al. 2016, section 2.1

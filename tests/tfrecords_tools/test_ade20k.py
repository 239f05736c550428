"""ADE20K from miniatures in the makers' layout and file formats."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from official.errors import RunError
from official.records import read_description
from tests.contents import contents
from tfrecords_tools import ade20k
from tfrecords_tools.convert import convert

FOLDERS = {"train": "training", "val": "validation"}
COUNTS = {"train": 3, "val": 2}


def files(root: Path, split: str, number: int) -> tuple[Path, Path]:
    folder, name = FOLDERS[split], f"ADE_{split}_{number:08d}"
    return root / "images" / folder / f"{name}.jpg", root / "annotations" / folder / f"{name}.png"


def write_ade20k(root: Path) -> Path:
    """Writes pairs whose annotations together hold all numbers 0..150, 16 to a row."""
    numbers = np.arange(160).reshape(10, 16) % 151
    for split, count in COUNTS.items():
        for i in range(count):
            image, annotation = files(root, split, i + 1)
            for path in (image, annotation):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((10, 16, 3), 40 * i, np.uint8)).save(image)
            Image.fromarray(np.roll(numbers, i, axis=0).astype(np.uint8)).save(annotation)
    return root


@pytest.fixture
def source(tmp_path):
    write_ade20k(tmp_path / "source" / "ADEChallengeData2016")
    return tmp_path / "source"


def test_zero_is_void_and_number_n_is_class_n_minus_1(source, tmp_path, capsys):
    convert("ade20k", str(source), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    assert description.num_classes == 150
    for split, count in COUNTS.items():
        records = contents(tmp_path / "data", split)
        assert len(records) == count
        for i, (name, (encoded, label)) in enumerate(records.items()):
            image, annotation = files(source / "ADEChallengeData2016", split, i + 1)
            assert name == f"images/{FOLDERS[split]}/{image.stem}"
            assert encoded == image.read_bytes()
            numbers = np.asarray(Image.open(annotation)).astype(int)
            assert {0, 1, 150} <= set(numbers.ravel().tolist())
            assert np.array_equal(label, [[n - 1 if n else 255 for n in row] for row in numbers])
    # objectInfo150.txt: 1 is wall, 13 person, 150 flag.
    label = contents(tmp_path / "data", "train")["images/training/ADE_train_00000001"][1]
    names = [description.class_names[label[n // 16, n % 16]] for n in (1, 13, 150)]
    assert names == ["wall", "person", "flag"]
    out = capsys.readouterr().out
    assert "warning: train has 3 images here, 20210 are published" in out
    assert "warning: val has 2 images here, 2000 are published" in out


def test_source_dir_may_be_the_folder_itself_and_a_split_may_be_missing(source, capsys):
    root = source / "ADEChallengeData2016"
    assert {k: len(v) for k, v in ade20k.open_source(root).splits.items()} == COUNTS
    for path in (root / "annotations" / "training").iterdir():
        path.unlink()
    assert set(ade20k.open_source(source).splits) == {"val"}
    assert "train: skipped, no annotations/training/*.png" in capsys.readouterr().out


def save(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda i, a: a.write_bytes(a.read_bytes()[:60]), "00002.png cannot be read as an image"),
        (lambda i, a: i.write_bytes(i.read_bytes()[:300]), "00002.jpg cannot be read as an image"),
        (lambda i, a: save(a, np.full((10, 16), 151, np.uint8)), "00002.png holds the value 151"),
        # The picture of ADE20K as a whole, which codes its classes as colours.
        (
            lambda i, a: save(a, np.zeros((10, 16, 3), np.uint8)),
            "00002.png is no label map",
        ),
        (lambda i, a: save(a, np.ones((16, 10), np.uint8)), "00002.png is 16 x 10, but its image"),
    ],
)
def test_partial_and_damaged_downloads_are_named(source, tmp_path, spoil, message):
    spoil(*files(source / "ADEChallengeData2016", "train", 2))
    with pytest.raises(RunError, match=message):
        convert("ade20k", str(source), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(RunError, match="holds no split of ADE20K: --source_dir is the directory"):
        convert("ade20k", str(tmp_path), str(tmp_path / "data"))

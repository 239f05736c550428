import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from official.errors import RunError, UsageError
from official.input_pipeline import make_train_batches
from official.records import read_description
from tests import deeplab_shards
from tests.miniature import SIZE, change_records, set_label, write_cityscapes, write_pair
from tfrecords_tools.browse import (
    PICTURE,
    browse,
    draw_sheet,
    find_padding,
    read_augmented,
    read_stored,
)
from tfrecords_tools.convert import convert

ROOT = Path(__file__).parents[2]
ROAD, CAR, SKY = (128, 64, 128), (0, 0, 142), (70, 130, 180)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images whose red channel says which one they are."""
    root = tmp_path_factory.mktemp("browse")
    convert("cityscapes", str(write_cityscapes(root / "source", train=6)), str(root / "data"))
    return read_description(str(root / "data"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """One black image, 40 x 80: road on the left, void (label id 0) on the right."""
    root = tmp_path_factory.mktemp("scene")
    label = np.full((40, 80), 7, np.uint8)
    label[:, 40:] = 0
    write_pair(root / "source", "train", "1_1", np.zeros((40, 80, 3), np.uint8), label)
    convert("cityscapes", str(root / "source"), str(root / "data"))
    return read_description(str(root / "data"))


def number_in(name):
    return int(re.search(r"town_(\d{6})_", name)[1])


def test_stored_images_are_chosen_by_the_seed_and_named(data):
    picks = set()
    for seed in range(8):
        shown = list(read_stored(data, "train", 3, seed))
        numbers = [number_in(example.caption) for example in shown]
        assert numbers == sorted(set(numbers)) and len(numbers) == 3
        for number, example in zip(numbers, shown, strict=True):
            assert (example.image[..., 0] == number).all()
            assert example.caption.endswith("_leftImg8bit  40 x 72")
            assert example.label.shape == SIZE and not example.padding.any()
        assert numbers == [number_in(e.caption) for e in read_stored(data, "train", 3, seed)]
        picks |= {tuple(numbers)}
    assert len(picks) > 3 and set().union(*picks) == set(range(6))


@pytest.mark.parametrize("longer", [None, 130])
def test_augmented_images_are_what_training_is_fed(data, longer):
    shown = list(read_augmented(data, "train", 6, 3, (60, 100), longer))
    # With the default flags of train.py; the batch is another, the order the same.
    batches = make_train_batches(
        *(data, "train"),
        seed=3,
        batch_size=3,
        crop_size=(60, 100),
        scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
        random_crop=True,
        flip=True,
        resize_longer_side=longer,
    )
    fed = [
        pair
        for batch in batches.take(2)
        for pair in zip(batch["image"], batch["label"], strict=True)
    ]
    padded = 0
    for example, (image, label) in zip(shown, fed, strict=True):
        np.testing.assert_array_equal(example.image, np.round(image))
        np.testing.assert_array_equal(example.label, label)
        # Outside the padding the red channel says which record it is.
        inside = np.abs(image.numpy()[..., 0] - number_in(example.caption)) < 1e-3
        np.testing.assert_array_equal(example.padding, ~inside)
        padded += example.padding.any()
    assert padded > 0
    assert sorted(number_in(example.caption) for example in shown) == list(range(6))


def test_shards_of_deeplabs_scripts_without_labels(tmp_path):
    examples = [deeplab_shards.example(i, label=False) for i in range(2)]
    deeplab_shards.write_shards(tmp_path, "test", examples, count=1, suffix=".tfrecord")
    description = read_description(str(tmp_path), 21)
    shown = list(read_stored(description, "test", 2, 0))
    assert [example.caption for example in shown] == [
        *("2007_000000  40 x 56", "2007_000001  33 x 72")
    ]
    for example in shown:
        assert example.label.shape == example.image.shape[:2] and (example.label == 255).all()


def test_grey_pixels_of_an_image_are_no_padding():
    image = np.random.default_rng(0).uniform(0, 127, (8, 9, 3)).astype(np.float32)
    image[2, 3:] = image[5:, 4] = 127.5
    assert not find_padding(image).any()
    image[:, 6:] = image[7:] = 127.5
    expected = np.zeros((8, 9), bool)
    expected[:, 6:] = expected[7:] = True
    np.testing.assert_array_equal(find_padding(image), expected)


def test_sheet_shows_the_image_its_overlay_and_a_legend_of_what_occurs(scene):
    (example,) = read_stored(scene, "train", 1, 0)
    sheet = np.asarray(draw_sheet([example], scene, "title"))
    # 40 x 80 is shown as wide as may be, 460, and so 230 high; below title and name.
    height, width = 230, PICTURE[1]
    top, left = 44 + 26, 16
    image = sheet[top : top + height, left : left + width]
    assert (image == 0).all()
    overlay = sheet[top : top + height, left + width + 4 : left + 2 * width + 4]
    # Half of black and half of road; at the border the light line begins.
    assert (overlay[:, : width // 2] == [64, 32, 64]).all()
    assert (overlay[:, width // 2] > 190).all()
    void = overlay[:, width // 2 + 1 :]
    assert (void == void[..., :1]).all()  # grey
    assert {*np.unique(void).tolist()} == {0, 150}  # with stripes
    assert (sheet[top + height :, :left] == 255).all()
    colours = {tuple(colour) for colour in sheet[:, left + 2 * width + 4 :].reshape(-1, 3)}
    assert ROAD in colours and CAR not in colours and SKY not in colours


def test_padding_is_a_checkerboard_in_both_pictures(data):
    examples = list(read_augmented(data, "train", 6, 3, (60, 100)))
    (example,) = [e for e in examples if e.padding[-1, -1]][:1]
    sheet = np.asarray(draw_sheet([example], data, "title"))
    height, width = PICTURE[0], round(PICTURE[0] * 100 / 60)
    for left in (16, 16 + width + 4):
        corner = sheet[70 + height - 16 : 70 + height, left + width - 16 : left + width]
        assert {*np.unique(corner).tolist()} == {215, 255}
    # In the legend too: 28 x 44 of both greys.
    legend = sheet[:, 16 + 2 * width + 4 :]
    assert np.count_nonzero((legend == 215).all(-1)) > 28 * 44 // 3


def test_pictures_of_all_shapes_fit(scene):
    (example,) = read_stored(scene, "train", 1, 0)

    def of_size(height, width):
        return type(example)(
            "name/" * 40,
            np.full((height, width, 3), 200, np.uint8),
            np.zeros((height, width), np.uint8),
            np.zeros((height, width), bool),
        )

    shapes = [(300, 200), (200, 300), (1, 1), (10, 2000), (2000, 10), (1024, 2048), (33, 33)]
    sheet = draw_sheet([of_size(*shape) for shape in shapes], scene, "title")
    assert sheet.width < 2400 and sheet.height < 2000
    edge = np.asarray(sheet)
    assert (edge[:, :8] == 255).all() and (edge[-8:] == 255).all() and (edge[:, -8:] == 255).all()


def test_a_bad_label_is_named(data, tmp_path):
    convert("cityscapes", str(write_cityscapes(tmp_path / "source")), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    bad = np.full(SIZE, 77, np.uint8)
    change_records(
        description.split("train").files[0],
        lambda i, features: set_label(features, bad) if i == 2 else None,
    )
    for crop_size in (None, (33, 33)):
        with pytest.raises(RunError, match=r"town_000002_.*label 77.*tfrecords_tools.check"):
            browse(description, "train", str(tmp_path / "sheet.png"), crop_size=crop_size)
    assert not (tmp_path / "sheet.png").exists()


def test_crops_that_no_image_fills(data, tmp_path):
    with pytest.raises(UsageError, match="--crop_size=500,500 is larger than every image"):
        browse(data, "train", str(tmp_path / "sheet.png"), crop_size=(500, 500))


def run(cwd, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfrecords_tools.browse", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_line(data, tmp_path):
    arguments = (f"--data_dir={data.data_dir}", "--output=new/sheet.png", "--images=99")
    done = run(tmp_path, *arguments, "--augmented", "--crop_size=33,65")
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrote new/sheet.png\n", "")
    with Image.open(tmp_path / "new" / "sheet.png") as sheet:
        # 6 images, not 99, in two columns.
        assert sheet.format == "PNG" and 3 * 230 < sheet.height < 4 * 230 + 100

    wrong = run(tmp_path, *arguments, "--crop_size=33")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "error: --crop_size is the size of the crops of --augmented: give both\n"
    )
    wrong = run(tmp_path, *arguments, "--resize_longer_side=33")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: --resize_longer_side is a part of --augmented: give both\n"


@pytest.mark.parametrize("text", ["a", "0", "33,", "33,33,33", "-5"])
def test_crop_sizes_that_are_none(text):
    from tfrecords_tools.browse import _parse_crop_size

    with pytest.raises(UsageError, match=f"--crop_size={text}: give one positive number"):
        _parse_crop_size(text.split(","))

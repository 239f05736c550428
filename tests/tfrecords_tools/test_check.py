import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official.errors import RunError, UsageError
from official.records import Description, read_description
from tests import deeplab_shards
from tests.miniature import SIZE, change_records, set_label, write_cityscapes, write_pair
from tfrecords_tools import data_flags
from tfrecords_tools.browse import browse
from tfrecords_tools.check import check, choose_figure, find_repeated, report
from tfrecords_tools.convert import convert
from tfrecords_tools.findings import Findings, format_ranges, read_split

ROOT = Path(__file__).parents[2]


@pytest.fixture
def data_dir(tmp_path):
    convert("cityscapes", str(write_cityscapes(tmp_path / "source")), str(tmp_path / "data"))
    return tmp_path / "data"


def shard(data_dir, split="train"):
    return read_description(str(data_dir)).split(split).files[0]


def test_counts_and_shares(tmp_path):
    # 10 x 10 pixels: rows 0-4 road (7), rows 5-7 car (26), rows 8-9 void (0); and one all road.
    label = np.zeros((10, 10), np.uint8)
    label[:5], label[5:8] = 7, 26
    for name, ids in (("000001_000019", label), ("000002_000019", np.full((6, 10), 7, np.uint8))):
        write_pair(tmp_path / "source", "train", name, np.zeros((*ids.shape, 3), np.uint8), ids)
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    findings = read_split("train", description.split("train"), description)
    assert findings.errors == [] and findings.records == 2
    assert findings.sizes == {(10, 10): 1, (6, 10): 1}
    expected = np.zeros(256, np.int64)
    expected[[0, 13, 255]] = 50 + 60, 30, 20
    assert np.array_equal(findings.pixels, expected)
    assert findings.images[[0, 13, 255]].tolist() == [2, 1, 1]
    # Without void: 80 and 60 pixels in the images with road, 80 in the one with cars.
    assert findings.around[[0, 13]].tolist() == [140, 80]

    labels = read_split("train", description.split("train"), description, labels_only=True)
    for name in ("pixels", "images", "around"):
        assert np.array_equal(getattr(labels, name), getattr(findings, name))
    assert labels.errors == [] and not labels.sizes and not labels.contents

    lines = report("train", findings, description).splitlines()
    assert lines[0] == "train: 2 records, sizes 10 x 10 (1), 6 x 10 (1)"
    # 110 of 140 valid pixels are road, 30 are car; 20 of all 160 are void.
    assert lines[2].split() == ["0", "road", "110", "78.57%", "2"]
    assert lines[2 + 13].split() == ["13", "car", "30", "21.43%", "1"]
    assert lines[2 + 19].split() == ["255", "void", "20", "12.50%", "1"]
    assert lines[-1].startswith("  never seen: sidewalk, building, ") and "car" not in lines[-1]


def test_void_may_be_the_number_of_a_class():
    # DeepLab's own ADE20K shards: 0 is void, 1..150 are the classes.
    names, colours = ("void", "wall", "floor"), ((0, 0, 0),) * 3
    description = Description("ade", "", names, colours, ignore_label=0, splits={}, options={})
    findings = Findings(records=1)
    findings.pixels[:3], findings.images[:3] = (40, 45, 15), 1
    lines = report("train", findings, description).splitlines()
    assert [line.split() for line in lines[2:-1]] == [
        ["1", "wall", "45", "75.00%", "1"],
        ["2", "floor", "15", "25.00%", "1"],
        ["0", "void", "40", "40.00%", "1"],
    ]


def test_a_split_without_labels(tmp_path):
    write_pair(
        *(tmp_path, "test", "000001_000019"),
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
    )
    convert("cityscapes", str(tmp_path), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    text = report("test", read_split("test", description.split("test"), description), description)
    assert text.endswith("  every pixel is void") and "never seen" not in text


def test_shards_of_deeplabs_scripts(tmp_path, capsys):
    for split, labelled in (("train", True), ("test", False)):
        examples = [deeplab_shards.example(i + labelled, label=labelled) for i in range(3)]
        deeplab_shards.write_shards(tmp_path, split, examples, count=1, suffix=".tfrecord")
    given = SimpleNamespace(data_dir=str(tmp_path), num_classes=21, ignore_label=None)
    expected = "ERROR train and test share 2 image(s): 2007_000001 = 2007_000001, 2007_000002 = "
    with pytest.raises(RunError, match=r"1 error\(s\)"):
        check(data_flags.read(given))
    out = capsys.readouterr().out
    assert "test: 3 records, sizes 40 x 56 (1), 33 x 72 (1), 48 x 33 (1)\n" in out
    assert out.count("every pixel is void") == 1 and expected in out
    # All three pictures without a label map: 40 x 56 + 33 x 72 + 48 x 33.
    assert "255  void                   6,200  100.00%        3" in out

    given.num_classes = None
    with pytest.raises(UsageError, match="give --num_classes"):
        data_flags.read(given)


def test_flags_that_contradict_the_description(data_dir):
    given = SimpleNamespace(data_dir=str(data_dir), num_classes=19, ignore_label=255)
    assert data_flags.read(given).name == "cityscapes"
    given.num_classes = 20
    with pytest.raises(UsageError, match=r"--num_classes=20, but the data in .* have 19"):
        data_flags.read(given)


def test_a_good_dataset_passes(data_dir, capsys):
    check(read_description(str(data_dir)))
    out = capsys.readouterr().out
    assert "train: 4 records, sizes 40 x 72 (4)" in out and out.endswith("no errors\n")


def expect_error(data_dir, capsys, *messages):
    with pytest.raises(RunError, match=rf"{data_dir}: {len(messages)} error\(s\), listed above"):
        check(read_description(str(data_dir)))
    errors = [line for line in capsys.readouterr().out.splitlines() if "ERROR" in line]
    assert len(errors) == len(messages)
    for error, message in zip(errors, messages, strict=True):
        assert message in error


def test_bad_records_are_named(data_dir, capsys):
    def spoil(i, features):
        if i == 0:
            # All values that there are: those from 19 to 254 are wrong.
            set_label(features, np.arange(40 * 72).reshape(40, 72).astype(np.uint8))
        if i == 1:
            set_label(features, np.zeros((40, 71), np.uint8))
        if i == 2:
            encoded = features["image/encoded"].bytes_list
            encoded.value[0] = encoded.value[0][:200]
        if i == 3:
            del features["image/filename"]

    change_records(shard(data_dir), spoil)
    name = "leftImg8bit/train/town/town_00000{}_000019_leftImg8bit: "
    expect_error(
        data_dir,
        capsys,
        name.format(0) + "label 19..254 is neither 0..18 nor 255",
        name.format(1) + "the image is 40 x 72, but its label map is 40 x 71",
        name.format(2) + "cannot be decoded: ",
        "record 4: cannot be decoded: ",
    )


def test_one_image_without_a_label_map_among_others(data_dir, capsys):
    def drop(i, features):
        if i:
            del features["image/segmentation/class/encoded"]

    change_records(shard(data_dir), drop)
    name = "leftImg8bit/train/town/town_000001_000019_leftImg8bit"
    expect_error(data_dir, capsys, f"train: 3 of 4 records have no label map, the first is {name}")


def test_sizes_that_are_not_described(data_dir, capsys):
    metadata = data_dir / "metadata.json"
    metadata.write_text(metadata.read_text().replace("[[40, 72, 4]]", "[[40, 71, 4]]"))
    expect_error(data_dir, capsys, "train: the image sizes are not those of the description")


def test_a_damaged_record_does_not_hide_those_behind_it(data_dir, capsys):
    file = Path(shard(data_dir))
    content = bytearray(file.read_bytes())
    content[100] ^= 1  # in the data of the first record
    file.write_bytes(content)
    expect_error(data_dir, capsys, f"{file.name}: record 1 of it", "train: 3 records, but")


def test_damaged_file(data_dir, capsys):
    file = Path(shard(data_dir))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1  # in the data of the last record: its checksum fails
    file.write_bytes(content)
    expect_error(data_dir, capsys, file.name, "train: 3 records, but the description says 4")


def recompress(file: Path, record: int) -> None:
    """The same pixels in other bytes."""

    def change(i, features):
        if i == record:
            encoded = features["image/encoded"].bytes_list
            pixels = tf.io.decode_png(encoded.value[0])
            other = tf.io.encode_png(pixels, compression=0).numpy()
            assert other != encoded.value[0]
            encoded.value[0] = other

    change_records(str(file), change)


def test_an_image_of_val_in_train_is_an_error(tmp_path, capsys):
    source = write_cityscapes(tmp_path / "source")
    image = np.asarray(Image.open(min(source.glob("leftImg8bit/val/*/*.png"))))
    for name in ("000008_000019", "000009_000019"):  # other names, other labels
        write_pair(source, "train", name, image, np.full(SIZE, 7, np.uint8))
    convert("cityscapes", str(source), str(tmp_path / "data"))
    recompress(shard(tmp_path / "data"), 5)
    capsys.readouterr()
    with pytest.raises(RunError, match=r"1 error\(s\)"):
        check(read_description(str(tmp_path / "data")))
    names = [f"leftImg8bit/train/town/town_00000{i}_000019_leftImg8bit" for i in (8, 9)]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"note: train holds 1 image(s) more than once: {names[0]} = {names[1]}",
        f"ERROR train and val share 1 image(s): {names[0]} = "
        "leftImg8bit/val/town/town_000004_000019_leftImg8bit",
    ]


def test_images_of_one_colour_are_the_same_only_at_the_same_size(tmp_path, capsys):
    for split, name, size in (("train", "1_1", (4, 6)), ("val", "2_1", (6, 4))):
        zeros = np.zeros(size, np.uint8)
        write_pair(tmp_path / "source", split, name, np.zeros((*size, 3), np.uint8), zeros)
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"))
    check(read_description(str(tmp_path / "data")))
    assert "share" not in capsys.readouterr().out.replace("the share", "").replace("share ", "")


@pytest.mark.parametrize(
    ("splits", "is_error"),
    [
        (("train", "val"), True),
        (("val", "train"), True),
        (("train_aug", "val"), True),
        (("training", "validation"), True),
        (("train", "test"), True),
        (("trainval", "test"), True),
        (("all", "dev"), True),
        (("trainval", "val"), False),  # its name says so
        (("val", "trainval"), False),
        (("train", "trainval"), False),  # both to train on
        (("train", "train_coarse"), False),
        (("val", "val_coarse"), False),  # both to evaluate on
    ],
)
def test_which_splits_may_share_images(splits, is_error):
    found = {
        name: Findings(contents={b"same": [f"{name}/a"], name.encode(): ["x"]}) for name in splits
    }
    notes, errors = find_repeated(found)
    assert (len(notes), len(errors)) == (not is_error, is_error)
    (line,) = notes + errors
    assert " share 1 image(s): " in line and all(f"{name}/a" in line for name in splits)


def test_long_lists_are_cut():
    contents = {bytes([i]): [f"a{i}", f"b{i}"] for i in range(9)}
    (note,), _ = find_repeated({"train": Findings(contents=contents)})
    assert note == "train holds 9 image(s) more than once: a0 = b0, a1 = b1, a2 = b2, and 6 more"


def run_check(cwd, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "tfrecords_tools.check", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_command_line(data_dir, tmp_path):
    before, fingerprint = sorted(tmp_path.iterdir()), read_description(str(data_dir)).fingerprint()
    good = run_check(tmp_path, f"--data_dir={data_dir}")
    assert (good.returncode, good.stderr) == (0, "")
    # With the data, and nothing where the command ran. The data are the same to all readers.
    assert f"wrote {data_dir}/classes.png\n" in good.stdout
    assert sorted(tmp_path.iterdir()) == before
    assert Image.open(data_dir / "classes.png").format == "PNG"
    assert read_description(str(data_dir)).fingerprint() == fingerprint

    change_records(
        shard(data_dir, "val"), lambda i, features: set_label(features, np.full(SIZE, 99, np.uint8))
    )
    figure = tmp_path / "new" / "shares.png"
    bad = run_check(ROOT, f"--data_dir={data_dir}", f"--figure={figure}")
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    assert "ERROR leftImg8bit/val/town/town_000004_000019_leftImg8bit: label 99" in bad.stdout
    assert f"error: {data_dir}: 2 error(s), listed above" in bad.stderr.splitlines()
    assert figure.exists()  # bad data are worth a look


def test_a_picture_that_cannot_be_written_is_said_before_all_is_read(data_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    capsys.readouterr()
    with pytest.raises(RunError, match=f"cannot make the directory {tmp_path}/file"):
        check(read_description(str(data_dir)), str(tmp_path / "file" / "classes.png"))
    assert capsys.readouterr().out == ""


def test_a_picture_over_the_data_is_refused(data_dir):
    description = read_description(str(data_dir))
    before = {path: path.read_bytes() for path in description.files()}
    for file in description.files():
        with pytest.raises(UsageError, match=f"--figure={file} is a file that is read"):
            check(description, str(file))
        with pytest.raises(UsageError, match=f"--output={file} is a file that is read"):
            browse(description, "train", str(file))
    assert before == {path: path.read_bytes() for path in description.files()}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([19], "19"),
        ([19, 20], "19..20"),
        ([3, 7, 8, 9, 254], "3, 7..9, 254"),
        ([1, 3, 5, 7, 9, 11], "1, 3, 5, 7, 9, 11"),
        (list(range(20, 255, 2)), "20, 22, 24, 26, 28, ... 254"),
    ],
)
def test_numbers_are_told_as_ranges(values, words):
    assert format_ranges(values) == words


def test_a_directory_that_may_not_be_written_gets_no_picture(tmp_path, capsys, monkeypatch):
    assert choose_figure(str(tmp_path)) == f"{tmp_path}/classes.png"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as on a read-only disk
    assert choose_figure(str(tmp_path)) == ""
    assert f"{tmp_path} cannot be written, so there is no picture" in capsys.readouterr().out

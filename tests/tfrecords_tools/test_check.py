import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from official.errors import RunError
from official.records import read_description
from tests.miniature import SIZE, change_records, set_label, write_cityscapes, write_pair
from tfrecords_tools.check import check, check_split, report
from tfrecords_tools.convert import convert


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
    findings = check_split("train", description.split("train"), description)
    assert findings.errors == [] and findings.records == 2
    assert findings.sizes == {(10, 10): 1, (6, 10): 1}
    expected = np.zeros(256, np.int64)
    expected[[0, 13, 255]] = 50 + 60, 30, 20
    assert np.array_equal(findings.pixels, expected)
    assert findings.images[[0, 13, 255]].tolist() == [2, 1, 1]

    lines = report("train", findings, description).splitlines()
    assert lines[0] == "train: 2 records, sizes 10 x 10 (1), 6 x 10 (1)"
    # 110 of 140 valid pixels are road, 30 are car; 20 of all 160 are void.
    assert lines[2].split() == ["0", "road", "110", "78.57%", "2"]
    assert lines[2 + 13].split() == ["13", "car", "30", "21.43%", "1"]
    assert lines[2 + 19].split() == ["255", "void", "20", "12.50%", "1"]
    assert lines[-1].startswith("  never seen: sidewalk, building, ") and "car" not in lines[-1]


def test_a_good_dataset_passes(data_dir, capsys):
    check(str(data_dir))
    out = capsys.readouterr().out
    assert "train: 4 records, sizes 40 x 72 (4)" in out and out.endswith("no errors\n")


def expect_error(data_dir, capsys, *messages):
    with pytest.raises(RunError, match=rf"{data_dir}: {len(messages)} error\(s\), listed above"):
        check(str(data_dir))
    errors = [line for line in capsys.readouterr().out.splitlines() if "ERROR" in line]
    assert len(errors) == len(messages)
    for error, message in zip(errors, messages, strict=True):
        assert message in error


def test_bad_records_are_named(data_dir, capsys):
    def spoil(i, features):
        if i == 0:
            set_label(features, np.array([[0, 19, 42, 255]], np.uint8).repeat(40, 0).repeat(18, 1))
        if i == 1:
            set_label(features, np.zeros((40, 71), np.uint8))
        if i == 2:
            encoded = features["image/encoded"].bytes_list
            encoded.value[0] = encoded.value[0][:200]
        if i == 3:
            del features["image/segmentation/class/encoded"]

    change_records(shard(data_dir), spoil)
    name = "leftImg8bit/train/town/town_00000{}_000019_leftImg8bit: "
    expect_error(
        data_dir,
        capsys,
        name.format(0) + "label 19, 42 is neither 0..18 nor 255",
        name.format(1) + "the image is 40 x 72, but its label map is 40 x 71",
        name.format(2) + "cannot be decoded: ",
        "record 4: cannot be decoded: ",
    )


def test_sizes_that_are_not_described(data_dir, capsys):
    metadata = data_dir / "metadata.json"
    metadata.write_text(metadata.read_text().replace("[[40, 72, 4]]", "[[40, 71, 4]]"))
    expect_error(data_dir, capsys, "train: the image sizes are not those of the description")


def test_damaged_file(data_dir, capsys):
    file = Path(shard(data_dir))
    content = bytearray(file.read_bytes())
    content[-100] ^= 1  # in the data of the last record: its checksum fails
    file.write_bytes(content)
    expect_error(data_dir, capsys, file.name, "train: 3 records, but the description says 4")


def test_command_line(data_dir):
    change_records(
        shard(data_dir, "val"), lambda i, features: set_label(features, np.full(SIZE, 99, np.uint8))
    )
    bad = subprocess.run(
        [sys.executable, "-m", "tfrecords_tools.check", f"--data_dir={data_dir}"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    assert "ERROR leftImg8bit/val/town/town_000004_000019_leftImg8bit: label 99" in bad.stdout
    assert f"error: {data_dir}: 2 error(s), listed above" in bad.stderr.splitlines()

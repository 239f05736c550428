import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from official.errors import RunError
from official.flagfiles import expand
from official.records import read_description
from tests.miniature import change_records, set_label, write_pair
from tfrecords_tools.class_weights import METHODS, compute_class_weights, format_flag
from tfrecords_tools.convert import convert
from tfrecords_tools.findings import read_split

ROOT = Path(__file__).parents[2]
ROAD, CAR = 0, 13


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two images: 50 pixels road, 30 car, 20 void; 60 road. And one of void in test."""
    root = tmp_path_factory.mktemp("weights")
    label = np.zeros((10, 10), np.uint8)
    label[:5], label[5:8] = 7, 26
    for split, name, ids in (
        ("train", "1_1", label),
        ("train", "2_1", np.full((6, 10), 7, np.uint8)),
        ("test", "3_1", np.zeros((2, 2), np.uint8)),
    ):
        write_pair(root / "source", split, name, np.zeros((*ids.shape, 3), np.uint8), ids)
    convert("cityscapes", str(root / "source"), str(root / "data"))
    return root / "data"


@pytest.mark.parametrize(
    ("method", "road", "car"),
    [
        # Shares: 110 / 140 and 30 / 140 of the pixels that are not void; two classes occur.
        ("inverse", 140 / 110 / 2, 140 / 30 / 2),
        # The roots of the shares are 0.88641 and 0.46291, together 1.34931.
        ("inverse_sqrt", 1 / (0.88641 * 1.34931), 1 / (0.46291 * 1.34931)),
        # Road: 110 of the 140 pixels of both images; car: 30 of the 80 of the first. The median of
        # two is their mean: (0.785714 + 0.375) / 2 = 0.580357.
        ("median_frequency", 0.580357 / 0.785714, 0.580357 / 0.375),
    ],
)
def test_weights_by_hand(data_dir, method, road, car):
    description = read_description(str(data_dir))
    findings = read_split("train", description.split("train"), description, labels_only=True)
    weights = compute_class_weights(findings, description, method)
    expected = np.ones(19)  # of what never occurs
    expected[[ROAD, CAR]] = road, car
    np.testing.assert_allclose(weights, expected, rtol=1e-5)
    average = (110 * weights[ROAD] + 30 * weights[CAR]) / 140
    assert (abs(average - 1) < 1e-6) == (method != "median_frequency")


def test_all_methods_agree_where_all_classes_are_alike(data_dir):
    description = read_description(str(data_dir))
    findings = read_split("train", description.split("train"), description, labels_only=True)
    for counts in (findings.pixels, findings.around):
        counts[:19] = 1000
    for method in METHODS:
        np.testing.assert_allclose(
            compute_class_weights(findings, description, method), np.ones(19)
        )


def test_the_line_is_a_flag_of_train(data_dir, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tfrecords_tools.class_weights", f"--data_dir={data_dir}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    rows = {row.split()[1]: row.split()[2:] for row in done.stderr.splitlines()[2:21]}
    assert rows["road"] == ["78.57%", "0.8361"] and rows["car"] == ["21.43%", "1.601"]
    assert "  average weight of a pixel: 1\n" in done.stderr
    assert "never seen, so weight 1: sidewalk, building, " in done.stderr

    (tmp_path / "mine.cfg").write_text(f"# Of my own.\n--mode=train\n{line}\n")
    with flagsaver.flagsaver():
        flags.FLAGS.unparse_flags()
        flags.FLAGS(expand(["train.py", f"--flagfile={tmp_path / 'mine.cfg'}"]))
        read = flags.FLAGS.class_weights
    expected = np.ones(19)
    expected[[ROAD, CAR]] = 0.8361, 1.601
    assert read == expected.tolist()


def test_a_split_that_says_nothing(data_dir):
    with pytest.raises(RunError, match=r"split 'test' of .* has no labels: every pixel is void"):
        format_flag(read_description(str(data_dir)), "test", "inverse")
    with pytest.raises(RunError, match="no split 'tarin'"):
        format_flag(read_description(str(data_dir)), "tarin", "inverse")


def test_bad_labels_have_no_weights(data_dir, tmp_path):
    convert("cityscapes", str(data_dir.parent / "source"), str(tmp_path / "data"))
    (file,) = read_description(str(tmp_path / "data")).split("train").files
    bad = np.full((6, 10), 42, np.uint8)
    change_records(file, lambda i, features: set_label(features, bad))
    with pytest.raises(RunError, match=r"label 42 .*\(and 1 more\).*tfrecords_tools.check"):
        format_flag(read_description(str(tmp_path / "data")), "train", "inverse")

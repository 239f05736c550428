"""train.py on shards that DeepLab's own scripts wrote, as a user runs it."""

import json

import numpy as np
import pytest
from PIL import Image

from official.datasets import VOC_NAMES
from tests.command import TINY_GENOTYPE, TINY_NETWORK, train_here
from tests.deeplab_shards import SIZES, example, write_shards


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data: JPEG images of three sizes; test has no labels. run: trained on it for two steps."""
    root = tmp_path_factory.mktemp("deeplab")
    for split, numbers, count in (("train", range(4), 2), ("val", range(4, 7), 4)):
        write_shards(root / "data", split, [example(i) for i in numbers], count=count)
    write_shards(root / "data", "test", [example(i, label=False) for i in (7, 8)], count=1)
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    done = train_here(*training(root), f"--model_dir={root / 'run'}", "--num_classes=21")
    assert done.code == 0, done.stderr
    return root


def training(root):
    return (
        *("--mode=train", f"--data_dir={root / 'data'}", f"--genotype={root / 'genotype.json'}"),
        *(*TINY_NETWORK, "--train_steps=2", "--batch_norm_decay=0.1"),
    )


def test_the_run_knows_its_data(root):
    record = json.loads((root / "run" / "run.json").read_text())
    assert record["class_names"] == list(VOC_NAMES) and record["dataset"] == "deeplab_shards"
    rows = [json.loads(line) for line in (root / "run" / "history.jsonl").open()]
    assert rows[-1]["step"] == 2 and rows[-1]["val_images"] == 3
    # The same data again, and other data.
    again = train_here(*training(root), f"--model_dir={root / 'run'}", "--num_classes=21")
    assert again.code == 0 and "step 2 of 2" in again.stderr
    for other in ("--num_classes=22", "--ignore_label=0"):
        refused = train_here(
            *training(root), f"--model_dir={root / 'run'}", "--num_classes=21", other
        )
        assert refused.code == 2 and "--data_dir is deeplab_shards" in refused.error


def test_eval(root):
    data = (f"--data_dir={root / 'data'}", "--num_classes=21")
    done = train_here("--mode=eval", *data, f"--model_dir={root / 'run'}")
    assert done.code == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["num_images"] == 3 and metrics["class_names"] == list(VOC_NAMES)
    assert 0 < metrics["pixel_accuracy"] < 0.5  # the labels are random


def test_predict_a_split_without_labels(root, tmp_path):
    done = train_here(
        *("--mode=predict", f"--model_dir={root / 'run'}", f"--output_dir={tmp_path}"),
        *(f"--data_dir={root / 'data'}", "--num_classes=21", "--eval_split=test"),
    )
    assert done.code == 0, done.stderr
    for i in (7, 8):
        answer = np.asarray(Image.open(tmp_path / f"2007_{i:06d}_labels.png"))
        assert answer.shape == SIZES[i % 4] and answer.max() < 21


@pytest.mark.parametrize(
    ("flags", "code", "saying"),
    [
        ([], 2, ["--data_dir=", "data holds shards", "--num_classes", "--ignore_label"]),
        (["--num_classes=1"], 2, ["--num_classes=1", "2 to 256"]),
        (["--num_classes=2", "--ignore_label=1"], 2, ["--data_dir", "one class beside void"]),
        (["--num_classes=21", "--train_split=train_fine"], 1, ["'train_fine'", "test, train, val"]),
    ],
)
@pytest.mark.parametrize("mode", ["search", "train"])
def test_mistakes(root, tmp_path, mode, flags, code, saying):
    own = training(root) if mode == "train" else ("--mode=search", f"--data_dir={root / 'data'}")
    done = train_here(*own, f"--model_dir={tmp_path / 'new'}", *flags)
    assert done.code == code
    for words in saying:
        assert words in done.error
    assert not (tmp_path / "new").exists()


def test_one_shard_of_several_is_enough(root, tmp_path):
    write_shards(tmp_path / "data", "train", [example(i) for i in range(4)], count=2)
    (tmp_path / "data" / "train-00001-of-00002.tfrecord").unlink()
    done = train_here(
        *(*training(root), f"--model_dir={tmp_path / 'new'}"),
        *(f"--data_dir={tmp_path / 'data'}", "--num_classes=21", "--eval_split=train"),
    )
    assert done.code == 0, done.stderr
    assert "warning: split 'train' has 2 shards, 1 of which are not there" in done.stderr

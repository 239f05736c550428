"""Training on from other weights, and averaged weights, as a user runs them."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import auto_deeplab
from official import checkpoints
from official.records import read_description
from tests.command import TINY_GENOTYPE, TINY_NETWORK, train_here
from tests.miniature import SIZE, change_records, set_label, write_cityscapes
from tfrecords_tools.convert import convert

CLASSES = 7
LAST = {"network/decoder/logits/kernel", "network/decoder/logits/bias"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data: 19 classes; seven: 7 classes; run: trained on data, with averages."""
    root = tmp_path_factory.mktemp("fine_tuning")
    convert("cityscapes", str(write_cityscapes(root / "source")), str(root / "data"))
    shutil.copytree(root / "data", root / "seven")
    metadata = root / "seven" / "metadata.json"
    content = json.loads(metadata.read_text())
    content["class_names"] = [f"class {number}" for number in range(CLASSES)]
    content["palette"] = content["palette"][:CLASSES]
    metadata.write_text(json.dumps(content))
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        change_records(
            read_description(str(root / "seven")).split(split).files[0],
            lambda i, features: set_label(features, rng.integers(0, 7, SIZE).astype(np.uint8)),
        )
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    done = train(root, "data", "run", "--train_steps=6", "--ema_decay=0.9", "--learning_rate=0.5")
    assert done.code == 0, done.stderr
    return root


def train(root, data, model_dir, *flags):
    return train_here(
        *("--mode=train", f"--genotype={root / 'genotype.json'}", *TINY_NETWORK),
        *(f"--data_dir={root / data}", f"--model_dir={root / model_dir}"),
        *("--batch_norm_decay=0.1", "--eval_every=6", *flags),
    )


def group(model_dir, name):
    """{path: value} of a group of the newest checkpoint."""
    reader = tf.train.load_checkpoint(checkpoints.find(str(model_dir / "checkpoints")))
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    return {
        path: reader.get_tensor(f"{name}/{path.replace('.', '..').replace('/', '.S')}{suffix}")
        for path in checkpoints.read_shapes(str(model_dir / "checkpoints"), name)
    }


def val_miou(model_dir):
    return json.loads((model_dir / "history.jsonl").read_text().splitlines()[-1])["val_miou"]


def test_averages_are_what_is_validated_and_used(root):
    weights, average = group(root / "run", "weights"), group(root / "run", "average")
    assert weights.keys() == average.keys()
    for path, value in weights.items():
        assert value.shape == average[path].shape and np.any(value != average[path]), path
    network = auto_deeplab.load(root / "run")
    assert {v.path for v in network.variables} == average.keys()
    for variable in network.variables:
        np.testing.assert_array_equal(variable, average[variable.path])
    done = train_here("--mode=eval", f"--data_dir={root / 'data'}", f"--model_dir={root / 'run'}")
    assert json.loads(done.stdout.splitlines()[-1])["miou"] == val_miou(root / "run")


def test_other_classes_start_from_the_averages_with_a_new_last_layer(root):
    # At a rate of 1e-30, a step changes nothing but what is 0.
    run, data = root / "run", f"--data_dir={root / 'seven'}"
    flags = (f"--init_checkpoint={run}", "--fine_tune_batch_norm=false", "--ema_decay=0.9")
    done = train(root, "seven", "new", "--train_steps=1", "--learning_rate=1e-30", *flags)
    assert done.code == 0, done.stderr
    said = f"--init_checkpoint={run}: 19 classes there, 7 here: decoder/logits starts anew"
    assert said in done.stderr.splitlines() and "train starts at step 0 of 1" in done.stderr

    wanted = group(run, "average")
    for name in ("weights", "average"):
        new = group(root / "new", name)
        assert new.keys() == wanted.keys() and new.keys() > LAST
        for path in new.keys() - LAST:
            np.testing.assert_allclose(new[path], wanted[path], rtol=0, atol=1e-20, err_msg=path)
        kernel, bias = (new[f"network/decoder/logits/{part}"] for part in ("kernel", "bias"))
        assert kernel.shape == (1, 1, 8, CLASSES) and bias.shape == (CLASSES,)
        # A truncated normal distribution of standard deviation 0.01, and 0.
        assert 0.004 < kernel.std() < 0.016 and np.abs(bias).max() < 1e-20
    done = train_here("--mode=eval", data, f"--model_dir={root / 'new'}")
    assert done.code == 0 and len(json.loads(done.stdout.splitlines()[-1])["per_class_iou"]) == 7


def test_the_same_classes_keep_the_last_layer(root):
    flags = (f"--init_checkpoint={root / 'run'}", "--fine_tune_batch_norm=false")
    done = train(root, "data", "same", "--train_steps=1", "--learning_rate=1e-30", *flags)
    assert done.code == 0 and "starts anew" not in done.stderr
    new, wanted = group(root / "same", "weights"), group(root / "run", "average")
    for path, value in wanted.items():
        np.testing.assert_allclose(new[path], value, rtol=0, atol=1e-20, err_msg=path)


def test_the_last_layer_learns_at_its_own_rate(root):
    # One step from the same weights: v = -rate * g, so the last layer moves ten times as far.
    common = ("--train_steps=1", f"--init_checkpoint={root / 'run'}", "--weight_decay=0")
    changes = []
    for name, factor in (("once", 1), ("tenfold", 10)):
        flag = f"--last_layer_learning_rate_multiplier={factor}"
        done = train(root, "data", name, *common, "--learning_rate=1e-3", flag)
        assert done.code == 0, done.stderr
        before, after = group(root / "run", "average"), group(root / name, "weights")
        changes.append({path: after[path] - before[path] for path in before})
    once, tenfold = changes
    for path, change in once.items():
        wanted = (10 if path in LAST else 1) * change
        np.testing.assert_allclose(tenfold[path], wanted, rtol=0.01, atol=1e-6, err_msg=path)
    assert all(np.abs(once[path]).max() > 1e-5 for path in LAST)


def test_class_weights_and_mining_from_the_command_line(root):
    # Class 3 alone counts, so the loss is its mean alone; the tenth that is hardest costs more.
    losses = []
    for name, flags in (
        ("plain", ()),
        ("weights", ("--class_weights=0,0,0,1,0,0,0",)),
        ("mined", ("--class_weights=0,0,0,1,0,0,0", "--top_k_pixels=0.1")),
    ):
        done = train(root, "seven", name, "--train_steps=1", *flags)
        assert done.code == 0, done.stderr
        losses.append(json.loads((root / name / "history.jsonl").read_text())["loss_w"])
    # Untrained, every pixel costs about ln 7, and one in 7 is of class 3; it fills the tenth.
    np.testing.assert_allclose(losses, np.log(7) * np.array([1, 1 / 7, 1]), rtol=0.1)

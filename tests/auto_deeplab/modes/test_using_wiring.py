"""Every flag of eval, predict, demo, export and profile reaches what it is for: see wiring.py."""

import json
import math
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab.budget import cost_table, expected_cost
from auto_deeplab.modes import demo, evaluate, export, predict, profile
from auto_deeplab.modes.flag_definitions import USED
from auto_deeplab.network.network import Network
from official import formats
from tests.auto_deeplab.modes.wiring import (
    CLASSES,
    GENOTYPE,
    NUM_THEIRS,
    SIDES,
    VOID,
    WANTED_DEVICES,
    devices_noted,
    noted,
)
from tests.command import train_here
from tests.deeplab_shards import encoded


def test_eval(root, trained, tmp_path):
    out, checkpoint = tmp_path / "out" / "mine.json", trained / "checkpoints" / "ckpt-2"
    flags = {
        "mode": "eval",
        "data_dir": root / "data",
        "model_dir": trained,
        "num_classes": CLASSES,
        "ignore_label": VOID,
        "eval_split": "mine",
        "max_eval_images": 3,
        "checkpoint": checkpoint,
        "eval_scales": "0.5,1.25",
        "eval_flip": "true",
        "output": out,
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
    }
    assert flags.keys() == {name for name, modes in USED.items() if "eval" in modes}
    with devices_noted() as devices, noted(evaluate, "make_split_evaluator") as calls:
        done = train_here(*(f"--{name}={value}" for name, value in flags.items()))
    assert done.code == 0, done.stderr
    assert devices == WANTED_DEVICES
    (call,) = calls
    description = call["arguments"][1]
    assert (description.data_dir, description.ignore_label) == (str(root / "data"), VOID)
    metrics = json.loads(out.read_text())
    assert metrics == json.loads(done.stdout.splitlines()[-1])
    wanted = {"split": "mine", "num_images": 3, "step": 2, "checkpoint": str(checkpoint)}
    wanted |= {"scales": [0.5, 1.25], "flip": True}
    assert {name: metrics[name] for name in wanted} == wanted
    # Without a line of void and an odd class out, every pixel of the three images counts.
    counts = np.loadtxt(
        out.with_name("mine_confusion_matrix.csv"), int, delimiter=",", skiprows=1,
        usecols=range(1, 1 + CLASSES),
    )  # fmt: skip
    assert counts.sum() == 3 * (SIDES[0] - 1) * SIDES[1]


def test_predict(root, trained, tmp_path):
    common = {
        "mode": "predict",
        "model_dir": trained,
        "output_dir": tmp_path / "out",
        "num_classes": CLASSES,
        "checkpoint": trained / "checkpoints" / "ckpt-2",
        "eval_scales": "0.5,1.25",
        "eval_flip": "true",
        "predict_scale": "0.75",
        "max_pixels": "100000",
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
        **{"batch_size": "3", "tile": "70,80", "overlap": "7", "save_probabilities": "true"},
    }
    of_split = {"data_dir": root / "data", "ignore_label": VOID, "eval_split": "theirs"}
    of_files = {"input": tmp_path / "in"}
    names = {*common, *of_split, *of_files, "submission"}
    assert names == {name for name, modes in USED.items() if "predict" in modes}
    (tmp_path / "in").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    (tmp_path / "in" / "street.png").write_bytes(encoded(picture, "png"))
    for places, found in ((of_split, NUM_THEIRS), (of_files, 1)):
        with (
            devices_noted() as devices,
            noted(predict.prediction, "predict") as calls,
            noted(predict, "load_network") as loads,
        ):
            done = train_here(
                *(f"--{name}={value}" for name, value in {**common, **places}.items())
            )
        assert done.code == 0, done.stderr
        assert devices == WANTED_DEVICES
        (call,) = calls
        assert list(call["scales"]) == [0.5, 1.25] and call["flip"] is True
        assert call["sizes"].resize_factor == 0.75 and call["submission"] is None
        assert (call["batch_size"], call["tile"], call["overlap"]) == (3, (70, 80), 7)
        assert call["save_probabilities"] is True
        few = {**common, **places, "max_pixels": 9}
        with devices_noted():
            refused = train_here(*(f"--{name}={value}" for name, value in few.items()))
        assert refused.code == 1 and "more than the limit of 9 in all" in refused.error
        assert loads[0]["arguments"][:2] == (str(trained), str(common["checkpoint"]))
        files = [path.name for path in (tmp_path / "out").rglob("*_labels.png")]
        assert len(files) == found + (NUM_THEIRS if places is of_files else 0)
    # Its classes are not those of the benchmark, which is why it is refused.
    places = (f"--model_dir={trained}", f"--output_dir={tmp_path / 'out'}")
    done = train_here(
        *("--mode=predict", *places, f"--input={tmp_path / 'in'}", "--submission=cityscapes")
    )
    assert done.code == 2 and "--submission=cityscapes needs a network of the 19" in done.error


def test_demo(root, trained, tmp_path):
    flags = {
        "mode": "demo",
        "model_dir": trained,
        "data_dir": root / "data",
        "num_classes": CLASSES,
        "ignore_label": VOID,
        "eval_split": "theirs",
        "checkpoint": trained / "checkpoints" / "ckpt-2",
        "predict_scale": "0.75",
        "max_pixels": SIDES[0] * SIDES[1],
        "port": 0,
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
    }
    assert flags.keys() == {name for name, modes in USED.items() if "demo" in modes}
    pages = []

    def serve(segment, about, *, port, folder, examples):
        assert folder.is_dir() and 0 < port < 2**16
        read = [Image.open(path).getpixel((0, 0))[0] for path in examples]
        sizes = {Image.open(path).size for path in examples}
        found = segment(examples[0]) if examples else None
        pages.append((about, read, sizes, folder, found))
        raise KeyboardInterrupt

    with (
        devices_noted() as devices,
        noted(demo, "load_network") as loads,
        noted(demo, "Segmenter") as made,
        mock.patch.object(demo.demo_page, "serve", serve),
    ):
        done = train_here(*(f"--{name}={value}" for name, value in flags.items()))
        assert done.code == 0, done.stderr
        # One pixel less, and no image of the data is shown.
        flags |= {"max_pixels": SIDES[0] * SIDES[1] - 1}
        few = train_here(*(f"--{name}={value}" for name, value in flags.items()))
        assert few.code == 0, few.stderr
    assert devices == WANTED_DEVICES
    assert loads[0]["arguments"][:2] == (str(trained), str(flags["checkpoint"]))
    assert made[0]["sizes"].resize_factor == 0.75
    assert made[0]["max_pixels"] == SIDES[0] * SIDES[1]
    (about, read, sizes, folder, found), (_, none, *_) = pages
    assert none == []
    assert "2 steps" in about.words and len(about.class_names) == CLASSES
    # The records of the split `theirs` are red by 100 and more.
    assert read == [*range(100, 100 + NUM_THEIRS)] and sizes == {SIDES[::-1]}
    assert found.labels.shape == SIDES and not folder.exists()
    assert "the page is closed, and what was uploaded is removed" in done.stderr


def test_export(root, trained, tmp_path):
    flags = {
        "mode": "export",
        "model_dir": trained,
        "data_dir": root / "data",
        "num_classes": CLASSES,
        "ignore_label": VOID,
        "eval_split": "theirs",
        "max_eval_images": 2,
        "checkpoint": trained / "checkpoints" / "ckpt-2",
        "export_dir": tmp_path / "models",
        "export_probabilities": "true",
        "predict_scale": "0.75",
        "max_pixels": "20000",
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
    }
    others = {
        **{"export_format": "onnx,saved_model", "export_precision": "float16"},
        **{"export_size": "33,40", "min_equal_labels": "0.25"},
    }
    all_flags = {name for name, modes in USED.items() if "export" in modes}
    assert flags.keys() | others.keys() == all_flags
    with (
        devices_noted() as devices,
        noted(export.saved_models, "export") as calls,
        noted(export, "load_network") as loads,
        noted(export, "read_eval_images") as reads,
    ):
        done = train_here(*(f"--{name}={value}" for name, value in flags.items()))
    assert done.code == 0, done.stderr
    assert devices == WANTED_DEVICES
    assert calls[0]["sizes"].resize_factor == 0.75 and calls[0]["max_pixels"] == 20000
    assert loads[0]["arguments"][:2] == (str(trained), str(flags["checkpoint"]))
    description, split = reads[0]["arguments"]
    assert (description.ignore_label, split, reads[0]["max_images"]) == (VOID, "theirs", 2)
    signature = tf.saved_model.load(str(tmp_path / "models" / "1")).signatures["serving_default"]
    assert signature.structured_outputs.keys() == {"labels", "probabilities"}
    (report,) = json.loads(done.stdout.splitlines()[-1])
    assert report["equal_labels"] == 1 and report["num_images"] == 2

    flags |= {"predict_scale": 1, "precision": "float32", "checkpoint": "best"}
    with devices_noted(), noted(export.formats, "write") as writes:
        done = train_here(*(f"--{name}={value}" for name, value in (flags | others).items()))
    assert done.code == 0, done.stderr
    form, plain, _, precision, _ = writes[0]["arguments"]
    assert (form, list(plain.size), precision) == ("onnx", [33, 40], "float16")
    written = [json.loads(path.read_text()) for path in (tmp_path / "models").rglob("export.json")]
    found = {(one["format"], one["precision"], tuple(one["image_size"])) for one in written}
    # The first one's images are of the size of the data.
    assert {("onnx", "float16", (33, 40)), ("saved_model", "float32", (33, 40))} < found
    # What cannot be kept to is refused, and nothing is there afterwards.
    others |= {"min_equal_labels": 1, "export_format": "saved_model,onnx,openvino"}
    before = sorted((tmp_path / "models").rglob("*"))
    with devices_noted(), mock.patch.object(export.formats, "load", wrong_engine):
        done = train_here(*(f"--{name}={value}" for name, value in (flags | others).items()))
    assert done.code == 1 and "less than 100.0%: nothing is exported" in done.error, done.stderr
    # Not even those that would do.
    assert sorted((tmp_path / "models").rglob("*")) == before
    done = train_here(
        *(f"--{name}={value}" for name, value in (flags | others).items()), "--max_pixels=99"
    )
    assert done.code == 2 and "--export_size=33,40 is more than --max_pixels=99" in done.error


def wrong_engine(form, path, load=formats.load):
    """Engines as they are, but OpenVINO's gives labels that are wrong everywhere."""
    if form != "openvino":
        return load(form, path)
    return lambda images: {"labels": np.full(images.shape[:3], 254, np.uint8)}


def test_profile(root, trained, tmp_path):
    network = {
        "mode": "profile",
        "genotype": root / "genotype.json",
        "filter_multiplier": 3,
        "stem_filters": "4,6,8",
        "head_filters": 7,
        "num_classes": 9,
        "crop_size": "65,97",
    }
    done = train_here(*(f"--{name}={value}" for name, value in network.items()))
    assert done.code == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    again = Network(
        GENOTYPE, num_classes=9, filter_multiplier=3, stem_filters=(4, 6, 8), head_filters=7
    )
    again.build((None, None, None, 3))
    assert said["params_millions"] * 1e6 == pytest.approx(again.count_params() - frozen(again))
    assert said["crop_size"] == [65, 97]
    # A run's network is counted by itself.
    done = train_here("--mode=profile", f"--model_dir={trained}", "--crop_size=65,97")
    of_run = json.loads(done.stdout.splitlines()[-1])
    classes = 9 - CLASSES  # a kernel [1, 1, 7, classes] and as many biases
    difference = said["params_millions"] - of_run["params_millions"]
    assert difference * 1e6 == pytest.approx((7 + 1) * classes)

    # At the size of its own images, timed on the devices that are wanted.
    own = {"mode": "profile", "model_dir": trained, "latency": "true", "precision": "bfloat16"}
    own |= {"distribution_strategy": "mirrored", "deterministic": "true"}
    with devices_noted() as devices, noted(profile, "make_answer") as answers:
        done = train_here(*(f"--{name}={value}" for name, value in own.items()))
    assert done.code == 0, done.stderr
    assert devices == WANTED_DEVICES and answers[0]["arguments"][1] == CLASSES
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["crop_size"] == list(SIDES) and said["params_millions"] == of_run["params_millions"]
    times = said["latency"]
    assert 0 < times["fastest_ms"] <= times["median_ms"] <= times["slowest_ms"]
    assert times["runs"] == 15 and f"an image of {SIDES[0]} x {SIDES[1]}: " in done.stdout

    table = {
        "mode": "profile",
        "cost_table": tmp_path / "costs.json",
        "cost_metric": "latency",
        "operations": "skip_connect,sep_conv_5x5,none",
        "num_blocks": 3,
        "num_layers": 4,
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
    } | {name: network[name] for name in cost_table.SETTINGS if name in network}
    given = {*network, *table, *own}
    assert given == {name for name, modes in USED.items() if "profile" in modes}
    with devices_noted() as devices:
        done = train_here(*(f"--{name}={value}" for name, value in table.items()))
    assert done.code == 0, done.stderr
    assert devices == WANTED_DEVICES
    said, found = json.loads(done.stdout.splitlines()[-1]), cost_table.load(table["cost_table"])
    assert (said["metric"], found.metric, said["num_layers"]) == ("latency", "latency", 4)
    wanted = {
        "operations": ["skip_connect", "sep_conv_5x5", "none"],
        "num_blocks": 3,
        "filter_multiplier": 3,
        "stem_filters": [4, 6, 8],
        "head_filters": 7,
        "num_classes": 9,
        "crop_size": [65, 97],
    }
    assert {name: found.settings[name] for name in wanted} == wanted
    bounds = expected_cost.compute_bounds(found, wanted["operations"], 4)
    assert (said["cheapest"], said["dearest"]) == pytest.approx(bounds)


def frozen(network):
    return sum(math.prod(variable.shape) for variable in network.non_trainable_variables)

"""TF1 checkpoints of the authors' network: names, values, answers, and what cannot be imported."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import auto_deeplab
from auto_deeplab.network.network import Network
from auto_deeplab.runs import run_record, tf1_checkpoint
from auto_deeplab.runs.tf1_checkpoint import (
    find,
    import_checkpoint,
    name_classes,
    read_step,
)
from auto_deeplab.runs.tf1_names import find_tf1_name
from auto_deeplab.space import genotype
from official import datasets
from official.errors import RunError, UsageError
from official.records import read_description
from tests.auto_deeplab import tf1_graph
from tests.command import ROOT, TINY_NETWORK, train_here
from tests.miniature import SIZE, write_cityscapes
from tfrecords_tools.convert import convert

SMALL = {"filters": 4, "classes": 19, "stem": (8, 8, 16), "depth": 16}
TABLE = tf1_graph.shapes(**SMALL)
STEP = 90
# Trained are all but the moving statistics, and each has a momentum.
SLOTS = {f"{name}/Momentum" for name in TABLE if "/moving_" not in name}


def checkpoint_of(values):
    """What a training in TF1 leaves: values, momenta and the step."""
    slots = {name: np.full(TABLE[name.removesuffix("/Momentum")], 9, np.float32) for name in SLOTS}
    return {**values, **slots, "global_step": np.int64(STEP)}


def import_there(*arguments, cwd):
    """python -m auto_deeplab.import_tf1 arguments, as typed in another directory."""
    return subprocess.run(
        [sys.executable, "-m", "auto_deeplab.import_tf1", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def values():
    return tf1_graph.random_values(TABLE)


@pytest.fixture(scope="module")
def root(tmp_path_factory, values):
    """data: a miniature; tf1/model.ckpt-90: a checkpoint; run: imported by the command."""
    root = tmp_path_factory.mktemp("import")
    convert("cityscapes", str(write_cityscapes(root / "source")), str(root / "data"))
    (root / "tf1").mkdir()
    tf1_graph.save(root / "tf1" / "model.ckpt-90", checkpoint_of(values))
    done = import_there("--checkpoint=tf1/model.ckpt-90", "--output_dir=run", cwd=root)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    (root / "words").write_text(done.stdout)
    return root


@pytest.fixture(scope="module")
def loaded(root):
    return auto_deeplab.load(root / "run")


def test_names_and_shapes_of_the_released_graph():
    table = tf1_graph.shapes(filters=20, classes=19)
    lines = "\n".join(sorted(f"{name} {list(shape)}" for name, shape in table.items()))
    # All names and shapes of the release's own graph, sorted and hashed when they were read off it.
    released = "51b07419cd0a0fd05d1fa158fd01be866fb1e943c68e6722ee02568201bd4ee9"
    assert hashlib.sha256(lines.encode()).hexdigest() == released
    network = Network(genotype.load("published"), num_classes=19, filter_multiplier=20)
    network.build((None, None, None, 3))
    assert len(network.variables) == len(table) == 1370
    assert {find_tf1_name(v.path): tuple(v.shape) for v in network.variables} == table


def test_every_value_arrives_in_its_variable(values, loaded):
    # Both graphs make their variables in the order of their parts, but TF1 adapts H^{l-2} first.
    names = list(TABLE)
    for number in range(12):
        start = names.index(f"hnasnet/cell_{number}/prev_1x1/weights")
        names[start : start + 10] = names[start + 5 : start + 10] + names[start : start + 5]
    assert len(loaded.variables) == len(names)
    for variable, name in zip(loaded.variables, names, strict=True):
        np.testing.assert_array_equal(variable, values[name], err_msg=f"{variable.path}, {name}")


def test_answers_equal_the_released_graph(values, loaded):
    images = np.random.default_rng(5).integers(0, 256, (2, 65, 129, 3), np.uint8)
    expected = tf1_graph.logits(values, images)
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(loaded(images), expected, rtol=0, atol=tolerance)
    # The comparison sees the image, and every part of the network.
    assert np.abs(tf1_graph.logits(values, 255 - images) - expected).max() > 1e4 * tolerance
    parts = ["hnasnet/conv1_bn", *(f"hnasnet/cell_{number}/beginning_bn" for number in range(12))]
    parts += [f"{name}/BatchNorm" for name in ("image_pooling", "aspp0", "aspp1", "aspp2", "aspp3")]
    for part in parts:
        changed = {**values, f"{part}/gamma": 1.5 * values[f"{part}/gamma"]}
        change = np.abs(tf1_graph.logits(changed, images[:1]) - expected[:1]).max()
        assert change > 100 * tolerance, part


def test_a_loaded_model_takes_all_kinds_of_images(loaded):
    images = np.random.default_rng(6).integers(0, 256, (2, *SIZE, 3), np.uint8)
    logits = loaded(images)
    assert logits.dtype == tf.float32 and logits.shape == (2, *SIZE, 19)
    for kind in (np.float32, np.float64):
        np.testing.assert_array_equal(loaded(images.astype(kind)), logits)
    predicted = loaded.predict(images, verbose=0)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, logits, atol=1e-4)


def test_the_command_says_what_it_found(root):
    mapped, network, path, *cell, classes, last = (root / "words").read_text().splitlines()
    assert mapped == (
        f"tf1/model.ckpt-90: {len(TABLE)} variables mapped, {len(SLOTS)} optimizer slots and "
        "global_step skipped"
    )
    parameters = sum(np.prod(TABLE[name.removesuffix("/Momentum")]) for name in SLOTS)
    assert "F = 4, 19 classes" in network and f"{parameters:,} parameters" in network
    assert "stem 8, 8, 16, ASPP and decoder 16" in network
    assert path.startswith("path: 12 layers at strides 4 4 4 8") and len(cell) == 1 + 5
    assert "road, sidewalk, building, ..." in classes and "guess" in classes
    assert last.startswith("imported at step 90: run, ")


def test_the_directory_is_that_of_a_finished_training(root):
    run = root / "run"
    assert {path.name for path in run.iterdir()} == {"checkpoints", "genotype.json", "run.json"}
    assert tf.train.latest_checkpoint(str(run / "checkpoints")) == str(run / "checkpoints/ckpt-90")
    found = genotype.load(run / "genotype.json")
    assert found == genotype.load("published")
    assert found.meta["imported"] == str(root / "tf1" / "model.ckpt-90")
    record = run_record.read(str(run), "train")
    assert set(run_record.NETWORK) <= record["identity"].keys()
    assert record["class_names"] == list(datasets.CITYSCAPES_NAMES)
    assert not [path for path in root.iterdir() if path.name.endswith(".tmp")]


def test_eval_predict_export_and_profile_take_it(root, loaded, tmp_path):
    run = f"--model_dir={root / 'run'}"
    # The names were guessed, so data with others is as good: its names are used.
    data = shutil.copytree(root / "data", tmp_path / "data")
    metadata = data / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"person"', '"people"'))
    done = train_here("--mode=eval", run, f"--data_dir={data}")
    assert done.code == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["step"] == STEP and "people" in metrics["class_names"]
    image_dir = root / "source/leftImg8bit/val"
    done = train_here("--mode=predict", run, f"--input={image_dir}", f"--output_dir={tmp_path}")
    assert done.code == 0, done.stderr
    done = train_here("--mode=export", run, f"--export_dir={tmp_path / 'export'}")
    assert done.code == 0, done.stderr

    (picture, *_) = sorted(image_dir.rglob("*.png"))
    image = np.asarray(Image.open(picture))[np.newaxis]
    expected = np.argmax(loaded(image), -1)
    assert len(np.unique(expected)) > 1
    (labels,) = tmp_path.rglob(f"{picture.stem}_labels.png")
    served = tf.saved_model.load(str(tmp_path / "export" / "1"))
    answer = served.signatures["serving_default"](images=tf.constant(image))["labels"]
    for found in (np.asarray(Image.open(labels)), answer[0].numpy()):
        assert np.mean(found == expected[0]) > 0.999  # but for ties in the last bit

    done = train_here("--mode=profile", run, "--crop_size=33", "--num_classes=19")
    assert done.code == 0, done.stderr
    parameters = sum(np.prod(TABLE[name.removesuffix("/Momentum")]) for name in SLOTS)
    cost = json.loads(done.stdout.splitlines()[-1])
    assert cost["params_millions"] == pytest.approx(parameters / 1e6)


def test_modes_that_do_not_fit_an_imported_network(root, tmp_path):
    run = root / "run"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    common = (f"--model_dir={run}", f"--data_dir={root / 'data'}")
    for more in ((), ("--genotype=published",)):
        done = train_here("--mode=train", *common, *TINY_NETWORK, "--norandom_scale", *more)
        assert done.code == 2 and "imported" in done.error
        assert f"choose another --model_dir and give --init_checkpoint={run}" in done.error
    done = train_here("--mode=search", *common, "--crop_size=33", "--batch_size=2")
    assert done.code == 2 and "choose another directory" in done.error
    for mode in ("profile", "export"):
        done = train_here(f"--mode={mode}", f"--model_dir={run}", "--num_classes=20")
        assert done.code == 2, done.stderr
        assert "--num_classes=20" in done.error and "has 19 classes" in done.error

    data = shutil.copytree(root / "data", tmp_path / "data")
    other = json.loads((data / "metadata.json").read_text())
    other["class_names"], other["palette"] = other["class_names"][:7], other["palette"][:7]
    (data / "metadata.json").write_text(json.dumps(other))
    done = train_here("--mode=eval", f"--model_dir={run}", f"--data_dir={data}")
    assert done.code == 2
    assert str(data) in done.error and "trained on 19 classes" in done.error
    with pytest.raises(RunError, match=r"has 7 classes, the network in the checkpoint 19"):
        import_checkpoint(str(root / "tf1"), str(tmp_path / "no"), read_description(str(data)))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert not (tmp_path / "no").exists()


def test_names_from_data_are_no_guess(root, tmp_path):
    data = shutil.copytree(root / "data", tmp_path / "data")
    metadata = data / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"person"', '"people"'))
    run = tmp_path / "deep" / "run"
    import_checkpoint(str(root / "tf1"), str(run), read_description(str(data)))
    assert "people" in run_record.read(str(run), "train")["class_names"]
    eval_mode = ("--mode=eval", f"--model_dir={run}", f"--data_dir={root / 'data'}")
    assert "give data of the same classes" in train_here(*eval_mode).error


def test_class_names_by_their_number():
    for count, dataset, names, palette in (
        (19, "cityscapes", datasets.CITYSCAPES_NAMES, datasets.CITYSCAPES_PALETTE),
        (21, "voc2012", datasets.VOC_NAMES, datasets.VOC_PALETTE),
        (3, "unknown", ("class 0", "class 1", "class 2"), datasets.make_distinct_palette(3)),
    ):
        classes = name_classes(count, None)
        assert (classes.dataset, *map(tuple, classes[1:3])) == (dataset, names, palette)
        assert classes.guessed


def test_ways_to_name_a_checkpoint(tmp_path):
    prefix = str(tmp_path / "model.ckpt-10")
    for step in (9, 10):
        tf1_graph.save(tmp_path / f"model.ckpt-{step}", {"x": np.float32(0)})
    assert find(prefix) == find(f"{prefix}.index") == find(f"{prefix}.meta") == prefix
    assert find(f"{prefix}.data-00000-of-00001") == prefix
    assert find(str(tmp_path)) == prefix  # the highest step, not the last in the alphabet
    # The file that names the newest one is obeyed, but never leads to another directory.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("model.ckpt-9", "model.ckpt-99"):
        tf1_graph.save(elsewhere / name, {"x": np.float32(0)})
    for named, found in (("9", "9"), ("99", "10")):
        text = f'model_checkpoint_path: "{elsewhere}/model.ckpt-{named}"\n'
        (tmp_path / "checkpoint").write_text(text)
        assert find(str(tmp_path)) == str(tmp_path / f"model.ckpt-{found}")
    assert (read_step("a/model.ckpt-90"), read_step("a-7/model.ckpt"), read_step("b-x")) == (
        90,
        0,
        0,
    )


def test_moving_averages_are_taken_where_the_training_kept_them(values, tmp_path):
    # All that is trained has one; moving statistics are averages themselves.
    trained = [name for name in TABLE if "/moving_" not in name]
    averages = {f"{name}/ExponentialMovingAverage": values[name] for name in trained}
    plain = {name: 0 * value if name in trained else value for name, value in values.items()}
    tf1_graph.save(tmp_path / "averaged", {**plain, **averages})
    words = import_checkpoint(str(tmp_path / "averaged"), str(tmp_path / "run"))
    assert f"{len(TABLE)} variables mapped ({len(trained)} of them moving averages)\n" in words
    assert "imported at step 0: " in words  # neither global_step nor a number in its name
    reference = {find_tf1_name(v.path): v for v in auto_deeplab.load(tmp_path / "run").variables}
    for name, value in values.items():
        np.testing.assert_array_equal(reference[name], value, err_msg=name)


def without(values, name):
    return {key: value for key, value in values.items() if key != name}


DEEP = "hnasnet/cell_7/comb_iter_3/left/separable_5x5_2/pointwise_weights"
WRONG = {
    "another network": (
        lambda values: {"resnet/conv1/weights": np.zeros((7, 7, 3, 64), np.float32)},
        [
            "nas_hnasnet of F = 20",
            "1370 variable(s) that it lacks (hnasnet/",
            "resnet/conv1/weights",
        ],
    ),
    "a variable is missing": (
        lambda values: without(values, DEEP),
        [f"1 variable(s) that it lacks ({DEEP})"],
    ),
    "a variable is left over": (
        lambda values: {**values, "hnasnet/cell_12/1x1/weights": np.float32(0)},
        ["1 variable(s) that only it has (hnasnet/cell_12/1x1/weights)"],
    ),
    "a wrong shape": (
        lambda values: {**values, DEEP: np.zeros((1, 1, 16, 15), np.float32)},
        [f"1 variable(s) of another shape or type in it ({DEEP} (1, 1, 16, 15), not (1, 1, 16"],
    ),
    "another F in one cell": (
        lambda values: {**values, "hnasnet/cell_0/1x1/weights": np.zeros((1, 1, 16, 5))},
        ["F = 5", "another shape or type in it (hnasnet/cell_0/", ", ..."],
    ),
    "numbers that are none": (
        lambda values: {**values, DEEP: np.full(TABLE[DEEP], np.nan, np.float32)},
        [f"{DEEP} is not finite"],
    ),
    "separable convolutions in ASPP": (
        lambda values: {**values, "aspp1_depthwise/depthwise_weights": np.float32(0)},
        ["only it has (aspp1_depthwise", "aspp_with_separable_conv=false"],
    ),
    "half of the moving averages": (
        lambda values: {**values, f"{DEEP}/ExponentialMovingAverage": values[DEEP]},
        [f"{len(SLOTS) - 1} variable(s) that it lacks (hnasnet/conv0/weights/ExponentialMoving"],
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_checkpoints_that_do_not_fit(values, tmp_path, kind):
    change, saying = WRONG[kind]
    tf1_graph.save(tmp_path / "model.ckpt-1", change(values))
    with pytest.raises(RunError) as caught:
        import_checkpoint(str(tmp_path / "model.ckpt-1"), str(tmp_path / "new" / "run"))
    for words in [str(tmp_path / "model.ckpt-1"), *saying]:
        assert words in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_checkpoints_that_are_not_there_or_damaged(root, tmp_path):
    out = str(tmp_path / "run")
    for path, saying in (
        (root / "tf1" / "model.ckpt-91", "no .*model.ckpt-91.index.* up to its step"),
        (root / "source", "no checkpoint in this directory"),
    ):
        with pytest.raises(RunError, match=rf"--checkpoint={re.escape(str(path))}: .*{saying}"):
            import_checkpoint(str(path), out)
    copy = shutil.copytree(root / "tf1", tmp_path / "tf1")
    (data,) = copy.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(RunError, match=r"model.ckpt-90 is damaged or incomplete \("):
        import_checkpoint(str(copy), out)
    data.unlink()
    with pytest.raises(RunError, match=r"model.ckpt-90 is damaged or incomplete \("):
        import_checkpoint(str(copy), out)
    index = copy / "model.ckpt-90.index"
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(RunError, match=r"model.ckpt-90 is damaged or incomplete \("):
        import_checkpoint(str(copy), out)
    index.unlink()
    done = import_there(f"--checkpoint={copy / 'model.ckpt-90'}", f"--output_dir={out}", cwd=root)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: --checkpoint=") and len(done.stderr.splitlines()) == 1
    assert not os.path.exists(out)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\xff\xfe\0" * 50, b"model_checkpoint_path", b"x" * 10**6, None),
        b'model_checkpoint_path: "/a/b"\n' * 3,
    ],
)
def test_a_damaged_file_beside_it_does_not_matter(root, tmp_path, content):
    copy = shutil.copytree(root / "tf1", tmp_path / "tf1")
    if content is None:
        os.mkfifo(copy / "checkpoint")
    else:
        (copy / "checkpoint").write_bytes(content)
    assert find(str(copy)) == str(copy / "model.ckpt-90")


@pytest.mark.parametrize(
    ("name", "wide", "saying"),
    [
        # A network of 8 TB.
        ("hnasnet/cell_0/1x1/weights", 60_000, "of F = 60000: 1369 variable"),
        ("hnasnet/cell_0/1x1/weights", 10**6, "1x1/weights has 1000000 channels, not 1 to"),
        ("concat_projection/weights", 0, "concat_projection/weights has 0 channels"),
        ("logits/semantic/weights", 257, "weights has 257 channels, not 1 to 256"),
    ],
)
def test_widths_are_compared_before_a_network_is_built(tmp_path, name, wide, saying):
    prefix = tmp_path / "model.ckpt-1"
    tf1_graph.save(prefix, {name: np.zeros([1, 1, 1, wide], np.float32)})
    with pytest.raises(RunError, match=rf"{prefix} does not hold .*{saying}"):
        import_checkpoint(str(prefix), str(tmp_path / "run"))


def test_what_is_claimed_is_not_built(tmp_path, monkeypatch):
    # Of a stem so wide that the network would take 20 GB, the file holds nothing.
    wide = {"hnasnet/conv0/weights": np.zeros([3, 3, 3, 2_000_000], np.float32)}
    prefix = tmp_path / "model.ckpt-1"
    tf1_graph.save(prefix, wide)
    (data,) = tmp_path.glob("*.data-*")
    data.write_bytes(data.read_bytes()[:1000])
    monkeypatch.setattr(tf1_checkpoint, "make_network", None)  # nobody comes there
    with pytest.raises(RunError, match=r"damaged .* tells of 216000000 bytes and has 1000"):
        import_checkpoint(str(prefix), str(tmp_path / "run"))


def test_a_directory_that_is_there_stays_as_it_is(root, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("mine")
    for place in (mine, mine / "notes", root / "run"):
        with pytest.raises(UsageError, match=f"--output_dir={place} is there already"):
            import_checkpoint(str(root / "tf1"), str(place))
    with pytest.raises(RunError, match="notes"):
        import_checkpoint(str(root / "tf1"), str(mine / "notes" / "run"))

    def no_space(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_record, "write", no_space)
    with pytest.raises(RunError, match=r"no space is left for .*run .*nothing was kept"):
        import_checkpoint(str(root / "tf1"), str(mine / "run"))
    assert [path.name for path in mine.iterdir()] == ["notes"]

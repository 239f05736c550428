"""A run knows the scale of its data: photographs in their own size get the answers of the data's.

The network was trained on data of half size, for two steps: its answers are noise, and so show any
difference.
"""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import auto_deeplab
from official.checkpoints import Checkpoints
from official.input_pipeline import read_eval_images
from official.records import read_description
from official.sizes import OWN_SIZE, Sizes
from tests.command import TINY_GENOTYPE, TINY_NETWORK, train_here
from tfrecords_tools.convert import convert
from tfrecords_tools.toy_scenes import write_dataset

SIZE = (66, 97)
IMAGES = "scenes/leftImg8bit/val/toyville"
HALF = "scale: images scaled by 0.5 for the network, answers as large as the images"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """scenes; data, half, small: converted whole, halved, to 50 pixels; run: trained on half."""
    root = tmp_path_factory.mktemp("scale")
    write_dataset(str(root / "scenes"), num_train=3, num_val=2, size=SIZE)
    convert("cityscapes", str(root / "scenes"), str(root / "data"))
    convert("cityscapes", str(root / "scenes"), str(root / "half"), 0.5)
    convert("cityscapes", str(root / "scenes"), str(root / "small"), max_side=50)
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    succeed(
        *("--mode=train", f"--genotype={root / 'genotype.json'}", *TINY_NETWORK),
        *(f"--data_dir={root / 'half'}", f"--model_dir={root / 'run'}", "--train_steps=2"),
        "--batch_norm_decay=0.1",
    )
    # After so few steps one class wins everywhere. Now all have their turn, as pixels look.
    network = auto_deeplab.load(root / "run")
    mean = tf.reduce_mean(network(next(iter(photographs(root).values()))), [0, 1, 2])
    kernel, bias = network.decoder.logits.variables
    bias.assign(bias - mean)
    for variable in (kernel, bias):
        variable.assign(100 * variable)
    Checkpoints(str(root / "run" / "checkpoints"), {"weights": network.variables}).save(3)
    return root


@pytest.fixture(scope="module")
def network(root):
    return auto_deeplab.load(root / "run")


def succeed(*arguments):
    done = train_here(*arguments)
    assert done.code == 0, done.stderr
    return done


def predicted(root, out, *arguments, run="run"):
    """The label maps by name that --mode=predict writes, and what it says."""
    done = succeed(
        *("--mode=predict", f"--model_dir={root / run}", f"--output_dir={out}", *arguments)
    )
    found = sorted(out.rglob("*_labels.png"))
    return {path.name: np.asarray(Image.open(path)) for path in found}, done.stderr


def photographs(root):
    """Name of its label map -> uint8 [1, *SIZE, 3]."""
    found = sorted((root / IMAGES).glob("*.png"))
    return {f"{path.stem}_labels.png": np.asarray(Image.open(path))[np.newaxis] for path in found}


def records(root, data):
    """The validation images of a data directory, uint8 [1, H, W, 3], in order."""
    return [
        element["image"] for element in read_eval_images(read_description(str(root / data)), "val")
    ]


def labels(scores):
    return tf.argmax(scores[0], -1).numpy()


def test_the_run_remembers(root, network):
    assert json.loads((root / "run" / "run.json").read_text())["scale"] == {"resize_factor": 0.5}
    assert network.sizes == Sizes(0.5)


def test_a_photograph_is_answered_as_its_record(root, network, tmp_path):
    answers, words = predicted(root, tmp_path, f"--input={root / IMAGES}")
    assert HALF in words.splitlines()
    assert answers.keys() == photographs(root).keys()
    for answer, record in zip(answers.values(), records(root, "half"), strict=True):
        assert answer.shape == SIZE
        # Each logit at its place among twice as many pixels, all pixels' centres on centres.
        expected = labels(tf.image.resize(network(record), SIZE))
        # The records' pixels are Pillow's, which a graph gives but for one in a hundred: these may
        # tip a label where two classes are as likely as each other.
        assert (answer == expected).mean() > 0.995
        assert len(np.unique(answer)) > 5
    twice = [labels(network(image)) for image in photographs(root).values()]
    assert all(
        (one == other).mean() < 0.98 for one, other in zip(twice, answers.values(), strict=True)
    )


def test_one_switches_it_off_and_other_factors_count(root, network, tmp_path):
    own, words = predicted(root, tmp_path / "1", f"--input={root / IMAGES}", "--predict_scale=1")
    assert "scale: images at their own size" in words.splitlines()
    other, words = predicted(
        root, tmp_path / "2", f"--input={root / IMAGES}", "--predict_scale=0.75"
    )
    assert "scale: images scaled by 0.75 for the network" in words
    for name, image in photographs(root).items():
        np.testing.assert_array_equal(own[name], labels(network(image)))
        np.testing.assert_array_equal(other[name], labels(Sizes(0.75).answer(network, image)))


@pytest.mark.parametrize(
    ("data", "sizes", "words"),
    [
        ("data", Sizes(0.5), HALF),
        ("half", OWN_SIZE, "scale: images at their own size"),
    ],
)
def test_records_are_at_their_datas_scale(root, network, tmp_path, data, sizes, words):
    answers, said = predicted(root, tmp_path, f"--data_dir={root / data}")
    assert words in said.splitlines()
    for answer, record in zip(answers.values(), records(root, data), strict=True):
        np.testing.assert_array_equal(answer, labels(sizes.answer(network, record)))


def test_records_whose_scale_does_not_lead_to_the_runs(root, tmp_path):
    common = ("--mode=predict", f"--model_dir={root / 'run'}", f"--data_dir={root / 'small'}")
    done = train_here(*common, f"--output_dir={tmp_path / 'out'}")
    assert done.code == 2
    assert "images of at most 50 pixels a side" in done.error
    assert "trained on images scaled by 0.5" in done.error and "--predict_scale" in done.error
    assert not (tmp_path / "out").exists()
    succeed(*common, f"--output_dir={tmp_path / 'out'}", "--predict_scale=1")


def test_evaluation_at_another_scale_says_so(root):
    common = ("--mode=eval", f"--model_dir={root / 'run'}")
    done = succeed(*common, f"--data_dir={root / 'data'}")
    (warning,) = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert "images at their own size" in warning and "images scaled by 0.5" in warning
    assert "warning" not in succeed(*common, f"--data_dir={root / 'half'}").stderr


@pytest.mark.parametrize(
    ("arguments", "sizes"), [((), Sizes(0.5)), (("--predict_scale=1",), OWN_SIZE)]
)
def test_a_saved_model_does_the_same(root, network, tmp_path, arguments, sizes):
    done = succeed(
        *("--mode=export", f"--model_dir={root / 'run'}", f"--export_dir={tmp_path}"),
        *("--export_probabilities", *arguments),
    )
    assert f"scale: {sizes}" in done.stderr
    served = tf.saved_model.load(str(tmp_path / "1")).signatures
    file = min((root / IMAGES).glob("*.png"))
    pixel = np.full((1, 1, 3), 9, np.uint8)
    for image, encoded in (
        (np.asarray(Image.open(file)), file.read_bytes()),
        (pixel, tf.io.encode_png(pixel).numpy()),
    ):
        scores = sizes.answer(network, image[np.newaxis])
        for answer in (
            served["serving_default"](images=tf.constant(image[np.newaxis])),
            served["serve_bytes"](image_bytes=tf.constant([encoded])),
        ):
            assert answer["labels"].shape == (1, *image.shape[:2])
            np.testing.assert_allclose(answer["probabilities"], tf.nn.softmax(scores), atol=1e-3)
            # Logits within rounding of each other may swap.
            assert (answer["labels"][0].numpy() == labels(scores)).mean() > 0.995


def test_a_longest_side(root, network, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["scale"] = Sizes(max_side=50).to_options()
    (run / "run.json").write_text(json.dumps(record))
    (tmp_path / "in").mkdir()
    images = {
        "large": next(iter(photographs(root).values())),
        "small": np.random.default_rng(0).integers(0, 256, (1, 31, 50, 3), np.uint8),
        "pixel": np.full((1, 1, 1, 3), 200, np.uint8),
    }
    for name, image in images.items():
        Image.fromarray(image[0]).save(tmp_path / "in" / f"{name}.png")
    answers, words = predicted(tmp_path, tmp_path / "out", f"--input={tmp_path / 'in'}")
    assert "scale: images of at most 50 pixels a side for the network" in words
    large = Sizes(50 / 97).answer(network, images["large"])  # 66 x 97 becomes 34 x 50
    np.testing.assert_array_equal(answers["large_labels.png"], labels(large))
    for name in ("small", "pixel"):
        np.testing.assert_array_equal(answers[f"{name}_labels.png"], labels(network(images[name])))


def test_a_run_that_is_too_old_to_know(root, network, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    del record["scale"]
    (run / "run.json").write_text(json.dumps(record))
    answers, words = predicted(tmp_path, tmp_path / "out", f"--input={root / IMAGES}")
    assert "scale: images at their own size" in words.splitlines()
    for name, image in photographs(root).items():
        np.testing.assert_array_equal(answers[name], labels(network(image)))
    done = succeed("--mode=eval", f"--model_dir={run}", f"--data_dir={root / 'data'}")
    assert "warning" not in done.stderr


def test_a_submission_of_photographs_is_as_large_as_they(root, tmp_path):
    common = ("--mode=predict", f"--model_dir={root / 'run'}", "--submission=cityscapes")
    done = succeed(*common, f"--input={root / IMAGES}", f"--output_dir={tmp_path}")
    assert HALF in done.stderr.splitlines()
    for path in tmp_path.rglob("*.png"):
        assert Image.open(path).size == SIZE[::-1]
    # Those of smaller records would be too small for the server.
    done = train_here(*common, f"--data_dir={root / 'half'}", f"--output_dir={tmp_path / 'half'}")
    assert done.code == 2 and "--resize_factor=0.5" in done.error

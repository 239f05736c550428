import io
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab.network.network import Network
from auto_deeplab.space.genotype import Genotype
from official.drawing import draw_overlay
from official.errors import RunError
from official.export import export
from official.images import decode_image
from official.sizes import Sizes
from tests.command import ROOT

NAMES = ["sky", "Straße", "car"]
PALETTE = [(70, 130, 180), (128, 64, 128), (0, 0, 142)]

# Runs without the repository: answers every case of cases.npz by both signatures.
CLIENT = """
import sys
import numpy as np
import tensorflow as tf

model = tf.saved_model.load(sys.argv[1])
cases = np.load(sys.argv[2], allow_pickle=True)
answers = {}
for key, value in cases.items():
    if key.startswith("bytes"):
        given = {"image_bytes": tf.constant(list(value))}
        answer = model.signatures["serve_bytes"](**given)
    else:
        answer = model.signatures["serving_default"](images=tf.constant(value))
    for name, output in answer.items():
        answers[f"{key} {name}"] = output.numpy()
answers["assets"] = [open(a.asset_path.numpy(), encoding="utf-8").read() for a in model.assets]
answers["project"] = [m for m in sys.modules if m.split(".")[0] in ("auto_deeplab", "official")]
np.savez(sys.argv[3], **answers)
"""

# Exports a network with every operation at stride 1 and 2, and answers the images of cases.npz.
EXPORTER = """
import sys
import numpy as np
import tensorflow as tf
from official.export import export
from auto_deeplab.space.genotype import Genotype
from auto_deeplab.network.network import Network
from auto_deeplab.space.search_space import KNOWN_OPERATIONS

names = [name for name in KNOWN_OPERATIONS if name != "none"]
pairs = zip(names[::2], [*names[1::2], names[0]], strict=True)
cell = tuple(((0, one), (1, other)) for one, other in pairs)
network = Network(
    Genotype((0, 1), (cell,)),  # in its first cell the operations have stride 1, in its second 2
    num_classes=3,
    filter_multiplier=2,
    stem_filters=(4, 4, 8),
    head_filters=8,
    low_level_filters=4,
)
network.build((None, None, None, 3))
rng = np.random.default_rng(0)
for variable in network.variables:  # to be told from 0 and from each other
    small = "kernel" in variable.path and "logits" not in variable.path
    variable.assign(rng.uniform(-0.3, 0.3, variable.shape) + (0 if small else 0.5))
images = np.load(sys.argv[2])["images"]
kernel, bias = network.decoder.logits.variables
bias.assign(bias - tf.reduce_mean(network(images), [0, 1, 2]))  # no class wins everywhere
for variable in (kernel, bias):
    variable.assign(20 * variable)
export(network, sys.argv[1], class_names=list("abc"), palette=np.eye(3), probabilities=True)
np.save(sys.argv[3], tf.nn.softmax(network(images)))
"""


class StandIn(keras.Model):
    """One 3x3 convolution in the place of a network, kept where Keras' own tracking is weakest."""

    def __init__(self, classes: int) -> None:
        super().__init__(name="stand_in_of_one_convolution")
        init = {"kernel_initializer": "random_normal", "bias_initializer": "random_normal"}
        self.cells = [[keras.layers.Conv2D(classes, 3, padding="same", **init)]]
        self(tf.zeros([1, 1, 1, 3]))

    def call(self, images, training=False):
        return self.cells[0][0](images / 127.5 - 1.0)


def encoded(image: np.ndarray, form: str = "png", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form, **options)
    return buffer.getvalue()


def images_of(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (batch, height, width, 3), np.uint8)


def answers_of(directory, cases, tmp_path, **environment: str) -> dict[str, np.ndarray]:
    """What a new process with TensorFlow, and without this project, gets from the SavedModel."""
    np.savez(tmp_path / "cases.npz", **cases)
    client, answers = tmp_path / "client.py", tmp_path / "answers.npz"
    client.write_text(CLIENT)
    # -I: neither the working directory nor PYTHONPATH is searched for modules.
    command = [sys.executable, "-I", client, directory, tmp_path / "cases.npz", answers]
    subprocess.run(
        command, check=True, cwd=tmp_path, timeout=120, env={**os.environ, **environment}
    )
    return dict(np.load(answers, allow_pickle=True))


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return StandIn(classes=3)


@pytest.mark.every_machine
def test_answers_equal_the_models_in_a_process_with_tensorflow_alone(model, tmp_path):
    grey = images_of(1, 6, 8)[0, :, :, 0]
    clear = np.concatenate([images_of(1, 6, 8)[0], images_of(1, 6, 8)[0, :, :, :1]], -1)
    jpeg = encoded(images_of(1, 16, 8)[0], "jpeg", quality=95)
    pairs = {"one": images_of(1, 5, 7), "two": images_of(2, 16, 9), "pixel": images_of(1, 1, 1)}
    pictures = {f"bytes {key}": [encoded(i) for i in value] for key, value in pairs.items()}
    pictures |= {"bytes mixed": [encoded(grey), encoded(clear)], "bytes jpeg": [jpeg]}
    # What those files hold, by another decoder.
    expected_images = {
        **pairs,
        **{f"bytes {key}": value for key, value in pairs.items()},
        "bytes mixed": np.stack([grey[..., None].repeat(3, -1), clear[..., :3]]),
        # Lossy, so decoders differ: it must be the one that made the training data.
        "bytes jpeg": decode_image(jpeg)[None].numpy(),
    }
    cases = {key: np.array(value, object) for key, value in pictures.items()}
    directory = export(
        model, tmp_path / "export", class_names=NAMES, palette=PALETTE, probabilities=True
    )
    answers = answers_of(directory, {**pairs, **cases}, tmp_path)
    for key, images in expected_images.items():
        logits = model(images.astype(np.float32))
        labels = answers[f"{key} labels"]
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, np.argmax(logits, -1))
        np.testing.assert_allclose(
            answers[f"{key} probabilities"], tf.nn.softmax(logits), atol=1e-5, err_msg=key
        )
    assert list(answers["project"]) == []
    assert list(answers["assets"]) == [
        "sky\nStraße\ncar\n",
        "70 130 180\n128 64 128\n0 0 142\n",
    ]


@pytest.mark.every_machine
def test_pictures_are_answered_with_pictures(model, tmp_path):
    """Of any sizes in one batch: labels as grey values, and predict's overlay."""
    directory = export(model, tmp_path, class_names=NAMES, palette=PALETTE)
    serve_png = tf.saved_model.load(str(directory)).signatures["serve_png"]
    assert set(serve_png.structured_outputs) == {"label_png_bytes", "overlay_png_bytes"}
    # Lines between classes are two pixels wide from a shorter side of 700 on.
    images = [images_of(1, *size)[0] for size in ((16, 9), (1, 1), (5, 31), (701, 702))]
    assert all(image.mean() > 0.36 * 255 for image in images)  # none is brightened
    answer = serve_png(image_bytes=tf.constant([encoded(image) for image in images]))
    for number, image in enumerate(images):
        labels = np.argmax(model(image[None].astype(np.float32)), -1)[0]
        pictures = [
            np.array(Image.open(io.BytesIO(answer[name][number].numpy())))
            for name in ("label_png_bytes", "overlay_png_bytes")
        ]
        np.testing.assert_array_equal(pictures[0], labels)
        overlay = draw_overlay(image, labels, np.array(PALETTE, np.uint8))
        np.testing.assert_array_equal(pictures[1], overlay)


HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0"


@pytest.mark.parametrize(
    ("files", "saying"),
    [
        ([b"no picture"], "neither PNG nor JPEG"),
        ([encoded(images_of(1, 4, 4)[0])[:40]], "PNG"),
        ([HUGE + b"\0" * 200], "60000 x 60000 pixels"),  # which is what its 233 bytes claim
        ([encoded(images_of(1, 4, 4)[0]), b""], "neither PNG nor JPEG"),
    ],
)
def test_a_picture_that_is_none_is_an_error_and_the_process_lives(model, tmp_path, files, saying):
    signatures = tf.saved_model.load(
        str(export(model, tmp_path, class_names=NAMES, palette=PALETTE))
    ).signatures
    for name in ("serve_png", "serve_bytes"):
        with pytest.raises(tf.errors.InvalidArgumentError, match=saying):
            signatures[name](image_bytes=tf.constant(files))
    good = signatures["serve_png"](image_bytes=tf.constant([encoded(images_of(1, 4, 4)[0])]))
    assert good["label_png_bytes"].shape == [1]
    for name, nothing in (
        ("serve_png", {"image_bytes": tf.constant([], tf.string)}),
        ("serve_bytes", {"image_bytes": tf.constant([], tf.string)}),
        ("serving_default", {"images": tf.zeros([0, 4, 4, 3], tf.uint8)}),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="the batch is empty"):
            signatures[name](**nothing)
    two = [encoded(images_of(1, *size)[0]) for size in ((4, 4), (4, 5))]
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be of one size: ask serve_png"):
        signatures["serve_bytes"](image_bytes=tf.constant(two))
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError)):
        signatures["serving_default"](images=tf.zeros([1, 4, 4, 3], tf.float32))


def test_versions_count_up_and_nothing_else_is_left(model, tmp_path):
    (tmp_path / "export" / "7").mkdir(parents=True)
    (tmp_path / "export" / "notes").mkdir()
    directory = export(model, tmp_path / "export", class_names=NAMES, palette=PALETTE)
    assert directory == tmp_path / "export" / "8"
    assert sorted(p.name for p in (tmp_path / "export").iterdir()) == ["7", "8", "notes"]
    assert sorted(p.name for p in (directory / "assets").iterdir()) == ["labels.txt", "palette.txt"]
    # Another user's server must be able to read it.
    assert directory.stat().st_mode & 0o777 == (tmp_path / "export" / "7").stat().st_mode & 0o777


def test_a_killed_export_is_cleaned_up_and_a_full_disk_is_one_line(model, tmp_path, monkeypatch):
    left = tmp_path / ".1.unfinished" / "content"
    left.mkdir(parents=True)
    (left / "saved_model.pb").write_text("half")
    assert export(model, tmp_path, class_names=NAMES, palette=PALETTE) == tmp_path / "1"
    assert os.listdir(tmp_path) == ["1"]

    def save(served, directory, **options):
        os.mkdir(os.path.join(directory, "variables"))
        raise tf.errors.ResourceExhaustedError(None, None, f"{directory}; No space left on device")

    monkeypatch.setattr(tf.saved_model, "save", save)
    with pytest.raises(RunError, match=r"^no space is left for .*/2 .*another --export_dir$"):
        export(model, tmp_path, class_names=NAMES, palette=PALETTE)
    assert os.listdir(tmp_path) == ["1"]


def test_probabilities_only_on_request(model, tmp_path):
    directory = export(model, tmp_path, class_names=NAMES, palette=PALETTE)
    loaded = tf.saved_model.load(directory)
    for name in ("serving_default", "serve_bytes"):
        assert set(loaded.signatures[name].structured_outputs) == {"labels"}


@pytest.mark.every_machine
def test_a_network_with_its_batch_norm_folded(tmp_path):
    cell = (
        ((0, "sep_conv_3x3"), (1, "atrous_conv_5x5")),
        ((2, "dil_conv_3x3"), (0, "skip_connect")),
    )
    keras.utils.set_random_seed(0)  # of the kernels
    network = Network(
        Genotype((0, 1), (cell,)),
        num_classes=3,
        filter_multiplier=2,
        stem_filters=(4, 4, 8),
        head_filters=8,
        low_level_filters=4,
    )
    network.build((None, None, None, 3))
    rng = np.random.default_rng(0)
    for variable in network.variables:  # as after some training
        if "kernel" not in variable.path or "logits" in variable.path:
            positive = variable.name in ("gamma", "moving_variance")
            variable.assign(rng.uniform(0.5 if positive else -1.0, 1.5, variable.shape))
    directory = export(network, tmp_path, class_names=NAMES, palette=PALETTE, probabilities=True)
    loaded = tf.saved_model.load(directory)
    # What is served are the variables, not constants made of them.
    assert {v.name: v.shape for v in loaded.model_variables} == {
        v.value.name: v.shape for v in network.variables
    }
    answers = []
    for images in (images_of(1, 40, 65), images_of(2, 33, 33)):
        answer = loaded.signatures["serving_default"](tf.constant(images))
        expected = tf.nn.softmax(network(images)).numpy()
        np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
        # Where two classes are as likely as each other but for rounding, either is right.
        first, second = np.sort(expected, -1)[..., :-3:-1].transpose(3, 0, 1, 2)
        clear = first - second > 1e-4
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(answer["labels"].numpy()[clear], expected.argmax(-1)[clear])
        answers.append(answer["probabilities"][0, :33, :33].numpy())
    assert np.abs(answers[0] - answers[1]).max() > 1e-3  # the image matters


@pytest.mark.parametrize(("here", "there"), ["10", "01"])
def test_answers_are_the_same_whatever_kernels_a_machine_has(tmp_path, here, there):
    # Without oneDNN TensorFlow lacks kernels on CPUs, such as that of a raw dilated depthwise
    # convolution: what one machine exports has to do without them, to run on the other.
    cases = {"images": images_of(1, 33, 49)}
    np.savez(tmp_path / "exported.npz", **cases)
    subprocess.run(
        [sys.executable, "-c", EXPORTER, "export", "exported.npz", "exported.npy"],
        check=True,
        cwd=tmp_path,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_ENABLE_ONEDNN_OPTS": here},
    )
    expected = np.load(tmp_path / "exported.npy")
    answers = answers_of(tmp_path / "export" / "1", cases, tmp_path, TF_ENABLE_ONEDNN_OPTS=there)
    np.testing.assert_allclose(answers["images probabilities"], expected, atol=1e-4)
    assert (answers["images labels"] == expected.argmax(-1)).mean() > 0.99
    assert len(np.unique(expected.argmax(-1))) == 3


def test_a_model_of_two_replicas(two_replicas, tmp_path):
    with two_replicas.scope():
        model = StandIn(classes=3)
    directory = export(model, tmp_path, class_names=NAMES, palette=PALETTE, probabilities=True)
    images = images_of(2, 4, 6)
    answer = tf.saved_model.load(directory).signatures["serving_default"](tf.constant(images))
    expected = tf.nn.softmax(model(images.astype(np.float32)))
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)


def test_what_cannot_be_exported_is_one_clear_line(model, tmp_path):
    export_dir = tmp_path / "export"
    with pytest.raises(RunError, match="257 classes"):
        export(model, export_dir, class_names=["x"] * 257, palette=[(0, 0, 0)] * 257)
    with pytest.raises(RunError, match="has 3 classes, the data 2"):
        export(model, export_dir, class_names=NAMES[:2], palette=PALETTE[:2])
    assert list(export_dir.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        export(model, tmp_path / "file", class_names=NAMES, palette=PALETTE)


def test_256_classes_fit(tmp_path):
    model = StandIn(classes=256)
    model.cells[0][0].bias.assign(np.float32([0] * 255 + [1e6]))  # always class 255
    directory = export(model, tmp_path, class_names=["x"] * 256, palette=[(0, 0, 0)] * 256)
    loaded = tf.saved_model.load(directory)
    labels = loaded.signatures["serving_default"](tf.constant(images_of(1, 2, 2)))["labels"]
    np.testing.assert_array_equal(labels, np.full((1, 2, 2), 255))


def test_an_image_above_the_limit_is_an_error_by_both_signatures_and_the_process_lives(
    model, tmp_path
):
    directory = export(
        *(model, tmp_path / "export"), class_names=NAMES, palette=PALETTE, max_pixels=6 * 8
    )
    signatures = tf.saved_model.load(str(directory)).signatures
    fits, too_large = images_of(2, 6, 8), images_of(2, 7, 7)
    for name, key, make in (
        ("serving_default", "images", tf.constant),
        ("serve_bytes", "image_bytes", lambda images: tf.constant([*map(encoded, images)])),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"7 x 7 pixels .* limit of 48"):
            signatures[name](**{key: make(too_large)})
        labels = signatures[name](**{key: make(fits)})["labels"]
        np.testing.assert_array_equal(labels, np.argmax(model(fits.astype(np.float32)), -1))


def test_what_a_killed_export_of_an_earlier_version_left_is_removed(model, tmp_path):
    old, new, other = (tmp_path / f"unfinished-{name}" for name in ("a1b2_c3d", "e4f5_g6h", "mine"))
    for path in (old, new, other):
        (path / "1").mkdir(parents=True)
        os.utime(path, (0, 0) if path != new else None)
    mine = tmp_path / "unfinished-projects"
    mine.mkdir()
    (mine / "1").write_text("")
    (mine / "mine.txt").write_text("")
    os.utime(mine, (0, 0))
    export(model, tmp_path, class_names=NAMES, palette=PALETTE)
    kept = ["1", new.name, other.name, mine.name]
    assert sorted(path.name for path in tmp_path.iterdir()) == kept


def test_what_an_exported_network_sees_is_bounded_too(model, tmp_path):
    # 2**25 * 2**2 = 2**27 pixels, the limit of what is decoded; 2.1 is above it
    common = {"class_names": NAMES, "palette": PALETTE, "max_pixels": 2**25}
    export(model, tmp_path / "export", sizes=Sizes(2.0), **common)
    with pytest.raises(
        RunError, match=r"--max_pixels=33554432 would be enlarged .*--predict_scale"
    ):
        export(model, tmp_path / "other", sizes=Sizes(2.1), **common)
    assert not (tmp_path / "other").exists()
    # As large as it is by its own flag, it may be.
    export(model, tmp_path / "export", **(common | {"max_pixels": 2**30}))

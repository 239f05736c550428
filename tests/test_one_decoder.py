"""Whatever reads a picture sees the same pixels: training, evaluation, prediction, serving."""

import io
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official.errors import RunError
from official.export import export
from official.input_pipeline import make_train_batches, read_eval_images
from official.prediction import open_pictures, read_picture
from official.records import read_description
from tfrecords_tools.convert import convert

SIZE = (33, 50)  # height, width


def photo(mode: str) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
    noise = rng.normal(0, 9, (*SIZE, 3))
    pixels = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC)) + noise
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    if mode == "CMYK":  # with some black, which Pillow's conversion never gives
        return Image.fromarray(np.concatenate([pixels, pixels[..., :1]], -1), mode)
    return Image.fromarray(pixels).convert(mode)


def sideways() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # upright after a quarter turn clockwise
    return exif


DEEP = Image.fromarray(np.random.default_rng(1).integers(0, 2**16, SIZE).astype(np.uint16))
FILES = {
    "444.jpg": (photo("RGB"), {"subsampling": 0}),
    "422.jpg": (photo("RGB"), {"subsampling": 1}),
    "420.jpg": (photo("RGB"), {"subsampling": 2}),
    "cmyk.jpg": (photo("CMYK"), {}),
    "deep.png": (DEEP, {}),
    "grey.jpg": (photo("L"), {}),
    "palette.png": (photo("RGB").quantize(32), {}),
    "progressive.jpg": (photo("RGB"), {"progressive": True}),
    "rgb.png": (photo("RGB"), {}),
    "see_through.png": (photo("RGBA"), {}),
    "sideways.jpg": (photo("RGB"), {"exif": sideways()}),
    "sideways.png": (photo("RGB"), {"exif": sideways()}),
}


class Seen(keras.Model):
    """A stand-in for a network, whose probabilities tell the pixels that it was given."""

    def call(self, images, training=False):
        # With a fourth logit of 0: value = 64 log(p_channel / p_3), as exp(255 / 64) is small.
        return tf.pad(images, [[0, 0], [0, 0], [0, 0], [0, 1]]) / 64.0


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("source")
    (root / "classes.txt").write_text("ground\nsky\n")
    for folder in ("images/train", "masks/train"):
        (root / folder).mkdir(parents=True)
    for name, (image, options) in FILES.items():
        # Two files may not differ in their suffix alone.
        stem, _, suffix = name.partition(".")
        path = root / "images" / "train" / f"{stem}_{suffix}.{suffix}"
        image.save(path, **options)
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(root / "masks/train" / f"{path.stem}.png")
    return root


def test_all_readers_see_the_same_pixels(source, tmp_path, capsys):
    convert("folder", str(source), str(tmp_path / "data"))
    said = capsys.readouterr().out
    assert (
        "warning: train: 2 image(s) have a rotation mark (EXIF), which nothing here obeys, the "
        "first is images/train/sideways_jpg:" in said
    )
    description = read_description(str(tmp_path / "data"))
    model = Seen()
    model(tf.zeros([1, 1, 1, 3]))
    exported = export(
        model,
        tmp_path / "export",
        class_names=["red", "green", "blue", "rest"],
        palette=[(0, 0, 0)] * 4,
        probabilities=True,
    )
    served = tf.saved_model.load(exported).signatures["serve_bytes"]
    evaluated = {
        element["filename"].numpy()[0].decode(): element["image"].numpy()[0]
        for element in read_eval_images(description, "train")
    }
    order = list(evaluated)
    trained = {}
    # A crop of the whole picture at scale 1; each image is drawn once in an epoch.
    for cache in (False, True):
        batches = make_train_batches(
            *(description, "train"),
            seed=0,
            batch_size=1,
            crop_size=SIZE,
            scales=(1.0,),
            random_crop=False,
            flip=False,
            cache=cache,
        )
        trained[cache] = [batch["image"].numpy()[0] for batch in batches.take(len(FILES))]
    pictures = open_pictures(str(source / "images" / "train"), str(tmp_path / "out"))
    predicted = dict(zip(pictures.names, pictures.images, strict=True))
    assert set(order) == {f"images/train/{name}" for name in predicted}
    for path in sorted((source / "images" / "train").iterdir()):
        expected = read_picture(path)
        assert expected.shape == (*SIZE, 3)  # sideways ones too
        np.testing.assert_array_equal(predicted[path.stem], expected)
        np.testing.assert_array_equal(evaluated[f"images/train/{path.stem}"], expected)
        answer = served(image_bytes=tf.constant([path.read_bytes()]))["probabilities"].numpy()[0]
        values = 64 * np.log(answer[..., :3] / answer[..., 3:])
        np.testing.assert_allclose(values, expected, atol=0.01)
        for crops in trained.values():
            assert any(np.array_equal(crop, expected) for crop in crops), path.name
    warnings = [line for line in capsys.readouterr().err.splitlines() if "rotation mark" in line]
    assert len(warnings) == 1 and "sideways_jpg.jpg" in warnings[0]


def test_a_mask_that_was_drawn_on_the_turned_picture_is_refused(source, tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name / "train").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("ground\nsky\n")
    photo("RGB").save(tmp_path / "images/train/phone.jpg", exif=sideways())
    Image.fromarray(np.zeros(SIZE[::-1], np.uint8)).save(tmp_path / "masks/train/phone.png")
    with pytest.raises(RunError, match=r"phone.jpg has a rotation mark .* without the mark"):
        convert("folder", str(tmp_path), str(tmp_path / "data"))


@pytest.mark.parametrize("form", ["gif", "bmp"])
def test_other_formats_are_refused_by_all(tmp_path, form):
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("ground\nsky\n")
    path = tmp_path / "images" / "train" / "picture.png"
    stream = io.BytesIO()
    photo("RGB").save(stream, form)
    path.write_bytes(stream.getvalue())
    with pytest.raises(RunError, match=r"picture\.png .*: it is neither PNG nor JPEG"):
        convert("folder", str(tmp_path), str(tmp_path / "data"))
    with pytest.raises(RunError, match=r"picture\.png: neither PNG nor JPEG"):
        read_picture(path)

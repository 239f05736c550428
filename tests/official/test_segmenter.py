"""One picture at a time: what --mode=predict says of it, and how long it took."""

import io
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official import prediction
from official.drawing import draw_overlay
from official.errors import RunError
from official.segmenter import Segmentation, Segmenter
from official.sizes import Sizes

NAMES, PALETTE = ("red", "green", "blue"), ((255, 0, 0), (0, 255, 0), (0, 0, 255))


class Brightest(keras.layers.Layer):
    """A network of three classes: which channel is the brightest."""

    def call(self, images, training=False):
        return tf.cast(images, tf.float32) / 10.0


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((None, None, 3)), Brightest()])


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (300, 400, 3)).astype(np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(0.5), Sizes(max_side=64)], ids=str)
def test_it_answers_as_predict_does(model, pixels, sizes, tmp_path):
    path = save(tmp_path / "street.png", pixels)
    found = Segmenter(model, 3, sizes=sizes).segment(path)
    prediction.predict(
        lambda images: model(images),
        prediction.open_pictures(str(path), str(tmp_path / "out")),
        str(tmp_path / "out"),
        class_names=NAMES,
        palette=PALETTE,
        sizes=sizes,
    )
    overlay, labels = found.draw(NAMES, PALETTE)
    assert overlay == (tmp_path / "out" / "street_overlay.png").read_bytes()
    assert labels == (tmp_path / "out" / "street_labels.png").read_bytes()
    np.testing.assert_array_equal(found.image, pixels)
    if sizes == Sizes():
        np.testing.assert_array_equal(found.labels, pixels.argmax(-1))
    # Above the legend the overlay is what is drawn everywhere.
    drawn = draw_overlay(pixels, found.labels, np.array(PALETTE, np.uint8))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(overlay)))[:100], drawn[:100])


def test_shares_are_of_the_pixels_and_sum_to_1():
    labels = np.array([[2, 2, 0, 2], [2, 5, 2, 0]], np.uint8)
    found = Segmentation(np.zeros((2, 4, 3), np.uint8), labels, 1.0)
    assert found.count_shares() == [(2, 5 / 8), (0, 2 / 8), (5, 1 / 8)]
    assert sum(share for _, share in found.count_shares()) == 1


@pytest.mark.parametrize("kind", ["L", "RGBA", "P"])
def test_all_kinds_of_pngs_are_decoded_as_in_training(model, pixels, kind, tmp_path):
    path = tmp_path / "one.png"
    Image.fromarray(pixels).convert(kind).save(path)
    found = Segmenter(model, 3).segment(path)
    np.testing.assert_array_equal(found.image, prediction.read_picture(path))
    assert found.labels.shape == (300, 400) and not found.turned


def test_a_rotation_mark_is_told_and_not_obeyed(model, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    found = Segmenter(model, 3).segment(save(tmp_path / "a.jpg", pixels, exif=exif))
    assert found.turned and found.labels.shape == (300, 400)


def test_what_is_no_picture_is_an_error_with_its_name(model, pixels, tmp_path):
    segmenter = Segmenter(model, 3, max_pixels=100_000)
    path = tmp_path / "notes.txt"
    for content, words in (
        (b"hello", "neither PNG nor JPEG"),
        (save(tmp_path / "whole.png", pixels).read_bytes()[:-500], ""),
        (tmp_path.joinpath("whole.png").read_bytes(), "300 x 400 pixels are more than the limit"),
    ):
        path.write_bytes(content)
        with pytest.raises(RunError) as error:
            segmenter.segment(path)
        assert "notes.txt" in str(error.value) and words in str(error.value)
    with pytest.raises(RunError, match="--predict_scale"):
        Segmenter(model, 3, sizes=Sizes(1000.0)).segment(save(tmp_path / "b.png", pixels))
    with pytest.raises(RunError, match="257 classes"):
        Segmenter(model, 257)


def test_what_does_not_fit_into_memory_is_an_error_of_the_picture(model, pixels, tmp_path):
    segmenter = Segmenter(model, 3)
    full = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
    with (
        mock.patch.object(segmenter, "_answer", side_effect=full),
        pytest.raises(RunError, match=r"300 x 400 pixels do not fit into the memory"),
    ):
        segmenter.segment(save(tmp_path / "a.png", pixels))


def test_once_warm_nothing_is_traced_again(model, pixels, tmp_path):
    segmenter = Segmenter(model, 3, max_pixels=200_000)
    assert segmenter.warm_up((4000, 1000)) > 0  # which is made smaller
    traced = segmenter._answer.experimental_get_tracing_count()
    found = segmenter.segment(save(tmp_path / "a.png", pixels))
    assert segmenter._answer.experimental_get_tracing_count() == traced == 1
    assert found.milliseconds > 0

"""Scaling in a graph is the converter's, and what comes back lies on the images' own grid."""

import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official.sizes import OWN_SIZE, Sizes

SCALES = [Sizes(0.25), Sizes(0.5), Sizes(0.7), Sizes(1 / 3), Sizes(1.5), Sizes(max_side=50)]


@pytest.mark.parametrize("sizes", SCALES, ids=str)
def test_a_graph_finds_the_sizes_that_the_converter_finds(sizes):
    graph = tf.function(
        lambda image: tf.shape(sizes.bring(image)),
        input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)],
    )
    # 6 * 0.25 = 1.5 and 10 * 0.25 = 2.5 both become 2; no side becomes 0. 45 * 0.7 is a little less
    # than 31.5 in Python, and 31.5 in float32.
    for size in ((1, 1), (1, 80), (6, 10), (7, 45), (49, 51), (50, 33), (101, 1)):
        found = graph(np.zeros((1, *size, 3), np.uint8)).numpy()
        assert tuple(found[1:3]) == sizes.compute_size(size), size


def test_sizes_are_rounded_to_even_and_never_nothing():
    assert Sizes(0.25).compute_size((6, 10)) == (2, 2)
    assert Sizes(0.25).compute_size((1, 9)) == (1, 2)
    assert Sizes(max_side=50).compute_size((30, 50)) == (30, 50)
    assert Sizes(max_side=50).compute_size((30, 100)) == (15, 50)


def pictures():
    """A street is smooth with edges: noise, edges, and a smooth slope, 101 x 77."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (101, 77, 3))
    edges = 255 * rng.integers(0, 2, (11, 8, 3)).repeat(10, 0).repeat(10, 1)[:101, :77]
    slope = np.add.outer(np.arange(101), np.arange(77))[..., None] * [1, 0.5, 1.2] % 256
    return [picture.astype(np.uint8) for picture in (noise, edges, slope)]


@pytest.mark.parametrize("sizes", SCALES, ids=str)
def test_pixels_are_those_of_the_converter(sizes):
    for picture in pictures():
        height, width = sizes.compute_size(picture.shape[:2])
        lanczos = Image.Resampling.LANCZOS
        wanted = np.asarray(Image.fromarray(picture).resize((width, height), lanczos), int)
        found = sizes.bring(picture[np.newaxis])[0].numpy()
        # Pillow weighs with whole numbers, TensorFlow with floats: a sum within rounding of k + 1/2
        # may fall on the other side of it, in either pass.
        difference = np.abs(found - wanted)
        assert difference.max() <= 2
        assert (difference > 0).mean() <= 0.01


def test_small_images_stay_as_they_are():
    picture = pictures()[0][np.newaxis]
    assert OWN_SIZE.bring(picture) is picture
    np.testing.assert_array_equal(Sizes(max_side=101).bring(picture), picture)
    logits = np.random.default_rng(0).normal(size=(1, 101, 77, 4)).astype(np.float32)
    np.testing.assert_array_equal(Sizes(max_side=101).answer(lambda x: logits, picture), logits)


@pytest.mark.parametrize("sizes", [Sizes(0.25), Sizes(0.5), Sizes(1.5)], ids=str)
def test_answers_lie_where_the_image_has_what_they_are_about(sizes):
    # A slope of 3 a pixel survives both ways but for rounding, 1/2, and the ends, where it is cut
    # off. On another grid, such as that with aligned corners, it would move by up to
    # (1 / 0.25 - 1) / 2 pixels.
    columns = 3 * np.arange(80, dtype=np.uint8)
    image = np.broadcast_to(columns[None, None, :, None], (1, 40, 80, 3))
    found = sizes.answer(lambda images: images, image)
    assert found.shape == image.shape
    np.testing.assert_allclose(found[:, 12:-12, 12:-12], image[:, 12:-12, 12:-12], atol=1)


def test_an_image_of_one_pixel():
    image = np.full((1, 1, 1, 3), 77, np.uint8)
    for sizes in SCALES:
        np.testing.assert_array_equal(sizes.answer(lambda images: images, image), image)


def test_what_is_left_to_be_done():
    quarter, half, small = Sizes(0.25), Sizes(0.5), Sizes(max_side=50)
    assert quarter.compute_rest(OWN_SIZE) == quarter
    assert small.compute_rest(OWN_SIZE) == small
    assert quarter.compute_rest(quarter) == small.compute_rest(small) == OWN_SIZE
    assert quarter.compute_rest(half) == half
    assert OWN_SIZE.compute_rest(half) == Sizes(2.0)
    assert small.compute_rest(half) is None
    assert half.compute_rest(small) is None


def test_options_are_those_of_a_description():
    for sizes in (OWN_SIZE, *SCALES):
        assert Sizes.from_options(sizes.to_options()) == sizes
    assert Sizes.from_options({}) == OWN_SIZE


@pytest.mark.parametrize(
    "options",
    [
        *({"resize_factor": value} for value in (0, -1, 1e308, 10**400, math.nan, "1", None, True)),
        *({"max_side": value} for value in (0, -1, 1e300, 0.5, "9", True)),
    ],
    ids=lambda options: str(options)[:30],
)
def test_numbers_that_make_no_sense_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))) as error:
        Sizes.from_options(options)
    assert len(str(error.value)) < 200

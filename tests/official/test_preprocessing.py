from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from official import preprocessing
from official.preprocessing import (
    crop_positions,
    sample_image,
    sample_label,
    scaled_side,
    source_positions,
)

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SIZE = (33, 50)


def random_pair(size=SIZE, labels=(0, 7, 18)):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    return tf.constant(image), tf.constant(rng.choice(np.array(labels, np.uint8), size))


def augment(image, label, seed, *, ignore_label, **options):
    """A crop of a decoded image, as the input pipeline makes it."""
    rows, columns = crop_positions(tf.shape(image, tf.int64)[:2], seed, **options)
    crop = sample_image(image, rows, columns)
    return crop, sample_label(label, rows, columns, ignore_label)


def run(image, label, seed, crop_size, scales=SCALES, flip=True, random_crop=True):
    image, label = augment(
        image,
        label,
        tf.constant([seed, 5], tf.int64),
        crop_size=crop_size,
        scales=scales,
        random_crop=random_crop,
        flip=flip,
        ignore_label=255,
    )
    assert image.dtype == tf.float32 and label.dtype == tf.int32
    return image.numpy(), label.numpy()


def test_scaled_side_rounds_to_nearest():
    # 16.5 -> 16 and 17.5 -> 18 (halves to even), 24.75 -> 25, 0.1 -> 1 (never 0)
    pairs = [((33, 0.5), 16), ((33, 0.75), 25), ((35, 0.5), 18), ((1, 0.1), 1), ((33, 1.0), 33)]
    for (side, scale), expected in pairs:
        assert scaled_side(tf.constant(side), tf.constant(scale)).numpy() == expected


@pytest.mark.parametrize(
    ("side", "scaled"), [(33, 65), (33, 17), (50, 38), (7, 1), (1, 5), (1, 1), (2048, 3584)]
)
def test_source_positions_are_exact(side, scaled):
    places = np.arange(scaled + 2)
    found = source_positions(tf.constant(side, tf.int64), tf.constant(scaled, tf.int64), places)
    for place in range(scaled):
        # Aligned corners: the ends meet, everything between is evenly spaced.
        exact = Fraction(place * (side - 1), max(scaled - 1, 1))
        assert found.lower[place].numpy() == int(exact)
        assert found.upper[place].numpy() == min(int(exact) + 1, side - 1)
        assert found.fraction[place].numpy() == np.float32(float(exact - int(exact)))
        nearest = found.nearest[place].numpy()
        assert abs(nearest - exact) <= Fraction(1, 2) and 0 <= nearest < side
    assert found.inside.numpy().tolist() == [True] * scaled + [False] * 2


@pytest.mark.parametrize("scale", SCALES)
def test_whole_scaled_image_is_the_aligned_corner_resize(scale):
    image, label = random_pair()
    size = tuple(int(scaled_side(tf.constant(side), scale)) for side in SIZE)
    ours, our_label = run(image, label, 0, size, scales=(scale,), flip=False)
    reference = tf.raw_ops.ResizeBilinear(
        images=tf.cast(image, tf.float32)[None], size=size, align_corners=True
    )
    np.testing.assert_allclose(ours, reference[0], atol=2e-3)
    rows, columns = (
        np.floor(np.arange(new) * (old - 1) / (new - 1) + 0.5).astype(int)
        for old, new in zip(SIZE, size, strict=True)
    )
    assert np.array_equal(our_label, label.numpy()[rows][:, columns])


@pytest.mark.parametrize("scale", SCALES)
def test_one_pixel_checker_keeps_image_and_label_aligned(scale):
    # A checker of single pixels, 0/255 in the image and 0/1 in the label. With fractions f, g on
    # the two axes its bilinear value is 127.5 +- 127.5 (1 - 2f)(1 - 2g), and the nearest label is
    # the sign of the same product: both agree wherever the image is not grey. Shifted by a pixel
    # they never would.
    label = (np.indices(SIZE).sum(0) % 2).astype(np.uint8)
    image = np.repeat(label[..., None] * np.uint8(255), 3, axis=-1)
    shares = []
    for seed in range(8):
        crop, crop_label = run(tf.constant(image), tf.constant(label), seed, (29, 41), (scale,))
        clear = np.abs(crop[..., 0] - 127.5) > 1e-2
        assert np.array_equal(crop[clear][:, 0] > 127.5, crop_label[clear] == 1)
        shares.append(clear.mean())
    assert min(shares) > 0.15  # the rest is padding and exact grey


def test_scale_one_is_an_exact_crop():
    image, label = random_pair()
    crop, crop_label = run(image, label, 3, (20, 30), scales=(1.0,), flip=False)
    windows = [
        (y, x)
        for y in range(SIZE[0] - 20 + 1)
        for x in range(SIZE[1] - 30 + 1)
        if np.array_equal(image[y : y + 20, x : x + 30], crop)
    ]
    ((y, x),) = windows
    assert np.array_equal(label[y : y + 20, x : x + 30], crop_label)


def test_without_random_crop_the_middle_is_taken_whatever_the_seed():
    image, label = random_pair()
    # 33 - 20 = 13 rows are left over, 6 of them above; 50 - 31 = 19 columns, 9 of them left.
    for seed in range(5):
        crop, crop_label = run(image, label, seed, (20, 31), (1.0,), False, random_crop=False)
        assert np.array_equal(crop, image[6:26, 9:40])
        assert np.array_equal(crop_label, label[6:26, 9:40])
    # Scaled to 66 x 100 the middle 64 x 99 starts at 1, 0; a larger crop is padded as ever.
    crop, _ = run(image, label, 0, (64, 99), (2.0,), False, random_crop=False)
    whole, _ = run(image, label, 0, (66, 100), (2.0,), False)
    assert np.array_equal(crop, whole[1:65, :99])
    crop, _ = run(image, label, 0, (40, 60), (1.0,), False, random_crop=False)
    assert np.array_equal(crop[:33, :50], image) and np.all(crop[33:] == 127.5)


def test_flip_mirrors_exactly_and_half_of_the_time():
    image, label = random_pair()
    flipped = 0
    for seed in range(60):
        plain, plain_label = run(image, label, seed, (35, 31), flip=False)
        maybe, maybe_label = run(image, label, seed, (35, 31), flip=True)
        same = np.array_equal(plain, maybe)
        flipped += not same
        if not same:
            plain, plain_label = plain[:, ::-1], plain_label[:, ::-1]
        assert np.array_equal(plain, maybe) and np.array_equal(plain_label, maybe_label)
    assert 18 <= flipped <= 42  # 30 +- 3.1 standard deviations of a fair coin


def test_padding_is_grey_and_void_at_the_bottom_right():
    image, label = random_pair()
    crop, crop_label = run(image, label, 0, (40, 60), scales=(1.0,), flip=False)
    assert np.array_equal(crop[:33, :50], image) and np.array_equal(crop_label[:33, :50], label)
    padding = np.ones((40, 60), bool)
    padding[:33, :50] = False
    assert np.all(crop[padding] == 127.5) and np.all(crop_label[padding] == 255)


def test_no_label_is_invented():
    # 0 and 18 meet everywhere: any interpolation would show values between them.
    image, label = random_pair(labels=(0, 18))
    for seed in range(20):
        _, inside = run(image, label, seed, (16, 20))
        assert set(np.unique(inside)) <= {0, 18}  # 33 * 0.5 -> 16 rows: the crop is never padded
        _, padded = run(image, label, seed, (70, 101))
        assert set(np.unique(padded)) <= {0, 18, 255}


def test_scale_row_column_and_flip_are_drawn_uniformly_and_independently():
    # Channels that tell the row and the column of the source. Side 5 becomes 9 = round(5 * 1.8)
    # with steps of 4 / 8: crops of 3 then start at 0, 0.5, ..., 3 and at scale 1 at 0, 1, 2.
    rows, columns = np.indices((5, 5), np.uint8)
    image, label = np.stack([rows, columns, rows], axis=-1), np.zeros((5, 5), np.uint8)

    def drawn(number):
        crop, _ = augment(
            tf.constant(image),
            tf.constant(label),
            tf.stack([number, 5]),
            crop_size=(3, 3),
            scales=(1.0, 1.8),
            random_crop=True,
            flip=True,
            ignore_label=255,
        )
        step = crop[1, 0, 0] - crop[0, 0, 0]
        top, ends = crop[0, 0, 0], crop[0, ::2, 1]
        return tf.stack([step, top, tf.reduce_min(ends), tf.cast(ends[0] > ends[1], tf.float32)])

    count = 4000
    found, times = np.unique(
        list(tf.data.Dataset.range(count).map(drawn).as_numpy_iterator()),
        axis=0,
        return_counts=True,
    )
    # 3 x 3 places at scale 1 and 7 x 7 at scale 1.8, each plain or flipped.
    assert len(found) == 2 * (9 + 49)
    expected = np.where(found[:, 0] == 1.0, count / 2 / 18, count / 2 / 98)
    # Five standard deviations of a count that is nearly Poisson.
    assert np.all(np.abs(times - expected) < 5 * np.sqrt(expected))


def test_eager_equals_tf_data():
    image, label = random_pair()

    def example(number):
        return augment(
            image,
            label,
            tf.stack([number, 5]),
            crop_size=(24, 70),
            scales=SCALES,
            random_crop=True,
            flip=True,
            ignore_label=255,
        )

    dataset = tf.data.Dataset.range(12).map(example, num_parallel_calls=4)
    for number, (crop, crop_label) in enumerate(dataset):
        eager, eager_label = run(image, label, number, (24, 70))
        # The graph may fuse multiply and add; labels are integers and must agree exactly.
        np.testing.assert_allclose(crop, eager, atol=1e-4)
        assert np.array_equal(crop_label, eager_label)


def test_pad_value_is_the_centre_of_the_range():
    assert preprocessing.PAD_VALUE == (0 + 255) / 2


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_network_input_is_padded_with_zeros_and_lies_in_minus_one_to_one(dtype):
    image = np.zeros((1, 2, 34, 3), dtype)
    image[:, 1] = 255
    x = preprocessing.network_input(tf.constant(image)).numpy()
    # 2 and 34 pixels become 33 and 65; 0 -> -1, 255 -> 1, and the padding, 127.5, -> 0.
    assert x.shape == (1, 33, 65, 3) and x.dtype == np.float32
    np.testing.assert_array_equal(x[:, 0, :34], -1)
    np.testing.assert_allclose(x[:, 1, :34], 1, rtol=1e-6)
    np.testing.assert_array_equal(x[:, 2:], 0)
    np.testing.assert_array_equal(x[:, :, 34:], 0)

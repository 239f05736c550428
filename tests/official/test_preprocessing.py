from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from official import preprocessing
from official.preprocessing import (
    draw_crop_positions,
    find_source_positions,
    fit_longer_side,
    sample_image,
    sample_label,
    scale_side,
)

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
SIZE = (33, 50)


def random_pair(size=SIZE, labels=(0, 7, 18)):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    return tf.constant(image), tf.constant(rng.choice(np.array(labels, np.uint8), size))


def augment(image, label, seed, *, ignore_label, **options):
    """A crop of a decoded image, as the input pipeline makes it."""
    rows, columns = draw_crop_positions(tf.shape(image, tf.int64)[:2], seed, **options)
    crop = sample_image(image, rows, columns)
    return crop, sample_label(label, rows, columns, ignore_label)


def run(image, label, seed, crop_size, scales=SCALES, flip=True, random_crop=True, **options):
    image, label = augment(
        image,
        label,
        tf.constant([seed, 5], tf.int64),
        crop_size=crop_size,
        scales=scales,
        random_crop=random_crop,
        flip=flip,
        ignore_label=255,
        **options,
    )
    assert image.dtype == tf.float32 and label.dtype == tf.int32
    return image.numpy(), label.numpy()


def test_scaled_side_rounds_to_nearest():
    # 16.5 -> 16 and 17.5 -> 18 (halves to even), 24.75 -> 25, 0.1 -> 1 (never 0)
    pairs = [((33, 0.5), 16), ((33, 0.75), 25), ((35, 0.5), 18), ((1, 0.1), 1), ((33, 1.0), 33)]
    for (side, scale), expected in pairs:
        assert scale_side(tf.constant(side), tf.constant(scale)).numpy() == expected


@pytest.mark.parametrize(
    ("side", "scaled"), [(33, 65), (33, 17), (50, 38), (7, 1), (1, 5), (1, 1), (2048, 3584)]
)
def test_source_positions_are_exact(side, scaled):
    places = np.arange(scaled + 2)
    found = find_source_positions(
        tf.constant(side, tf.int64), tf.constant(scaled, tf.int64), places
    )
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
    size = tuple(int(scale_side(tf.constant(side), scale)) for side in SIZE)
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


@pytest.mark.parametrize(
    ("size", "longer", "expected"),
    [
        ((375, 500), 513, (385, 513)),  # 375 * 513 / 500 = 384.75
        ((500, 375), 513, (513, 385)),
        ((2000, 3008), 513, (341, 513)),  # 341.09
        ((513, 100), 513, (513, 100)),
        ((100, 100), 513, (513, 513)),
        ((1, 2), 3, (2, 3)),  # 1.5: halves up
        ((1, 1000), 7, (1, 7)),  # 0.007: never 0
    ],
)
def test_the_longer_side_is_fitted(size, longer, expected):
    assert tuple(fit_longer_side(tf.constant(size), longer).numpy()) == expected
    several = fit_longer_side(np.array([size, size[::-1]]), longer).numpy()
    assert several.tolist() == [[*expected], [*expected[::-1]]]


def exact_positions(old, new):
    """Where each of `new` pixels lies among `old` ones, with aligned corners."""
    return [Fraction(place * (old - 1), max(new - 1, 1)) for place in range(new)]


def resize_slowly(image, size):
    """Bilinear with aligned corners, of [H, W, 3]: a matrix of weights for each axis."""
    for axis, new in enumerate(size):
        old = image.shape[axis]
        weights = np.zeros((new, old))
        for place, exact in enumerate(exact_positions(old, new)):
            for pixel in range(old):
                weights[place, pixel] = max(0, 1 - abs(exact - pixel))
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image


def resize_label_slowly(label, size):
    """The nearest label of each pixel, with aligned corners; the lower or right one of two."""
    rows, columns = (
        [int(exact + Fraction(1, 2)) for exact in exact_positions(old, new)]
        for old, new in zip(label.shape, size, strict=True)
    )
    return np.asarray(label)[rows][:, columns]


@pytest.mark.parametrize("longer", [20, 50, 81])  # smaller, as large as it is, larger
def test_every_image_is_resized_before_it_is_cropped(longer):
    image, label = random_pair()  # 33 x 50
    size = {20: (13, 20), 50: (33, 50), 81: (53, 81)}[longer]  # 13.2, 33, 53.46
    whole, whole_label = resize_slowly(image, size), resize_label_slowly(label, size)
    options = {"scales": (1.0,), "flip": False, "resize_longer_side": longer}
    crop, crop_label = run(image, label, 0, size, **options)
    np.testing.assert_allclose(crop, whole, atol=2e-3)
    assert np.array_equal(crop_label, whole_label)
    # The middle 9 x 11 of it; larger crops are padded.
    top, left = (size[0] - 9) // 2, (size[1] - 11) // 2
    crop, crop_label = run(image, label, 0, (9, 11), random_crop=False, **options)
    np.testing.assert_allclose(crop, whole[top : top + 9, left : left + 11], atol=2e-3)
    assert np.array_equal(crop_label, whole_label[top : top + 9, left : left + 11])
    crop, crop_label = run(image, label, 0, (60, 90), **options)
    np.testing.assert_allclose(crop[: size[0], : size[1]], whole, atol=2e-3)
    assert np.all(crop[size[0] :] == 127.5) and np.all(crop_label[:, size[1] :] == 255)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("longer", [23, 61])
def test_resizing_and_scaling_are_one_step_to_where_two_would_lead(longer, scale):
    once = {23: (15, 23), 61: (40, 61)}[longer]  # 33 * 23 / 50 = 15.18, 33 * 61 / 50 = 40.26
    twice = tuple(max(1, round(side * scale)) for side in once)  # halves to even
    options = {"scales": (scale,), "flip": False, "resize_longer_side": longer}
    # Where it leads: a ramp loses nothing by interpolation, so it can be resized and then scaled.
    rows, columns = np.indices(SIZE, np.uint8)
    ramps = np.stack([7 * rows, 5 * columns, 2 * rows + 3 * columns], -1)
    _, label = random_pair()
    crop, _ = run(tf.constant(ramps), label, 0, twice, **options)
    np.testing.assert_allclose(crop, resize_slowly(resize_slowly(ramps, once), twice), atol=2e-3)
    # In one step: a noise is interpolated once.
    image, label = random_pair()
    crop, crop_label = run(image, label, 0, twice, **options)
    np.testing.assert_allclose(crop, resize_slowly(image, twice), atol=2e-3)
    assert np.array_equal(crop_label, resize_label_slowly(label, twice))


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

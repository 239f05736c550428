"""The aligned-corner grid: sizes, values, gradients, and that all levels share it."""

import numpy as np
import pytest
import tensorflow as tf

from official.resizing import (
    network_size,
    pad_to_network_size,
    resize_bilinear,
    sides,
)


def resize_line(line, new):
    """Pixel i lies at i (old - 1) / (new - 1): the first and last pixels of both sides coincide."""
    old = len(line)
    return np.interp(np.arange(new) * (old - 1) / max(new - 1, 1), np.arange(old), line)


def bilinear(x, size):
    x = np.apply_along_axis(resize_line, 1, x, size[0])
    return np.apply_along_axis(resize_line, 2, x, size[1])


SIZES = [
    ((5, 7), (9, 13)),
    ((9, 13), (5, 7)),
    ((4, 6), (7, 3)),
    ((3, 3), (3, 3)),
    ((1, 2), (4, 5)),
    ((5, 4), (1, 1)),
]


@pytest.mark.parametrize(("old", "new"), SIZES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_bilinear_equals_numpy(old, new, dynamic):
    x = np.random.default_rng(0).normal(size=(2, *old, 3))
    if dynamic:
        traced = tf.function(
            lambda x, h, w: resize_bilinear(x, (h, w)),
            input_signature=[
                tf.TensorSpec([None, None, None, 3]),
                tf.TensorSpec([], tf.int32),
                tf.TensorSpec([], tf.int32),
            ],
        )
        y = traced(tf.constant(x, tf.float32), *new)
    else:
        y = resize_bilinear(tf.constant(x, tf.float32), new)
        assert y.shape == (2, *new, 3)
    np.testing.assert_allclose(y, bilinear(x, new), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_bilinear_gradient_is_the_transpose(old, new):
    # The resize is linear in x: <y, A x> = <A^T y, x>.
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(1, *old, 1)), rng.normal(size=(1, *new, 1))
    other = rng.normal(size=x.shape)
    x = tf.constant(x, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = tf.reduce_sum(resize_bilinear(x, new) * dy.astype("float32"))
    np.testing.assert_allclose(
        np.sum(tape.gradient(y, x) * other), np.sum(dy * bilinear(other, new)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_stays(dtype):
    x = tf.cast(tf.reshape(tf.range(4.0), [1, 2, 2, 1]), dtype)
    # Through the middle of 0 1 / 2 3; exact in every type.
    y = tf.cast(resize_bilinear(x, (3, 3)), tf.float32)
    np.testing.assert_array_equal(y[0, ..., 0], [[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]])
    assert resize_bilinear(x, (3, 3)).dtype == resize_bilinear(x, (2, 2)).dtype == dtype


def test_network_size():
    table = {1: 1, 2: 33, 32: 33, 33: 33, 34: 65, 65: 65, 96: 97, 97: 97, 129: 129, 161: 161}
    table |= {320: 321, 321: 321, 512: 513, 769: 769, 1024: 1025, 2048: 2049}
    assert {side: network_size(side) for side in table} == table
    np.testing.assert_array_equal(network_size(tf.constant([*table])), [*table.values()])
    for side in range(1, 200):
        size = network_size(side)
        assert side <= size < side + 32 and size % 32 == 1


@pytest.mark.parametrize("size", [(65, 97), (96, 33), (1, 40)])
def test_padding_is_below_and_right(size):
    x = np.random.default_rng(0).normal(size=(2, *size, 3)).astype("float32")
    padded = pad_to_network_size(tf.constant(x), 127.5).numpy()
    assert padded.shape == (2, network_size(size[0]), network_size(size[1]), 3)
    np.testing.assert_array_equal(padded[:, : size[0], : size[1]], x)
    # All that is new has the value.
    assert np.sum(padded == 127.5) == padded.size - x.size


def test_strides_of_a_network_size_are_every_nth_pixel():
    # A 3x3 convolution of stride 2 with SAME padding is centred on pixels 0, 2, 4, ...: the resize
    # to (d - 1) / 2 + 1 takes these too.
    x = np.random.default_rng(0).normal(size=(1, 33, 65, 1)).astype("float32")
    centre = np.zeros((3, 3, 1, 1), "float32")
    centre[1, 1] = 1.0
    for height, width in ((17, 33), (9, 17), (5, 9), (3, 5), (2, 3)):
        x_resized = resize_bilinear(tf.constant(x), (height, width)).numpy()
        x = tf.nn.conv2d(x, centre, 2, "SAME").numpy()
        assert x.shape == (1, height, width, 1)
        np.testing.assert_allclose(x_resized, x, atol=1e-6)


def test_sides():
    assert sides(tf.zeros([2, 3, 4, 5])) == (3, 4)
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, 7, 1])])
    def traced(x):
        height, width = sides(x)
        seen.append(width)
        return height

    assert traced(tf.zeros([1, 6, 7, 1])).numpy() == 6
    assert seen == [7]

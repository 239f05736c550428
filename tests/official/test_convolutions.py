"""Convolutions and their gradients equal plain sums in float64."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from official import convolutions
from tests.auto_deeplab import reference


def with_gradients(function, x, kernel, direction):
    with tf.GradientTape() as tape:
        tape.watch((x, kernel))
        y = function(x, kernel)
        loss = tf.reduce_sum(y * tf.cast(direction, y.dtype))
    return [t.numpy() for t in (y, *tape.gradient(loss, (x, kernel)))]


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("rate", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
# Odd and even sides, and maps smaller than the kernel's reach.
@pytest.mark.parametrize("shape", [(2, 9, 12, 3), (1, 7, 7, 40), (3, 2, 5, 1), (2, 1, 1, 8)])
def test_depthwise_output_and_gradients_equal_the_plain_sums(
    monkeypatch, shape, size, rate, direct
):
    if direct and not convolutions._direct():
        pytest.skip("no CPU with oneDNN")
    monkeypatch.setattr(convolutions, "_direct", lambda: direct)
    rng = np.random.default_rng(0)
    x, direction = rng.normal(size=shape), rng.normal(size=shape)
    kernel = rng.normal(size=(size, size, shape[-1], 1))
    wanted = with_gradients(
        lambda x, kernel: reference.depthwise(x, kernel, rate),
        *(tf.constant(x), tf.constant(kernel), direction),
    )
    inputs = tf.constant(x, tf.float32), tf.constant(kernel, tf.float32)
    eager = with_gradients(
        lambda x, kernel: convolutions.depthwise_conv2d(x, kernel, rate), *inputs, direction
    )
    for actual, exact in zip(eager, wanted, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=1e-4, atol=1e-4)


def test_any_size_in_one_trace():
    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 2])])
    def traced(x):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = tf.reduce_sum(convolutions.depthwise_conv2d(x, kernel, 2) ** 2)
        return tape.gradient(loss, kernel)

    rng = np.random.default_rng(0)
    kernel = tf.constant(rng.normal(size=(5, 5, 2, 1)), tf.float32)
    for size in ((1, 8, 8), (2, 9, 12)):
        x = rng.normal(size=(*size, 2))
        exact = tf.cast(kernel, tf.float64)
        with tf.GradientTape() as tape:
            tape.watch(exact)
            loss = tf.reduce_sum(reference.depthwise(tf.constant(x), exact, 2) ** 2)
        np.testing.assert_allclose(
            traced(tf.constant(x, tf.float32)), tape.gradient(loss, exact), rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "stride", "rate"), [(1, 1, 1), (3, 2, 1), (3, 1, 2), (5, 1, 3)])
# The last two in bfloat16: TensorFlow's own gradient is NaN there, or ends the process.
@pytest.mark.parametrize(
    ("shape", "filters", "groups"),
    [((2, 9, 13, 3), 4, 1), ((1, 97, 97, 20), 20, 1), ((2, 81, 81, 16), 80, 2)],
)
def test_output_and_gradients_equal_the_plain_sums(
    dtype, size, stride, rate, shape, filters, groups
):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=shape), dtype)
    kernel = tf.constant(rng.normal(size=(size, size, shape[-1] // groups, filters)), dtype)
    result = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), filters)
    direction = tf.constant(rng.normal(size=result), dtype)

    def plain(x, kernel):
        halves = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
        return tf.concat([reference.conv(x, kernel, stride, rate) for x, kernel in halves], -1)

    exact = (tf.cast(t, tf.float64) for t in (x, kernel, direction))
    wanted = with_gradients(plain, *exact)
    function = functools.partial(convolutions.conv2d, stride=stride, rate=rate)
    # Inputs are exact in bfloat16; results are rounded to eight bits.
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for a, b in zip(with_gradients(function, x, kernel, direction), wanted, strict=True):
        assert a.dtype == x.dtype.as_numpy_dtype
        np.testing.assert_allclose(a.astype(float), b, rtol=tolerance, atol=tolerance * b.std())

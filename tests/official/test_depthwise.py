"""The depthwise convolution and both its gradients equal sums over shifted maps, in float64."""

import numpy as np
import pytest
import tensorflow as tf

from official import depthwise
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
def test_output_and_gradients_equal_the_plain_sums(monkeypatch, shape, size, rate, direct):
    if direct and not depthwise._direct():
        pytest.skip("no CPU with oneDNN")
    monkeypatch.setattr(depthwise, "_direct", lambda: direct)
    rng = np.random.default_rng(0)
    x, direction = rng.normal(size=shape), rng.normal(size=shape)
    kernel = rng.normal(size=(size, size, shape[-1], 1))
    wanted = with_gradients(
        lambda x, kernel: reference.depthwise(x, kernel, rate),
        *(tf.constant(x), tf.constant(kernel), direction),
    )
    inputs = tf.constant(x, tf.float32), tf.constant(kernel, tf.float32)
    eager = with_gradients(
        lambda x, kernel: depthwise.depthwise_conv2d(x, kernel, rate), *inputs, direction
    )
    for actual, exact in zip(eager, wanted, strict=True):
        np.testing.assert_allclose(actual, exact, rtol=1e-4, atol=1e-4)


def test_any_size_in_one_trace():
    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 2])])
    def traced(x):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = tf.reduce_sum(depthwise.depthwise_conv2d(x, kernel, 2) ** 2)
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

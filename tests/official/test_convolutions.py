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


@pytest.mark.every_machine
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("rate", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 3, 5, 7])
# Odd and even sides, and maps smaller than the kernel's reach.
@pytest.mark.parametrize("shape", [(2, 9, 12, 3), (1, 7, 7, 40), (3, 2, 5, 1), (2, 1, 1, 8)])
def test_depthwise_output_and_gradients_equal_the_plain_sums(
    monkeypatch, shape, size, rate, direct
):
    if direct and not convolutions._follows_dilations():
        pytest.skip("no CPU with oneDNN")
    monkeypatch.setattr(convolutions, "_follows_dilations", lambda: direct)
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


@pytest.fixture(params=["this machine's kernels", "the fewest kernels"])
def any_kernels(request, monkeypatch):
    """Whatever this machine has, the ways of one without oneDNN and bfloat16 are tried too."""
    if request.param == "the fewest kernels":
        monkeypatch.setattr(convolutions, "_has_gradients", lambda: False)
        monkeypatch.setattr(convolutions, "_follows_dilations", lambda: False)
        monkeypatch.setattr(convolutions, "computes_well", lambda dtype: dtype != tf.bfloat16)


def plain_conv(x, kernel, groups, stride, rate):
    pairs = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return tf.concat([reference.conv(x, kernel, stride, rate) for x, kernel in pairs], -1)


def assert_equal_to_plain(function, plain, x, kernel, direction):
    exact = (tf.cast(t, tf.float64) for t in (x, kernel, direction))
    wanted = with_gradients(plain, *exact)
    # Inputs are exact in bfloat16; results are rounded to eight bits.
    tolerance = 1e-5 if x.dtype == tf.float32 else 1e-2
    for a, b in zip(with_gradients(function, x, kernel, direction), wanted, strict=True):
        assert a.dtype == x.dtype.as_numpy_dtype
        np.testing.assert_allclose(a.astype(float), b, rtol=tolerance, atol=tolerance * b.std())


@pytest.mark.every_machine
@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("size", "stride", "rate"), [(1, 1, 1), (3, 2, 1), (3, 1, 2), (5, 1, 3)])
# The middle ones in bfloat16: TensorFlow's own gradient is NaN there, or ends the process.
@pytest.mark.parametrize(
    ("shape", "filters", "groups"),
    [
        ((2, 9, 13, 3), 4, 1),
        ((1, 97, 97, 20), 20, 1),
        ((2, 81, 81, 16), 80, 2),
        ((1, 7, 5, 15), 10, 5),
    ],
)
def test_output_and_gradients_equal_the_plain_sums(
    dtype, size, stride, rate, shape, filters, groups
):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=shape), dtype)
    kernel = tf.constant(rng.normal(size=(size, size, shape[-1] // groups, filters)), dtype)
    result = (shape[0], -(-shape[1] // stride), -(-shape[2] // stride), filters)
    direction = tf.constant(rng.normal(size=result), dtype)
    assert_equal_to_plain(
        functools.partial(convolutions.conv2d, stride=stride, rate=rate),
        functools.partial(plain_conv, groups=groups, stride=stride, rate=rate),
        *(x, kernel, direction),
    )


@pytest.mark.every_machine
@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("rate", [1, 2])
def test_any_number_of_groups_in_one_trace(rate):
    rng = np.random.default_rng(0)

    @tf.function(input_signature=[tf.TensorSpec([None] * 4), tf.TensorSpec([3, 3, None, None])])
    def traced(x, kernel):
        return convolutions.conv2d(x, kernel, rate=rate)

    for groups, shape in ((1, (2, 7, 6, 4)), (2, (1, 5, 9, 6)), (3, (1, 1, 4, 3))):
        x = tf.constant(rng.normal(size=shape), tf.float32)
        kernel = tf.constant(rng.normal(size=(3, 3, shape[-1] // groups, 6)), tf.float32)
        direction = tf.constant(rng.normal(size=(*shape[:3], 6)), tf.float32)
        plain = functools.partial(plain_conv, groups=groups, stride=1, rate=rate)
        assert_equal_to_plain(traced, plain, x, kernel, direction)


@pytest.mark.every_machine
@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("rate", [1, 2])
def test_depthwise_of_any_size_in_one_trace(rate):
    rng = np.random.default_rng(0)

    @tf.function(input_signature=[tf.TensorSpec([None] * 4), tf.TensorSpec([5, 5, None, 1])])
    def traced(x, kernel):
        return convolutions.depthwise_conv2d(x, kernel, rate)

    plain = functools.partial(reference.depthwise, rate=rate)
    for shape in ((1, 8, 8, 2), (2, 9, 12, 3), (1, 1, 1, 1)):
        x, direction = (tf.constant(rng.normal(size=shape), tf.float32) for _ in range(2))
        kernel = tf.constant(rng.normal(size=(5, 5, shape[-1], 1)), tf.float32)
        assert_equal_to_plain(traced, plain, x, kernel, direction)


@pytest.mark.every_machine
@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("stride", "rate"), [(1, 1), (2, 1), (1, 2)])
def test_exportable_depthwise(dtype, stride, rate):
    rng = np.random.default_rng(0)
    x = tf.constant(rng.uniform(size=(1, 41, 41, 8)), dtype)
    kernel = tf.constant(rng.normal(size=(3, 3, 8, 1)), dtype)
    side = -(-41 // stride)
    direction = tf.constant(rng.uniform(size=(1, side, side, 8)), dtype)
    assert_equal_to_plain(
        functools.partial(convolutions.exportable_depthwise_conv2d, stride=stride, rate=rate),
        lambda x, kernel: reference.depthwise(x, kernel, rate)[:, ::stride, ::stride],
        *(x, kernel, direction),
    )


@pytest.mark.every_machine
@pytest.mark.usefixtures("any_kernels")
@pytest.mark.parametrize("rate", [1, 2])
def test_depthwise_in_bfloat16(rate):
    # 41 * 41 pixels: a gradient by the kernel that was added up in bfloat16 would be far off.
    rng = np.random.default_rng(0)
    x = tf.constant(rng.uniform(size=(1, 41, 41, 8)), tf.bfloat16)
    kernel = tf.constant(rng.normal(size=(3, 3, 8, 1)), tf.bfloat16)
    direction = tf.constant(rng.uniform(size=x.shape), tf.bfloat16)
    assert_equal_to_plain(
        functools.partial(convolutions.depthwise_conv2d, rate=rate),
        functools.partial(reference.depthwise, rate=rate),
        *(x, kernel, direction),
    )


@pytest.mark.every_machine
def test_missing_kernels_are_noticed():
    """What the probe for gradients says is what TensorFlow does."""
    x, kernel = tf.ones([1, 9, 9, 4]), tf.ones([3, 3, 2, 4])
    for rate in (1, 2):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            y = tf.nn.conv2d(x, kernel, 1, "SAME", dilations=rate)
        if convolutions._has_gradients():
            assert tape.gradient(y, kernel) is not None
        else:
            with pytest.raises(tf.errors.OpError):
                tape.gradient(y, kernel)

"""The discrete operations: shapes, weights, atrous gradients, what happens at stride 2."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.network import operations
from auto_deeplab.network.operations import OPERATIONS, ConvNorm, SeparableNorm
from auto_deeplab.space import search_space
from official.convolutions import conv2d
from official.normalization import BatchNorm

C = 3
BATCH_NORM = partial(BatchNorm, momentum=0.9)


def build(name, *, filters=C, stride=1, channels=C):
    layer = OPERATIONS[name](
        filters=filters, stride=stride, batch_norm=BATCH_NORM, name="operation"
    )
    layer.build((None, None, None, channels))
    return layer


def random_map(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_every_operation_of_the_space_has_a_layer():
    assert set(OPERATIONS) == set(search_space.KNOWN_OPERATIONS) - {search_space.NONE}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_output_sides_are_rounded_up(name, stride):
    layer = build(name, stride=stride)
    for height, width in [(9, 5), (8, 6)]:
        y = layer(random_map(2, height, width, C))
        assert y.shape == (2, -(-height // stride), -(-width // stride), C)


def separable(k):
    return k * k * C + C * C + 2 * C  # depthwise, pointwise, gamma and beta


@pytest.mark.parametrize(
    ("name", "stride", "parameters"),
    [
        ("sep_conv_3x3", 1, 2 * separable(3)),
        ("sep_conv_5x5", 2, 2 * separable(5)),
        ("dil_conv_3x3", 1, separable(3)),
        ("dil_conv_5x5", 2, separable(5)),
        ("atrous_conv_3x3", 1, 9 * C * C + 2 * C),  # dense
        ("atrous_conv_5x5", 2, 25 * C * C + 2 * C),
        ("avg_pool_3x3", 1, 0),
        ("max_pool_3x3", 2, 0),
        ("skip_connect", 1, 0),
        ("skip_connect", 2, C * C + 2 * C),
    ],
)
def test_parameters(name, stride, parameters):
    layer = build(name, stride=stride)
    assert sum(v.shape.num_elements() for v in layer.trainable_variables) == parameters


@pytest.mark.parametrize("name", ["avg_pool_3x3", "max_pool_3x3", "skip_connect"])
def test_a_change_of_channels_takes_a_1x1_convolution(name):
    layer = build(name, filters=5)
    assert layer(random_map(1, 4, 4, C)).shape == (1, 4, 4, 5)
    assert sum(v.shape.num_elements() for v in layer.trainable_variables) == 5 * C + 2 * 5


def test_skip_connect_is_the_identity_and_pools_leave_padding_out():
    x = random_map(1, 5, 5, C)
    np.testing.assert_array_equal(build("skip_connect")(x), x)
    # A padded zero that counted would pull an average below 1; one in a maximum would be above -1.
    np.testing.assert_allclose(build("avg_pool_3x3")(np.ones_like(x)), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(build("max_pool_3x3")(-np.ones_like(x)), -1.0)


@pytest.mark.parametrize("name", ["atrous_conv_3x3", "atrous_conv_5x5", "dil_conv_3x3"])
def test_atrous_at_stride_2_is_every_second_pixel_of_stride_1(name):
    # On an odd side the aligned-corner resize to (d - 1) / 2 + 1 takes every second pixel, so rate
    # 1 on the small map meets the same pixels, and the same zeros outside, as rate 2 on the large.
    full, half = build(name), build(name, stride=2)
    half.set_weights(full.get_weights())
    x = random_map(2, 9, 13, C)
    np.testing.assert_allclose(half(x), full(x)[:, ::2, ::2], atol=1e-5)


def convolve(x, kernel, g, rate):
    """SAME convolution in float64 and the filter gradient of sum(g * y), tap by tap."""
    taps = kernel.shape[0]
    margin = (taps - 1) * rate // 2
    padded = np.pad(x.astype("float64"), [(0, 0), (margin, margin), (margin, margin), (0, 0)])
    height, width = x.shape[1:3]
    y, gradient = np.zeros(g.shape), np.zeros(kernel.shape)
    depthwise = kernel.shape[3] == 1
    for a in range(taps):
        for b in range(taps):
            window = padded[:, a * rate : a * rate + height, b * rate : b * rate + width]
            if depthwise:
                y += window * kernel[a, b, :, 0]
                gradient[a, b, :, 0] = np.einsum("nhwc,nhwc->c", window, g)
            else:
                y += window @ kernel[a, b]
                gradient[a, b] = np.einsum("nhwi,nhwo->io", window, g)
    return y, gradient


@pytest.mark.parametrize(("size", "rate"), [(3, 1), (3, 2), (5, 2), (3, 12)])
@pytest.mark.parametrize("kind", [ConvNorm, SeparableNorm])
def test_atrous_convolutions_and_their_filter_gradients(kind, size, rate):
    # Rate 12 reaches beyond this map, as ASPP's rates do on small crops.
    layer = kind(4, size, rate=rate, batch_norm=BATCH_NORM)
    layer.build((None, None, None, 4))
    x = np.abs(random_map(2, 9, 12, 4))  # so that SeparableNorm's ReLU changes nothing
    g = random_map(2, 9, 12, 4, seed=1)
    if kind is ConvNorm:
        kernel = layer.kernel
    else:
        kernel = layer.depthwise_kernel
        layer.pointwise_kernel.assign(np.eye(4)[None, None])
    with tf.GradientTape() as tape:
        y = layer(x) * np.sqrt(1.0 + layer.norm.epsilon)  # undoes the untrained BN
        total = tf.reduce_sum(y * g)
    expected, expected_gradient = convolve(x, kernel.numpy(), g, rate)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    gradient = tape.gradient(total, kernel.value)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-3)


def unfolded(x, kernel, norm, training, *, stride=1, rate=1):
    """Convolution, then the formula of BN on the map."""
    assert not training
    # Its gradients are tested elsewhere.
    y = conv2d(x, tf.convert_to_tensor(kernel), stride, rate)
    y = (y - norm.moving_mean) / tf.sqrt(norm.moving_variance + norm.epsilon)
    return y * norm.gamma + norm.beta


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [1, 2])
def test_batch_norm_folded_into_the_kernel_equals_that_after_it(name, stride, monkeypatch):
    # 6 channels from 4, so that every operation has a convolution; values as after some training.
    layer = build(name, filters=6, stride=stride, channels=4)
    rng = np.random.default_rng(2)
    for variable in layer.variables:
        if "kernel" not in variable.name:
            positive = variable.name in ("gamma", "moving_variance")
            variable.assign(rng.uniform(0.1 if positive else -2, 2, variable.shape))
    x = random_map(2, 9, 12, 4)
    values = [variable.value for variable in layer.trainable_variables]

    def answer():
        with tf.GradientTape() as tape:
            y = layer(x)
            loss = tf.reduce_sum(tf.sin(y))
        return [y, *tape.gradient(loss, values)]

    folded = answer()
    monkeypatch.setattr(operations, "convolve_and_normalize", unfolded)
    for found, expected in zip(folded, answer(), strict=True):
        # A gradient is a sum over pixels whose terms cancel, so its rounding is larger.
        tolerance = (1e-5 if expected.shape == folded[0].shape else 1e-4) * np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["sep_conv_5x5", "atrous_conv_3x3"])
def test_inference_multiplies_kernels_and_no_map(name):
    layer = build(name)
    function = tf.function(lambda x: layer(x))
    graph = function.get_concrete_function(tf.TensorSpec([2, 8, 8, C])).graph
    shapes = [op.outputs[0].shape for op in graph.get_operations() if op.type == "Mul"]
    assert any(shape.rank == 4 for shape in shapes)
    assert not any(shape.rank == 4 and shape[1:3] == (8, 8) for shape in shapes)


def test_kernels_of_one_shape_start_different_and_at_the_stated_scale():
    layer = OPERATIONS["sep_conv_5x5"](
        filters=64, stride=1, batch_norm=BATCH_NORM, name="operation"
    )
    layer.build((None, None, None, 64))
    first, second = (half.depthwise_kernel.numpy() for half in (layer.first, layer.second))
    assert not np.allclose(first, second)
    # Uniform with variance (1/3) / fan-in, so within sqrt(3 * variance) = sqrt(1 / fan-in).
    for kernel, fan_in in [(first, 5 * 5 * 64), (layer.first.pointwise_kernel.numpy(), 64)]:
        bound = np.sqrt(1 / fan_in)
        assert 0.98 * bound < np.abs(kernel).max() <= bound
        # n = 1600 or 4096 values: a standard deviation has a relative error of some 1 / sqrt(2 n).
        np.testing.assert_allclose(kernel.std(), bound / np.sqrt(3), rtol=0.1)


@pytest.mark.parametrize("training", [False, True])
def test_training_moves_every_bn(training):
    layer = build("sep_conv_3x3")
    before = [v.numpy() for v in layer.non_trainable_variables]
    layer(random_map(2, 8, 8, C), training=training)
    assert len(before) == 4
    for old, variable in zip(before, layer.non_trainable_variables, strict=True):
        assert np.any(old != variable.numpy()) == training

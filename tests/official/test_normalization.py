"""Batch normalisation against NumPy in float64, and on two replicas against one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from official import normalization
from official.normalization import BatchNorm, PackedNorm, moving_average, normalize_batch

EPSILON = 1e-3


def random_inputs(shape=(4, 3, 5, 6), seed=0):
    """x with another mean and variance in each channel; scale, offset; dL/dy."""
    rng = np.random.default_rng(seed)
    channels = shape[-1]
    x = rng.normal(size=shape) * rng.uniform(0.1, 3, channels) + rng.normal(size=channels)
    return x, rng.normal(size=channels), rng.normal(size=channels), rng.normal(size=shape)


def reference(x, scale, offset, dy):
    """y, mean, unbiased variance, and the gradients by x, scale and offset."""
    axes, n = (0, 1, 2), np.prod(x.shape[:3])
    mean, variance = x.mean(axes), x.var(axes)
    deviation = np.sqrt(variance + EPSILON)
    normal = (x - mean) / deviation
    # Ioffe and Szegedy's formula: the parts of dy along 1 and along the normalised x vanish.
    dx = scale / deviation * (dy - dy.mean(axes) - normal * (dy * normal).mean(axes))
    gradients = dx, (dy * normal).sum(axes), dy.sum(axes)
    return normal * scale + offset, mean, variance * n / max(n - 1, 1), gradients


def normalized(x, scale, offset, dy):
    """What `reference` returns, from `normalize_batch`."""
    with tf.GradientTape() as tape:
        tape.watch([x, scale, offset])
        y, mean, variance = normalize_batch(x, scale, offset, EPSILON)
        # Neither statistic may add to the gradient.
        loss = tf.reduce_sum(y * dy) + 7.0 * tf.reduce_sum(mean) + 7.0 * tf.reduce_sum(variance)
    return y, mean, variance, tape.gradient(loss, [x, scale, offset])


def float32(arrays):
    return [tf.constant(array, tf.float32) for array in arrays]


def assert_close(actual, wanted):
    for a, b in zip(tf.nest.flatten(actual), tf.nest.flatten(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (1, 1, 2, 3)])
def test_one_device_equals_numpy(shape):
    inputs = random_inputs(shape)
    actual = normalized(*float32(inputs))
    wanted = reference(*inputs)
    assert_close(actual[:3], wanted[:3])
    assert_close(actual[3], wanted[3])


def test_one_value_per_channel():
    # A 1x1 map at batch 1: the variance is 0, also the unbiased one, and y is the offset.
    y, mean, variance = normalize_batch(*float32([[[[[5.0]]]], [3.0], [0.25]]), EPSILON)
    assert (y.numpy().item(), mean.numpy(), variance.numpy()) == (0.25, 5.0, 0.0)


@pytest.mark.parametrize("traced", [False, True])
def test_two_replicas_equal_one_device(two_replicas, traced):
    inputs = random_inputs()
    parts = [np.split(inputs[0], 2), np.split(inputs[3], 2)]

    def distribute(halves):
        return two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant(halves[context.replica_id_in_sync_group], tf.float32)
        )

    scale, offset = float32(inputs[1:3])

    def replica(x, dy):
        y, mean, variance, (dx, dscale, doffset) = normalized(x, scale, offset, dy)
        total = tf.distribute.get_replica_context().all_reduce("sum", [dscale, doffset])
        return y, mean, variance, dx, *total

    def run(x, dy):
        return two_replicas.run(replica, (x, dy))

    results = (tf.function(run) if traced else run)(*map(distribute, parts))
    results = [two_replicas.experimental_local_results(r) for r in results]
    y, mean, variance, dx, dscale, doffset = results
    wanted = reference(*inputs)
    assert_close([np.concatenate(y), np.concatenate(dx)], [wanted[0], wanted[3][0]])
    for own in range(2):
        assert_close([mean[own], variance[own]], wanted[1:3])
        assert_close([dscale[own], doffset[own]], wanted[3][1:])


def test_constant_channels_on_two_replicas(two_replicas):
    # E[x^2] - E[x]^2 is 0 up to rounding, which makes it negative here and there.
    values = np.linspace(100, 1000, 64).astype("float32")

    def replica():
        x = tf.ones([2, 7, 7, 64]) * values
        return normalize_batch(x, tf.ones([64]), tf.zeros([64]), 1e-5)

    for result in map(two_replicas.experimental_local_results, two_replicas.run(replica)):
        assert np.isfinite(result[0]).all() and np.isfinite(result[1]).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_keeps_the_dtype_and_float32_statistics(dtype):
    x, scale, offset, _ = random_inputs()
    y, mean, variance = normalize_batch(tf.cast(x, dtype), *float32([scale, offset]), EPSILON)
    assert (y.dtype, mean.dtype, variance.dtype) == (dtype, "float32", "float32")
    wanted = reference(x, scale, offset, x)
    np.testing.assert_allclose(tf.cast(y, tf.float32), wanted[0], atol=0.05)
    np.testing.assert_allclose(mean, wanted[1], atol=0.01)
    np.testing.assert_allclose(variance, wanted[2], rtol=0.02)


@pytest.mark.every_machine
def test_bfloat16_without_kernels_is_computed_in_float32(monkeypatch):
    monkeypatch.setattr(normalization, "computes_well", lambda dtype: dtype != tf.bfloat16)

    @tf.function(input_signature=[tf.TensorSpec([2, 5, 7, 3], tf.bfloat16)])
    def normalized(x):
        return normalize_batch(x, tf.ones([3]), tf.zeros([3]), EPSILON)

    graph = normalized.get_concrete_function().graph
    (kernel,) = [op for op in graph.get_operations() if op.type == "FusedBatchNormV3"]
    assert kernel.inputs[0].dtype == tf.float32
    assert [t.dtype for t in graph.structured_outputs] == [tf.bfloat16, tf.float32, tf.float32]


def chain(x, w, norm):
    """Three normalisations of 2, 6 and 3 channels, the middle one in a nested function."""

    def nested(moving, x):
        inner = PackedNorm(EPSILON, moving)
        y = inner(tf.tile(x, [1, 1, 1, 3]), w["scale"])
        return y, inner.statistics()

    x = norm(x[..., :2])
    y = norm.nested(nested, 6, x)
    return x, y, norm(tf.square(y[..., :3]), offset=w["offset"])


def test_packed_layout_is_the_same_in_training_and_evaluation():
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(2, 4, 4, 3)), tf.float32)
    w = {"scale": tf.range(1.0, 7.0), "offset": tf.constant([0.5, -1.0, 2.0])}
    norm = PackedNorm(EPSILON)
    outputs = chain(x, w, norm)
    mean, variance = norm.statistics()
    assert mean.shape == variance.shape == (2 + 6 + 3,)
    # 32 values per channel: with the biased variance, evaluation does the same as training.
    norm = PackedNorm(EPSILON, (mean, variance * 31 / 32))
    for actual, wanted in zip(chain(x, w, norm), outputs, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)
    assert norm.statistics() is None
    # The parts in the order of the calls.
    np.testing.assert_allclose(mean[:2], tf.reduce_mean(x, [0, 1, 2])[:2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean[2:8], 0.0, atol=1e-5)
    np.testing.assert_allclose(mean[8:], [1, 4, 9], rtol=0.01)


def test_without_a_normalisation_the_statistics_are_empty():
    mean, variance = PackedNorm(EPSILON).statistics()
    assert mean.shape == variance.shape == (0,)


def test_moving_average():
    variable = keras.Variable([1.0, 2.0])
    moving_average(variable, tf.constant([2.0, -2.0]), 0.75)
    np.testing.assert_array_equal(variable, [1.25, 1.0])


def test_the_layer():
    x, scale, offset, _ = random_inputs()
    layer = BatchNorm(momentum=0.75, epsilon=EPSILON)
    layer.build((None, None, None, 6))
    assert len(layer.trainable_variables) == len(layer.non_trainable_variables) == 2
    layer.gamma.assign(scale)
    layer.beta.assign(offset)
    x = x.astype("float32")
    wanted = reference(x, scale, offset, x)
    # In evaluation with the initial statistics, mean 0 and variance 1, which stay.
    np.testing.assert_allclose(
        layer(x), x / np.sqrt(1 + EPSILON) * scale + offset, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(layer.moving_variance, 1.0)
    np.testing.assert_allclose(layer(x, training=True), wanted[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(layer.moving_mean, 0.25 * wanted[1], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, 0.75 + 0.25 * wanted[2], rtol=1e-4)
    mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    y = (x - mean) / np.sqrt(variance + EPSILON) * scale + offset
    np.testing.assert_allclose(layer(x), y, rtol=1e-4, atol=1e-5)


def test_the_layer_on_two_replicas(two_replicas):
    x = random_inputs()[0]
    with two_replicas.scope():
        layer = BatchNorm(momentum=0.75, epsilon=EPSILON)
        layer.build((None, None, None, 6))
    halves = np.split(x.astype("float32"), 2)

    @tf.function
    def step(x):
        return two_replicas.run(lambda x: layer(x, training=True), (x,))

    y = step(
        two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant(halves[context.replica_id_in_sync_group])
        )
    )
    wanted = reference(x, np.ones(6), np.zeros(6), x)
    np.testing.assert_allclose(
        np.concatenate(two_replicas.experimental_local_results(y)), wanted[0], rtol=1e-4, atol=1e-4
    )
    for variable, value in (
        (layer.moving_mean, 0.25 * wanted[1]),
        (layer.moving_variance, 0.75 + 0.25 * wanted[2]),
    ):
        for local in two_replicas.experimental_local_results(variable.value):
            np.testing.assert_allclose(local, value, rtol=1e-4, atol=1e-6)


def test_a_reserved_place_in_the_layout_may_be_used_late():
    rng = np.random.default_rng(0)
    one, two, late = (tf.constant(rng.normal(size=(2, 4, 4, c)), tf.float32) for c in (2, 1, 3))

    def normalized(norm):
        first, reserved = norm(one), norm.reserve(3)
        return first, norm(two), reserved(late)

    norm = PackedNorm(EPSILON)
    outputs = normalized(norm)
    mean, variance = norm.statistics()
    # In the order of their places, not of the calls.
    wanted = np.concatenate([np.mean(x, (0, 1, 2)) for x in (one, late, two)])
    np.testing.assert_allclose(mean, wanted, rtol=1e-4, atol=1e-6)
    norm = PackedNorm(EPSILON, (mean, variance * 31 / 32))
    for actual, wanted in zip(normalized(norm), outputs, strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-4)

import math

import numpy as np
import pytest
import tensorflow as tf

from official import distribution, losses


def batch(size=4, classes=3, seed=1):
    """Logits [size, 5, 6, classes] and labels; the further back, the more void pixels."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(size, 5, 6, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (size, 5, 6)).astype(np.int32)
    void = rng.random((size, 5, 6)) < np.linspace(0.1, 0.9, size)[:, None, None]
    labels[void] = 255
    return labels, logits


def mean_loss_and_gradient(labels, logits, **options):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss_sum, count = losses.pixel_cross_entropy(labels, logits, ignore_label=255, **options)
        loss = tf.math.divide_no_nan(loss_sum, count)
    return loss, tape.gradient(loss, logits)


def test_value_by_hand():
    # Logits (log 3, 0) give probabilities 3/4, 1/4: class 0 costs log 4/3, class 1 costs log 4.
    logits = np.broadcast_to(np.float32([math.log(3), 0]), (1, 1, 3, 2))
    loss_sum, count = losses.pixel_cross_entropy(
        np.int32([[[0, 1, 255]]]), logits, ignore_label=255
    )
    assert float(count) == 2
    assert float(loss_sum) == pytest.approx(math.log(4 / 3) + math.log(4), rel=1e-6)
    # Weights 2 and 5 multiply the pixels' losses; the count stays.
    loss_sum, count = losses.pixel_cross_entropy(
        np.int32([[[0, 1, 255]]]), logits, ignore_label=255, class_weights=[2, 5]
    )
    assert float(count) == 2
    assert float(loss_sum) == pytest.approx(2 * math.log(4 / 3) + 5 * math.log(4), rel=1e-6)


def test_gradient_is_softmax_minus_one_hot_over_the_count_and_zero_in_void():
    labels, logits = batch()
    _, gradient = mean_loss_and_gradient(labels, logits)
    valid = labels != 255
    softmax = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = (softmax - np.eye(3)[np.where(valid, labels, 0)]) / valid.sum()
    np.testing.assert_allclose(gradient[valid], expected[valid], atol=1e-7)
    assert not gradient.numpy()[~valid].any()


def test_all_void_is_zero_and_not_nan():
    labels, logits = batch()
    loss, gradient = mean_loss_and_gradient(np.full_like(labels, 255), logits)
    assert float(loss) == 0.0
    assert not gradient.numpy().any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_logits_are_computed_in_float32(dtype):
    # 8 and 1000 are exact in both types. The loss of class 1 is 1000 - 8 + log(1 + e^-992) = 992,
    # summed over 400 pixels 396,800: beyond float16's largest number, 65,504.
    logits = tf.cast(np.broadcast_to(np.float32([1000, 8]), (1, 20, 20, 2)), dtype)
    loss_sum, count = losses.pixel_cross_entropy(
        np.ones((1, 20, 20), np.int32), logits, ignore_label=255
    )
    assert loss_sum.dtype == count.dtype == tf.float32
    assert (float(loss_sum), float(count)) == (396_800, 400)


def test_uneven_void_pixels_on_two_replicas_equal_one_device(two_replicas):
    labels, logits = batch()
    valid = (labels != 255).reshape(2, -1).sum(axis=1)
    assert valid[0] > 2 * valid[1]  # the mean of the two replicas' means would be far off
    scale_shape = (1, 1, 1, 3)

    def gradient_of(scale, labels, logits):
        with tf.GradientTape() as tape:
            loss_sum, count = losses.pixel_cross_entropy(
                labels, logits * scale, ignore_label=255, class_weights=[1.0, 2.0, 0.5]
            )
            loss = tf.math.divide_no_nan(loss_sum, distribution.sum_over_replicas(count))
        return loss, tape.gradient(loss, scale)

    one_loss, one = gradient_of(tf.Variable(tf.ones(scale_shape)), labels, logits)
    with two_replicas.scope():
        scale = tf.Variable(tf.ones(scale_shape))

    def part(array):
        return two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant(np.split(array, 2)[context.replica_id_in_sync_group])
        )

    @tf.function
    def step(labels, logits):
        return two_replicas.run(gradient_of, (scale, labels, logits))

    results = step(part(labels), part(logits))
    two_loss, two = (two_replicas.reduce("SUM", result, axis=None) for result in results)
    assert float(two_loss) == pytest.approx(float(one_loss), rel=1e-6)
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-7)

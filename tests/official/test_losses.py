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
    logits = tf.convert_to_tensor(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss_sum, count = losses.sum_cross_entropy(labels, logits, ignore_label=255, **options)
        loss = tf.math.divide_no_nan(loss_sum, count)
    return loss, tape.gradient(loss, logits)


def test_value_by_hand():
    # Logits (log 3, 0) give probabilities 3/4, 1/4: class 0 costs log 4/3, class 1 costs log 4.
    logits = np.broadcast_to(np.float32([math.log(3), 0]), (1, 1, 3, 2))
    loss_sum, count = losses.sum_cross_entropy(np.int32([[[0, 1, 255]]]), logits, ignore_label=255)
    assert float(count) == 2
    assert float(loss_sum) == pytest.approx(math.log(4 / 3) + math.log(4), rel=1e-6)
    # Weights 2 and 5 multiply the pixels' losses; the count stays.
    loss_sum, count = losses.sum_cross_entropy(
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
    loss_sum, count = losses.sum_cross_entropy(
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
            loss_sum, count = losses.sum_cross_entropy(
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


def hardest(labels, logits, share, class_weights):
    """Loss and gradient of the mean over each image's hardest pixels, in float64."""
    logits = logits.astype(np.float64)
    softmax = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    one_hot = np.eye(logits.shape[-1])[np.where(labels == 255, 0, labels)]
    weights = one_hot @ np.asarray(class_weights, np.float64)
    pixel_losses = -weights * np.log((softmax * one_hot).sum(-1))
    counts = np.zeros(labels.shape, bool)
    for number, label in enumerate(labels):
        valid = np.flatnonzero(label != 255)
        order = valid[np.argsort(-pixel_losses[number].flat[valid], kind="stable")]
        counts[number].flat[order[: math.ceil(share * len(valid))]] = True
    gradient = (softmax - one_hot) * (weights * counts)[..., None] / counts.sum()
    return pixel_losses[counts].mean(), gradient, counts


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("class_weights", [None, [0.5, 0.0, 2.0]])
def test_only_the_hardest_pixels_of_each_image_count(share, class_weights):
    labels, logits = batch()
    labels[2] = 255  # an image without a say
    options = {"top_k_pixels": share, "class_weights": class_weights}
    wanted, gradient, counts = hardest(labels, logits, share, class_weights or [1, 1, 1])
    assert (counts.sum((1, 2)) > 0).tolist() == [True, True, False, True]
    assert counts.sum() < (labels != 255).sum() or share == 0.999
    loss, actual = mean_loss_and_gradient(labels, logits, **options)
    assert float(loss) == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(actual, gradient, atol=1e-8)
    assert not actual.numpy()[~counts].any()

    # The same for sizes that are not known beforehand, a share that is a tensor, and under XLA.
    def step(labels, logits, share):
        return mean_loss_and_gradient(labels, logits, **options | {"top_k_pixels": share})

    unknown = (
        *(tf.TensorSpec([None] * 3, tf.int32), tf.TensorSpec([None, None, None, 3])),
        tf.TensorSpec([], tf.float64),
    )
    arguments = tf.constant(labels), tf.constant(logits), tf.constant(share, tf.float64)
    for function in (
        tf.function(step, input_signature=unknown),
        tf.function(step, jit_compile=True),
    ):
        loss, actual = function(*arguments)
        assert float(loss) == pytest.approx(wanted, rel=1e-6)
        np.testing.assert_allclose(actual, gradient, atol=1e-8)


def test_of_equally_hard_pixels_as_many_as_wanted_count():
    # Six pixels that cost log 2 each; ceil(0.25 * 5) = 2 of the five valid ones count: the first.
    logits = tf.zeros([1, 2, 3, 2])
    labels = np.int32([[[255, 0, 1], [1, 0, 0]]])
    loss_sum, count = losses.sum_cross_entropy(labels, logits, ignore_label=255, top_k_pixels=0.25)
    assert float(count) == 2 and float(loss_sum) == pytest.approx(2 * math.log(2), rel=1e-6)
    _, gradient = mean_loss_and_gradient(labels, np.zeros([1, 2, 3, 2]), top_k_pixels=0.25)
    assert np.argwhere(gradient.numpy()[..., 0]).tolist() == [[0, 0, 1], [0, 0, 2]]


def test_all_pixels_as_the_hardest_are_the_plain_loss():
    labels, logits = batch()
    labels[1] = 255
    plain, plain_gradient = mean_loss_and_gradient(labels, logits)
    loss, gradient = mean_loss_and_gradient(labels, logits, top_k_pixels=1.0)
    assert float(loss) == float(plain)  # bit for bit: mining is off
    one = tf.constant(1.0, tf.float64)
    loss, gradient = mean_loss_and_gradient(labels, logits, top_k_pixels=one)
    assert float(loss) == pytest.approx(float(plain), rel=1e-6)
    np.testing.assert_array_equal(gradient, plain_gradient)


def test_mining_where_all_is_void_is_zero_and_not_nan():
    labels, logits = batch()
    loss, gradient = mean_loss_and_gradient(np.full_like(labels, 255), logits, top_k_pixels=0.5)
    assert float(loss) == 0.0
    assert not gradient.numpy().any()


def test_the_number_of_pixels_is_not_rounded_up_by_float32():
    # 0.3 is 0.300000012 in float32, and times 100,000 that is nearest to 30000.00195.
    _, count = losses.sum_cross_entropy(
        np.zeros((1, 1, 100_000), np.int32),
        tf.zeros([1, 1, 100_000, 2]),
        ignore_label=255,
        top_k_pixels=0.3,
    )
    assert float(count) == 30_000


def test_mining_share():
    # A straight line from 1 at step 0 to 0.2 at step 8: 0.1 less each step.
    share = lambda step: losses.compute_mining_share(0.2, 8, step)  # noqa: E731
    for function in (share, tf.function(share)):
        shares = [float(function(tf.constant(step))) for step in (0, 1, 4, 8, 9)]
        np.testing.assert_allclose(shares, [1, 0.9, 0.6, 0.2, 0.2], rtol=1e-12)
    assert losses.compute_mining_share(0.2, 0, tf.constant(3)) == 0.2

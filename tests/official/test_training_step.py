"""The loss of the global batch, and updates of one group of variables only."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from official import optimizers
from official.training_step import minimize, undo_bad
from tests.auto_deeplab.training import VOID, loss_of


def batch():
    """Four maps with 12, 6, 1 and no valid pixels."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, (4, 3, 4)).astype("int32")
    label[1].flat[6:] = VOID
    label[2].flat[1:] = VOID
    label[3] = VOID
    return label, rng.normal(size=(4, 3, 4, 3)).astype("float32")


def mean_over_valid(label, logits):
    logits = logits.astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    own = np.take_along_axis(log_p, np.where(label == VOID, 0, label)[..., None], -1)[..., 0]
    return -own[label != VOID].mean()


def test_the_mean_is_over_the_valid_pixels():
    label, logits = batch()
    assert np.sum(label != VOID) == 19
    loss = loss_of(tf.constant(label), tf.constant(logits))
    np.testing.assert_allclose(loss, mean_over_valid(label, logits), rtol=1e-6)


def test_class_weights_multiply_the_pixels_losses_alone():
    label, logits = batch()
    weights = [0.5, 0.0, 3.0]
    loss = loss_of(tf.constant(label), tf.constant(logits), class_weights=weights)
    # Each class by itself: the mean over its pixels, times their share of the 19.
    of_classes = [
        weight * mean_over_valid(np.where(label == number, label, VOID), logits)
        for number, weight in enumerate(weights)
    ]
    shares = [np.sum(label == number) / 19 for number in range(3)]
    np.testing.assert_allclose(loss, np.dot(of_classes, shares), rtol=1e-6)


def test_without_valid_pixels_the_loss_is_0():
    label, logits = batch()
    logits = tf.constant(logits[3:])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = loss_of(tf.constant(label[3:]), logits)
    assert loss.numpy() == 0.0
    np.testing.assert_array_equal(tape.gradient(loss, logits), 0.0)


@pytest.mark.parametrize("halves", [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((3, 3), (0, 1))])
@pytest.mark.parametrize(
    "options", [{}, {"top_k_pixels": 0.3, "class_weights": [1.0, 3.0, 0.5]}], ids=["all", "hardest"]
)
def test_shares_of_two_replicas_sum_to_the_mean(two_replicas, halves, options):
    label, logits = batch()

    def of_replica(array):
        return two_replicas.experimental_distribute_values_from_function(
            lambda context: tf.constant(array[list(halves[context.replica_id_in_sync_group])])
        )

    def replica(label, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = loss_of(label, logits, **options)
        return loss, tape.gradient(loss, logits)

    shares, gradients = two_replicas.run(replica, (of_replica(label), of_replica(logits)))
    order = [*halves[0], *halves[1]]
    label, logits = label[order], tf.constant(logits[order])
    total = two_replicas.reduce("sum", shares, axis=None)
    if not options:
        np.testing.assert_allclose(total, mean_over_valid(label, logits.numpy()), rtol=1e-6)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = loss_of(tf.constant(label), logits, **options)
    np.testing.assert_allclose(total, loss, rtol=1e-6)
    gradients = np.concatenate(two_replicas.experimental_local_results(gradients))
    np.testing.assert_allclose(gradients, tape.gradient(loss, logits), rtol=1e-5, atol=1e-8)


def variables():
    return [keras.Variable([1.0, -2.0], name=name) for name in ("mine", "other")]


@pytest.mark.parametrize("wrap", [lambda optimizer: optimizer, optimizers.with_loss_scale])
@pytest.mark.parametrize("traced", [False, True])
def test_minimize_updates_its_variables_and_no_others(wrap, traced):
    mine, other = variables()
    optimizer = wrap(optimizers.sgd(0.1, l2=0.0))
    optimizer.build([mine])

    def step():
        # d/dm sum(m^2 o) = 2 m o.
        def forward():
            m, o = tf.convert_to_tensor(mine), tf.convert_to_tensor(other)
            return tf.reduce_sum(m * m * o), "anything"

        return minimize(forward, [mine], optimizer)[0]

    loss = (tf.function(step) if traced else step)()
    assert loss.numpy() == 1 - 8  # before the update, not scaled
    # m - 0.1 * 2 * m * o: 1 - 0.2 and -2 - 0.1 * 2 * 4.
    np.testing.assert_allclose(mine, [0.8, -2.8], rtol=1e-6)
    np.testing.assert_array_equal(other, [1.0, -2.0])
    assert optimizer.iterations.numpy() == 1


def test_minimize_returns_what_forward_returns():
    mine, _ = variables()
    optimizer = optimizers.sgd(0.1, l2=0.0)
    optimizer.build([mine])
    loss, other = minimize(
        lambda: (tf.reduce_sum(tf.convert_to_tensor(mine)), {"a": 1}), [mine], optimizer
    )
    assert loss.numpy() == -1.0 and other == {"a": 1}


def test_minimize_sums_the_gradients_of_all_replicas(two_replicas):
    with two_replicas.scope():
        mine, _ = variables()
        optimizer = optimizers.sgd(0.1, l2=0.0)
        optimizer.build([mine])

    def replica():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        weight = 1.0 + 2.0 * tf.cast(index, tf.float32)  # 1 and 3
        return minimize(
            lambda: (weight * tf.reduce_sum(tf.convert_to_tensor(mine)), None), [mine], optimizer
        )[0]

    losses = tf.function(lambda: two_replicas.run(replica))()
    assert two_replicas.reduce("sum", losses, axis=None).numpy() == -1.0 - 3.0
    for local in two_replicas.experimental_local_results(mine.value):
        # 0.1 * (1 + 3) off each.
        np.testing.assert_allclose(local, [0.6, -2.4], rtol=1e-6)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_bad_step_changes_nothing_but_the_count(two_replicas, replicas, bad):
    """The loss x w at x = inf, or sqrt(w) at w = 0, whose gradient is infinite."""
    strategy = two_replicas if replicas == 2 else tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        weight = keras.Variable(np.float32([2.0, 0.0]), name="kernel")
        moving = keras.Variable(np.float32([0.5]), name="moving", trainable=False)
        optimizer = optimizers.sgd(0.5, l2=0.0)
        optimizer.build([weight])

    def replica(x, is_bad):
        loss = x * weight[0]
        if bad == "loss":
            loss *= tf.where(is_bad, np.inf, 1.0)
        else:
            loss += tf.where(is_bad, tf.sqrt(weight[1]), 0.0)
        moving.assign_add([1.0])
        return loss

    def update(x, is_bad):
        def forward():
            return replica(x, is_bad), None

        return minimize(forward, [weight], optimizer)[0]

    def step(x, is_bad):
        losses = strategy.run(update, (x, is_bad))
        return {"loss_w": strategy.reduce("SUM", losses, axis=None)}

    variables = [weight, moving, *optimizers.without_counter(optimizer)]
    undoing = tf.function(undo_bad(step, variables), autograph=False)
    plain = tf.function(step, autograph=False)

    def state():
        return [np.asarray(v.numpy()) for v in variables]

    x = tf.constant(1.0)
    assert np.isfinite(undoing(x, tf.constant(False))["loss_w"])
    after_one = state()
    # w0 = 2 - 0.5 * 1 on each replica; what is not bad goes through.
    assert after_one[0][0] == 2.0 - 0.5 * replicas and after_one[1][0] == 1.5
    assert np.isnan(undoing(x, tf.constant(True))["loss_w"])
    for value, wanted in zip(state(), after_one, strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert int(optimizer.iterations.numpy()) == 2
    plain(x, tf.constant(True))
    assert not all(np.all(np.isfinite(value)) for value in state())  # what was undone

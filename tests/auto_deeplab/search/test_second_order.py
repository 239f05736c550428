"""The second-order architecture gradient against exact derivatives of the plain super-net."""

import numpy as np
import pytest
import tensorflow as tf

from official import distribution, optimizers
from tests.auto_deeplab import reference
from tests.auto_deeplab.search.test_bilevel import architecture, everything, make
from tests.auto_deeplab.search.weights import packed, parts, unpacked
from tests.auto_deeplab.training import VOID, assert_same, per_replica, random_batch, values

LAYERS, BLOCKS, OPERATIONS = 2, 1, ("sep_conv_3x3", "atrous_conv_3x3", "skip_connect", "none")
RATE = 0.5  # so large that the second-order term counts


def second_order(strategy, **options):
    return make(
        *(strategy, LAYERS, BLOCKS, OPERATIONS),
        weight_optimizer=lambda: optimizers.sgd(RATE, l2=3e-4),
        second_order=True,
        **options,
    )


def found_gradients(search, strategy, batch_a, batch_b):
    """Of the global batches; run eagerly, which is quicker than tracing."""

    def on_replica(batch_a, batch_b):
        _, gradients = search._compute_second_order_gradients(
            search._make_forward(batch_b), batch_a
        )
        return distribution.sum_over_replicas(gradients)

    batches = per_replica(strategy, batch_a), per_replica(strategy, batch_b)
    gradients = strategy.run(on_replica, batches)
    return [strategy.experimental_local_results(g)[0].numpy() for g in gradients]


def plain_loss(weights, as_logits, batch, legal):
    """The mean cross entropy of the reference, float64, from the logits of alpha and beta."""
    alpha_logits, beta_logits = as_logits
    alpha = tf.nn.softmax(alpha_logits)
    beta = tf.where(legal, tf.exp(beta_logits), tf.zeros_like(beta_logits))
    beta = tf.math.divide_no_nan(beta, tf.reduce_sum(beta, -1, keepdims=True))
    images = tf.constant(batch["image"], tf.float64)
    logits = reference.supernet(images, weights, alpha, beta, OPERATIONS, BLOCKS, reference.Norm())
    valid = batch["label"] != VOID
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        np.where(valid, batch["label"], 0), logits
    )
    return tf.reduce_sum(losses * valid) / valid.sum()


@pytest.fixture(scope="module")
def search():
    search = second_order(distribution.make_strategy("one_device"))
    rng = np.random.default_rng(0)
    for variable in search.architecture.variables:
        variable.assign(rng.normal(size=variable.shape))
    return search


@pytest.fixture(scope="module")
def batches():
    return random_batch(0), random_batch(1)


@pytest.fixture(scope="module")
def found(search, batches):
    return found_gradients(search, distribution.make_strategy("one_device"), *batches)


class Plain:
    """Losses of the plain super-net in float64 and their derivatives, at a search's variables."""

    def __init__(self, search):
        self.legal = search.architecture.legal
        own = parts(search.supernet)
        weights = unpacked(own, packed(own))
        self.weights = tf.nest.map_structure(lambda w: tf.cast(w, tf.float64), weights)
        self.a = [tf.constant(v.numpy(), tf.float64) for v in search.architecture.variables]

    def gradients(self, weights, batch):
        """By the weights, and by the logits of alpha and beta."""
        with tf.GradientTape() as tape:
            tape.watch((weights, self.a))
            loss = plain_loss(weights, self.a, batch, self.legal)
        return tape.gradient(loss, (weights, self.a), unconnected_gradients="zero")

    def moved(self, direction, factor):
        return tf.nest.map_structure(lambda w, d: w + factor * d, self.weights, direction)

    def by_differences(self, batch_a, batch_b, length):
        """dL_B/da at w', and with the second-order term by a central difference."""
        stepped = self.moved(self.gradients(self.weights, batch_a)[0], -RATE)
        v, first_order = self.gradients(stepped, batch_b)
        e = length / tf.linalg.global_norm(tf.nest.flatten(v))
        above, below = (self.gradients(self.moved(v, sign * e), batch_a)[1] for sign in (1, -1))
        term = [(plus - minus) / (2 * e) for plus, minus in zip(above, below, strict=True)]
        whole = [g - RATE * t for g, t in zip(first_order, term, strict=True)]
        return [g.numpy() for g in first_order], [g.numpy() for g in whole]

    def by_tape(self, batch_a, batch_b):
        """The derivative of L_B(w - RATE dL_A/dw, a) by a, through everything."""
        with tf.GradientTape() as outer:
            outer.watch(self.a)
            with tf.GradientTape() as inner:
                inner.watch(self.weights)
                loss = plain_loss(self.weights, self.a, batch_a, self.legal)
            by_w = inner.gradient(loss, self.weights, unconnected_gradients="zero")
            loss = plain_loss(self.moved(by_w, -RATE), self.a, batch_b, self.legal)
        return [g.numpy() for g in outer.gradient(loss, self.a)]


def assert_close(actual, wanted, tolerance):
    for own, other in zip(actual, wanted, strict=True):
        assert np.linalg.norm(own - other) < tolerance * np.linalg.norm(other)


def test_it_is_the_formula_written_plainly(search, batches, found):
    first_order, wanted = Plain(search).by_differences(*batches, length=0.01)
    assert_close(found, wanted, 1e-4)
    for first, whole in zip(first_order, wanted, strict=True):
        assert np.linalg.norm(whole - first) > np.linalg.norm(first)  # the term is no trifle


def test_the_formula_is_the_gradient_through_the_step_of_w(search, batches):
    # Differences over shorter ways than float32 allows: no ReLU changes its sign on them.
    plain = Plain(search)
    assert_close(plain.by_differences(*batches, length=1e-5)[1], plain.by_tape(*batches), 1e-6)


def test_nothing_but_the_architecture_moves(search, batches):
    before = values([*search.supernet.variables, *search.weight_optimizer.variables])
    state, old = [v.numpy() for v in everything(search)], architecture(search)
    strategy = distribution.make_strategy("one_device")
    batch_a, batch_b = (per_replica(strategy, batch) for batch in batches)
    strategy.run(search._update_architecture, (batch_b, batch_a))
    assert_same(values([*search.supernet.variables, *search.weight_optimizer.variables]), before)
    assert all(np.any(old[path] != new) for path, new in architecture(search).items())
    for variable, value in zip(everything(search), state, strict=True):
        variable.assign(value)


def test_a_rate_of_zero_is_the_first_order(search, batches):
    strategy = distribution.make_strategy("one_device")
    still = make(
        *(strategy, LAYERS, BLOCKS, OPERATIONS),
        weight_optimizer=lambda: optimizers.sgd(0.0, l2=3e-4),
        second_order=True,
    )
    for variable, other in zip(everything(still), everything(search), strict=True):
        if "learning_rate" not in variable.path:
            variable.assign(other)
    plain = Plain(still)
    wanted = plain.gradients(plain.weights, batches[1])[1]
    assert_close(found_gradients(still, strategy, *batches), wanted, 1e-4)


def test_loss_scaling_changes_nothing_in_float32(search, batches, found):
    strategy = distribution.make_strategy("one_device")
    scaled = make(
        *(strategy, LAYERS, BLOCKS, OPERATIONS),
        weight_optimizer=lambda: optimizers.with_loss_scale(optimizers.sgd(RATE, l2=3e-4)),
        architecture_optimizer=lambda: optimizers.with_loss_scale(optimizers.sgd(1.0, l2=1e-3)),
        second_order=True,
    )
    copy = {v.path: v for v in (*search.supernet.variables, *search.architecture.variables)}
    for variable in (*scaled.supernet.variables, *scaled.architecture.variables):
        variable.assign(copy[variable.path])
    # Powers of two cost no digit; the central difference sees the last one of other sums.
    assert_close(found_gradients(scaled, strategy, *batches), found, 1e-3)


def test_two_replicas_equal_one_device(two_replicas, search, batches, found):
    double = second_order(two_replicas)
    for variable, value in zip(everything(double), everything(search), strict=True):
        variable.assign(value.numpy())
    assert_close(found_gradients(double, two_replicas, *batches), found, 0.01)

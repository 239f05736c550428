"""What layers share, and what waits for what. That it changes no result is in test_supernet.py."""

import numpy as np
import tensorflow as tf

from auto_deeplab.search.execution import Execution, as_function, delay
from auto_deeplab.search.packed_weights import PackedWeights
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.search.trellis import SearchHead


def test_nodes_of_one_kind_are_one_function():
    net = SuperNet(
        num_classes=2,
        num_layers=7,
        num_blocks=2,
        operations=("max_pool_3x3", "skip_connect"),
        filter_multiplier=1,
    )
    alpha, beta = tf.fill([5, 2], 0.5), tf.fill([7, 4, 3], 0.5)

    @tf.function
    def forward(images):
        return net(images, alpha, beta, training=True)[0]

    forward.get_concrete_function(tf.TensorSpec([1, 33, 33, 3]))
    # All 2 + 3 nodes of layers 1 and 2 differ. In layer 3 that at level 0 is as the one before, for
    # the stem gave that as many channels as a node does. In layer 4 level 2 has three inputs and
    # level 3 two for the first time; in layer 5 level 3 has H^{l-2} of its own level. After that
    # nothing is new. Cells have one function for each of the four levels.
    assert len(net.execution._functions) == 2 + 3 + 3 + 2 + 1 + 4
    for function in net.execution._functions.values():
        assert function.experimental_get_tracing_count() == 1


def test_a_layer_as_a_function_takes_its_variables_values():
    heads = [
        SearchHead(0, channels=2, num_classes=3, execution=Execution(inline=True)) for _ in range(2)
    ]
    rng = np.random.default_rng(0)
    for head in heads:
        for variable in head.variables:
            variable.assign(rng.uniform(0.5, 1.0, variable.shape))
    one, other = heads
    x = tf.constant(rng.normal(size=(1, 3, 4, 2)), tf.float32)
    weights = [tf.convert_to_tensor(variable) for variable in other.trainable_variables]
    for moving, training in ((), True), (other.moving.read(), False):
        logits, statistics = as_function(one)(moving, (x,), weights)
        wanted, wanted_statistics = other(x, training=training)
        np.testing.assert_array_equal(logits, wanted)
        assert np.abs(logits - one(x, training=training)[0]).max() > 0.1
        assert (statistics is None) == (wanted_statistics is None) == (not training)
        if training:
            np.testing.assert_array_equal(statistics[0], wanted_statistics[0])


def test_what_is_delayed_is_the_same_but_needs_the_other():
    maps = [tf.constant([[1.0, -2.0]]), tf.constant([0.1, np.inf])]
    until = tf.constant([[np.inf, 3.0]])
    with tf.GradientTape() as tape:
        tape.watch((maps, until))
        first, second = delay(maps, until)
        loss = tf.reduce_sum(first * [5.0, 7.0])
    np.testing.assert_array_equal(first, maps[0])
    np.testing.assert_array_equal(second, maps[1])
    gradient, by_until = tape.gradient(loss, (maps[0], until))
    np.testing.assert_array_equal(gradient, [[5.0, 7.0]])
    np.testing.assert_array_equal(by_until, [[0.0, 0.0]])
    # What goes wrong first is not hidden.
    assert np.isnan(delay(maps, tf.constant([np.nan]))[0]).all()


def test_a_layer_without_weights_packs_none():
    weights = PackedWeights("none")
    assert weights.read() == {} and weights.variables == []

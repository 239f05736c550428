"""A candidate in the super-net: only what it has counts, and its statistics are the batches'."""

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.ranking import Candidate, SinglePaths
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space.encoding import encode
from auto_deeplab.space.genotype import Genotype
from official import optimizers

OPERATIONS = ("sep_conv_3x3", "atrous_conv_3x3", "avg_pool_3x3", "skip_connect", "none")
GENOTYPE = Genotype(
    (0, 1),
    (
        (
            ((0, "sep_conv_3x3"), (1, "skip_connect")),
            ((2, "sep_conv_3x3"), (1, "avg_pool_3x3")),
        ),
    ),
)
CODE = encode(GENOTYPE, OPERATIONS, 2, 2)


def make_candidate():
    supernet = SuperNet(
        num_classes=3,
        num_layers=2,
        num_blocks=2,
        operations=OPERATIONS,
        filter_multiplier=2,
    )
    shapes = [part.shape for part in CODE]
    return Candidate(supernet, *shapes, tf.distribute.get_strategy())


def make_batches(count):
    rng = np.random.default_rng(0)
    return [
        {"image": tf.constant(rng.uniform(0, 255, (2, 33, 33, 3)), tf.float32)}
        for _ in range(count)
    ]


@pytest.mark.every_machine
def test_only_what_it_has_counts():
    candidate, batches = make_candidate(), make_batches(2)
    image = batches[0]["image"]
    candidate.become(*CODE, batches)
    before = candidate.logits(image)
    assert np.ptp(before) > 0
    # The atrous convolutions, which it has not, are other ones: nothing changes, exactly.
    changed = 0
    for variable in candidate.supernet.trainable_variables:
        if "atrous_conv_3x3" in variable.path:
            variable.assign(variable + 1.0)
            changed += 1
    assert changed == 5  # one a node: 2 in layer 1, 3 in layer 2
    candidate.become(*CODE, batches)
    np.testing.assert_array_equal(candidate.logits(image), before)
    # Those that it has count.
    for variable in candidate.supernet.trainable_variables:
        if "depthwise_kernel_3x3" in variable.path:
            variable.assign(-variable)
    candidate.become(*CODE, batches)
    assert np.abs(candidate.logits(image) - before).max() > 1e-3


def test_statistics_are_the_mean_of_the_batches():
    candidate, batches = make_candidate(), make_batches(3)
    candidate.become(*CODE, batches)
    alone = []
    for batch in batches:
        _, statistics = candidate.supernet(batch["image"], *CODE, training=True)
        alone.append(tf.nest.flatten(statistics))
    found = candidate.supernet.moving_statistics()
    assert len(found) == 2 * (1 + 5 + 3)  # stem, nodes, heads
    for variable, values in zip(found, zip(*alone, strict=True), strict=True):
        expected = np.mean([value.numpy() for value in values], 0)
        np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-5)


def test_what_was_there_before_leaves_nothing():
    """Weights stay, and statistics come from the batches alone, whatever came before."""
    candidate, batches = make_candidate(), make_batches(2)
    weights = [value.numpy() for value in candidate.supernet.trainable_variables]
    candidate.become(*CODE, batches)
    before = candidate.logits(batches[0]["image"])
    other = Architecture(num_layers=2, num_blocks=2, operations=OPERATIONS, seed=1)
    candidate.become(*(part.numpy() for part in other(None)), batches)
    candidate.become(*CODE, batches)
    np.testing.assert_array_equal(candidate.logits(batches[0]["image"]), before)
    for value, variable in zip(weights, candidate.supernet.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable, value)


@pytest.mark.every_machine
def test_a_step_for_a_single_path_is_plain_sgd_on_what_it_has():
    candidate, (batch,) = make_candidate(), make_batches(1)
    labels = np.random.default_rng(1).integers(0, 3, (2, 33, 33)).astype(np.int32)
    labels[0, :9] = 255
    weights = candidate.supernet.trainable_variables
    before = [variable.numpy() for variable in weights]
    # The same from the definition: the mean over the pixels that are not void, of one gradient.
    with tf.GradientTape() as tape:
        logits, _ = candidate.supernet(batch["image"], *CODE, training=True)
        valid = labels < 255
        wanted = tf.reduce_mean(
            tf.nn.sparse_softmax_cross_entropy_with_logits(labels[valid], logits[valid])
        )
    gradients = tape.gradient(wanted, weights, unconnected_gradients="zero")
    statistics = [variable.numpy() for variable in candidate.supernet.moving_statistics()]

    training = SinglePaths(candidate, optimizer=optimizers.sgd(0.1, l2=0.0), ignore_label=255)
    step = (*CODE, batch | {"label": tf.constant(labels)})
    (losses,) = training.steps(step)
    np.testing.assert_allclose(losses["loss_w"], wanted, rtol=1e-5)
    still = 0
    for variable, old, gradient in zip(weights, before, gradients, strict=True):
        # Momentum has no past in the first step.
        change = (variable - old).numpy()
        expected = -0.1 * gradient.numpy()
        # The weights themselves are rounded to 6e-8 of their size.
        rounding = 1.2e-7 * np.abs(old).max()
        assert np.abs(change - expected).max() <= 1e-4 * np.abs(expected).max() + rounding
        if "atrous_conv_3x3" in variable.path:  # which it has not
            np.testing.assert_array_equal(variable, old)
            still += 1
    assert still == 5
    for variable, old in zip(candidate.supernet.moving_statistics(), statistics, strict=True):
        np.testing.assert_array_equal(variable, old)

    # Each step is for the architecture that comes with it: this one has atrous convolutions alone.
    other = [part.copy() for part in CODE]
    other[0] = other[0][:, [1, 0, 2, 3, 4]]
    training.steps(step, (*other, step[2]))
    moved = [
        variable.path
        for variable, old in zip(weights, before, strict=True)
        if "atrous_conv_3x3" in variable.path and np.any(variable.numpy() != old)
    ]
    assert len(moved) == 2, moved  # of the two nodes on its path

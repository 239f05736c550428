"""The derived network's training step: what it changes, and two replicas against one device."""

import keras
import numpy as np
import pytest

from auto_deeplab.genotype import Genotype
from auto_deeplab.network import Network
from auto_deeplab.retrain import Retrain
from official import distribution, optimizers
from tests.auto_deeplab.training import (
    CLASSES,
    VOID,
    assert_same,
    assert_same_change,
    per_replica,
    random_batch,
    values,
)

CELL = (
    ((1, "atrous_conv_3x3"), (0, "sep_conv_3x3")),
    ((2, "max_pool_3x3"), (1, "dil_conv_3x3")),
)
GENOTYPE = Genotype((0, 1, 0), (CELL,))
TOTAL_STEPS = 4


def make(
    strategy,
    *,
    genotype=GENOTYPE,
    keep_prob=1.0,
    seed=7,
    wrap=lambda optimizer: optimizer,
    jit_compile=False,
):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        network = Network(
            genotype,
            num_classes=CLASSES,
            filter_multiplier=2,
            stem_filters=(4, 4, 6),
            batch_norm_decay=0.9,
            drop_path_keep_prob=keep_prob,
            head_filters=6,
            low_level_filters=4,
        )
        network.build((None, None, None, 3))
        return Retrain(
            network,
            optimizer=wrap(optimizers.sgd(0.05, l2=4e-5, decays=optimizers.is_kernel)),
            ignore_label=VOID,
            seed=seed,
            total_steps=TOTAL_STEPS,
            strategy=strategy,
            jit_compile=jit_compile,
        )


def one_device(**options):
    return make(distribution.make_strategy("one_device"), **options)


def train(retrain, strategy, *, start=0, steps=1):
    """The losses of some steps, run eagerly, which is quicker than tracing them."""
    retrain.optimizer.iterations.assign(start)
    step = retrain.train_step.python_function
    batches = [per_replica(strategy, random_batch(start + i)) for i in range(steps)]
    return [float(step(batch)) for batch in batches]


@pytest.mark.parametrize("keep_prob", [1.0, 0.5])
def test_two_replicas_equal_one_device(two_replicas, keep_prob):
    strategy = distribution.make_strategy("one_device")
    single, double = make(strategy, keep_prob=keep_prob), make(two_replicas, keep_prob=keep_prob)
    before = values(single.network.variables)
    assert_same(values(double.network.variables), before)
    # In the last step drop path is at full strength. The masks go by the examples' numbers, so it
    # does not matter which replica has an example. Valid pixels: 1815 on one, 66 on the other.
    losses = train(single, strategy, start=TOTAL_STEPS)
    np.testing.assert_allclose(train(double, two_replicas, start=TOTAL_STEPS), losses, rtol=1e-5)
    wanted, actual = values(single.network.variables), values(double.network.variables)
    assert_same_change(actual, wanted, before, 2e-3)
    for variable in double.network.variables:
        left, right = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(left, right)


def test_two_replicas_traced(two_replicas):
    # With the strategy as the command line runs it.
    strategy = distribution.make_strategy("one_device")
    batch = random_batch(0)
    losses = []
    for own in (strategy, two_replicas):
        retrain = make(own, keep_prob=0.5)
        losses.append([float(retrain.step(per_replica(own, batch))["loss_w"]) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_a_step_changes_every_variable_and_counts():
    retrain = one_device()
    before = values(retrain.network.variables)
    train(retrain, distribution.make_strategy("one_device"))
    after = values(retrain.network.variables)
    assert all(np.any(after[path] != before[path]) for path in before)
    assert retrain.optimizer.iterations.numpy() == 1


def test_the_loss_falls():
    retrain = one_device()
    batch = random_batch(0)
    losses = [float(retrain.step(batch)["loss_w"]) for _ in range(60)]
    # Guessing is ln 3 = 1.1.
    assert losses[-1] < 0.5 * losses[0]


def update_at(step, *, keep_prob, numbers=(0, 1, 2, 3), seed=7):
    """How the weights change in a step, with dropout and drop path drawn by seed and numbers."""
    retrain = one_device(keep_prob=keep_prob, seed=seed)
    retrain.optimizer.iterations.assign(step)
    before = values(retrain.network.trainable_variables)
    batch = random_batch(0) | {"number": np.array(numbers)}
    retrain.train_step.python_function(batch)
    after = values(retrain.network.trainable_variables)
    return np.concatenate([np.ravel(after[path] - before[path]) for path in before])


def test_drop_path_follows_the_schedule_and_the_seeds():
    without = update_at(0, keep_prob=1.0)
    # At step 0 of 4 everything is kept; later it is not.
    np.testing.assert_allclose(update_at(0, keep_prob=0.5), without, atol=1e-6)
    dropped = update_at(3, keep_prob=0.5)
    assert np.linalg.norm(dropped - without) > 0.1 * np.linalg.norm(without)
    # The same seed and numbers give the same masks, others do not.
    np.testing.assert_allclose(update_at(3, keep_prob=0.5), dropped, atol=1e-6)
    for other in ({"numbers": (4, 5, 6, 7)}, {"seed": 8}):
        changed = update_at(3, keep_prob=0.5, **other)
        assert np.linalg.norm(changed - dropped) > 0.1 * np.linalg.norm(dropped)


def test_bfloat16():
    losses = []
    try:
        for precision in ("float32", "bfloat16"):
            distribution.set_precision(precision)
            retrain = one_device()
            losses.append(float(retrain.train_step.python_function(random_batch(0))))
    finally:
        distribution.set_precision("float32")
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    for variable in retrain.network.variables:
        assert variable.dtype == "float32" and np.isfinite(variable.numpy()).all()


def test_loss_scaling_changes_nothing_in_float32():
    strategy = distribution.make_strategy("one_device")
    plain, scaled = one_device(), one_device(wrap=optimizers.with_loss_scale)
    before = values(plain.network.variables)
    losses = [train(retrain, strategy) for retrain in (plain, scaled)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)
    assert_same_change(
        values(scaled.network.variables), values(plain.network.variables), before, 1e-3
    )


def test_xla_equals_the_plain_step():
    # One cell, as compiling takes long; every kind of random number is drawn.
    genotype = Genotype((0,), ((((0, "sep_conv_3x3"), (1, "skip_connect")),),))
    options = {"genotype": genotype, "keep_prob": 0.5}
    plain, compiled = one_device(**options), one_device(**options, jit_compile=True)
    before, batch = values(plain.network.variables), random_batch(0)
    for retrain in (plain, compiled):
        retrain.optimizer.iterations.assign(TOTAL_STEPS)
    loss = plain.train_step.python_function(batch)
    np.testing.assert_allclose(compiled.step(batch)["loss_w"], loss, rtol=1e-4)
    assert_same_change(
        values(compiled.network.variables), values(plain.network.variables), before, 2e-3
    )


def test_every_example_counts_by_its_own_number():
    # Swapping two examples with their numbers swaps nothing else.
    batch = random_batch(0)
    swapped = {key: value[[1, 0, 2, 3]] for key, value in batch.items()}
    results = []
    for own in (batch, swapped):
        retrain = one_device(keep_prob=0.5)
        retrain.optimizer.iterations.assign(TOTAL_STEPS)
        results.append(float(retrain.train_step.python_function(own)))
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)

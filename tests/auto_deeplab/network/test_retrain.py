"""The derived network's training step: what it changes, and two replicas against one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.network.network import Network
from auto_deeplab.network.retrain import Retrain
from auto_deeplab.space.genotype import Genotype
from official import averaging, distribution, optimizers
from tests.auto_deeplab.training import (
    CLASSES,
    VOID,
    assert_same,
    assert_same_change,
    compiled_calls,
    loss_of,
    of_both_replicas,
    of_replica,
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


def make_network(genotype=GENOTYPE, num_classes=CLASSES, **options):
    network = Network(
        genotype,
        num_classes=num_classes,
        filter_multiplier=2,
        stem_filters=(4, 4, 6),
        batch_norm_decay=0.9,
        head_filters=6,
        low_level_filters=4,
        **options,
    )
    network.build((None, None, None, 3))
    return network


def make(
    strategy,
    *,
    genotype=GENOTYPE,
    keep_prob=1.0,
    fine_tune_batch_norm=True,
    seed=7,
    wrap=lambda optimizer: optimizer,
    ema_decay=0.0,
    sync_batch_norm=True,
    **options,
):
    def network():
        return make_network(
            genotype,
            drop_path_keep_prob=keep_prob,
            fine_tune_batch_norm=fine_tune_batch_norm,
            sync_batch_norm=sync_batch_norm,
        )

    with strategy.scope():
        keras.utils.set_random_seed(0)
        network, averaged = network(), network() if ema_decay else None
        return Retrain(
            network,
            optimizer=wrap(optimizers.sgd(0.05, l2=4e-5, decays=optimizers.is_kernel)),
            ignore_label=VOID,
            seed=seed,
            total_steps=TOTAL_STEPS,
            strategy=strategy,
            averaged=averaged,
            ema_decay=ema_decay,
            **options,
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
        options = {"top_k_pixels": 0.5, "hard_mining_steps": 2, "ema_decay": 0.9}
        retrain = make(own, keep_prob=0.5, **options)
        losses.append([float(retrain.step(per_replica(own, batch))["loss_w"]) for _ in range(3)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


# One cell, as compiling takes long.
ONE_CELL = Genotype((0,), ((((0, "sep_conv_3x3"), (1, "skip_connect")),),))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_replicas_whose_bn_is_not_synchronised(two_replicas, jit_compile):
    options = {"genotype": ONE_CELL, "keep_prob": 0.5, "sync_batch_norm": False}
    double = make(two_replicas, **options, jit_compile=jit_compile)
    before, batch = values(double.network.variables), random_batch(0)
    double.optimizer.iterations.assign(TOTAL_STEPS)
    batches = per_replica(two_replicas, batch)
    loss = double.step(batches)["loss_w"]
    assert compiled_calls(double.train_step, batches) == (2 if jit_compile else 0)
    alone = []
    for number in range(2):
        own = one_device(**options)
        own.optimizer.iterations.assign(TOTAL_STEPS)
        own_loss = own.train_step.python_function(of_replica(batch, number, 2))
        alone.append((float(own_loss), values(own.network.variables)))
    wanted, shares = of_both_replicas(batch, *(changed for _, changed in alone))
    np.testing.assert_allclose(loss, shares @ [own for own, _ in alone], rtol=1e-4)
    assert_same_change(values(double.network.variables), wanted, before, 2e-3)
    for variable in double.network.variables:
        left, right = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(left, right)


@pytest.mark.every_machine
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
    # Every kind of random number is drawn.
    options = {
        **{"genotype": ONE_CELL, "keep_prob": 0.5, "ema_decay": 0.9},
        **{"top_k_pixels": 0.5, "hard_mining_steps": 2 * TOTAL_STEPS},
    }
    plain, compiled = one_device(**options), one_device(**options, jit_compile=True)
    before, batch = values(plain.network.variables), random_batch(0)
    assert_same(values(plain.averaged.variables), before)
    for retrain in (plain, compiled):
        retrain.optimizer.iterations.assign(TOTAL_STEPS)
    loss = plain.train_step.python_function(batch)
    np.testing.assert_allclose(compiled.step(batch)["loss_w"], loss, rtol=1e-4)
    for name in ("network", "averaged"):
        wanted, actual = (values(getattr(own, name).variables) for own in (plain, compiled))
        assert_same_change(actual, wanted, before, 2e-3)


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


def test_averages_follow_every_variable():
    strategy = distribution.make_strategy("one_device")
    retrain = one_device(ema_decay=0.9)
    trained, averages = retrain.network.variables, retrain.averaged.variables
    wanted = values(trained)
    assert_same(values(averages), wanted)
    # A moving average of BN, too; the rule in float64. The decays are 1/10, 2/11 and 3/12.
    for step in range(3):
        train(retrain, strategy, start=step)
        decay = float(averaging.compute_decay(0.9, tf.constant(step)))
        for path, value in values(trained).items():
            wanted[path] = decay * wanted[path] + (1 - decay) * value.astype("float64")
    average = values(averages)
    for path, value in values(trained).items():
        np.testing.assert_allclose(average[path], wanted[path], rtol=1e-5, atol=1e-7, err_msg=path)
        assert np.any(average[path] != value), path
    # The averaged network answers with them, which leaves what is trained as it is.
    before = values(trained)
    image = random_batch(0)["image"]
    answer = retrain.averaged(image, training=False)
    assert np.abs(answer - retrain.network(image, training=False)).max() > 1e-3
    assert_same(values(trained), before)


def test_averages_on_two_replicas_equal_those_on_one_device(two_replicas):
    strategy = distribution.make_strategy("one_device")
    single, double = make(strategy, ema_decay=0.9), make(two_replicas, ema_decay=0.9)
    before = values(single.averaged.variables)
    train(single, strategy)
    train(double, two_replicas)
    wanted, actual = values(single.averaged.variables), values(double.averaged.variables)
    assert_same_change(actual, wanted, before, 2e-3)
    for variable in double.averaged.variables:
        left, right = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(left, right)


def test_the_hardest_pixels_and_weighted_classes():
    options = {"class_weights": [1.0, 0.5, 2.0], "top_k_pixels": 0.2, "hard_mining_steps": 4}
    retrain = one_device(**options)
    batch = random_batch(0)
    seeds = np.stack([np.full(4, 7), batch["number"]], axis=1).astype("int32")
    logits = retrain.network(batch["image"], training=True, seeds=seeds)
    retrain.optimizer.iterations.assign(3)
    loss = float(retrain.train_step.python_function(batch))
    # At step 3 of 4, the share has fallen by three quarters of 0.8.
    label = tf.constant(batch["label"])
    weights = options["class_weights"]
    wanted = float(loss_of(label, logits, class_weights=weights, top_k_pixels=0.4))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert abs(wanted - float(loss_of(label, logits, class_weights=weights))) > 0.01


def test_frozen_batch_norm_at_batch_size_one():
    retrain = one_device(fine_tune_batch_norm=False)
    for variable in retrain.network.non_trainable_variables:
        if variable.name == "moving_variance":
            variable.assign(tf.fill(variable.shape, 0.1))  # With 1, signals would fade.
    before = values(retrain.network.variables)
    for step in range(2):
        batch = {key: value[:1] for key, value in random_batch(step).items()}
        assert np.isfinite(float(retrain.train_step.python_function(batch)))
    after = values(retrain.network.variables)
    moving = {path for path in before if "/moving_" in path}
    assert_same({p: after[p] for p in moving}, {p: before[p] for p in moving})
    assert {path.rsplit("/")[-1] for path in before.keys() - moving} == {
        *("kernel", "depthwise_kernel", "pointwise_kernel", "bias", "gamma", "beta")
    }
    assert all(np.any(after[path] != before[path]) for path in before.keys() - moving)

import keras
import numpy as np
import pytest
import tensorflow as tf

from official import averaging, checkpoints, distribution

SHAPES = {"norm": (3,), "kernel": (2, 2)}


def variables():
    return [keras.Variable(np.zeros(shape, "float32"), name=n) for n, shape in SHAPES.items()]


def values_of_steps(steps, seed=1):
    """What the variables are before the first step and after each."""
    rng = np.random.default_rng(seed)
    return [[rng.normal(size=shape) for shape in SHAPES.values()] for _ in range(steps + 1)]


def averages_by_training(strategy, decay, values):
    """Starts averages at values[0] and lets a traced step follow the others."""
    with strategy.scope():
        trained, averages = variables(), variables()
    for variable, value in zip(trained, values[0], strict=True):
        variable.assign(value)
    averaging.start(averages, trained)

    @tf.function
    def step(number, *new):
        def replica_step():
            distribution.assign(trained, [tf.cast(value, tf.float32) for value in new])

        strategy.run(replica_step)
        averaging.update(averages, trained, averaging.compute_decay(decay, number), strategy)

    for number, new in enumerate(values[1:]):
        step(tf.constant(number), *map(tf.constant, new))
    return averages


def test_decay_at_exact_steps():
    # (1 + t) / (10 + t): 1/10, 2/11, 5/14, ..., up to the decay; 0.9 is passed at t = 80.
    actual = [
        float(averaging.compute_decay(0.9, tf.constant(step))) for step in (0, 1, 4, 79, 81, 10**6)
    ]
    np.testing.assert_allclose(actual, [0.1, 2 / 11, 5 / 14, 80 / 89, 0.9, 0.9], rtol=1e-6)


@pytest.mark.parametrize("decay", [0.15, 0.999])
def test_averages_on_one_device_and_on_two(two_replicas, decay):
    values = values_of_steps(4)
    wanted = values[0]
    for t, new in enumerate(values[1:]):
        d = min(decay, (1 + t) / (10 + t))
        wanted = [d * old + (1 - d) * value for old, value in zip(wanted, new, strict=True)]
    one = averages_by_training(distribution.make_strategy("one_device"), decay, values)
    two = averages_by_training(two_replicas, decay, values)
    for single, mirrored, expected in zip(one, two, wanted, strict=True):
        np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-6)
        for copy in two_replicas.experimental_local_results(mirrored.value):
            np.testing.assert_array_equal(copy, single)


def test_what_does_not_change_stays_bit_for_bit():
    values = values_of_steps(0) * 4
    averages = averages_by_training(distribution.make_strategy("one_device"), 0.999, values)
    for average, value in zip(averages, values[0], strict=True):
        np.testing.assert_array_equal(average, value.astype("float32"))


def test_saved_averages_load_into_the_variables(tmp_path):
    values = values_of_steps(2)
    strategy = distribution.make_strategy("one_device")
    averages = averages_by_training(strategy, 0.5, values)
    checkpoints.Checkpoints(str(tmp_path), {"average": averages}).save(2)
    others = variables()
    checkpoints.restore(str(tmp_path), {"average": others})
    for average, other in zip(averages, others, strict=True):
        np.testing.assert_array_equal(average, other)


def test_only_variables_of_the_same_path_are_averaged():
    with pytest.raises(ValueError, match="norm cannot be the average of kernel"):
        averaging.start(variables(), variables()[::-1])

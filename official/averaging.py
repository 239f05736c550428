"""An exponential moving average of a network's variables; it often evaluates better than they do.

The averages are the variables of a second network of the same kind: it is evaluated as it is, and
training never sees them. They cost the memory of the variables once more (float32) on each device.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf


def compute_decay(decay: float, step: tf.Tensor) -> tf.Tensor:
    """Computes which share of the old average step t keeps: min(decay, (1 + t) / (10 + t)).

    So the first steps are not dominated by the initial values: the rule of TensorFlow 1's
    ExponentialMovingAverage.

    Args:
        decay: in [0, 1).
        step: integer scalar, the number of steps made before.
    """
    t = tf.cast(step, tf.float32)
    return tf.minimum(decay, (1.0 + t) / (10.0 + t))


def start(averages: Sequence[Any], variables: Sequence[Any]) -> None:
    """Sets the averages to the variables' values; call it outside replica functions.

    Args:
        averages: Keras variables, with the same paths in the same order as `variables`.
        variables: what is trained.
    """
    for average, variable in _pair_variables(averages, variables):
        average.assign(tf.convert_to_tensor(variable))


def update(
    averages: Sequence[Any],
    variables: Sequence[Any],
    decay: tf.Tensor | float,
    strategy: tf.distribute.Strategy,
) -> None:
    """average <- decay * average + (1 - decay) * variable; call it outside replica functions.

    Every device blends its own copies, so none have to be sent.

    Args:
        averages, variables: as those of `start`, made in the strategy's scope.
        decay: scalar in [0, 1).
        strategy: the variables'.
    """

    def blend(average: tf.Variable, variable: tf.Variable) -> None:
        average.assign_sub((1.0 - decay) * (average - variable))

    for average, variable in _pair_variables(averages, variables):
        strategy.extended.update(average, blend, args=(variable,))


def _pair_variables(
    averages: Sequence[Any], variables: Sequence[Any]
) -> Iterator[tuple[tf.Variable, tf.Variable]]:
    for average, variable in zip(averages, variables, strict=True):
        if average.path != variable.path:
            raise ValueError(f"{average.path} cannot be the average of {variable.path}")
        yield average.value, variable.value

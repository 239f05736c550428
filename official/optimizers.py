"""SGD and Adam with coupled L2 regularisation, gradient clipping, and loss scaling for float16.

What enters the update rule is clip(g) + l2 * w, where g is the loss' gradient, summed over the
replicas. Coupled L2, l2 * w, is the gradient of l2 / 2 * |w|^2. Keras' own options are others:
`weight_decay` shrinks w beside the update, scaled by the rate; `global_clipnorm` makes each replica
clip its part of g before the sum.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from official import distribution

LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule


class _AfterTheSum:
    """What is done to the gradients once they are summed over the replicas; for Keras optimizers.

    First all of them are clipped by their common norm; then each gets its variable's l2 * w and
    rate. Done to the sum, each is done once, whatever the number of replicas.
    """

    def __init__(
        self,
        l2: float,
        decays: Callable[[Any], bool] | None,
        rate_factor: Callable[[Any], float] | None,
        gradient_clip_norm: float | None,
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self._l2, self._decays, self._rate_factor = l2, decays, rate_factor
        self._gradient_clip_norm = gradient_clip_norm

    def build(self, variables: Sequence[Any]) -> None:
        self._l2_of = [self._l2 if not self._decays or self._decays(v) else 0.0 for v in variables]
        self._factor_of = [self._rate_factor(v) if self._rate_factor else 1.0 for v in variables]
        super().build(variables)  # type: ignore[misc]

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> list[tuple[tf.Tensor, Any]]:
        # Keras' own clipping comes before this method, and there is no public place after it.
        summed = super()._all_reduce_sum_gradients(grads_and_vars)  # type: ignore[misc]
        if self._gradient_clip_norm is None:
            return summed  # type: ignore[no-any-return]
        gradients, variables = zip(*summed, strict=True)
        clipped = _clip_by_global_norm(gradients, self._gradient_clip_norm)
        return list(zip(clipped, variables, strict=True))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)  # type: ignore[attr-defined]
        l2, factor = self._l2_of[index], self._factor_of[index]
        if l2:
            gradient = gradient + l2 * variable
        if factor != 1.0:
            learning_rate = learning_rate * factor
        super().update_step(gradient, variable, learning_rate)  # type: ignore[misc]


class _SGD(_AfterTheSum, keras.optimizers.SGD):
    pass


class _Adam(_AfterTheSum, keras.optimizers.Adam):
    pass


def _clip_by_global_norm(gradients: Sequence[tf.Tensor], limit: float) -> list[tf.Tensor]:
    """All gradients times limit / norm where their common norm is above the limit, else as given.

    tf.clip_by_global_norm multiplies by limit * (1 / limit) where there is nothing to clip, which
    need not be 1.
    """
    norm = tf.linalg.global_norm(gradients)
    factor = tf.where(norm > limit, limit / norm, 1.0)
    return [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients]


def sgd(
    learning_rate: LearningRate,
    momentum: float = 0.9,
    *,
    l2: float,
    decays: Callable[[Any], bool] | None = None,
    rate_factor: Callable[[Any], float] | None = None,
    gradient_clip_norm: float | None = None,
) -> keras.optimizers.Optimizer:
    """SGD with momentum: v <- momentum * v - rate * factor * (clip(g) + l2 * w);  w <- w + v.

    g is the gradient of all replicas together; under `with_loss_scale`, of the unscaled loss.

    Args:
        learning_rate: a number or a schedule of the number of steps made.
        momentum: in 0..1.
        l2: the strength c in g + c * w.
        decays: which variables are regularised; None for all.
        rate_factor: what the rate of a variable is multiplied by; None for 1.
        gradient_clip_norm: above 0. Where the Euclidean norm of the gradients of all variables
            together exceeds it, they are multiplied by gradient_clip_norm / norm, before l2 * w is
            added: regularisation is neither measured nor cut. None: nothing is clipped.
    """
    # A fixed name: the paths of the optimizer's variables are what checkpoints know them by.
    return _SGD(
        *(l2, decays, rate_factor, gradient_clip_norm),
        learning_rate=learning_rate,
        momentum=momentum,
        name="sgd",
    )


def adam(
    learning_rate: LearningRate,
    betas: Sequence[float] = (0.9, 0.999),
    *,
    l2: float,
    decays: Callable[[Any], bool] | None = None,
    rate_factor: Callable[[Any], float] | None = None,
    gradient_clip_norm: float | None = None,
) -> keras.optimizers.Optimizer:
    """Adam (epsilon 1e-7) fed with clip(g) + l2 * w.

    Args:
        betas: the decays, both in [0, 1), of the running means of the gradient and of its square.

    The other arguments are those of `sgd`.
    """
    beta_1, beta_2 = betas
    return _Adam(
        *(l2, decays, rate_factor, gradient_clip_norm),
        learning_rate=learning_rate,
        beta_1=beta_1,
        beta_2=beta_2,
        name="adam",
    )


def is_kernel(variable: Any) -> bool:
    """Whether a variable is a convolution's kernel, not a bias or a BN parameter, by its name."""
    return "kernel" in variable.path.rsplit("/", 1)[-1]


class _LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Loss scaling whose replicas agree on whether a step's gradients are finite."""

    def apply(self, grads: Sequence[Any], trainable_variables: Sequence[Any] | None = None) -> None:
        # Keras looks at one replica's gradients only: an Inf on another one would get through.
        # After this sum all replicas hold the same values, and the sum that the inner optimizer
        # forms undoes the division.
        present = [gradient for gradient in grads if gradient is not None]
        count = tf.distribute.get_replica_context().num_replicas_in_sync
        summed = iter(distribution.sum_over_replicas(present))
        grads = [gradient if gradient is None else next(summed) / count for gradient in grads]
        super().apply(grads, trainable_variables)


def with_loss_scale(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """Wraps an optimizer for float16; right on any number of replicas.

    Differentiate optimizer.scale_loss(loss), which changes nothing for an optimizer not wrapped,
    and give the gradients to optimizer.apply. A step whose gradients hold an Inf or NaN on any
    replica is skipped on all of them and halves the scale; 2000 good steps in a row double it.
    A skipped step does not count in optimizer.iterations, on which schedules depend.
    """
    return _LossScaleOptimizer(optimizer, name="loss_scale")


def rule_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The state of the update rule (momenta, step count): the same variables in every precision."""
    return getattr(optimizer, "inner_optimizer", optimizer).variables


def without_counter(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """`rule_variables` but for the count of the steps that were made."""
    count = id(optimizer.iterations)
    return [variable for variable in rule_variables(optimizer) if id(variable) != count]


def loss_scale_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """What `with_loss_scale` adds to the state of a built optimizer; [] for one not wrapped."""
    if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return []
    return [optimizer.step_counter, optimizer.dynamic_scale]

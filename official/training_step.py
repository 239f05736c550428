"""What every training step shares: the loss of the global batch, and one update of one group."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from official.distribution import sum_over_replicas
from official.losses import count_pixels, sum_cross_entropy

Losses = dict[str, tf.Tensor]

NO_INLINE = {"_noinline": True}
"""The `experimental_attributes` of a tf.function that the graphs of others call.

Without them TensorFlow copies all operations of a function to wherever it is called, and then has
to prepare each copy for running. With them it stays a function, which is prepared once.
"""


def pixels_of_all_replicas(
    labels: tf.Tensor, ignore_label: int, top_k_pixels: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """How many pixels of the global batch count, float32 scalar; see `sum_cross_entropy`.

    Call it in the replica function, not in what is compiled.
    """
    counts = count_pixels(labels, ignore_label=ignore_label, top_k_pixels=top_k_pixels)
    return sum_over_replicas(tf.cast(tf.reduce_sum(counts), tf.float32))  # type: ignore[no-any-return]


def mean_loss(
    labels: tf.Tensor,
    logits: tf.Tensor,
    ignore_label: int,
    pixels: tf.Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    top_k_pixels: tf.Tensor | float = 1.0,
) -> tf.Tensor:
    """This replica's share of the mean cross entropy over the global batch's pixels that count.

    The shares of all replicas sum to the loss; so do their gradients.

    Args:
        labels: int32 [N, H, W].
        logits: floats [N, H, W, C].
        ignore_label: label of the pixels that do not count.
        pixels: `pixels_of_all_replicas` of the same arguments.
        class_weights, top_k_pixels: as those of `sum_cross_entropy`.

    Returns:
        float32 scalar; 0 when no pixel of the global batch is valid.
    """
    loss_sum, _ = sum_cross_entropy(
        labels,
        logits,
        ignore_label=ignore_label,
        class_weights=class_weights,
        top_k_pixels=top_k_pixels,
    )
    return tf.math.divide_no_nan(loss_sum, pixels)


def multi_step(step: Callable[..., Losses]) -> Callable[..., list[Losses]]:
    """Makes a traced function of many steps: (arguments of one, of the next, ...) -> their losses.

    Args:
        step: makes one step; each of its arguments is a tuple of what one step takes. It should
            call traced functions that stay functions (NO_INLINE), or compiled ones; so a call of
            many steps costs no more to prepare than a call of one.
    """
    return tf.function(  # type: ignore[no-any-return]
        lambda *arguments: [step(*own) for own in arguments], autograph=False
    )


def undo_bad(
    step: Callable[..., Losses], variables: Sequence[keras.Variable]
) -> Callable[..., Any]:
    """A step that leaves the variables as they were where it makes something not finite.

    Its losses are NaN then. It costs a copy of the variables, and a look at each.

    Args:
        step: is called in the strategy's scope, outside of its replicas.
        variables: all that it changes, without counters of steps.
    """

    def undoing(*batches: Any) -> Losses:
        before = [tf.identity(variable.value) for variable in variables]
        losses = step(*batches)
        floats = [v.value for v in variables if tf.as_dtype(v.dtype).is_floating]
        good = tf.reduce_all(
            [tf.reduce_all(tf.math.is_finite(x)) for x in [*losses.values(), *floats]]
        )

        def restore() -> tf.Tensor:
            for variable, value in zip(variables, before, strict=True):
                variable.value.assign(value)
            return tf.constant(False)

        tf.cond(good, lambda: tf.constant(True), restore)
        return {name: tf.where(good, loss, np.nan) for name, loss in losses.items()}

    return undoing


def compute_gradients(
    forward: Callable[[], tuple[tf.Tensor, Any]],
    variables: Sequence[keras.Variable],
    scale: tf.Tensor,
    jit_compile: bool = False,
) -> tuple[tuple[tf.Tensor, Any], list[tf.Tensor]]:
    """What `forward` returned, and the gradients of `scale` times its loss.

    Args:
        forward: () -> (this replica's share of the loss, anything else).
        jit_compile: compile both passes with XLA, and nothing else. That can be done where there
            are several replicas, if `forward` has no need of the others; `forward` then returns
            tensors, in any nesting.
    """

    def both_passes() -> tuple[Any, list[tf.Tensor]]:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in variables:
                tape.watch(variable.value)
            loss, other = forward()
            scaled = scale * loss
        gradients = tape.gradient(scaled, variables, unconnected_gradients="zero")
        return (loss, other), gradients

    if jit_compile:
        both_passes = tf.function(both_passes, autograph=False, jit_compile=True)
    return both_passes()


def minimize(
    forward: Callable[[], tuple[tf.Tensor, Any]],
    variables: Sequence[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
    jit_compile: bool = False,
) -> tuple[tf.Tensor, Any]:
    """One update of `variables`, and of no others; call it in the replica function.

    Args:
        forward, jit_compile: as those of `compute_gradients`.

    Returns:
        what `forward` returned.
    """
    scale = optimizer.scale_loss(tf.ones([]))
    returned, gradients = compute_gradients(forward, variables, scale, jit_compile)
    optimizer.apply(gradients, variables)
    return returned

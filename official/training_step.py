"""What every training step shares: the loss of the global batch, and one update of one group."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from official.distribution import sum_over_replicas
from official.losses import pixel_cross_entropy

Losses = dict[str, tf.Tensor]

# The attribute of a traced function that stays one which is called: the runtime prepares it once
# for all the calls in a graph.
NO_INLINE = {"_noinline": True}


def mean_loss(
    labels: tf.Tensor,
    logits: tf.Tensor,
    ignore_label: int,
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
        class_weights, top_k_pixels: as those of `pixel_cross_entropy`.

    Returns:
        float32 scalar; 0 when no pixel of the global batch is valid.
    """
    loss_sum, count = pixel_cross_entropy(
        labels,
        logits,
        ignore_label=ignore_label,
        class_weights=class_weights,
        top_k_pixels=top_k_pixels,
    )
    return tf.math.divide_no_nan(loss_sum, sum_over_replicas(count))


def several(step: Callable[..., Losses]) -> Callable[..., list[Losses]]:
    """A traced function that makes one step for each of its arguments, a tuple of the step's own.

    Args:
        step: calls traced functions that are not inlined (NO_INLINE), or compiled ones; so a call
            of many steps costs no more to prepare than a call of one.
    """
    return tf.function(  # type: ignore[no-any-return]
        lambda *arguments: [step(*own) for own in arguments], autograph=False
    )


def minimize(
    forward: Callable[[], tuple[tf.Tensor, Any]],
    variables: Sequence[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
) -> tuple[tf.Tensor, Any]:
    """One update of `variables`, and of no others; call it in the replica function.

    Args:
        forward: () -> (this replica's share of the loss, anything else).

    Returns:
        what `forward` returned.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for variable in variables:
            tape.watch(variable.value)
        loss, other = forward()
        scaled = optimizer.scale_loss(loss)
    optimizer.apply(tape.gradient(scaled, variables), variables)
    return loss, other

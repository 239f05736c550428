"""The segmentation loss: softmax cross entropy over the valid pixels."""

from collections.abc import Sequence

import tensorflow as tf


def pixel_cross_entropy(
    labels: tf.Tensor,
    logits: tf.Tensor,
    *,
    ignore_label: int,
    class_weights: Sequence[float] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum of the cross entropies of the valid pixels, and their number.

    The mean is left to the caller, because the divisor is the number of valid pixels of the
    *global* batch, which one replica does not know: loss = divide_no_nan(loss_sum, valid_count
    summed over the replicas). Class weights multiply a pixel's loss, not the divisor.

    Args:
      labels: integers [N, H, W] in 0..C-1, or ignore_label for a pixel that has no say: it adds
        exactly 0 to the loss and to the gradient.
      logits: floats [N, H, W, C]; computed in float32 whatever their type.
      ignore_label: the label that means void.
      class_weights: C factors, one per class; None for all 1.

    Returns:
      loss_sum and valid_count, float32 scalars; both 0 when every pixel is void.
    """
    valid = tf.not_equal(labels, ignore_label)
    # The operation accepts class numbers only: void pixels borrow class 0 and are dropped below.
    classes = tf.where(valid, labels, tf.zeros_like(labels))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=classes, logits=tf.cast(logits, tf.float32)
    )
    if class_weights is not None:
        losses *= tf.gather(tf.constant(class_weights, tf.float32), classes)
    loss_sum = tf.reduce_sum(tf.where(valid, losses, tf.zeros_like(losses)))
    return loss_sum, tf.cast(tf.math.count_nonzero(valid), tf.float32)

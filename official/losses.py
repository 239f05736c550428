"""The segmentation loss: softmax cross entropy over the valid pixels, or the hardest of them."""

from collections.abc import Sequence

import tensorflow as tf


def sum_cross_entropy(
    labels: tf.Tensor,
    logits: tf.Tensor,
    *,
    ignore_label: int,
    class_weights: Sequence[float] | None = None,
    top_k_pixels: tf.Tensor | float = 1.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum of the cross entropies of the pixels that count, and their number.

    The mean is left to the caller, because the divisor is the number of such pixels of the
    *global* batch, which one replica does not know: loss = divide_no_nan(loss_sum, count summed
    over the replicas). Class weights multiply a pixel's loss, not the divisor.

    Args:
        labels: integers [N, H, W] in 0..C-1, or ignore_label for a pixel that has no say: it adds
            exactly 0 to the loss and to the gradient.
        logits: floats [N, H, W, C]; computed in float32 whatever their type.
        ignore_label: the label that means void.
        class_weights: C factors >= 0, one per class; None for all 1.
        top_k_pixels: share in (0, 1], a number or a scalar float64 tensor. Of each image's v valid
            pixels, only the ceil(share * v) of the largest losses count, after weighting by class;
            of equal ones, those that come first. The others get no gradient. 1: all count.

    Returns:
        loss_sum and count, float32 scalars; both 0 when every pixel is void.
    """
    valid = tf.not_equal(labels, ignore_label)
    counts = count_pixels(labels, ignore_label=ignore_label, top_k_pixels=top_k_pixels)
    # The operation accepts class numbers only: void pixels borrow class 0 and are dropped below.
    classes = tf.where(valid, labels, tf.zeros_like(labels))
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=classes, logits=tf.cast(logits, tf.float32)
    )
    if class_weights is not None:
        losses *= tf.gather(tf.constant(class_weights, tf.float32), classes)
    if _selects_pixels(top_k_pixels):
        loss_sum = _sum_hardest(losses, valid, counts)
    else:
        loss_sum = tf.reduce_sum(tf.where(valid, losses, tf.zeros_like(losses)))
    return loss_sum, tf.cast(tf.reduce_sum(counts), tf.float32)


def count_pixels(
    labels: tf.Tensor, *, ignore_label: int, top_k_pixels: tf.Tensor | float = 1.0
) -> tf.Tensor:
    """How many pixels of each image count, int64 [N]; see `sum_cross_entropy`."""
    valid = tf.math.count_nonzero(tf.not_equal(labels, ignore_label), [1, 2])
    if not _selects_pixels(top_k_pixels):
        return valid
    # In float32, rounding would add pixels: 0.3 * 100000 is above 30000 there.
    share = tf.convert_to_tensor(top_k_pixels, tf.float64)
    return tf.cast(tf.math.ceil(share * tf.cast(valid, tf.float64)), tf.int64)


def compute_mining_share(
    top_k_pixels: float, hard_mining_steps: int, step: tf.Tensor
) -> tf.Tensor | float:
    """The share of pixels that count at a step: a straight line from 1 to top_k_pixels.

    Args:
        top_k_pixels: in (0, 1], reached at step hard_mining_steps and kept.
        hard_mining_steps: 0 for top_k_pixels at once.
        step: integer scalar, the number of steps made.

    Returns:
        A scalar float64 tensor; a number where it does not depend on the step.
    """
    if hard_mining_steps == 0 or top_k_pixels == 1.0:
        return top_k_pixels
    done = tf.minimum(tf.cast(step, tf.float64) / hard_mining_steps, 1.0)
    return 1.0 - done * (1.0 - top_k_pixels)


def _selects_pixels(top_k_pixels: tf.Tensor | float) -> bool:
    return isinstance(top_k_pixels, tf.Tensor) or top_k_pixels != 1.0


def _sum_hardest(losses: tf.Tensor, valid: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
    """Sum of each image's counts [N] largest losses; losses and valid [N, H, W]."""
    pixels = tf.reduce_prod(tf.shape(losses)[1:])
    # Void goes last: no loss is below 0.
    ranked = tf.reshape(tf.where(valid, losses, -tf.ones_like(losses)), [-1, pixels])
    # All are sorted, as XLA needs the number to be known, and every image has its own.
    ranked = tf.math.top_k(ranked, k=pixels).values
    counted = tf.sequence_mask(tf.cast(counts, tf.int32), pixels)
    return tf.reduce_sum(tf.where(counted, ranked, tf.zeros_like(ranked)))

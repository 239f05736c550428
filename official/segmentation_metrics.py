"""Quality of a segmentation: everything follows from one confusion matrix of a whole split."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf


def count_confusions(
    labels: tf.Tensor, predictions: tf.Tensor, *, num_classes: int, ignore_label: int
) -> tf.Tensor:
    """Counts pixels by true class (row) and predicted class (column).

    Args:
        labels: integers of any shape, in 0..num_classes-1, or ignore_label: such pixels do not
            count.
        predictions: integers of the same shape in 0..num_classes-1.
        num_classes: C.
        ignore_label: the label that means void.

    Returns:
        int64 [C, C]; exact for fewer than 2^31 pixels a call, and without limit when calls are
        added.
    """
    void_bin = num_classes * num_classes
    bins = tf.cast(labels, tf.int32) * num_classes + tf.cast(predictions, tf.int32)
    bins = tf.where(tf.equal(labels, ignore_label), void_bin, bins)
    counts = tf.math.bincount(
        tf.reshape(bins, [-1]), minlength=void_bin + 1, maxlength=void_bin + 1
    )
    return tf.cast(tf.reshape(counts[:-1], [num_classes, num_classes]), tf.int64)


def summarize(confusion: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Computes the metrics of a confusion matrix [C, C] (rows: truth), plain values for JSON.

    Returns:
        class_names; per_class_iou: TP / (TP + FP + FN), None where that is 0 / 0; miou: the mean of
        those that are not None (Cityscapes' rule); miou_present: the mean over the classes that
        have ground truth; pixel_accuracy; mean_accuracy: the mean of TP / (TP + FN) over the
        classes that have ground truth; miou_pixel_accuracy_mean: their mean (ADE20K's score). A
        mean over nothing is None. All others are in 0..1.
    """
    confusion = np.asarray(confusion, np.int64)
    hits = np.diag(confusion)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    union = truth + predicted - hits
    iou = [float(h / u) if u else None for h, u in zip(hits, union, strict=True)]
    miou = _average([value for value in iou if value is not None])
    pixel_accuracy = float(hits.sum() / truth.sum()) if truth.any() else None
    return {
        "class_names": list(class_names),
        "per_class_iou": iou,
        "miou": miou,
        "miou_present": _average([value for value, count in zip(iou, truth, strict=True) if count]),
        "pixel_accuracy": pixel_accuracy,
        "mean_accuracy": _average(
            [h / count for h, count in zip(hits, truth, strict=True) if count]
        ),
        "miou_pixel_accuracy_mean": _average([miou, pixel_accuracy]) if truth.any() else None,
    }


def _average(values: Sequence[Any]) -> float | None:
    return float(np.mean(values)) if values else None

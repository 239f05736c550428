import json

import numpy as np
import pytest
import tensorflow as tf

from official import segmentation_metrics

NAMES = ["a", "b", "c", "d", "e"]


def slow_confusion(labels, predictions, num_classes, ignore_label):
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for label, prediction in zip(labels.flat, predictions.flat, strict=True):
        if label != ignore_label:
            matrix[label, prediction] += 1
    return matrix


def random_case(shape, num_classes=5):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, shape)  # classes 3 and 4 have no ground truth
    labels[rng.random(shape) < 0.2] = 255
    predictions = rng.integers(0, 4, shape)  # class 4 is never predicted either
    return labels.astype(np.int32), predictions.astype(np.int32)


def test_confusion_matrix_equals_a_loop():
    labels, predictions = random_case((2, 13, 17))
    matrix = segmentation_metrics.count_confusions(
        labels, predictions, num_classes=5, ignore_label=255
    )
    assert matrix.dtype == tf.int64
    np.testing.assert_array_equal(matrix, slow_confusion(labels, predictions, 5, 255))


@pytest.mark.parametrize("ignore_label", [0, 255, -1])
def test_any_void_label(ignore_label):
    labels, predictions = random_case((1, 9, 9))
    labels[labels == 255] = ignore_label
    matrix = segmentation_metrics.count_confusions(
        labels, predictions, num_classes=5, ignore_label=ignore_label
    )
    np.testing.assert_array_equal(matrix, slow_confusion(labels, predictions, 5, ignore_label))


def test_dynamic_shapes_in_a_graph_and_types_mixed():
    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None], tf.uint8),
            tf.TensorSpec([None, None, None], tf.int64),
        ]
    )
    def graph(labels, predictions):
        return segmentation_metrics.count_confusions(
            labels, predictions, num_classes=5, ignore_label=255
        )

    for shape in ((1, 4, 7), (3, 9, 2)):
        labels, predictions = random_case(shape)
        np.testing.assert_array_equal(
            graph(labels.astype(np.uint8), predictions.astype(np.int64)),
            slow_confusion(labels, predictions, 5, 255),
        )


def test_only_void_pixels_count_nothing():
    labels = np.full((1, 3, 3), 255, np.int32)
    matrix = segmentation_metrics.count_confusions(
        labels, np.zeros_like(labels), num_classes=5, ignore_label=255
    ).numpy()
    assert not matrix.any()
    summary = segmentation_metrics.summarize(matrix, NAMES)
    assert summary["per_class_iou"] == [None] * 5
    assert summary["miou"] is summary["miou_present"] is summary["pixel_accuracy"] is None
    assert summary["miou_pixel_accuracy_mean"] is None


def test_summary_of_a_matrix_done_by_hand():
    # a: 3 right, 1 said to be b, 1 to be d; b: 2 right, 1 said to be a. c, d, e have no ground
    # truth; d is predicted once; c and e do not occur at all.
    matrix = np.zeros((5, 5), np.int64)
    matrix[0, 0], matrix[0, 1], matrix[0, 3], matrix[1, 1], matrix[1, 0] = 3, 1, 1, 2, 1
    summary = segmentation_metrics.summarize(matrix, NAMES)
    # IoU = TP / (TP + FN + FP): a 3 / (3 + 2 + 1), b 2 / (2 + 1 + 1), d 0 / (0 + 0 + 1).
    assert summary["per_class_iou"] == [0.5, 0.5, None, 0.0, None]
    assert summary["miou"] == pytest.approx(1 / 3)
    assert summary["miou_present"] == pytest.approx(1 / 2)
    assert summary["pixel_accuracy"] == pytest.approx(5 / 8)
    assert summary["mean_accuracy"] == pytest.approx((3 / 5 + 2 / 3) / 2)
    assert summary["miou_pixel_accuracy_mean"] == pytest.approx((1 / 3 + 5 / 8) / 2)
    assert summary["class_names"] == NAMES
    assert json.loads(json.dumps(summary)) == summary


def test_counts_beyond_float32_and_int32():
    # 2^24 + 1 is the first integer float32 lacks; sums of int64 matrices have no limit in sight.
    count = 2**24 + 1
    labels = tf.zeros([1, 1, count], tf.uint8)
    matrix = segmentation_metrics.count_confusions(labels, labels, num_classes=2, ignore_label=255)
    assert int(matrix[0, 0]) == count
    assert int(sum([matrix] * 200, tf.zeros_like(matrix))[0, 0]) == 200 * count

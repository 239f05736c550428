"""Times of calls: of a function that takes a known time, and what is said of them."""

import time

import pytest
import tensorflow as tf

from official import latency


def test_a_function_that_sleeps():
    shapes = []

    def sleep(image):
        time.sleep(0.02)
        return image

    def slow(image, weight):
        shapes.append((image.shape.as_list(), image.dtype, weight.dtype))
        return tf.py_function(sleep, [image], image.dtype)

    inputs = [tf.TensorSpec([1, 4, 6, 3], tf.uint8), tf.TensorSpec([2], tf.float32)]
    times = latency.measure(slow, inputs, runs=5)
    assert len(times) == 5 and min(times) >= 20  # ms
    assert shapes == [([1, 4, 6, 3], tf.uint8, tf.float32)]  # traced once


def test_what_is_said_of_times():
    said = latency.summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (said["median_ms"], said["quartiles_ms"]) == (3.0, [2.0, 4.0])
    assert (said["fastest_ms"], said["slowest_ms"], said["runs"]) == (1.0, 5.0, 5)
    assert said["threads"] >= 1 and said["device"]
    assert latency.summarize([7.0, 9.0])["median_ms"] == pytest.approx(8.0)

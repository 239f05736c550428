"""How long a function takes on this device."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def measure(
    function: Callable[..., Any], inputs: Sequence[tf.TensorSpec], runs: int = 15
) -> list[float]:
    """The times of calls of the traced function with random inputs, in ms, after warming up.

    Args:
        function: of tensors.
        inputs: their shapes and types; integers are 0 to 255.
        runs: how many are measured.
    """

    def draw(spec: tf.TensorSpec) -> tf.Tensor:
        top = 255 if spec.dtype.is_integer else 1
        return tf.cast(tf.random.uniform(spec.shape, maxval=float(top)), spec.dtype)

    tensors = [draw(spec) for spec in inputs]
    compiled = tf.function(function)

    def call() -> float:
        start = time.perf_counter()
        compiled(*tensors)
        tf.test.experimental.sync_devices()  # GPUs work on after the call
        return 1e3 * (time.perf_counter() - start)

    for _ in range(3):
        call()
    return [call() for _ in range(runs)]


def summarize(times: Sequence[float]) -> dict[str, Any]:
    """Gives measured times as plain data for JSON: in ms, with what they were measured on."""
    quarter, median, three_quarters = statistics.quantiles(times, n=4, method="inclusive")
    return {
        "median_ms": median,
        "quartiles_ms": [quarter, three_quarters],
        "fastest_ms": min(times),
        "slowest_ms": max(times),
        "runs": len(times),
        "device": describe_device(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count(),
    }


def describe_device() -> str:
    """The device on which is measured, in words."""
    for gpu in tf.config.list_physical_devices("GPU"):
        return str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))
    return f"{platform.processor() or platform.machine()} CPU, {os.cpu_count()} cores"

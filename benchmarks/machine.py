"""What this machine reaches in one large operation: the limit that other benchmarks name.

    python benchmarks/machine.py

All cores, TensorFlow's own threads; run as a process of its own, so that no settings of another
benchmark count. The only line is JSON.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

import tensorflow as tf

from official import distribution
from official.errors import UsageError


def set_precision(precision: str) -> None:
    """Sets what layers compute in, as distribution.set_precision, where this processor computes so.

    Raises:
        UsageError: it would compute in float32 instead.
    """
    if distribution.set_precision(precision) != precision:
        raise UsageError(
            f"--precision={precision} brings nothing on this processor, which has no instructions "
            "for it, and is not measured: leave it away"
        )


def seconds(function: Callable[[], Any], times: int) -> float:
    """The median time of a call."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def rates() -> dict[str, float]:
    """matmul_gflops and conv_gflops, measured in a process of its own."""
    command = [sys.executable, __file__]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def _measure() -> dict[str, float]:
    side = 2048
    a, b = tf.random.normal([side, side]), tf.random.normal([side, side])
    x, kernel = tf.random.normal([2, 81, 81, 160]), tf.random.normal([3, 3, 160, 160])
    product = tf.function(lambda: tf.reduce_sum(a @ b))
    convolution = tf.function(lambda: tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME")))
    product(), convolution()
    product_flop = 2 * side**3
    convolution_flop = 2 * (2 * 81 * 81 * 160) * (3 * 3 * 160)
    return {
        "matmul_gflops": product_flop / seconds(lambda: product().numpy(), 15) / 1e9,
        "conv_gflops": convolution_flop / seconds(lambda: convolution().numpy(), 15) / 1e9,
    }


if __name__ == "__main__":
    print(json.dumps(_measure()))

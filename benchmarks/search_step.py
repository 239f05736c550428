"""How long a step of the search takes, beside what its arithmetic alone would take.

    python benchmarks/search_step.py --crop_size=321 --batch_size=2 --space=dil|dense [--steps=5]

Random images; F = 8, L = 12, B = 5 as in the paper (Sec. 5.1) unless other flags say so. `dense` is
the paper's space, `dil` the one with depthwise-separable atrous convolutions. The limit is the
arithmetic of the traced graph at the rate that this machine reaches in one large convolution,
measured in the same run. Arithmetic: a multiply-add is two operations; a gradient by the inputs
costs as much as the forward pass, one by the weights as much again. So a weight step is three
forward passes, and the architecture's gradient, which needs none by the weights, two more.
Recomputed nodes are overhead, not work. The last line is JSON.
"""

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow as tf
from absl import flags

from auto_deeplab import cost, search_space
from auto_deeplab.architecture import Architecture
from auto_deeplab.search import Search
from auto_deeplab.supernet import SuperNet
from official import distribution, optimizers
from official.errors import run_app

SPACES = {"dense": search_space.OPERATIONS, "dil": search_space.DIL_OPERATIONS}
CLASSES, VOID = 19, 255


def batch(rng: np.random.Generator, size: int, crop: int) -> dict[str, tf.Tensor]:
    """Random images and labels."""
    return {
        "image": tf.constant(rng.uniform(0, 255, (size, crop, crop, 3)), tf.float32),
        "label": tf.constant(rng.integers(0, CLASSES, (size, crop, crop)), tf.int32),
    }


def seconds(function: Callable[[], Any], times: int) -> float:
    """The median time of a call."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def machine_rates() -> tuple[float, float]:
    """What one large matrix product and one large convolution reach, in GFLOP/s."""
    side = 2048
    a, b = tf.random.normal([side, side]), tf.random.normal([side, side])
    x, kernel = tf.random.normal([2, 81, 81, 160]), tf.random.normal([3, 3, 160, 160])
    product = tf.function(lambda: tf.reduce_sum(a @ b))
    convolution = tf.function(lambda: tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME")))
    product(), convolution()
    product_flop = 2 * side**3
    convolution_flop = 2 * (2 * 81 * 81 * 160) * (3 * 3 * 160)
    return (
        product_flop / seconds(lambda: product().numpy(), 7) / 1e9,
        convolution_flop / seconds(lambda: convolution().numpy(), 7) / 1e9,
    )


def main() -> None:
    """Measures and prints a table and JSON."""
    values = flags.FLAGS
    began = time.perf_counter()
    # As --mode=search does: folding constants takes minutes and finds nothing.
    tf.config.optimizer.set_experimental_options(
        {"constant_folding": False, "function_optimization": False}
    )
    distribution.set_precision(values.precision)
    strategy = distribution.make_strategy("one_device")
    shape = {"num_layers": values.num_layers, "num_blocks": values.num_blocks}
    operations = SPACES[values.space]
    with strategy.scope():
        supernet = SuperNet(
            num_classes=CLASSES,
            operations=operations,
            filter_multiplier=values.filter_multiplier,
            **shape,
        )
        searching = Search(
            supernet,
            Architecture(operations=operations, seed=0, **shape),
            weight_optimizer=optimizers.sgd(0.025, l2=3e-4),
            architecture_optimizer=optimizers.adam(0.003, l2=1e-3),
            ignore_label=VOID,
            strategy=strategy,
            jit_compile=values.jit_compile,
        )
    rng = np.random.default_rng(0)
    one, two = (batch(rng, values.batch_size, values.crop_size) for _ in range(2))

    def weight_step() -> None:
        searching.step(one)["loss_w"].numpy()

    def search_step() -> None:
        searching.step(one, two)["loss_arch"].numpy()

    weight_step()
    first_step = time.perf_counter() - began
    weight = seconds(weight_step, values.steps)
    search_step()
    search = seconds(search_step, values.steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB on Linux

    def forward(images: tf.Tensor) -> tf.Tensor:
        return supernet(images, *searching.architecture.probabilities(), training=True)[0]

    images = tf.TensorSpec([values.batch_size, values.crop_size, values.crop_size, 3], tf.float32)
    forward_gflop = 2 * cost.multiply_adds(forward, [images]) / 1e9
    matmul, conv = machine_rates()
    work = {"weight": 3 * forward_gflop, "search": 5 * forward_gflop}
    print(
        f"{values.space}, crop {values.crop_size}, batch {values.batch_size}, "
        f"F = {values.filter_multiplier}, L = {values.num_layers}, B = {values.num_blocks}, "
        f"{values.precision}; {os.cpu_count()} cores: matmul {matmul:.0f}, conv {conv:.0f} GFLOP/s"
    )
    print(f"{'step':<24}{'seconds':>10}{'GFLOP':>10}{'limit, s':>10}{'of limit':>10}")
    for name, label, time_taken in (
        ("weight", "weights", weight),
        ("search", "weights, alpha, beta", search),
    ):
        limit = work[name] / conv
        print(
            f"{label:<24}{time_taken:>10.2f}{work[name]:>10.1f}{limit:>10.2f}"
            f"{limit / time_taken:>10.2f}"
        )
    print(f"first step done after {first_step:.1f} s; peak resident memory {peak:.2f} GB")
    results = {
        "weight_step_s": weight,
        "search_step_s": search,
        "first_step_s": first_step,
        "peak_rss_gb": peak,
        "matmul_gflops": matmul,
        "conv_gflops": conv,
        "weight_step_gflop": work["weight"],
        "search_step_gflop": work["search"],
        "weight_fraction_of_limit": work["weight"] / conv / weight,
        "search_fraction_of_limit": work["search"] / conv / search,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    flags.DEFINE_integer("crop_size", 321, "side of the images", lower_bound=1)
    flags.DEFINE_integer("batch_size", 2, "images", lower_bound=1)
    flags.DEFINE_enum("space", "dense", list(SPACES), "the cell's operations")
    flags.DEFINE_integer("steps", 5, "steps of each kind that are measured", lower_bound=1)
    flags.DEFINE_integer("filter_multiplier", 8, "F", lower_bound=1)
    flags.DEFINE_integer("num_layers", 12, "L", lower_bound=1)
    flags.DEFINE_integer("num_blocks", 5, "B", lower_bound=1)
    flags.DEFINE_enum("precision", "float32", distribution.PRECISIONS, "what layers compute in")
    flags.DEFINE_bool("jit_compile", False, "compile the steps with XLA")
    run_app(main)

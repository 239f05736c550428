"""How long a step of the search takes, beside what its arithmetic alone would take.

    python benchmarks/search_step.py --crop_size=321 --batch_size=2 --space=dil|dense [--steps=5]

Random images; F = 8, L = 12, B = 5 as in the paper (Sec. 5.1) unless other flags say so. `dense` is
the paper's space, `dil` the one with depthwise-separable atrous convolutions. The limit is the
arithmetic of the traced graph at the rate that this machine reaches in one large convolution,
measured in the same run. Arithmetic: a multiply-add is two operations; a gradient by the inputs
costs as much as the forward pass, one by the weights as much again. So a weight step is three
forward passes, and the architecture's gradient, which needs none by the weights, two more.
What is computed again is overhead, not work. The last line is JSON.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow as tf
from absl import flags

from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.bilevel import Batch, Search
from auto_deeplab.search.execution import RECOMPUTE
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import search_space
from benchmarks import machine
from benchmarks.machine import seconds
from official import distribution, model_cost, optimizers
from official.command_line import run_app

SPACES = {"dense": search_space.OPERATIONS, "dil": search_space.DIL_OPERATIONS}
CLASSES, VOID = 19, 255


@dataclass(frozen=True)
class Setting:
    """What is measured; the paper's search (Sec. 5.1) unless said otherwise."""

    space: str = "dense"
    crop_size: int = 321
    batch_size: int = 2
    filter_multiplier: int = 8
    num_layers: int = 12
    num_blocks: int = 5
    stem_filters: str = ""
    partial_channels: int = 1
    precision: str = "float32"
    recompute: str = "cell"
    jit_compile: bool = False

    @classmethod
    def from_flags(cls) -> "Setting":
        """From the flags that have the fields' names."""
        names = [field.name for field in fields(cls) if field.name in flags.FLAGS]
        return cls(**{name: flags.FLAGS[name].value for name in names})

    def __str__(self) -> str:
        return (
            f"{self.space}, crop {self.crop_size}, batch {self.batch_size}, "
            f"F = {self.filter_multiplier}, L = {self.num_layers}, B = {self.num_blocks}, "
            f"stem {self.stem_filters or 'by default'}, K = {self.partial_channels}, "
            f"{self.precision}"
        )

    def supernet(self) -> SuperNet:
        """A new super-net."""
        return SuperNet(
            num_classes=CLASSES,
            num_layers=self.num_layers,
            num_blocks=self.num_blocks,
            operations=SPACES[self.space],
            filter_multiplier=self.filter_multiplier,
            stem_filters=[int(number) for number in self.stem_filters.split(",") if number],
            partial_channels=self.partial_channels,
            recompute=self.recompute,
            jit_compile=self.jit_compile,
        )

    def search(self) -> Search:
        """A new search on the first device, with TensorFlow set up as --mode=search does."""
        distribution.expect_many_operations()
        strategy = distribution.make_strategy("one_device")
        machine.set_precision(self.precision)
        with strategy.scope():
            return Search(
                self.supernet(),
                Architecture(
                    num_layers=self.num_layers,
                    num_blocks=self.num_blocks,
                    operations=SPACES[self.space],
                    seed=0,
                    partial_channels=self.partial_channels,
                ),
                weight_optimizer=optimizers.sgd(0.025, l2=3e-4),
                architecture_optimizer=optimizers.adam(0.003, l2=1e-3),
                ignore_label=VOID,
                strategy=strategy,
                jit_compile=self.jit_compile,
            )

    def batches(self) -> tuple[Batch, Batch]:
        """Two batches of random images and labels."""
        rng = np.random.default_rng(0)
        size = (self.batch_size, self.crop_size, self.crop_size)

        def batch() -> Batch:
            return {
                "image": tf.constant(rng.uniform(0, 255, (*size, 3)), tf.float32),
                "label": tf.constant(rng.integers(0, CLASSES, size), tf.int32),
            }

        return batch(), batch()

    def forward_gflop(self, searching: Search) -> float:
        """The arithmetic of a forward pass."""
        supernet = self.supernet()
        # Functions of its own leave sizes open, which cannot be counted.
        supernet.execution.inline = True

        def forward(images: tf.Tensor) -> tf.Tensor:
            architecture = searching.architecture
            edge_weights = architecture.edge_weights()
            return supernet(images, *architecture(), training=True, edge_weights=edge_weights)[0]

        images = tf.TensorSpec([self.batch_size, self.crop_size, self.crop_size, 3], tf.float32)
        return 2 * model_cost.count_multiply_adds(forward, [images]) / 1e9


def define_flags() -> None:
    """A flag for each field of Setting but jit_compile."""
    flags.DEFINE_integer("crop_size", 321, "side of the images", lower_bound=1)
    flags.DEFINE_integer("batch_size", 2, "images", lower_bound=1)
    flags.DEFINE_enum("space", "dense", list(SPACES), "the cell's operations")
    flags.DEFINE_integer("filter_multiplier", 8, "F", lower_bound=1)
    flags.DEFINE_integer("num_layers", 12, "L", lower_bound=1)
    flags.DEFINE_integer("num_blocks", 5, "B", lower_bound=1)
    flags.DEFINE_string("stem_filters", "", "channels, such as 64,64,128; empty: as in the search")
    flags.DEFINE_integer("partial_channels", 1, "K: operations see C / K channels", lower_bound=1)
    flags.DEFINE_enum("precision", "float32", distribution.PRECISIONS, "what layers compute in")
    flags.DEFINE_enum("recompute", "cell", list(RECOMPUTE), "what the backward pass computes again")


def peak_gb() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB on Linux


def print_profile(step: Callable[[], None]) -> None:
    """Which kinds of operations a step spends its time in, from TensorFlow's profiler."""
    # The trace's own format: what TensorBoard's profile page reads.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as directory:
        with tf.profiler.experimental.Profile(directory):
            step()
        (path,) = Path(directory).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    taken: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            # The operations' events are called name:kind.
            _, _, kind = plane.event_metadata[event.metadata_id].name.partition(":")
            if kind.isidentifier():
                taken[kind] += event.duration_ps
                calls[kind] += 1
    print(f"{'kind of operation':<44}{'seconds':>9}{'calls':>9}{'us each':>9}")
    for kind, duration in taken.most_common(25):
        print(
            f"{kind:<44}{duration / 1e12:>9.3f}{calls[kind]:>9}{duration / 1e6 / calls[kind]:>9.0f}"
        )


def main() -> None:
    """Measures and prints a table and JSON."""
    setting, steps = Setting.from_flags(), flags.FLAGS.steps
    began = time.perf_counter()
    threads = flags.FLAGS.intra_op_threads
    if threads:
        tf.config.threading.set_inter_op_parallelism_threads(os.cpu_count())
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    searching = setting.search()
    one, two = setting.batches()

    def weight_step() -> None:
        searching.steps((one,))[0]["loss_w"].numpy()

    def search_step() -> None:
        searching.steps((one, two))[0]["loss_arch"].numpy()

    weight_step()
    first_step = time.perf_counter() - began
    weight = seconds(weight_step, steps)
    search_step()
    search = seconds(search_step, steps)
    peak = peak_gb()
    parameters = sum(int(np.prod(v.shape)) for v in searching.supernet.trainable_variables)
    if flags.FLAGS.profile:
        print_profile(weight_step)
    forward_gflop = setting.forward_gflop(searching)
    matmul, conv = machine.rates().values()
    work = {"weight": 3 * forward_gflop, "search": 5 * forward_gflop}
    print(f"{setting}; {os.cpu_count()} cores: matmul {matmul:.0f}, conv {conv:.0f} GFLOP/s")
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
    print(f"{parameters:,} parameters in {len(searching.supernet.trainable_variables)} variables")
    results = {
        "weight_step_s": weight,
        "search_step_s": search,
        "first_step_s": first_step,
        "peak_rss_gb": peak,
        "parameters": parameters,
        "matmul_gflops": matmul,
        "conv_gflops": conv,
        "weight_step_gflop": work["weight"],
        "search_step_gflop": work["search"],
        "weight_fraction_of_limit": work["weight"] / conv / weight,
        "search_fraction_of_limit": work["search"] / conv / search,
    }
    print(json.dumps(results))


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_integer("steps", 5, "steps of each kind that are measured", lower_bound=1)
    flags.DEFINE_integer("intra_op_threads", 0, "threads of an operation; 0: as in --mode=search")
    flags.DEFINE_bool("jit_compile", False, "compile the steps with XLA")
    flags.DEFINE_bool("profile", False, "show where a weight step spends its time, too")
    run_app(main)

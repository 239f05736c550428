"""How the cost of a step grows with crop, batch, F, L and B, beside the growth of its arithmetic.

    python benchmarks/scaling.py [--space=dil] [--steps=3] [--vary=crop_size:129,257 ...]

One size at a time changes, the others stay as in the paper's search (crop 321, batch 2, F = 8,
L = 12, B = 5); every line is a process of its own, so that its memory is its own. The step is that
of the weights. The last line is JSON.
"""

import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

if __name__ in ("__main__", "__mp_main__"):
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

from absl import flags

from benchmarks.machine import seconds
from benchmarks.search_step import Setting, define_flags, peak_gb
from official.command_line import run_app
from official.errors import UsageError
from official.progress import Progress

SIZES = (
    "crop_size:129,193,257,321,385,513",
    "batch_size:1,2,4,8",
    "filter_multiplier:4,8,16",
    "num_layers:4,8,12",
    "num_blocks:2,3,5,7",
)
Row = dict[str, float]


def measure(setting: Setting, steps: int) -> Row:
    """The weight step at one setting; call it in a process of its own."""
    began = time.perf_counter()
    searching = setting.search()
    batch, _ = setting.batches()

    def step() -> None:
        searching.steps((batch,))[0]["loss_w"].numpy()

    step()
    first = time.perf_counter() - began
    taken = seconds(step, steps)
    return {
        "weight_step_s": taken,
        "first_step_s": first,
        "peak_rss_gb": peak_gb(),
        "gflop": 3 * setting.forward_gflop(searching),
    }


def measure_apart(setting: Setting, steps: int) -> Row:
    """`measure` in a new process."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as process:
        return process.submit(measure, setting, steps).result()


def parse_sizes(text: str) -> tuple[str, list[int]]:
    """("batch_size", [1, 2]) from "batch_size:1,2"."""
    name, _, sizes = text.partition(":")
    try:
        if name not in {size.partition(":")[0] for size in SIZES}:
            raise ValueError
        return name, [int(size) for size in sizes.split(",")]
    except ValueError:
        raise UsageError(f"--vary={text} is not like {SIZES[0]}") from None


def main() -> None:
    """Measures, and prints a table and JSON."""
    base, steps = Setting.from_flags(), flags.FLAGS.steps
    sizes = dict(parse_sizes(text) for text in flags.FLAGS.vary)
    settings = [replace(base, **{name: size}) for name, all_ in sizes.items() for size in all_]
    found: dict[Setting, Row] = {}
    with Progress("scaling", 1 + len(set(settings) - {base}), unit="settings") as progress:
        for setting in (base, *settings):
            if setting not in found:
                found[setting] = measure_apart(setting, steps)
                progress.advance(1, lambda: "")
    print(f"{base}: {found[base]['weight_step_s']:.2f} s a weight step")
    print(
        f"{'':<24}{'seconds':>9}{'GFLOP':>9}{'time x':>9}{'GFLOP x':>9}{'peak GB':>9}{'first s':>9}"
    )
    results: dict[str, dict[int, Row]] = {}
    for name, all_ in sizes.items():
        for size in all_:
            row = results.setdefault(name, {})[size] = found[replace(base, **{name: size})]
            times, work = (row[key] / found[base][key] for key in ("weight_step_s", "gflop"))
            print(
                f"{name + ' ' + str(size):<24}{row['weight_step_s']:>9.2f}{row['gflop']:>9.1f}"
                f"{times:>9.2f}{work:>9.2f}{row['peak_rss_gb']:>9.2f}{row['first_step_s']:>9.1f}"
            )
    print(json.dumps(results))


if __name__ == "__main__":
    define_flags()
    flags.DEFINE_integer("steps", 3, "steps that are measured at each setting", lower_bound=1)
    flags.DEFINE_multi_string("vary", list(SIZES), "a size to change, and its values")
    run_app(main)

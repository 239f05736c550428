"""Writes a step of the search as serialized StableHLO, to be compiled and timed where XLA is.

    python benchmarks/export_stablehlo.py --output=step.mlir [--step=weights|architecture]
        [--space=dense] [--precision=float32] [--recompute=cell] [--crop_size=321] ...

The program's parameters are the step's batches, then the variables that it reads; its results are
the loss, then the variables that it writes. The last line is JSON, as is step.json beside the
program; its `carry` lists which result is which parameter of the next step, as `result:parameter`
pairs. With --values step.npz holds the parameters arg0, arg1, ... and the loss that they give here.
run_stablehlo.py runs it.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks.search_step import Setting, define_flags
from official.command_line import run_app
from official.errors import UsageError
from official.files import write_atomically
from official.paths import define_path

ALIAS = re.compile(r"\{(\d+)\}: \((\d+), \{\}")


def main() -> None:
    """Writes the program and says what is in it."""
    values = flags.FLAGS
    if values.output is None:
        raise UsageError("--output is needed: the file to write, such as step.mlir")
    setting = replace(Setting.from_flags(), jit_compile=True)
    began = time.perf_counter()
    searching = setting.search()
    one, two = setting.batches()
    step, batches = {
        "weights": (searching.weight_step, (one,)),
        "architecture": (searching.architecture_step, (two, one)),
    }[values.step]
    lowered = step.experimental_get_compiler_ir(*batches)
    program = lowered(stage="stablehlo_serialized")
    write_atomically(values.output, program)
    # Only the header of the HLO text says which results are variables.
    header = lowered(stage="hlo").partition("\n")[0]
    variables = [f"{result}:{parameter}" for result, parameter in ALIAS.findall(header)]
    taken = time.perf_counter() - began
    print(f"{setting}: {values.output}, {len(program) / 1e6:.1f} MB, in {taken:.0f} s")
    results = {
        "megabytes": len(program) / 1e6,
        "lowering_s": taken,
        "variables_written": len(variables),
        "carry": ",".join(variables),
    }
    output = Path(values.output)
    write_atomically(output.with_suffix(".json"), json.dumps(results) + "\n")
    if values.values:
        write_values(output.with_suffix(".npz"), step, batches)
    print(json.dumps(results))


def write_values(path: Path, step: Any, batches: Sequence[Any]) -> None:
    """Writes the parameters as they are now, and the loss of a step, which is made."""
    concrete = step.get_concrete_function(*batches)
    variables = {id(variable.handle): variable for variable in concrete.graph.variables}
    # In the program the batches' tensors come first, then what the function has captured.
    captured = [variables[id(handle)].numpy() for handle in concrete.captured_inputs]
    arrays = [*(tensor.numpy() for tensor in tf.nest.flatten(batches)), *captured]
    named = {f"arg{number}": array for number, array in enumerate(arrays)}
    np.savez(path, loss=step(*batches).numpy(), **named)


if __name__ == "__main__":
    define_flags()
    define_path("output", None, "the file to write")
    flags.DEFINE_bool("values", False, "write the parameters and the loss, too")
    flags.DEFINE_enum("step", "weights", ["weights", "architecture"], "which of the two")
    run_app(main)

"""Writes a step of the search as serialized StableHLO, to be compiled and timed where XLA is.

    python benchmarks/export_stablehlo.py --output=step.mlir [--step=weights|architecture]
        [--space=dense] [--precision=float32] [--recompute=cell] [--crop_size=321] ...

The program's parameters are the step's batches, then the variables that it reads; its results are
the loss, then the variables that it writes. The last line is JSON, whose `carry` lists which result
is which parameter of the next step, as `result:parameter` pairs.
"""

import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

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
    if values.step == "weights":
        lowered = searching.weight_step.experimental_get_compiler_ir(one)
    else:
        lowered = searching.architecture_step.experimental_get_compiler_ir(two, one)
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
    print(json.dumps(results))


if __name__ == "__main__":
    define_flags()
    define_path("output", None, "the file to write")
    flags.DEFINE_enum("step", "weights", ["weights", "architecture"], "which of the two")
    run_app(main)

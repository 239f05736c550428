"""Compiles and times programs of export_stablehlo.py on the device that JAX finds.

    python benchmarks/run_stablehlo.py [--steps=20] PROGRAM.mlir ...

It needs JAX and NumPy, and not TensorFlow. Beside PROGRAM.mlir lies PROGRAM.json, which tells what
becomes a parameter of the next step. If PROGRAM.npz is there too, it holds the first step's
parameters, and the loss that TensorFlow got from them, which is shown beside the one found here;
otherwise parameters are random numbers, and only times mean anything. All programs are compiled
side by side first, then timed one after the other. Float32 products may be TF32 on GPUs that have
it, as XLA does by default; NVIDIA_TF32_OVERRIDE=0 forbids it. The last line is JSON.
"""

import argparse
import json
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np

# Programs come from outside JAX, for which it has no public door.
from jax._src import xla_bridge
from jax._src.interpreters import mlir
from jax._src.lib import xla_client
from jax._src.lib.mlir import ir
from jax._src.lib.mlir.dialects import hlo as stablehlo

DTYPES = {
    **{"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i1": np.bool_},
    **{"i32": np.int32, "i64": np.int64, "ui8": np.uint8, "ui32": np.uint32, "ui64": np.uint64},
}
COPY = re.compile(r' "?mhlo\.copy"?[ (](%[\w#]+)\)? : (?:\(tensor<[^>]*>\) -> )?(tensor<[^>]*>)')
"""What TensorFlow's lowering leaves of an older dialect, and newer XLA refuses: nothing changes."""


def read(path: Path) -> tuple[str, list[tuple[list[int], Any]]]:
    """A program's text, and shape and dtype of each of its parameters."""
    with mlir.make_ir_context() as context:
        found = stablehlo.deserialize_portable_artifact(context, path.read_bytes())
        module = ir.Module.parse(found) if isinstance(found, str | bytes) else found
        (main,) = (
            operation
            for operation in module.body.operations
            if operation.operation.attributes["sym_name"].value == "main"
        )
        parameters = [
            (list(tensor.shape), DTYPES[str(tensor.element_type)])
            for tensor in map(ir.RankedTensorType, main.type.inputs)
        ]
        text = module.operation.get_asm(binary=False, enable_debug_info=False)
        return COPY.sub(r" stablehlo.reshape \1 : (\2) -> \2", text), parameters


def make_values(path: Path, parameters: list[tuple[list[int], Any]]) -> list[np.ndarray]:
    """The parameters of the first step."""
    given = path.with_suffix(".npz")
    if given.exists():
        stored = np.load(given)
        return [stored[f"arg{number}"] for number in range(len(parameters))]
    rng = np.random.default_rng(0)
    return [
        rng.uniform(0, 0.1, shape).astype(dtype)
        if np.issubdtype(dtype, np.floating) or dtype is ml_dtypes.bfloat16
        else np.zeros(shape, dtype)
        for shape, dtype in parameters
    ]


def compile_program(path: Path) -> tuple[Any, list[np.ndarray], float]:
    """The executable, its first parameters, and the seconds that compiling took."""
    backend = xla_bridge.get_backend()
    text, parameters = read(path)
    devices = xla_client.DeviceList((backend.local_devices()[0],))
    began = time.perf_counter()
    program = backend.compile_and_load(text.encode(), devices, xla_client.CompileOptions())
    return program, make_values(path, parameters), time.perf_counter() - began


def measure(path: Path, program: Any, values: list[np.ndarray], steps: int) -> dict[str, Any]:
    """The loss of the first step, seconds of a step, and what it holds on the device."""
    device = xla_bridge.get_backend().local_devices()[0]
    arguments = [jax.device_put(value, device) for value in values]
    pairs = json.loads(path.with_suffix(".json").read_text())["carry"].split(",")
    carry = dict(tuple(map(int, pair.split(":"))) for pair in pairs if pair)
    times: list[float] = []
    loss = float("nan")
    for step in range(steps + 2):
        began = time.perf_counter()
        results = program.execute_sharded(arguments).disassemble_into_single_device_arrays()
        flat = [shards[0] for shards in results]
        for result in flat:
            result.block_until_ready()
        times.append(time.perf_counter() - began)
        if step == 0:
            loss = float(np.asarray(flat[0]))
        # What is written to is donated, and lives on as the result.
        for result, parameter in carry.items():
            arguments[parameter] = flat[result]
    memory = program.get_compiled_memory_stats()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "loss": loss,
        "step_ms": 1e3 * statistics.median(times[2:]),
        "fastest_ms": 1e3 * min(times[2:]),
        "slowest_ms": 1e3 * max(times[2:]),
        "memory_gb": (held + memory.temp_size_in_bytes) / 1e9,
    }


def main() -> None:
    """Compiles, measures, and prints a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("programs", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=20, help="steps that are timed")
    arguments = parser.parse_args()
    device = xla_bridge.get_backend().local_devices()[0]
    print(f"{device.device_kind}, JAX {jax.__version__}", flush=True)
    with ThreadPoolExecutor() as pool:
        waiting = {path: pool.submit(compile_program, path) for path in arguments.programs}
    found: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__, "programs": {}}
    print(f"{'program':<40}{'compile, s':>11}{'ms':>9}{'fastest':>9}{'slowest':>9}{'GB':>7}")
    for path, job in waiting.items():
        try:
            program, values, taken = job.result()
            row = {"compile_s": taken, **measure(path, program, values, arguments.steps)}
        except Exception as error:  # the others are worth having
            print(f"{path.stem:<40} failed: {str(error)[:300]}", flush=True)
            continue
        found["programs"][path.stem] = row
        print(
            f"{path.stem:<40}{taken:>11.1f}{row['step_ms']:>9.2f}{row['fastest_ms']:>9.2f}"
            f"{row['slowest_ms']:>9.2f}{row['memory_gb']:>7.2f}",
            flush=True,
        )
        given = path.with_suffix(".npz")
        if given.exists():
            wanted = float(np.load(given)["loss"])
            row |= {"loss_of_tensorflow": wanted}
            print(f"    loss {row['loss']:.7f} here, {wanted:.7f} of TensorFlow on a CPU")
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Runs a test module's function in a new process that has some logical CPUs.

For what cannot be done in the process of the tests: resuming in a new process, determinism (which
must be switched on before TensorFlow starts), being killed.
"""

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def start_in_new_process(
    function: Callable[..., Any], *args: Any, cpus: int = 2
) -> subprocess.Popen:
    """Starts function(*args), a function at the top level of a test module, in a new process.

    Args:
        cpus: number of logical CPUs, configured before the function's module is imported.
    """
    job = pickle.dumps((function.__code__.co_filename, function.__name__, args, cpus)).hex()
    return subprocess.Popen(
        [sys.executable, __file__, job],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def result_of(process: subprocess.Popen, timeout: float = 300) -> Any:
    """Waits for a process of start_in_new_process; returns what the function returned."""
    stdout, stderr = process.communicate(timeout=timeout)
    assert process.returncode == 0, stderr.decode(errors="replace")[-5000:]
    return pickle.loads(bytes.fromhex(stdout.decode().splitlines()[-1]))


def run_in_new_process(function: Callable[..., Any], *args: Any, cpus: int = 2) -> Any:
    """Runs function(*args) in a new process; arguments and result are pickled."""
    return result_of(start_in_new_process(function, *args, cpus=cpus))


def _main() -> None:
    file, name, args, cpus = pickle.loads(bytes.fromhex(sys.argv[1]))
    sys.path[0] = str(ROOT)
    from official.quiet import set_environment

    set_environment()
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * cpus
    )
    spec = importlib.util.spec_from_file_location("test_module", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = getattr(module, name)(*args)
    print("\n" + pickle.dumps(result).hex(), flush=True)


if __name__ == "__main__":
    _main()

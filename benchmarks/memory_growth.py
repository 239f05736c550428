"""Whether a long run takes more and more memory.

    python benchmarks/memory_growth.py --steps=2000

A tiny search and a tiny training (benchmarks/tiny_runs.py), with twenty reports each. Shown is the
resident memory of their process at each report, and how much it grew, in %, from the third, when
both phases of the search have begun and been reported, to the last. The last line is JSON.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

from absl import flags

from benchmarks import tiny_runs
from official.command_line import run_app
from official.errors import RunError

REPORTS, FIRST = 20, 3
TRAIN = Path(__file__).resolve().parent.parent / "auto_deeplab" / "train.py"


def watch(mode: str, root: Path, steps: int) -> list[float]:
    """Runs the mode; the process' resident memory, in MB, soon after each report.

    Raises:
        RunError: it failed.
    """
    run = root / mode
    command = tiny_runs.arguments(mode, run, steps=steps, report_every=steps // REPORTS)
    memory: list[float] = []
    now = 0.0
    with (
        open(root / f"{mode}.log", "w+") as log,
        subprocess.Popen([sys.executable, TRAIN, *command], cwd=root, stderr=log) as process,
    ):
        is_running = True
        while is_running:
            time.sleep(0.05)
            is_running = process.poll() is None
            now = resident_mb(process.pid) or now
            history = run / "history.jsonl"
            reports = history.read_text().count("\n") if history.exists() else 0
            while len(memory) < reports:
                memory.append(now)
                print(f"{mode:<8}{len(memory) * steps // REPORTS:>6} steps{now:>8.0f} MB")
        if process.returncode:
            raise RunError(f"{mode} failed: {Path(log.name).read_text().splitlines()[-1]}")
    return memory


def resident_mb(process: int) -> float:
    """The resident memory of a process; 0 if it has ended."""
    status = Path(f"/proc/{process}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1e3 for line in lines if line.startswith("VmRSS")), 0)


def main() -> None:
    """Runs, and prints a table and JSON."""
    steps = flags.FLAGS.steps - flags.FLAGS.steps % (REPORTS * tiny_runs.EPOCH_STEPS)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny_runs.prepare(Path(folder))
        for mode in tiny_runs.MODES:
            memory = watch(mode, Path(folder), steps)
            growth = 100 * (memory[-1] / memory[FIRST - 1] - 1)
            results[mode] = {"first_mb": memory[FIRST - 1], "last_mb": memory[-1]}
            results[mode]["growth_percent"] = round(growth, 2)
    print(json.dumps(results))


if __name__ == "__main__":
    flags.DEFINE_integer("steps", 2000, "steps of each run", lower_bound=REPORTS * 2)
    run_app(main)

"""Every benchmark, one after the other: a table and a file, to compare commits or machines by.

    python benchmarks/all.py [--quick] [--only=search_step_dil,convert] [--output=mine.json]
        [--compare=other.json]

`--quick` takes each in its smallest form that still means something; without it each is as
docs/performance.md has it, which takes an hour or two. Each runs in a process of its own and has
the machine for itself; leave it alone meanwhile. With --compare the numbers of another such file
stand beside these, and the ratio of these to those. Between machines, compare shares of a limit:
the limit is what the machine reaches in one large operation. The last line is JSON, as is the
file: what the machine is, the commit, and each benchmark's own JSON.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from absl import flags

from official.command_line import run_app
from official.errors import RunError, UsageError
from official.files import write_atomically
from official.paths import define_path

FOLDER = Path(__file__).resolve().parent
_SMALL_STEP = ("--crop_size=129", "--num_layers=4", "--steps=2")
_SMALL_NETWORK = ("--crop_size=257", "--height=256", "--width=512", "--steps=2")
BENCHMARKS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    # Flags of both forms, then those of the small one.
    "machine": ("machine", (), ()),
    "search_step_dil": ("search_step", ("--space=dil",), _SMALL_STEP),
    "search_step_dense": ("search_step", ("--space=dense",), _SMALL_STEP),
    "search_step_dil_partial": (
        *("search_step", ("--space=dil", "--partial_channels=4")),
        _SMALL_STEP,
    ),
    "scaling": ("scaling", (), ("--steps=1", "--vary=crop_size:65,129", "--num_layers=2")),
    "network_s": ("network", ("--size=S",), _SMALL_NETWORK),
    "input_pipeline": ("input_pipeline", (), ("--images=4", "--seconds=1")),
    "convert": ("convert", (), ("--images=8",)),
    "memory_growth": ("memory_growth", (), ("--steps=100",)),
    "crash_test": ("crash_test", (), ("--kills=4",)),
}
"""Name -> the script, and its flags. What needs files of another run is not among them."""


def run(name: str, quick: bool) -> dict[str, Any]:
    """Runs a benchmark and gives its JSON, with the seconds that it took and its command.

    Raises:
        RunError: it failed.
    """
    script, common, small = BENCHMARKS[name]
    arguments = [*common, *(small if quick else ())]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, FOLDER / f"{script}.py", *arguments], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise RunError((done.stderr.strip().splitlines() or ["it printed nothing"])[-1])
    return {
        "command": " ".join([f"benchmarks/{script}.py", *arguments]),
        "taken_s": round(time.monotonic() - began, 1),
        "found": json.loads(lines[-1]),
    }


def describe_machine() -> dict[str, Any]:
    """What the figures hang on: the processor, the versions, and TensorFlow's settings."""
    model = platform.processor() or platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.exists():
        fields = [line.partition(":") for line in cpu.read_text().splitlines()]
        model = next((value.strip() for key, _, value in fields if key[:10] == "model name"), model)
    settings = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS", "LD_PRELOAD")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": version("tensorflow"),
        "settings": {name: os.environ[name] for name in settings if name in os.environ},
    }


def find_commit() -> str | None:
    """The commit of these files, with "+" if they were changed since; None outside a checkout."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], cwd=FOLDER, capture_output=True, check=True, text=True
            ).stdout.strip()
            for words in (("rev-parse", "--short", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changes else "")


def flatten(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Gives all numbers of a benchmark's JSON, each with its keys from the outermost on."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from flatten(value, f"{name} {key}".strip())
    elif isinstance(found, int | float):
        yield name, found


def read_other(path: str) -> dict[str, dict[str, float]]:
    """The numbers by benchmark of a file that this script wrote.

    Raises:
        UsageError: it is none.
    """
    try:
        results = json.loads(Path(path).read_text())["results"]
        return {name: dict(flatten(one["found"])) for name, one in results.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"--compare={path} is no file that benchmarks/all.py --output wrote"
        ) from None


def main() -> None:
    """Runs them, prints the table and writes the file."""
    values = flags.FLAGS
    names = values.only or list(BENCHMARKS)
    if unknown := [name for name in names if name not in BENCHMARKS]:
        raise UsageError(f"--only={unknown[0]} is none of {', '.join(BENCHMARKS)}")
    other = read_other(values.compare) if values.compare else {}
    answer: dict[str, Any] = {
        "machine": describe_machine(),
        "commit": find_commit(),
        "date": time.strftime("%Y-%m-%d"),
        "quick": values.quick,
        "results": {},
    }
    print(", ".join(f"{key} {value}" for key, value in answer["machine"].items()))
    print(f"{'':<70}{'here':>12}" + (f"{'there':>12}{'ratio':>8}" if other else ""))
    failed = []
    for number, name in enumerate(names, 1):
        print(f"{name} ({number} of {len(names)}) ...", file=sys.stderr, flush=True)
        try:
            done = answer["results"][name] = run(name, values.quick)
        except RunError as error:
            failed.append(name)
            print(f"{name}: failed: {error}", file=sys.stderr, flush=True)
            continue
        print(f"{done['command']}, {done['taken_s']:.0f} s")
        for key, value in flatten(done["found"]):
            line = f"  {key:<68}{value:>12.4g}"
            if (there := other.get(name, {}).get(key)) is not None:
                line += f"{there:>12.4g}" + (f"{value / there:>8.2f}" if there else "")
            print(line, flush=True)
        if values.output:  # what is measured is kept, whatever comes
            write_atomically(values.output, json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))
    if failed:
        raise RunError(f"{', '.join(failed)} failed; the others stand above")


if __name__ == "__main__":
    flags.DEFINE_bool("quick", False, "each in its smallest useful form")
    flags.DEFINE_list("only", [], f"some of {', '.join(BENCHMARKS)}")
    define_path("output", None, "the file to write, such as mine.json")
    define_path("compare", None, "a file that --output wrote, at another commit or elsewhere")
    run_app(main)

"""Kills runs, again and again, and looks whether anything is lost.

    python benchmarks/crash_test.py --kills=1000 [--jobs=2] [--seed=0]

Tiny searches and trainings on made-up images, with --deterministic, which save at each step. A run
is started, killed, started again, until it ends by itself. A process is killed at the n-th
operation on its files, or at a random moment after it, often within TensorFlow's own writing.
After every third kill, what was written last is torn too, as a power cut leaves it: the newest
checkpoint or a file of an unfinished one is cut off, emptied or changed in one bit.

What is compared, with a run that nobody killed: all tensors of the last checkpoint, optimizers
included, genotype.json, and the rows of history.jsonl but for their times. The last line is JSON:

    kills     processes that were killed
    torn      times that a file was damaged after it
    runs      runs that came to their end
    lost      starts that went on from less than the newest whole checkpoint
    changed   runs that ended otherwise than the one that nobody killed
    blocked   starts that were refused, failed or hung
"""

# ruff: noqa: E402

import collections
import contextlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
from official.quiet import import_tensorflow

import_tensorflow()  # also where this file is loaded for the processes that are killed

import numpy as np
from absl import flags

from auto_deeplab import train
from benchmarks import tiny_runs
from official.command_line import run_app
from official.progress import Progress

STEPS, REPORT_EVERY = 6, 2
KILLED = (-signal.SIGKILL, -signal.SIGALRM)
LONGEST_S = 600
# A run has some 140 operations on its files; with half of them most runs are killed several times.
OPERATIONS = 70


class Killer:
    """Ends this process without a word at an operation on the files of a run, or soon after it.

    Args:
        directory: the run's.
        at: the number of the operation, from 1.
        after: so many seconds after it; 0: before it is made.
    """

    def __init__(self, directory: str, at: int, after: float) -> None:
        self._directory, self._left, self._after = directory, at, after
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event.partition(".")[0] not in ("os", "shutil", "fcntl"):
            return
        if not any(isinstance(x, str) and x.startswith(self._directory) for x in arguments):
            return
        self._left -= 1
        if self._left == 0 and self._after:
            # Nobody hears this signal: the system ends the process, in whatever it is then.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, self._after)
        elif self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def live(arguments: list[str], root: str, log: str, death: tuple[int, float] | None) -> None:
    """Runs train.py in this process, forked from one that has TensorFlow: until its end or death.

    Args:
        arguments: of the command.
        root: the folder to be in.
        log: file for stdout and stderr.
        death: `at` and `after` of a Killer; None: the process ends by itself.
    """
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(root)
    sys.argv = ["auto_deeplab/train.py", *arguments]
    if death:
        name = next(x for x in arguments if x.startswith("--model_dir=")).partition("=")[2]
        Killer(name, *death)
    train.start_app()


class CrashTest:
    """Runs that are killed, in a folder of their own, and what was found.

    Attributes:
        found: name -> number, as the JSON has it.
        problems: a line for each that is lost, changed or blocked.
    """

    def __init__(self, root: Path, kills: int, seed: int) -> None:
        self._root, self._seed, self._left = root, seed, kills
        # Loading TensorFlow takes longer than a run, so each is forked from a process that has it.
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(["benchmarks.crash_test"])
        # It warns of locks that a killed process has not given back.
        os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
        self._lock = threading.Lock()
        self._names = iter(range(10**9))
        self.found: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self._whole: dict[str, Any] = {}

    def prepare(self) -> None:
        """Makes the data, and for each mode the run that nobody kills."""
        tiny_runs.prepare(self._root)
        for mode in tiny_runs.MODES:
            code, said = self._start(mode, self._root / mode)
            if code:
                raise SystemExit(f"{mode} does not run at all: {said}")
            self._whole[mode] = result(self._root / mode)

    def kill_runs(self, progress: Progress) -> None:
        """Makes one run after another, and kills it, until as many are killed as is asked for."""
        while self._left > 0:
            with self._lock:
                number = next(self._names)
            mode = tiny_runs.MODES[number % 2]
            rng = random.Random(f"{self._seed} {number}")
            self._run(mode, self._root / f"{mode}-{number}", rng, progress)

    def _run(self, mode: str, run: Path, rng: random.Random, progress: Progress) -> None:
        whole, code = 0, -signal.SIGKILL
        while code in KILLED:
            with self._lock:
                may_be_killed = self._left > 0
                self._left -= may_be_killed
            death = rng.randint(1, OPERATIONS), rng.choice([0, rng.uniform(1e-4, 0.05)])
            code, said = self._start(mode, run, death if may_be_killed else None)
            begun = re.search(r"(?:goes on|starts) at step (\d+) of", said)
            if begun and int(begun[1]) < whole:
                self._tell("lost", run, f"step {begun[1]}, not {whole}")
            if code in KILLED:
                self._count("kills", 1)
                progress.advance()
                if rng.randrange(3) == 0:
                    self._count("torn", tear(run, rng))
                whole = newest_whole(run)
            elif may_be_killed:  # it came to its end before that operation
                with self._lock:
                    self._left += 1
        if code:
            self._tell("blocked", run, f"exit code {code}: {said.splitlines()[-1:]}")
            return
        self._count("runs", 1)
        now, then = result(run), self._whole[mode]
        names = sorted(now.keys() | then.keys())
        different = [name for name in names if not same(now.get(name), then.get(name))]
        if different:
            self._tell("changed", run, f"{len(different)} differ: {', '.join(different[:5])}")
        shutil.rmtree(run)

    def _start(
        self, mode: str, run: Path, death: tuple[int, float] | None = None
    ) -> tuple[int, str]:
        """Its exit code, -number if a signal ended it, and what it said."""
        log = f"{run}.log"
        command = tiny_runs.arguments(mode, run, steps=STEPS, report_every=REPORT_EVERY)
        command += ["--deterministic", "--save_every=1"]
        process = self._processes.Process(target=live, args=(command, str(self._root), log, death))
        process.start()
        process.join(LONGEST_S)
        if process.is_alive():
            process.kill()
            return 1, f"nothing for {LONGEST_S} s"
        assert process.exitcode is not None
        return process.exitcode, Path(log).read_text(errors="replace")

    def _tell(self, what: str, run: Path, why: str) -> None:
        self._count(what, 1)
        self.problems.append(f"{what}: {run.name}: {why}")

    def _count(self, what: str, times: int) -> None:
        with self._lock:
            self.found[what] += times


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """Step and path prefix of the checkpoints of a run, the newest first."""
    found = [path.with_suffix("") for path in run.glob("checkpoints/ckpt-*.index")]
    return sorted(((int(path.name.partition("-")[2]), path) for path in found), reverse=True)


def newest_whole(run: Path) -> int:
    """The step of the newest checkpoint that TensorFlow can read; 0 if there is none."""
    for step, prefix in checkpoints(run):
        with contextlib.suppress(Exception):  # whatever reading a damaged file raises
            tiny_runs.tensors(prefix)
            return step
    return 0


def tear(run: Path, rng: random.Random) -> int:
    """Cuts off, empties or flips a bit of what was saved last; how many files that are: 0 or 1."""
    files = sorted(run.glob("checkpoints/.unfinished/*"))
    for _, prefix in checkpoints(run)[:1]:
        files += sorted(prefix.parent.glob(f"{prefix.name}.*"))
    if not files:
        return 0
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    how = rng.choice(("cut off", "emptied", "flipped"))
    if how == "flipped" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif how == "cut off" and content:
        content = content[: rng.randrange(len(content))]
    else:
        content = bytearray()
    path.write_bytes(content)
    return 1


def result(run: Path) -> dict[str, Any]:
    """What a run that has ended leaves, without times and what depends on when it was saved."""
    lines = (run / "history.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows:
        for name in ("images_per_s", "wait_share", "saved"):
            row.pop(name, None)
    genotype = (run / "genotype.json").read_text()
    return {"history.jsonl": rows, "genotype.json": genotype} | tiny_runs.tensors(
        run / "checkpoints" / f"ckpt-{STEPS}"
    )


def same(one: Any, other: Any) -> bool:
    """Whether two parts of results are equal, bit for bit."""
    return type(one) is type(other) and bool(np.array_equal(one, other))


def main() -> None:
    """Kills and compares."""
    values = flags.FLAGS
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        test = CrashTest(Path(folder), values.kills, values.seed)
        test.prepare()
        with (
            Progress("crash test", values.kills, unit="kills") as progress,
            ThreadPoolExecutor(values.jobs) as jobs,
        ):
            for done in [jobs.submit(test.kill_runs, progress) for _ in range(values.jobs)]:
                done.result()
    for problem in test.problems:
        print(problem)
    names = ("kills", "torn", "runs", "lost", "changed", "blocked")
    found = {name: test.found[name] for name in names}
    print(json.dumps(found | {"seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    flags.DEFINE_integer("kills", 1000, "how many processes are killed", lower_bound=1)
    flags.DEFINE_integer("jobs", 2, "how many runs there are at a time", lower_bound=1)
    run_app(main)

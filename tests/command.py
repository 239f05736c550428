"""Runs train.py as a user does, in this process or in one of its own."""

import contextlib
import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from absl import flags
from absl.testing import flagsaver

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "auto_deeplab" / "configs"

# A search and a network as small as they can be with everything in them.
TINY_SEARCH = (
    "--crop_size=33",
    "--num_layers=2",
    "--num_blocks=2",
    "--filter_multiplier=2",
    "--stem_filters=4,4,4",
)
TINY_NETWORK = (
    "--crop_size=33,65",
    "--batch_size=2",
    "--filter_multiplier=2",
    "--stem_filters=4,4,4",
    "--head_filters=8",
)
TINY_GENOTYPE = """{"format": 1, "path": [0, 1], "cells": [[
  [[0, "sep_conv_3x3"], [1, "atrous_conv_3x3"]], [[2, "max_pool_3x3"], [0, "skip_connect"]]]]}"""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line of a user's mistake; there is no traceback and no second one."""
        assert "Traceback" not in self.stderr, self.stderr
        (line,) = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert self.stderr.splitlines()[-1] == line, self.stderr
        return line


def train_here(*arguments: Any) -> Outcome:
    """python auto_deeplab/train.py arguments, in this process."""
    from auto_deeplab import train

    argv = ["auto_deeplab/train.py", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with (
        flagsaver.flagsaver(),
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        flags.FLAGS.unparse_flags()
        try:
            train.start_app()
        except SystemExit as exit:
            code = exit.code
    return Outcome(code, out.getvalue(), err.getvalue())


def start_train(*arguments: Any, cwd: Path, **environment: str) -> subprocess.Popen:
    """Starts python auto_deeplab/train.py arguments, as typed in another directory."""
    return subprocess.Popen(
        [sys.executable, ROOT / "auto_deeplab" / "train.py", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen, timeout: float = 600) -> Outcome:
    """Waits for a process of start_train."""
    out, err = process.communicate(timeout=timeout)
    return Outcome(process.returncode, out, err)


def train_there(*arguments: Any, cwd: Path) -> Outcome:
    """python auto_deeplab/train.py arguments, as typed in another directory."""
    return finish(start_train(*arguments, cwd=cwd))


def kill_when(process: subprocess.Popen, path: Path, number: signal.Signals) -> Outcome:
    """Sends the signal as soon as `path` exists."""
    end = time.monotonic() + 600
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    process.send_signal(number)
    return finish(process)

"""history.jsonl: what a run reported, one JSON object a line, and the same for TensorBoard."""

import contextlib
import json
import os
import shutil
from typing import Any

import tensorflow as tf

from official.files import write_atomically
from official.progress import say

Row = dict[str, Any]

FILE = "history.jsonl"
SUMMARIES = "summaries"

NUMBERS = (
    *("epoch", "saved", "loss_w", "loss_arch", "learning_rate", "images_per_s", "wait_share"),
    *("val_miou", "val_miou_present", "alpha_entropy", "beta_entropy", "skip_connects"),
)
"""What is a number in every report that has it."""


class History:
    """The reports of a run that goes on: those before it are kept, further ones are added.

    The summaries are made anew from the rows, so that no point of a process that was killed stands
    there a second time.

    Args:
        model_dir: where the files are; it exists.
        start_step: reports of later steps, which were not saved or are to be made again, go.
        writes: False on all workers but the chief.
    """

    def __init__(self, model_dir: str, start_step: int, writes: bool) -> None:
        self._path = os.path.join(model_dir, FILE)
        self.rows = [row for row in read(model_dir) if row["step"] <= start_step]
        self._writer = None
        if writes:
            write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
            summaries = os.path.join(model_dir, SUMMARIES)
            shutil.rmtree(summaries, ignore_errors=True)
            self._writer = tf.summary.create_file_writer(summaries)
            for row in self.rows:
                self._summarize(row)

    def has(self, step: int) -> bool:
        """Whether there is a report of that step."""
        return any(row["step"] == step for row in self.rows)

    def append(self, row: Row) -> None:
        """Adds a report; it is on the disk when this returns."""
        self.rows.append(row)
        if self._writer is None:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._summarize(row)

    def _summarize(self, row: Row) -> None:
        assert self._writer is not None
        with self._writer.as_default():
            for name, value in row.items():
                if name not in ("step", "saved") and _is_number(value):
                    tf.summary.scalar(name, value, step=row["step"])
        self._writer.flush()


def read(model_dir: str) -> list[Row]:
    """The reports in history.jsonl, in the order of their steps; [] if there is none.

    A line that is no report, such as one that a kill cut off, is left out with a warning, and so is
    one whose step comes again: the later one counts.
    """
    path = os.path.join(model_dir, FILE)
    if not os.path.exists(path):
        return []
    rows: dict[int, Row] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            row = _parse(line)
            if row is None:
                say(f"warning: {path}: line {number} is no report: left out")
            else:
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def _parse(line: bytes) -> Row | None:
    # A line of a million brackets is beyond the parser's depth.
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and type(row.get("step")) is int and row["step"] >= 0:
            known = (row[name] for name in NUMBERS if row.get(name) is not None)
            return row if all(map(_is_number, known)) else None
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

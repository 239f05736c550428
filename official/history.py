"""history.jsonl: what a run reported, one JSON object a line."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import IO, Any

from official.files import open_file, write_atomically
from official.progress import say

Row = dict[str, Any]

FILE = "history.jsonl"

NUMBERS = (
    *("epoch", "saved", "loss_w", "loss_arch", "learning_rate", "images_per_s", "wait_share"),
    *("val_miou", "val_miou_present", "alpha_entropy", "beta_entropy", "skip_connects"),
    *("edge_entropy", "alpha_hessian"),
)
"""What is a number in every report that has it."""

LONGEST_LINE = 2**20
MOST_WARNINGS = 5


class History:
    """The reports of a run that goes on: those before it are kept, further ones are added.

    Args:
        model_dir: where the file is; it exists.
        start_step: reports of later steps, which were not saved or are to be made again, go.
        writes: False on all workers but the chief.
    """

    def __init__(self, model_dir: str, start_step: int, writes: bool) -> None:
        self._path = os.path.join(model_dir, FILE)
        self.rows = [row for row in read(model_dir) if row["step"] <= start_step]
        self._writes = writes
        if writes:
            write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))

    def has(self, step: int) -> bool:
        """Whether there is a report of that step."""
        return any(row["step"] == step for row in self.rows)

    def append(self, row: Row) -> None:
        """Adds a report; it is on the disk when this returns."""
        self.rows.append(row)
        if not self._writes:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(model_dir: str) -> list[Row]:
    """The reports in history.jsonl, in the order of their steps; [] if there is none.

    A line that is no report, such as one that a kill cut off, is left out with a warning, and so is
    one whose step comes again: the later one counts.
    """
    path = os.path.join(model_dir, FILE)
    if not os.path.exists(path):
        return []
    rows: dict[int, Row] = {}
    odd = 0
    with open_file(path) as file:
        for number, line in enumerate(_read_lines(file), 1):
            row = _parse(line)
            if row is not None:
                rows[row["step"]] = row
                continue
            odd += 1
            if odd <= MOST_WARNINGS:
                say(f"warning: {path}: line {number} is no report: left out")
    if odd > MOST_WARNINGS:
        say(f"warning: {path}: so are {odd - MOST_WARNINGS} more lines")
    return [rows[step] for step in sorted(rows)]


def _read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file, each cut off where it is longer than any report."""
    while line := file.readline(LONGEST_LINE):
        yield line
        while len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(LONGEST_LINE)


def _parse(line: bytes) -> Row | None:
    # A line of a million brackets is beyond the parser's depth.
    with contextlib.suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and type(row.get("step")) is int and 0 <= row["step"] < 2**63:
            known = (row[name] for name in NUMBERS if row.get(name) is not None)
            return row if all(map(is_number, known)) else None
    return None


def is_number(value: Any) -> bool:
    """Whether a report's value is a number that TensorFlow takes."""
    # An integer may have any number of digits, and TensorFlow takes 64 bits.
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)

"""What a run shows in TensorBoard."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from official.errors import explain
from official.history import Row
from official.progress import say

FOLDER = "summaries"
NUMBERS, PICTURES = ".numbers", ".pictures"
"""How the names of the two kinds of files end."""

Shown = Mapping[str, Any]
"""By its name in TensorBoard, group/name: a number; floats [n], shown as a histogram; or a picture,
uint8 [height, width, 3]."""


def show_nothing(row: Row) -> Shown:
    """Nothing."""
    return {}


class Summaries:
    """TensorBoard's files of a run.

    What a row of history.jsonl tells is made anew when the run goes on, so that no point of a
    process that was killed stands there a second time. Pictures, which take longer, are kept if
    their report is. What cannot be shown is only warned of: it is not worth a run.

    Args:
        model_dir: of the run.
        describe: what is shown of a report; it may be of an earlier version, or by another hand.
        draw: the pictures of the newest report.
        hparams: what is listed of the run on the HParams page; {}: the run is not there.
    """

    def __init__(
        self,
        model_dir: str,
        describe: Callable[[Row], Shown],
        draw: Callable[[Row], Shown] = show_nothing,
        hparams: Mapping[str, bool | int | float | str] | None = None,
    ) -> None:
        self._directory = Path(model_dir, FOLDER)
        self._describe, self._draw, self._hparams = describe, draw, hparams or {}

    def start(self, rows: Sequence[Row]) -> None:
        """Writes what was reported before.

        Args:
            rows: of history.jsonl.
        """
        with self._only_warned_of():
            steps = {row["step"] for row in rows}
            for path in self._directory.glob("events.*"):
                if path.name.endswith(PICTURES):
                    _keep_steps(path, steps)
                else:
                    path.unlink()
            self._numbers, self._pictures = (
                tf.summary.create_file_writer(os.fspath(self._directory), filename_suffix=suffix)
                for suffix in (NUMBERS, PICTURES)
            )
            if self._hparams:
                # It takes a while to import.
                from tensorboard.plugins.hparams import api

                # Runs of one name would be one trial: two studies both have a search_0.
                run = self._directory.absolute().parent
                with self._numbers.as_default():
                    api.hparams(dict(self._hparams), trial_id=f"{run.parent.name}/{run.name}")
            for row in rows:
                _write(self._numbers, self._describe(row), row["step"])

    def add(self, row: Row) -> None:
        """Shows a report that was made now."""
        with self._only_warned_of():
            _write(self._numbers, self._describe(row), row["step"])
            _write(self._pictures, self._draw(row), row["step"])

    @contextlib.contextmanager
    def _only_warned_of(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            what = f"{type(error).__name__}: {explain(error)}"
            say(f"warning: {self._directory} is not written for TensorBoard: {what}")


def _keep_steps(path: Path, steps: set[int]) -> None:
    """Takes out of a file of events those of other steps; all that has no step stays."""
    records = [record.numpy() for record in tf.data.TFRecordDataset(os.fspath(path))]
    events = [(record, tf.compat.v1.Event.FromString(record)) for record in records]
    kept = [record for record, event in events if not event.summary.value or event.step in steps]
    if len(kept) == len(records):
        return
    new = path.with_name(f"new.{path.name}")
    with tf.io.TFRecordWriter(os.fspath(new)) as writer:
        for record in kept:
            writer.write(record)
    new.replace(path)


def _write(writer: tf.summary.SummaryWriter, shown: Shown, step: int) -> None:
    with writer.as_default(step):
        for name, value in shown.items():
            if np.ndim(value) == 0:
                tf.summary.scalar(name, value)
            elif np.ndim(value) == 1:
                tf.summary.histogram(name, value)
            else:
                tf.summary.image(name, value[np.newaxis])
    writer.flush()

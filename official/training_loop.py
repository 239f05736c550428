"""The outer loop: it owns steps, progress, reports, saving and stopping; the caller owns one step."""

import functools
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from official.errors import RunError
from official.progress import Progress

Row = dict[str, Any]


class History:
    """history.jsonl, one object per report, and the same numbers as TensorBoard summaries.

    Args:
        model_dir: where the file is.
        start_step: reports of later steps, from before the last save was lost, are dropped.
        writes: False on all workers but the chief.
    """

    def __init__(self, model_dir: str, start_step: int, writes: bool = True) -> None:
        self._path = os.path.join(model_dir, "history.jsonl")
        self.rows = [row for row in read_history(self._path) if row["step"] <= start_step]
        self._writer = None
        if writes:
            lines = "".join(json.dumps(row) + "\n" for row in self.rows)
            with open(self._path, "w", encoding="utf-8") as file:
                file.write(lines)
            self._writer = tf.summary.create_file_writer(os.path.join(model_dir, "summaries"))

    def append(self, row: Row) -> None:
        """Adds one report; `row` has at least "step"."""
        self.rows.append(row)
        if self._writer is None:
            return
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        with self._writer.as_default():
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    tf.summary.scalar(name, value, step=row["step"])
        self._writer.flush()


def read_history(path: str) -> list[Row]:
    """The reports of a history.jsonl, [] if there is none; a line that a kill cut off is left out."""
    rows = []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break
    return rows


class _Interrupt:
    """Notes SIGINT and SIGTERM instead of dying of them."""

    def __enter__(self) -> "_Interrupt":
        self.received: int | None = None
        self._old = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.received = number

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def run(
    name: str,
    step: Callable[..., dict[str, tf.Tensor]],
    batches: Iterator[tuple[Any, ...]],
    *,
    start_step: int,
    total_steps: int,
    batch_size: int,
    save: Callable[[int], Any],
    save_every: int,
    report: Callable[[int, Row], str],
    report_every: int,
) -> None:
    """Makes the steps start_step, ..., total_steps - 1.

    SIGINT and SIGTERM end the step, save and exit with 128 + the signal's number.

    Args:
        step: takes what `batches` yields; returns scalar losses by name.
        batch_size: images a step, for the rate.
        save: is given the number of steps made, every `save_every` and at the end; never after a
            loss that was not finite.
        report: is given the number of steps made and the means since the last report: the losses,
            images_per_s and wait_share (0..1, the part of the time that steps waited for data).
            Every `report_every` steps and at the end. Returns a few words for the progress line.

    Raises:
        RunError: a loss is not finite, or the input pipeline fails.
    """
    losses: list[dict[str, tf.Tensor]] = []
    said = ""
    waited, since = 0.0, time.monotonic()
    progress = Progress(name, total_steps - start_step, unit="steps")
    with _Interrupt() as interrupt, progress:
        for done in range(start_step + 1, total_steps + 1):
            before = time.monotonic()
            try:
                arguments = next(batches)
            except tf.errors.InvalidArgumentError as error:
                raise RunError(f"an example cannot be read: {_assertion(error)}") from None
            waited += time.monotonic() - before
            losses.append(step(*arguments))
            if len(losses) > 1:  # The step before: this one may still be running.
                _check_finite(losses[-2], done - 1, name)

            progress.advance(1, functools.partial(_note, losses[-1], said))
            last = done == total_steps or interrupt.received is not None
            if last or done % save_every == 0 or done % report_every == 0:
                _check_finite(losses[-1], done, name)
            if done % report_every == 0 or done == total_steps:
                elapsed = time.monotonic() - since
                measured = _means(losses) | {
                    "images_per_s": batch_size * len(losses) / elapsed,
                    "wait_share": waited / elapsed,
                }
                said = report(done, measured)
                losses, waited, since = [], 0.0, time.monotonic()
            # After the report: a run that is killed in between makes the report again.
            if last or done % save_every == 0:
                save(done)
            if interrupt.received is not None and done < total_steps:
                print(f"stopped and saved after step {done}; the same command goes on from there")
                raise SystemExit(128 + interrupt.received)


def _note(losses: dict[str, tf.Tensor], said: str) -> str:
    values = [f"{key} {float(value):.4f}" for key, value in losses.items()]
    return ", ".join([*values, said] if said else values)


def _means(losses: list[dict[str, tf.Tensor]]) -> dict[str, float]:
    names = {name: None for step in losses for name in step}
    found = {name: [float(step[name]) for step in losses if name in step] for name in names}
    return {name: sum(values) / len(values) for name, values in found.items()}


def _check_finite(losses: dict[str, tf.Tensor], step: int, name: str) -> None:
    for key, value in losses.items():
        if not math.isfinite(float(value)):
            raise RunError(
                f"{name}: {key} is {float(value)} at step {step}; the checkpoints saved before are "
                "kept: try a smaller --learning_rate, or --precision=float32"
            )


def _assertion(error: tf.errors.OpError) -> str:
    """The words of a failed assertion in an input pipeline, without the graph around them."""
    words = error.message.split("b'", 1)
    return words[1].split("'", 1)[0] if len(words) == 2 else error.message.splitlines()[0]

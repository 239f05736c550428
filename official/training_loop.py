"""The outer loop: it owns steps, progress, reports, saving and stopping; callers own the steps."""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from official.errors import RunError
from official.files import write_atomically
from official.interrupts import Interrupts
from official.progress import Progress, say
from official.training_step import Losses
from official.workers import Crew

Row = dict[str, Any]

BUILDING = "building the graph, which can take a minute"


class _History:
    """history.jsonl, one object per report, and the same numbers as TensorBoard summaries.

    Args:
        model_dir: where the file is.
        start_step: reports of later steps, which were not saved or are to be made again, go.
        writes: False on all workers but the chief.
    """

    def __init__(self, model_dir: str, start_step: int, writes: bool) -> None:
        self._path = os.path.join(model_dir, "history.jsonl")
        self.rows = [row for row in read_history(model_dir) if row["step"] <= start_step]
        self._writer = None
        if writes:
            write_atomically(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
            self._writer = tf.summary.create_file_writer(os.path.join(model_dir, "summaries"))

    def has(self, step: int) -> bool:
        return any(row["step"] == step for row in self.rows)

    def append(self, row: Row) -> None:
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


def read_history(model_dir: str) -> list[Row]:
    """The reports in history.jsonl, [] if there is none; a line that a kill cut off is left out."""
    path, rows = os.path.join(model_dir, "history.jsonl"), []
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            for line in file:
                try:
                    rows.append(json.loads(line))
                except ValueError:
                    break
    return rows


class _Measured:
    """What the steps since the last report took and gave."""

    def __init__(self) -> None:
        self.losses: list[Losses] = []
        self.waited, self._since = 0.0, time.monotonic()
        self._apart, self._apart_steps = 0.0, 0

    @contextlib.contextmanager
    def apart(self, steps: int) -> Iterator[None]:
        """Steps that tell nothing of the others' rate."""
        before = time.monotonic()
        yield
        self._apart += time.monotonic() - before
        self._apart_steps += steps

    def means(self, batch_size: int) -> dict[str, float]:
        """Mean of every loss, images_per_s and wait_share."""
        names = {name: None for step in self.losses for name in step}
        values = {
            name: [float(step[name]) for step in self.losses if name in step] for name in names
        }
        elapsed = time.monotonic() - self._since
        steps, seconds = len(self.losses) - self._apart_steps, elapsed - self._apart
        if not steps:  # all of them were the first of their kind
            steps, seconds = len(self.losses), elapsed
        return {
            **{name: sum(some) / len(some) for name, some in values.items()},
            "images_per_s": batch_size * steps / seconds,
            "wait_share": self.waited / elapsed,
        }


def run(
    name: str,
    steps: Callable[..., list[Losses]],
    batches: Iterator[tuple[Any, ...]],
    report: Callable[[int], Row],
    *,
    model_dir: str,
    start_step: int,
    total_steps: int,
    epoch_steps: int,
    batch_size: int,
    save: Callable[[int], Any],
    save_every: int,
    report_every: int,
    steps_per_loop: int = 1,
    passes: Callable[[int], int] = lambda step: 1,
    writes: bool = True,
    interrupts: Interrupts | Crew | None = None,
) -> list[Row]:
    """Makes the steps start_step, ..., total_steps - 1.

    SIGINT, SIGTERM and SIGHUP end the call, or cut a report short, save, and exit with 128 + the
    signal's number. A report that was cut short, or lost to a kill, is made when the run goes on.

    Args:
        name: of the run, for its progress.
        steps: makes a step for each of its arguments, which are what `batches` yields; returns
            for each the scalar losses by name.
        batches: of tuples, from that of `start_step` on.
        report: is given the number of steps made, every `report_every` and at the end. What it
            returns becomes a row of history.jsonl, together with step, epoch, and since the last
            report the mean of each loss, images_per_s (without the steps for which a graph was
            built), and wait_share, the part 0..1 of the time that steps waited for data.
            "val_miou" is shown.
        model_dir: where history.jsonl and summaries are.
        epoch_steps: steps in an epoch, for the reports.
        batch_size: images a step, for the rate.
        save: is given the number of steps made, every `save_every` and at the end; never after a
            loss that was not finite.
        steps_per_loop: so many steps are made in one call; fewer where a save or a report is due.
        passes: is given the number of steps made before a step; how often the step goes through
            the network, for the time left.
        writes: False on all workers but the chief.
        interrupts: distribution.interrupts_of the strategy; None: this process is alone.

    Returns:
        all rows of history.jsonl.

    Raises:
        RunError: a loss is not finite.
    """

    def is_due(every: int) -> bool:
        return done == total_steps or done % every == 0

    def steps_to_go() -> int:
        until = [every - done % every for every in (save_every, report_every)]
        return min(steps_per_loop, total_steps - done, *until)

    def make_report(means: dict[str, float]) -> str:
        with progress.pause():
            row = {"step": done, "epoch": done / epoch_steps, **means, **report(done)}
        history.append(row)
        return f"val mIoU {row['val_miou']:.3f}" if "val_miou" in row else ""

    def note() -> str:
        return _note(last, said)

    def check_finite() -> None:
        while unchecked:
            _check_finite(*unchecked.pop(0), name)

    def first_of_its_kind(arguments: list[tuple[Any, ...]]) -> bool:
        """Whether a graph has to be made for this call: its steps take more, or fewer, batches."""
        kinds = {len(own) for own in arguments} - known
        known.update(kinds)
        return bool(kinds)

    done, last, said = start_step, Losses(), ""
    known: set[int] = set()
    unchecked: list[tuple[int, Losses]] = []
    history = _History(model_dir, start_step, writes)
    say(f"{name} {'goes on' if done else 'starts'} at step {done} of {total_steps}: {model_dir}")
    progress = Progress(
        name,
        total_steps,
        start=done,
        unit="steps",
        work=sum(map(passes, range(done, total_steps))),
        pauses=math.ceil(total_steps / report_every) - done // report_every,
        keep=True,
    )
    measured = _Measured()
    with interrupts or Interrupts() as interrupts:
        with progress:
            stop = interrupts.agree(done)
            try:
                # Until the first step is done, which can take minutes, there is nothing to save.
                interrupts.at_once = True
                if start_step and is_due(report_every) and not history.has(start_step):
                    said = make_report({})
                while done < total_steps and stop is None:
                    before = time.monotonic()
                    arguments = list(itertools.islice(batches, steps_to_go()))
                    measured.waited += time.monotonic() - before
                    with contextlib.ExitStack() as stack:
                        if first_of_its_kind(arguments):
                            stack.enter_context(progress.apart(BUILDING))
                            stack.enter_context(measured.apart(len(arguments)))
                        made = steps(*arguments)
                        interrupts.at_once = False
                        work = sum(map(passes, range(done, done + len(made))))
                        done, last = done + len(made), made[-1]
                        progress.advance(len(made), note, work=work)
                    measured.losses.extend(made)
                    check_finite()  # The call before: this one may still be running.
                    unchecked.extend(enumerate(made, done + 1 - len(made)))

                    stop = interrupts.agree(done)
                    if stop is not None or is_due(save_every) or is_due(report_every):
                        check_finite()
                    # Where a report is ended with the process, nothing can be saved then.
                    is_last_chance = is_due(report_every) and not interrupts.raises
                    if stop is not None or is_due(save_every) or is_last_chance:
                        save(done)
                    if stop is None and is_due(report_every):
                        means = measured.means(batch_size)
                        interrupts.at_once = True
                        said = make_report(means)
                        interrupts.at_once = False
                        measured = _Measured()
                if stop is None:
                    stop = interrupts.agree(done)
            except KeyboardInterrupt:
                stop = interrupts.received
                if done > start_step:
                    save(done)
            except _NotFiniteError:
                raise
            except RunError:  # bad data: the steps made are good and need not be made again
                check_finite()
                if done > start_step:
                    save(done)
                raise
        if stop is not None:
            saved = f"stopped and saved at step {done}" if done else "stopped before the first step"
            say(f"{saved}: the same command goes on from there")
            raise SystemExit(128 + stop)
    return history.rows


class _NotFiniteError(RunError):
    """A loss is NaN or infinite: what was computed since the last save is not to be kept."""


def _note(losses: Losses, said: str) -> str:
    values = [f"{key} {float(value):.4f}" for key, value in losses.items()]
    return ", ".join([*values, said] if said else values)


def _check_finite(step: int, losses: Losses, name: str) -> None:
    for key, value in losses.items():
        if not math.isfinite(float(value)):
            raise _NotFiniteError(
                f"{name}: {key} is {float(value)} at step {step}; the checkpoints saved before are "
                "kept: try a smaller --learning_rate, or --precision=float32"
            )

"""The outer loop: it owns steps, progress, reports, saving and stopping; callers own the steps."""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

from official.checkpoints import SET_ASIDE, Checkpoints
from official.errors import RunError
from official.history import History, Row
from official.interrupts import Interrupts
from official.progress import Progress, say
from official.summaries import Summaries
from official.training_step import Losses
from official.workers import Crew

BUILDING = "building the graph, which can take a minute"


class _Measured:
    """What the steps since the last report took and gave.

    Args:
        note: what `note` of another process returned after some of these steps; "" if that is not
            known.

    Attributes:
        bad_in_a_row: how many steps until now changed nothing.
        waited: seconds that steps waited for data.
    """

    def __init__(self, note: str) -> None:
        self._start()
        kept = json.loads(note) if note else {}
        self._sums: dict[str, list[Any]] = kept.get("sums", {})
        self._left_out: int = kept.get("left_out", 0)
        self.bad_in_a_row: int = kept.get("bad_in_a_row", 0)

    def _start(self) -> None:
        self._steps, self.waited, self._since = 0, 0.0, time.monotonic()
        self._apart, self._apart_steps = 0.0, 0

    def start_next(self) -> None:
        """Begins anew, after a report."""
        self._start()
        self._sums, self._left_out = {}, 0

    def note(self) -> str:
        """For a checkpoint: that the next report is the same whoever makes it."""
        return json.dumps(
            {"sums": self._sums, "left_out": self._left_out, "bad_in_a_row": self.bad_in_a_row}
        )

    @contextlib.contextmanager
    def apart(self, steps: int) -> Iterator[None]:
        """Steps that tell nothing of the others' rate."""
        before = time.monotonic()
        yield
        self._apart += time.monotonic() - before
        self._apart_steps += steps

    def add(self, losses: dict[str, float]) -> None:
        """Counts a step."""
        self._steps, self.bad_in_a_row = self._steps + 1, 0
        for name, value in losses.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = [total + value, count + 1]

    def leave_out(self) -> None:
        """Counts a step that changed nothing."""
        self._steps, self.bad_in_a_row = self._steps + 1, self.bad_in_a_row + 1
        self._left_out += 1

    def means(self, batch_size: int) -> Row:
        """Mean of every loss; of steps made here, images_per_s and wait_share too."""
        row: Row = {name: total / count for name, (total, count) in self._sums.items()}
        if self._left_out:
            row["left_out_steps"] = self._left_out
        elapsed = time.monotonic() - self._since
        steps, seconds = self._steps - self._apart_steps, elapsed - self._apart
        if not steps:  # all of them were the first of their kind
            steps, seconds = self._steps, elapsed
        if steps:
            row["images_per_s"] = batch_size * steps / seconds
            row["wait_share"] = self.waited / elapsed
        return row


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
    store: Checkpoints,
    save_every: int,
    report_every: int,
    worst_loss: float = math.inf,
    max_bad_steps: int = 0,
    explain: Callable[[str, int, str | None], str] = lambda loss, step, prefix: "",
    steps_per_loop: int = 1,
    passes: Callable[[int], int] = lambda step: 1,
    writes: bool = True,
    summaries: Summaries | None = None,
    reported: Callable[[], None] = lambda: None,
    is_enough: Callable[[Row], bool] = lambda row: False,
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
            returns becomes a row of history.jsonl, together with step, epoch, the step of the
            newest checkpoint as "saved", and since the last report the mean of each loss,
            left_out_steps, images_per_s (without the steps for which a graph was built), and
            wait_share, the part 0..1 of the time that steps waited for data. Where steps before an
            interruption are not in the means, "resumed_within" is true. "val_miou" is shown, and
            the weights of the highest one kept.
        model_dir: where history.jsonl is; it exists.
        epoch_steps: steps in an epoch, for the reports.
        batch_size: images a step, for the rate.
        store: of the run, restored to `start_step`. It saves every `save_every` steps and at the
            end, when the losses of all steps made were good.
        worst_loss: a loss above it is not good.
        max_bad_steps: so many steps in a row may have a loss that is not finite; `steps` has not
            changed anything in them.
        explain: is given the name of a loss that is not good, the number of its step, from 1, and
            the path prefix of the newest checkpoint from before that, or None; what it returns ends
            the error's line.
        steps_per_loop: so many steps are made in one call; fewer where a save or a report is due.
        passes: is given the number of steps made before a step; how often the step goes through
            the network, for the time left.
        writes: False on all workers but the chief.
        summaries: shows the reports where `writes`.
        reported: is called where `writes`, when a report stands in history.jsonl.
        is_enough: is given the row of the steps made, each time a report is due; whether the run
            ends here, before total_steps.
        interrupts: distribution.interrupts_of the strategy; None: this process is alone.

    Returns:
        all rows of history.jsonl.

    Raises:
        RunError: a loss is not good.
    """

    def is_due(every: int) -> bool:
        return done == total_steps or done % every == 0

    def steps_to_go() -> int:
        until = [every - done % every for every in (save_every, report_every)]
        return min(steps_per_loop, total_steps - done, *until)

    def make_report() -> str:
        means = measured.means(batch_size)
        with progress.pause():
            row = {"step": done, "epoch": done / epoch_steps, **means, **report(done)}
        row["saved"] = store.step
        if is_cut and len(history.rows) == rows_before:
            row["resumed_within"] = True
        if _is_best(row, history.rows, store.best_step()):
            store.save_best(done)
        history.append(row)
        if writes and summaries:
            summaries.add(row)
        if writes:
            reported()
        measured.start_next()
        return f"val mIoU {row['val_miou']:.3f}" if "val_miou" in row else ""

    def has_enough() -> bool:
        return any(row["step"] == done and is_enough(row) for row in history.rows[-1:])

    def note() -> str:
        return _note(last, said)

    def check_losses() -> None:
        """Looks at the losses of the steps made so far, and counts them."""
        while unchecked:
            step, losses = unchecked.pop(0)
            values = {key: float(value) for key, value in losses.items()}
            bad = next((key for key, x in values.items() if not _is_good(x, worst_loss)), None)
            if bad is None:
                measured.add(values)
                continue
            what = f"{name}: {bad} is {values[bad]:.6g} at step {step}"
            if math.isfinite(values[bad]) or measured.bad_in_a_row == max_bad_steps:
                # The first loss is that of the weights before the step, further ones come after
                # its first update: where only they are bad, what is on disk is good.
                led_there = step - 1 if bad == next(iter(values)) else step
                names = store.set_aside(after=led_there - 1)
                raise _BadLossError(what + _tell_of(names) + explain(bad, step, store.latest()))
            measured.leave_out()
            say(
                f"warning: {what}: the step changes nothing ({measured.bad_in_a_row} in a row, "
                f"--max_bad_steps={max_bad_steps})"
            )

    def first_of_its_kind(arguments: list[tuple[Any, ...]]) -> bool:
        """Whether a graph has to be made for this call: its steps take more, or fewer, batches."""
        kinds = {len(own) for own in arguments} - known
        known.update(kinds)
        return bool(kinds)

    done, last, said = start_step, Losses(), ""
    known: set[int] = set()
    unchecked: list[tuple[int, Losses]] = []
    history = History(model_dir, start_step, writes)
    if writes and summaries:
        summaries.start(history.rows)
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
    measured, rows_before = _Measured(store.note), len(history.rows)
    if history.has(start_step):
        measured.start_next()
    # Checkpoints of earlier versions do not tell what the steps before them gave.
    is_cut = start_step > 0 and not store.note and not history.has(start_step)
    with interrupts or Interrupts() as interrupts:
        with progress:
            stop = interrupts.agree(done)
            try:
                # Until the first step is done, which can take minutes, there is nothing to save.
                interrupts.at_once = True
                if start_step and is_due(report_every) and not history.has(start_step):
                    said = make_report()
                while done < total_steps and stop is None and not has_enough():
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
                    check_losses()  # The call before: this one may still be running.
                    unchecked.extend(enumerate(made, done + 1 - len(made)))

                    stop = interrupts.agree(done)
                    if stop is not None or is_due(save_every) or is_due(report_every):
                        check_losses()
                    # Where a report is ended with the process, nothing can be saved then.
                    is_last_chance = is_due(report_every) and not interrupts.raises
                    if stop is not None or is_due(save_every) or is_last_chance:
                        store.save(done, measured.note())
                    if stop is None and is_due(report_every):
                        interrupts.at_once = True
                        said = make_report()
                        interrupts.at_once = False
                        if has_enough():
                            store.save(done, measured.note())
                if stop is None:
                    stop = interrupts.agree(done)
            except KeyboardInterrupt:
                stop = interrupts.received
                if done > start_step:
                    store.save(done, measured.note())
            except _BadLossError:
                raise
            except RunError:  # bad data: the steps made are good and need not be made again
                check_losses()
                if done > start_step:
                    store.save(done, measured.note())
                raise
        if stop is not None:
            so_far = (
                f"stopped and saved at step {done}" if done else "stopped before the first step"
            )
            say(f"{so_far}: the same command goes on from there")
            raise SystemExit(128 + stop)
    return history.rows


class _BadLossError(RunError):
    """A loss is not good: what was computed since the last save is not to be kept."""


def _is_good(loss: float, worst: float) -> bool:
    return math.isfinite(loss) and abs(loss) <= worst


def _tell_of(aside: list[str]) -> str:
    """Which checkpoints led to a bad loss; one at most, as losses are looked at before saving."""
    names = [os.path.join(SET_ASIDE, os.path.basename(prefix)) for prefix in aside]
    return f"; what led there is kept as {' and '.join(names)}" if names else ""


def _is_best(row: Row, rows: list[Row], best_step: int | None) -> bool:
    """Whether a report's mIoU is above that of the best one, whose weights are kept."""
    if row.get("val_miou") is None:
        return False
    best = next((other for other in rows if other["step"] == best_step), {})
    return best.get("val_miou") is None or row["val_miou"] > best["val_miou"]


def _note(losses: Losses, said: str) -> str:
    values = [f"{key} {float(value):.4f}" for key, value in losses.items()]
    return ", ".join([*values, said] if said else values)

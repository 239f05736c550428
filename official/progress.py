"""Progress of long work: a bar on a terminal, a plain line now and then when stderr is piped."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from tqdm import tqdm

MEMORY = 60.0
"""Seconds after which what the rate was counts e times less: it follows a change of pace."""


def say(text: str) -> None:
    """Words for people go to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """Writes a time as people say it: `8 s`, `3 min 5 s`, `2 h 40 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


class Progress:
    """Counts finished items on stderr, with rate, time left and a note; a context manager.

    The first item does not count for the rate: it often has to wait for graphs and files. Neither
    does what is done within `apart`. The time left includes the pauses still to come, each taken to
    be as long as the last one.

    Args:
        name: what is being done, such as "evaluate".
        total: number of items, None if unknown.
        start: how many of them were done before.
        unit: what an item is called, in the plural.
        interval: seconds between two plain lines, >= 0.
        work: what all items still to do cost, if some cost more than others; default: their number.
        pauses: how many calls of `pause` will come.
        keep: a last line with the number of items, the time and the note stays when the work ends.
    """

    def __init__(
        self,
        name: str,
        total: int | None,
        *,
        start: int = 0,
        unit: str = "images",
        interval: float = 15.0,
        work: float | None = None,
        pauses: int = 0,
        keep: bool = False,
    ) -> None:
        self._name, self._total, self._unit, self._interval = name, total, unit, interval
        self._keep, self._pauses, self._pause = keep, pauses, 0.0
        self._work_left = float((total or 0) - start) if work is None else work
        bar = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}" if total is not None else "{n_fmt}"
        self._bar = tqdm(
            desc=name,
            total=total,
            initial=start,
            unit=unit,
            bar_format=f"{{desc}}: {bar} {{unit}}{{postfix}}",
            disable=None,
            leave=False,
            dynamic_ncols=True,
        )
        self._note: Callable[[], str] = str
        self._done, self._first = start, True
        self._apart = False
        # Of the items that count, each fading with time: seconds, items, work.
        self._seconds = self._items = self._work = 0.0
        self._start = self._said = self._since = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def advance(
        self,
        items: int = 1,
        note: Callable[[], str] | None = None,
        *,
        work: float | None = None,
    ) -> None:
        """Counts items; `note` gives what stands at the end of the line and is called only then.

        Args:
            items: how many more are done.
            note: see above.
            work: what they cost, in the unit of the constructor's `work`; default: their number.
        """
        work = items if work is None else work
        now = time.monotonic()
        if not self._first and not self._apart:
            self._measure(now - self._since, items, work)
        self._first, self._since = False, now
        self._done += items
        self._work_left -= work
        self._note = note or str
        # A note may have to wait for the device: once a second is enough on a terminal.
        due = now - self._said >= (self._interval if self._bar.disable else 1.0)
        if due:
            self._said = now
        if not self._bar.disable:
            if due:
                self._bar.set_postfix_str(", ".join(self._facts()), refresh=False)
            self._bar.update(items)
        elif due:
            self._say(", ".join([self._count(), *self._facts()]))

    @contextlib.contextmanager
    def apart(self, note: str = "") -> Iterator[None]:
        """A context whose time and items do not count for the rate, such as a first evaluation.

        Args:
            note: what is being done, said at once.
        """
        before = time.monotonic()
        if note and self._bar.disable:
            self._say(note)
        elif note:
            self._bar.set_postfix_str(note)
        self._apart = True
        yield
        self._apart = False
        self._since += time.monotonic() - max(before, self._since)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """`apart` for work that comes again, such as each evaluation: the time left includes it."""
        before = time.monotonic()
        with self.apart():
            yield
        self._pause = time.monotonic() - before
        self._pauses -= 1

    def _measure(self, seconds: float, items: int, work: float) -> None:
        fading = math.exp(-seconds / MEMORY)
        self._seconds = fading * self._seconds + seconds
        self._items = fading * self._items + items
        self._work = fading * self._work + work

    def _count(self) -> str:
        of = "" if self._total is None else f" of {self._total}"
        return f"{self._done}{of} {self._unit}"

    def _facts(self) -> list[str]:
        """Rate, time left and the note: what of them there is to say."""
        facts = []
        if self._seconds and self._work:
            facts.append(f"{self._items / self._seconds:.3g}/s")
            if self._total is not None:
                left = self._work_left * self._seconds / self._work
                left += max(self._pauses, 0) * self._pause
                facts.append(f"{tqdm.format_interval(round(max(left, 0)))} left")
        return [fact for fact in [*facts, self._note()] if fact]

    def _say(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._keep and not self._first and kind is None:
            took = format_duration(time.monotonic() - self._start)
            self._say(", ".join(filter(None, [f"{self._count()} in {took}", self._note()])))
        if isinstance(error, Exception):  # for the line that tells of it: command_line.run_app
            total = "" if self._total is None else f" of {self._total}"
            error.add_note(f"{self._name}: {self._done}{total} {self._unit}")

"""Progress of long work: a bar on a terminal, a plain line now and then when stderr is piped."""

import sys
import time
from collections.abc import Callable
from types import TracebackType

from tqdm import tqdm


class Progress:
    """Counts finished items on stderr, with rate, time left and a note; a context manager.

    Args:
      name: what is being done, such as "evaluate".
      total: number of items, None if unknown.
      unit: what an item is called, in the plural.
      interval: seconds between two plain lines, >= 0.
    """

    def __init__(
        self, name: str, total: int | None, *, unit: str = "images", interval: float = 15.0
    ) -> None:
        self._name, self._total, self._unit, self._interval = name, total, unit, interval
        self._bar = tqdm(desc=name, total=total, unit=f" {unit}", disable=None, leave=False)
        self._done = 0
        self._start = self._said = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def advance(self, items: int = 1, note: Callable[[], str] | None = None) -> None:
        """Counts items; `note` gives what stands at the end of the line and is called only then."""
        self._done += items
        now = time.monotonic()
        # A note may have to wait for the device: once a second is enough on a terminal.
        due = now - self._said >= (self._interval if self._bar.disable else 1.0)
        if due:
            self._said = now
        text = note() if note and due else ""
        if not self._bar.disable:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(items)
        elif due:
            self._say(now, text)

    def _say(self, now: float, text: str) -> None:
        rate = self._done / max(now - self._start, 1e-9)
        line = f"{self._name}: {self._done}"
        if self._total is not None:
            line += f" of {self._total}"
        line += f" {self._unit}, {rate:.3g}/s"
        if self._total is not None:
            line += f", {tqdm.format_interval((self._total - self._done) / rate)} left"
        print(line + (f", {text}" if text else ""), file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if isinstance(error, Exception):  # for the line that tells of it: errors.run_app
            total = "" if self._total is None else f" of {self._total}"
            error.add_note(f"{self._name}: {self._done}{total} {self._unit}")

"""Signals that end a run in order: noted, and obeyed where nothing is lost by it."""

import signal
from typing import Any


def find_signals() -> list[signal.Signals]:
    """The signals that end a run; one that is ignored stays so: nohup lives on without terminal."""
    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return [number for number in ending if signal.getsignal(number) is not signal.SIG_IGN]


class Interrupts:
    """Notes SIGINT, SIGTERM and SIGHUP instead of dying of them; a context manager.

    Of one process; `workers.Crew` is the same for several.

    Attributes:
        received: the signal's number; None: there was none.
        raises: whether one raises KeyboardInterrupt while `at_once`. Else it ends the process.
    """

    raises = True

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False

    def __enter__(self) -> "Interrupts":
        self._old = {number: signal.signal(number, self._note) for number in find_signals()}
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.received = number
        if self._at_once:
            self._at_once = False
            raise KeyboardInterrupt

    @property
    def at_once(self) -> bool:
        """Whether a signal also raises KeyboardInterrupt, as one does that came before."""
        return self._at_once

    @at_once.setter
    def at_once(self, value: bool) -> None:
        self._at_once = value
        if value and self.received is not None:
            self._at_once = False
            raise KeyboardInterrupt

    def agree(self, step: int) -> int | None:
        """The signal that is to be obeyed after `step` steps, on all workers; None: go on."""
        return self.received

    def meet(self) -> None:
        """Waits until all workers are here."""

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

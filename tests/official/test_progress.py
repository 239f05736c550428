import io
import re
import sys

import pytest

from official import progress as progress_module
from official.progress import Progress, format_duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(monkeypatch, stream: io.StringIO, total: int | None, interval: float) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("work", total, interval=interval) as progress:
        for done in range(4):
            progress.advance(note=lambda done=done: f"note {done}")
    return stream.getvalue()


def test_piped_lines_have_count_rate_time_left_and_note(monkeypatch):
    lines = run(monkeypatch, io.StringIO(), 4, interval=0.0).splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("work: 2 of 4 images, ")
    assert lines[1].endswith("note 1")
    assert "/s, " in lines[1] and " left, " in lines[1]


def test_unknown_total_gives_no_time_left(monkeypatch):
    line = run(monkeypatch, io.StringIO(), None, interval=0.0).splitlines()[0]
    assert line.startswith("work: 1 images, ") and "left" not in line


def test_nothing_is_said_before_the_interval_has_passed(monkeypatch):
    assert run(monkeypatch, io.StringIO(), 4, interval=1000.0) == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    shown = run(monkeypatch, Terminal(), 4, interval=0.0)
    assert "work: " in shown and "\r" in shown and "work: 1 of 4" not in shown


class Clock:
    """Stands in for the module `time`: nothing passes but what is slept."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def facts(line):
    """(rate, seconds left) of a line, None where it says none."""
    rate = re.search(r"([\d.e+]+)/s", line)
    left = re.search(r"(?:(\d+):)?(\d+):(\d+) left", line)
    seconds = left and sum(
        int(part or 0) * unit for part, unit in zip(left.groups(), (3600, 60, 1), strict=True)
    )
    return rate and float(rate[1]), seconds


def test_the_first_item_and_what_is_done_apart_do_not_count(monkeypatch, clock, capsys):
    with Progress("work", 100, interval=0.0) as progress:
        clock.sleep(1000)  # a graph is built
        progress.advance()
        clock.sleep(2)
        progress.advance()
        clock.sleep(1)
        with progress.apart("building"):
            clock.sleep(500)
            progress.advance()
            clock.sleep(70)
        clock.sleep(2)
        progress.advance()
    first, second, building, apart, last = capsys.readouterr().err.splitlines()
    assert facts(first) == (None, None)  # nothing is known yet
    assert facts(second) == (0.5, 196)  # 98 items, 2 s each
    assert building == "work: building"
    assert facts(apart) == (0.5, 194)
    assert facts(last) == (0.5, 192)


def test_pauses_to_come_are_part_of_the_time_left(clock, capsys):
    with Progress("work", 10, interval=0.0, pauses=3) as progress:
        progress.advance()
        clock.sleep(1)
        progress.advance()
        clock.sleep(0.25)
        with progress.pause():
            clock.sleep(60)
        clock.sleep(0.75)
        progress.advance()
    lines = capsys.readouterr().err.splitlines()
    assert facts(lines[1]) == (1.0, 8)  # what a pause takes is not known yet
    assert facts(lines[2]) == (1.0, 7 + 2 * 60)


def test_items_that_cost_more(clock, capsys):
    # 10 items of 1 and 10 of 3: 40.
    with Progress("work", 20, interval=0.0, work=40) as progress:
        for work in [1] * 10 + [3] * 10:
            clock.sleep(work)
            progress.advance(work=work)
    left = [facts(line)[1] for line in capsys.readouterr().err.splitlines()]
    # Known after the second item: the 38 that are left take 1 s each, and so it remains.
    assert left[1:] == [38 - n for n in range(9)] + [27 - 3 * n for n in range(10)]


def test_what_was_done_before_counts_but_not_in_the_rate(clock, capsys):
    with Progress("work", 10, start=4, interval=0.0) as progress:
        progress.advance()
        clock.sleep(2)
        progress.advance()
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("work: 6 of 10 images") and facts(line) == (0.5, 8)


def test_the_rate_follows_a_change_of_pace(clock, capsys):
    with Progress("work", 1000, interval=0.0) as progress:
        for seconds in [1] * 100 + [4] * 60:
            clock.sleep(seconds)
            progress.advance()
    rate, _ = facts(capsys.readouterr().err.splitlines()[-1])
    # 240 s are 4 times MEMORY: what was before weighs e^-4, 2 %. The mean of all would be 0.47.
    assert rate == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_what_is_kept_stays_as_a_line(monkeypatch, clock, stream):
    stream = stream()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("work", 2, unit="steps", keep=True) as progress:
        progress.advance(note=lambda: "loss 2")
        clock.sleep(61)
        progress.advance(note=lambda: "loss 1")
    assert stream.getvalue().endswith("work: 2 of 2 steps in 1 min 1 s, loss 1\n")


def test_nothing_is_kept_of_what_failed_or_did_nothing(clock, capsys):
    with pytest.raises(KeyError), Progress("work", 2, keep=True) as progress:
        progress.advance()
        raise KeyError
    with Progress("work", 0, keep=True):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_says_at_once_what_is_done_apart(monkeypatch, clock):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress("work", 2, unit="steps") as progress, progress.apart("building the graph"):
        assert re.search(r"work: +0%\|.*\| 0/2 steps, building the graph", stream.getvalue())
        progress.advance()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.6, "1 min 0 s"), (185, "3 min 5 s"), (9599, "2 h 40 min")],
)
def test_duration(seconds, said):
    assert format_duration(seconds) == said

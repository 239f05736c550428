import io
import sys

from official.progress import Progress


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

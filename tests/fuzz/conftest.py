"""How long input is made up: a few seconds a test, or with FUZZ_MINUTES as long as that says."""

import functools
import itertools
import os
import time

import pytest
from hypothesis import HealthCheck, settings

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))

settings.register_profile(
    "short",
    max_examples=60,
    deadline=None,
    derandomize=True,  # CI finds what it found before, and nothing else
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long",
    parent=settings.get_profile("short"),
    max_examples=500,
    derandomize=False,
    print_blob=True,
)
settings.load_profile("long" if MINUTES else "short")


CASES = "cases"
"""The property of a test's report that says how often it was run."""


def pytest_collection_modifyitems(items):
    """In the long form each test runs again and again until its share of the minutes is over."""
    if not MINUTES:
        return
    for item in items:
        item.obj = repeated(item, seconds=60 * MINUTES * 2 / len(items))  # two processes


def repeated(item, seconds):
    test, cases = item.obj, itertools.count(1)
    item.user_properties.append((CASES, 0))
    made_up = getattr(test, "hypothesis", None)

    def counted(run):
        @functools.wraps(run)
        def count(*arguments, **named):
            item.user_properties[-1] = (CASES, next(cases))
            return run(*arguments, **named)

        return count

    if made_up:
        made_up.inner_test = counted(made_up.inner_test)
    else:
        test = counted(test)

    @functools.wraps(test)
    def run(*arguments, **named):
        end = time.monotonic() + seconds
        while True:
            test(*arguments, **named)
            if time.monotonic() > end:
                break

    return run


def pytest_terminal_summary(terminalreporter):
    if not MINUTES:
        return
    reports = [
        report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)
    ]
    for report in reports:
        if report.when == "call":
            cases = dict(report.user_properties).get(CASES, 0)
            terminalreporter.write_line(f"{cases:>10,} cases  {report.nodeid}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory of the module's own; hypothesis runs many examples in one test."""
    return tmp_path_factory.mktemp("fuzz")

import contextlib
import os
import threading
import time

import numpy as np
import pytest

from official.parallel import map_in_order


def test_results_are_in_order_and_not_too_far_ahead():
    started = []

    def work(number):
        started.append(number)
        time.sleep(float(np.random.default_rng(number).uniform(0, 0.01)))
        return 10 * number

    taken = 0
    for number, result in enumerate(map_in_order(work, range(20), ahead=3)):
        assert result == 10 * number
        taken = number + 1
        assert len(started) <= taken + 3
    assert taken == 20 and sorted(started) == list(range(20))


def test_work_overlaps():
    # Each waits for the other: one after the other they would never end.
    both = threading.Barrier(2)
    assert sorted(map_in_order(lambda item: both.wait(timeout=60), range(2))) == [0, 1]


def test_the_error_is_that_of_the_first_item_that_fails():
    later = threading.Event()

    def work(number):
        if number == 2:
            assert later.wait(timeout=60)
            raise ValueError("two")
        if number == 3:
            later.set()
            raise KeyError("three, which fails earlier")
        return number

    results = map_in_order(work, range(9))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)
    assert list(results) == []


def test_results_before_an_item_that_cannot_be_had_are_given():
    def items():
        yield from (1, 2)
        raise ValueError("the third")

    results = map_in_order(lambda number: 10 * number, items())
    assert [next(results), next(results)] == [10, 20]
    with pytest.raises(ValueError, match="the third"):
        next(results)


@pytest.mark.parametrize("how", ["close", "interrupt"])
def test_a_caller_that_stops_leaves_no_work_behind(how):
    begun, go, others = [], threading.Event(), set(threading.enumerate())

    def work(number):
        begun.append(number)
        if number:
            go.wait(timeout=60)
        return number

    def items():
        yield from range(400)
        if how == "interrupt":  # Ctrl-C arrives in the caller's thread, in which items are taken
            threading.Timer(0.2, go.set).start()
            raise KeyboardInterrupt
        yield from range(400, 1000)

    stops = pytest.raises(KeyboardInterrupt) if how == "interrupt" else contextlib.nullcontext()
    with stops, contextlib.closing(map_in_order(work, items(), ahead=500)) as results:
        assert next(results) == 0
        threading.Timer(0.2, go.set).start()
    # What had begun has ended: at most an item for each thread. The rest never begins.
    left = set(threading.enumerate()) - others
    assert not [thread for thread in left if "ThreadPool" in thread.name]
    assert len(begun) <= 1 + min(32, (os.cpu_count() or 1) + 4)


def test_no_items():
    assert list(map_in_order(str, [])) == []

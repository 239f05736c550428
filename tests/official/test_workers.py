import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from official import workers
from official.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# A worker without TensorFlow; what it does then is in {}.
PROGRAM = """
import itertools, os, sys, time
from official import workers
from official.command_line import errors_in_one_line

workers.GRACE = 1.0
index = int(sys.argv[1])

def steps(count):
    for step in range(1, count + 1):
        time.sleep(0.02 * (index + 1))
        stop = crew.agree(step)
        if stop:
            print("stopped at", step, flush=True)
            raise SystemExit(128 + stop)

def wait_in_vain():  # As in an operation over several workers: no handler of Python's ends it.
    print("waits in vain", flush=True)
    time.sleep(60)

with errors_in_one_line():
    crew = workers.gather(workers.read_cluster(os.environ["TF_CONFIG"]))
    print("here", flush=True)
    with crew:
        {}
"""


def find_addresses(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]
    for one in sockets:
        one.close()
    return addresses


def config(addresses, index):
    return json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    )


def start(addresses, index, program="pass"):
    program = PROGRAM.format(program.strip().replace("\n", "\n        "))
    return subprocess.Popen(
        [sys.executable, "-c", program, str(index)],
        cwd=ROOT,
        env={**os.environ, "TF_CONFIG": config(addresses, index)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def start_all(count, program):
    addresses = find_addresses(count)
    return [start(addresses, index, program) for index in range(count)], addresses


def wait_for(process, line):
    for said in process.stdout:
        if said.strip() == line:
            return
    raise AssertionError(process.communicate())


def finish(processes, timeout=30):
    """Exit code, stdout and stderr of each."""
    ends = [(process, process.communicate(timeout=timeout)) for process in processes]
    return [(process.returncode, *said) for process, said in ends]


GOOD = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 1}}


def test_a_cluster_is_read_with_the_first_worker_first():
    cluster = workers.read_cluster(json.dumps(GOOD))
    assert (cluster.own, cluster.first) == ("worker 1", "worker 0")
    assert cluster.describe("worker 1", "worker 0") == "worker 1 (b:2), worker 0 (a:1)"
    of_chief = {"cluster": {"worker": ["a:1"], "chief": ["[::1]:2"]}, "task": GOOD["task"]}
    of_chief["task"] = {"type": "worker", "index": 0}
    assert workers.read_cluster(json.dumps(of_chief)).first == "chief 0"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is not a JSON object"),
        ({}, "has no cluster"),
        ({**GOOD, "cluster": []}, "has no cluster"),
        ({**GOOD, "cluster": {"worker": "a:1"}}, "no list of addresses of its worker"),
        ({**GOOD, "cluster": {"worker": []}}, "no list of addresses"),
        ({**GOOD, "cluster": {"worker": ["a:1", 2]}}, "an address 2, not host:port"),
        ({**GOOD, "cluster": {"worker": ["a:1", "b:70000"]}}, "b:70000.*not host:port"),
        ({**GOOD, "cluster": {"worker": ["a:1", "b" * 9999]}}, r"bbb\.\.\., not host:port"),
        ({**GOOD, "cluster": {"worker": ["a:1", "a:1"]}}, 'the address "a:1" twice'),
        ({**GOOD, "cluster": {"worker": ["a:1", "b:2"], "ps": ["c:3"]}}, 'a job "ps"'),
        ({**GOOD, "cluster": {"worker": ["a:1"], "chief": ["b:1", "c:1"]}}, "more than one chief"),
        ({"cluster": GOOD["cluster"]}, "has no task"),
        ({**GOOD, "task": {"type": "chief", "index": 0}}, 'a task of type "chief"'),
        ({**GOOD, "task": {"type": ["worker"], "index": 0}}, "a task of type"),
        ({**GOOD, "task": {"type": "worker"}}, "of index null, not a number"),
        ({**GOOD, "task": {"type": "worker", "index": "1"}}, 'of index "1", not a number'),
        ({**GOOD, "task": {"type": "worker", "index": True}}, "of index true, not a number"),
        ({**GOOD, "task": {"type": "worker", "index": 2}}, "of index 2, not one of 0 to 1"),
        ({**GOOD, "task": {"type": "worker", "index": -1}}, "of index -1, not one of 0 to 1"),
    ],
)
def test_what_is_no_cluster_is_refused_in_one_line(text, problem):
    text = json.dumps(text) if isinstance(text, dict) else text
    with pytest.raises(UsageError, match=f"TF_CONFIG .*{problem}") as error:
        workers.read_cluster(text)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("index", [0, 1])
def test_an_address_that_is_taken(index):
    addresses = find_addresses(2)
    with socket.socket() as other:
        host, port = addresses[index].split(":")
        other.bind((host, int(port)))
        other.listen()
        with pytest.raises(UsageError, match=rf"worker {index} \({addresses[index]}\).* in use"):
            workers.gather(workers.read_cluster(config(addresses, index)))


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("index", [0, 1])
def test_a_lone_worker_says_for_whom_it_waits_and_obeys(index, number):
    addresses = find_addresses(2)
    process = start(addresses, index)
    assert process.stderr.readline() == f"waiting for worker {1 - index} ({addresses[1 - index]})\n"
    began = time.monotonic()
    process.send_signal(number)
    ((code, out, err),) = finish([process])
    assert (code, out) == (128 + number, "") and time.monotonic() - began < 5
    assert err == f"stopped by {number.name}: nothing was begun\n"


def test_those_who_are_there_say_who_is_missing():
    addresses = find_addresses(3)
    first, second = start(addresses, 0), start(addresses, 1)
    missing = f"waiting for worker 2 ({addresses[2]})\n"
    for process in (first, second):
        assert missing in iter(process.stderr.readline, "")
    # One that gives up is waited for again; who is no worker changes nothing.
    host, port = addresses[0].split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.send(b"GET / HTTP/1.0\r\n\r\n")
    second.terminate()
    finish([second])
    assert f"waiting for worker 1 ({addresses[1]}), worker 2 ({addresses[2]})\n" in iter(
        first.stderr.readline, ""
    )
    others = [start(addresses, index) for index in (1, 2)]
    assert [code for code, *_ in finish([first, *others])] == [0, 0, 0]


def test_two_of_one_index_and_two_clusters():
    addresses = find_addresses(3)
    first, second = start(addresses, 0), start(addresses, 1)
    assert "waiting for worker 2" in first.stderr.readline() + first.stderr.readline()
    # On another machine its port would be free; here that is seen first.
    copy = start([*addresses[:2], find_addresses(1)[0]], 2)
    ((code, _, err),) = finish([copy])
    assert code == 2 and "worker 2 and worker 0 have different clusters" in err.splitlines()[-1]
    third = start(addresses, 2)
    assert [code for code, *_ in finish([first, second, third])] == [0, 0, 0]


@pytest.mark.parametrize(("number", "to"), zip(ENDING, [(0,), (2,), (0, 1, 2)], strict=True))
def test_a_signal_stops_all_after_the_same_step(number, to):
    processes, _ = start_all(3, "crew.at_once = False\nsteps(1000)")
    for process in processes:
        wait_for(process, "here")
    time.sleep(0.2)
    for index in to:
        processes[index].send_signal(number)
    ends = finish(processes)
    assert [code for code, *_ in ends] == [128 + number] * 3, ends
    (said,) = {out for _, out, _ in ends}
    assert said.startswith("stopped at ")


@pytest.mark.parametrize("to", [0, 1])
def test_where_nothing_is_lost_a_signal_ends_all_at_once(to):
    # One has come out of a report, or has not yet gone into the first step.
    program = """
crew.at_once = True
if index == 2: crew.at_once = False
wait_in_vain()"""
    processes, _ = start_all(3, program)
    for process in processes:
        wait_for(process, "waits in vain")
    processes[to].terminate()
    for code, _, err in finish(processes):
        assert code == 143, err
        assert f"stopped by SIGTERM to worker {to}: the same command" in err.splitlines()[-1]


def test_a_signal_while_others_still_save_waits_for_them():
    program = """
crew.at_once = False
if index == 0:
    time.sleep(1)
    print("saved", flush=True)
crew.at_once = True
wait_in_vain()"""
    processes, _ = start_all(2, program)
    for process in processes:
        wait_for(process, "here")
    time.sleep(0.3)
    processes[1].terminate()
    first, second = finish(processes)
    assert (first[0], second[0]) == (143, 143) and first[1] == "saved\n"


@pytest.mark.parametrize("gone", [0, 1])
def test_when_one_is_killed_the_others_end_and_name_it(gone):
    processes, addresses = start_all(3, "crew.at_once = False\nwait_in_vain()")
    for process in processes:
        wait_for(process, "waits in vain")
    began = time.monotonic()
    processes[gone].kill()
    ends = finish(processes)
    assert time.monotonic() - began < 10
    for index, (code, _, err) in enumerate(ends):
        if index == gone:
            assert code == -signal.SIGKILL
            continue
        line = err.splitlines()[-1]
        assert code == 1 and "Traceback" not in err
        assert line.startswith(f"error: worker {gone} ({addresses[gone]}) is gone: ")
        assert workers.AGAIN in line and len(line) < 400


def test_when_one_fails_another_says_its_own_error_or_names_it():
    program = """
crew.at_once = False
if index == 0: raise workers.RunError("a bad record")
if index == 1: time.sleep(0.3); raise workers.RunError("a bad record too")
wait_in_vain()"""
    ends = finish(start_all(3, program)[0])
    assert [code for code, *_ in ends] == [1, 1, 1]
    lines = [err.splitlines()[-1] for *_, err in ends]
    assert lines[:2] == ["error: a bad record", "error: a bad record too"]
    assert lines[2].startswith("error: worker ") and " has ended: " in lines[2]


def test_workers_that_are_at_different_steps_do_not_go_on():
    processes, addresses = start_all(2, "crew.agree(100 * index)")
    first, second = finish(processes)
    for code, _, err in (first, second):
        assert code == 1
        assert f"error: worker 1 ({addresses[1]}) is at step 100, worker 0 at step 0" in err


def test_an_agreement_costs_little():
    # Beside a step over several machines, which takes tens of milliseconds or more.
    program = """
began = time.monotonic()
for step in range(500): crew.agree(step)
print(time.monotonic() - began)"""
    ends = finish(start_all(2, program)[0])
    assert [code for code, *_ in ends] == [0, 0]
    assert min(float(out.split()[-1]) for _, out, _ in ends) / 500 < 0.005

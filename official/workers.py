"""The workers of one run: they wait for each other, stop together, and see when one is gone.

TensorFlow's operations over several workers wait for one that is not there, for a long time or for
ever, and in C++, where Python handles no signal. So every worker has a connection of its own to the
first one, made before TensorFlow's and at the same address, and a thread that watches it: when a
process ends, however it does, the system closes its connections, and the others know at once. A
machine that falls silent is found by TCP's own probes.
"""

import atexit
import json
import os
import select
import selectors
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

from official.errors import RunError, UsageError
from official.interrupts import find_signals
from official.progress import say

JOBS = ("chief", "worker")
EXAMPLE = (
    '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}'
)
AGAIN = "start all workers again with the same command"

REMIND = 60.0
"""Seconds after which a worker that waits for others says so again."""
LONGEST = 10**6
"""Bytes of the first words on a new connection."""
RETRY = 1.0
"""Seconds between two attempts to reach the first worker."""
ANSWER = 5.0
"""Seconds for the first words on a new connection."""
GRACE = 15.0
"""Seconds in which a worker ends by itself after another one has: they often do for one reason."""
# A machine that does not answer is given up after 5 + 3 * 5 seconds.
PROBES = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}


@dataclass(frozen=True)
class Cluster:
    """Who takes part in a run, and who this process is.

    Attributes:
        addresses: "worker 0" and so on -> "host:port"; the first writes the run's files.
        own: this process's name among them.
    """

    addresses: Mapping[str, str]
    own: str

    @property
    def first(self) -> str:
        """Its name."""
        return next(iter(self.addresses))

    def describe(self, *names: str) -> str:
        """Names with their addresses."""
        return ", ".join(f"{name} ({self.addresses[name]})" for name in names)


def read_cluster(text: str | None) -> Cluster:
    """The cluster that the environment variable TF_CONFIG describes.

    Args:
        text: its value; None: it is not set.

    Raises:
        UsageError: it does not describe one.
    """

    def check(is_right: bool, problem: str) -> None:
        if not is_right:
            raise UsageError(
                "--distribution_strategy=multi_worker_mirrored: the environment variable TF_CONFIG "
                f"{problem}; every worker needs the same cluster and its own task, such as "
                f"{EXAMPLE}"
            )

    check(bool(text), "is not set")
    try:
        config = json.loads(text or "")
    except (ValueError, RecursionError):
        check(False, "is not JSON")
    check(isinstance(config, dict), "is not a JSON object")
    jobs, task = config.get("cluster"), config.get("task")
    check(isinstance(jobs, dict) and bool(jobs), "has no cluster")
    check(isinstance(task, dict), "has no task")
    addresses: dict[str, str] = {}
    for job, hosts in sorted(jobs.items()):
        check(job in JOBS, f"has a job {_show(job)} in its cluster, not chief or worker")
        check(isinstance(hosts, list) and bool(hosts), f"has no list of addresses of its {job}")
        for index, address in enumerate(hosts):
            check(_is_address(address), f"has an address {_show(address)}, not host:port")
            check(address not in addresses.values(), f"has the address {_show(address)} twice")
            addresses[f"{job} {index}"] = address
    check(len(jobs.get("chief", [])) <= 1, "has more than one chief")
    job, index = task.get("type"), task.get("index")
    check(isinstance(job, str) and job in jobs, f"has a task of type {_show(job)}, not in cluster")
    check(type(index) is int, f"has a task of index {_show(index)}, not a number")
    count = len(jobs[job])
    check(0 <= index < count, f"has a task of index {_show(index)}, not one of 0 to {count - 1}")
    return Cluster(addresses, f"{job} {index}")


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_address(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    host, _, port = value.rpartition(":")
    return bool(host) and port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536


class _Line:
    """A connection on which lines of text go to and fro."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket, self._buffer = connected, b""
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in PROBES.items():
            if hasattr(socket, name):  # not on every system
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, text: str) -> None:
        # That nobody is there any more is found out by reading.
        with suppress(OSError):
            self.socket.sendall(f"{text}\n".encode())

    def receive(self) -> list[str]:
        """The lines that have come, at least a part of one; EOFError: there will be no more."""
        data = self.socket.recv(4096)
        if not data:
            raise EOFError
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def receive_one(self) -> str:
        """The next line and nothing of what follows; else as `receive`."""
        read = b""
        while not read.endswith(b"\n"):
            byte = self.socket.recv(1)
            if not byte or len(read) > LONGEST:
                raise EOFError
            read += byte
        return read.decode(errors="replace").strip()


class _Waiting:
    """Says for whom this worker waits: at once, and then rarely."""

    def __init__(self) -> None:
        self._text, self._said = "", 0.0

    def say(self, text: str) -> None:
        if text != self._text or time.monotonic() - self._said >= REMIND:
            self._text, self._said = text, time.monotonic()
            say(f"waiting for {text}")


def gather(cluster: Cluster) -> "Crew":
    """Waits until all workers of the cluster are there; a signal ends the process meanwhile.

    Raises:
        UsageError: the own address cannot be used, or TF_CONFIG is not what the others have.
        SystemExit: SIGINT, SIGTERM or SIGHUP came.
    """
    with _ending_by_signal(), _listen(cluster) as listener:
        if cluster.own == cluster.first:
            lines = _receive(cluster, listener)
        else:
            listener.close()  # It was to see whether the address is free.
            lines = {cluster.first: _call(cluster)}
    return Crew(cluster, lines)


@contextmanager
def _ending_by_signal() -> Iterator[None]:
    def end(number: int, frame: Any) -> NoReturn:
        say(f"stopped by {signal.Signals(number).name}: nothing was begun")
        raise SystemExit(128 + number)

    old = {number: signal.signal(number, end) for number in find_signals()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _listen(cluster: Cluster) -> socket.socket:
    port = int(cluster.addresses[cluster.own].rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both
        )
    except OSError as error:
        raise UsageError(
            f"TF_CONFIG: cannot listen at the port of {cluster.describe(cluster.own)}: "
            f"{os.strerror(error.errno or 0)}; end the process that uses it, such as an earlier "
            "run, or give all workers another port for it"
        ) from None


def _receive(cluster: Cluster, listener: socket.socket) -> dict[str, _Line]:
    """The first worker: waits for the others to call."""
    waiting, here = _Waiting(), dict[str, _Line]()
    while missing := [name for name in cluster.addresses if name not in (cluster.own, *here)]:
        waiting.say(cluster.describe(*missing))
        sockets = [listener, *(line.socket for line in here.values())]
        ready = select.select(sockets, [], [], REMIND)[0]
        for name, line in list(here.items()):
            if line.socket in ready:  # It has nothing to say now, so it has ended.
                del here[name]
        if listener in ready:
            with suppress(OSError, EOFError, ValueError, TypeError, LookupError):  # of anybody
                _answer(cluster, _Line(listener.accept()[0]), here)
        missing = [name for name in missing if name not in here]
        for line in here.values():
            line.send(f"waiting {cluster.describe(*missing)}" if missing else "start")
    return here


def _answer(cluster: Cluster, line: _Line, here: dict[str, _Line]) -> None:
    """Adds who calls to those that are here, or refuses it."""
    line.socket.settimeout(ANSWER)
    hello = json.loads(line.receive_one())
    name, addresses = hello["name"], hello["addresses"]
    problem = ""
    if addresses != cluster.addresses:
        problem = f"{name} and {cluster.own} have different clusters: give all the same"
    elif name in here or name == cluster.own:
        problem = f"there are two of {cluster.describe(name)}: give each its own index"
    if problem:
        say(f"warning: refused a worker: TF_CONFIG: {problem}")
        line.send(f"refused TF_CONFIG: {problem}")
        line.socket.close()
    else:
        line.socket.settimeout(None)
        here[name] = line


def _call(cluster: Cluster) -> _Line:
    """Any other worker: calls the first one until it answers, and waits until all are there."""
    waiting = _Waiting()
    host, _, port = cluster.addresses[cluster.first].rpartition(":")
    hello = json.dumps({"name": cluster.own, "addresses": dict(cluster.addresses)})
    while True:
        try:
            with ExitStack() as stack:
                connected = socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER)
                line = _Line(stack.enter_context(connected))
                line.send(hello)
                while True:
                    said, _, text = line.receive_one().partition(" ")
                    connected.settimeout(None)
                    match said:
                        case "start":
                            stack.pop_all()
                            return line
                        case "waiting":
                            waiting.say(text)
                        case "refused":
                            raise UsageError(text)
                        case _:  # It is somebody else.
                            raise EOFError
        except (OSError, EOFError):
            waiting.say(cluster.describe(cluster.first))
            time.sleep(RETRY)


class Crew:
    """The workers of a run at work; what `interrupts.Interrupts` is for one process.

    A signal to one worker is told to all. While nothing would be lost by it (`at_once`), each then
    ends immediately; else all end after the same step, which `agree` tells. When a worker is gone,
    the others end with a line that names it, whatever they are waiting for.

    Args:
        cluster: who they are.
        lines: the first worker's connections to the others by name; the others' to the first.

    Attributes:
        received: the number of the signal that one of them was sent; None: there was none.
        raises: False; see `interrupts.Interrupts`.
    """

    raises = False

    def __init__(self, cluster: Cluster, lines: dict[str, _Line]) -> None:
        self._cluster, self._lines = cluster, lines
        self.received: int | None = None
        self._sent_to = ""
        self._at_once = True  # until the loop begins
        self._is_ending = False  # in agreement with all
        self._changed = threading.Condition()
        self._arrived: dict[str, deque[str]] = {name: deque() for name in lines}
        self._answers: deque[str] = deque()
        self._left: set[str] = set()
        # Python runs handlers in the main thread, which may be waiting in C++. The numbers of
        # signals come here at once.
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        self._old = {number: signal.getsignal(number) for number in find_signals()}
        self.take_signals()
        self._old_wakes = signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="workers", daemon=True)
        self._thread.start()
        atexit.register(self.leave)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        if kind is None or issubclass(kind, SystemExit):
            self.leave()
            return
        with self._changed:
            self._at_once = True
        if not issubclass(kind, UsageError | RunError):
            # An error of TensorFlow may only be what follows from a worker that is gone: then the
            # thread ends the process.
            time.sleep(RETRY)

    def take_signals(self) -> None:
        """Has signals come here; again, once TensorFlow has taken SIGTERM for itself."""
        for number in self._old:
            signal.signal(number, lambda *_: None)

    @property
    def at_once(self) -> bool:
        """Whether a signal ends all workers immediately. Setting it to True waits for all."""
        return self._at_once

    @at_once.setter
    def at_once(self, value: bool) -> None:
        if value:
            self.meet()  # Now all have saved what they had to.
        with self._changed:
            self._at_once = value
            if value and self.received is not None:
                self._end_by_signal()

    def agree(self, step: int) -> int | None:
        """The signal that is to be obeyed after `step` steps, on all workers; None: go on.

        Raises:
            RunError: the workers are at different steps.
        """
        number = self._meet(str(step))
        with self._changed:
            self._is_ending = number is not None
        return number

    def meet(self) -> None:
        """Waits until all workers are here."""
        self._meet("")

    def leave(self) -> None:
        """Ends the agreement; for a moment it waits for the others to leave too."""
        with self._changed:
            if not self._thread.is_alive() or self._thread is threading.current_thread():
                return
            self._at_once = self._is_ending = True
            for line in self._lines.values():
                line.send("left")
            self._changed.wait_for(lambda: self._left >= self._lines.keys(), timeout=GRACE + 2)
        self._wakes.send(b"\0")
        self._thread.join()
        signal.set_wakeup_fd(self._old_wakes)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        for line in self._lines.values():
            line.socket.close()

    def _meet(self, value: str) -> int | None:
        """Waits until all workers come here with the same value; the signal by then."""
        with self._changed:
            if self._cluster.own == self._cluster.first:
                self._changed.wait_for(lambda: all(self._arrived.values()))
                values = {name: arrived.popleft() for name, arrived in self._arrived.items()}
                other = next((name for name in values if values[name] != value), None)
                answer = f"go {self.received or 0}"
                if other:
                    answer = (
                        f"fail {self._cluster.describe(other)} is at step {values[other]}, "
                        f"{self._cluster.own} at step {value}: give all workers the same flags "
                        "and a --model_dir that all of them see"
                    )
                for line in self._lines.values():
                    line.send(answer)
            else:
                self._lines[self._cluster.first].send(f"at {value}")
                self._changed.wait_for(lambda: self._answers)
                answer = self._answers.popleft()
        said, _, text = answer.partition(" ")
        if said == "fail":
            raise RunError(text)
        return int(text) or None

    def _watch(self) -> None:
        """The thread: reads what others say and which signals come, until it is woken with 0."""
        lost, until = "", 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for name, line in self._lines.items():
                selector.register(line.socket, selectors.EVENT_READ, name)
            while True:
                timeout = max(0.0, until - time.monotonic()) if lost else None
                events = selector.select(timeout)
                for key, _ in events:
                    if key.data is None:
                        numbers = self._woken.recv(100)
                        if 0 in numbers:
                            return
                        for number in self._old.keys() & set(numbers):
                            self._tell(number, self._cluster.own)
                        continue
                    try:
                        for text in self._lines[key.data].receive():
                            self._hear(key.data, text)
                    except (OSError, EOFError):
                        selector.unregister(key.fileobj)
                        self._lose(key.data)
                    if key.data in self._left and not lost:
                        lost, until = key.data, time.monotonic() + GRACE
                if lost and not self._is_ending and time.monotonic() >= until:
                    self._end_by_loss(lost, "has ended")

    def _hear(self, name: str, text: str) -> None:
        said, _, rest = text.partition(" ")
        with self._changed:
            match said:
                case "at":
                    self._arrived[name].append(rest)
                case "go" | "fail":
                    self._answers.append(text)
                case "left":
                    self._left.add(name)
                case "signal":
                    number, _, sent_to = rest.partition(" ")
                    self._tell(int(number), sent_to)
                case "gone" if not self._is_ending:
                    self._end_by_loss(rest, "is gone")
            self._changed.notify_all()

    def _tell(self, number: int, sent_to: str) -> None:
        """Notes a signal and tells the others, once."""
        with self._changed:
            if self.received is None:
                self.received, self._sent_to = number, sent_to
                for line in self._lines.values():
                    line.send(f"signal {number} {sent_to}")
            if self._at_once:
                self._end_by_signal()

    def _lose(self, name: str) -> None:
        """Another worker's process has ended."""
        with self._changed:
            if self._is_ending or name in self._left:
                return
            if self.received is not None:  # It was there that nothing was lost by it.
                self._end_by_signal()
            self._end_by_loss(name, "is gone")

    def _end_by_signal(self) -> NoReturn:
        assert self.received is not None
        name = signal.Signals(self.received).name
        _end(
            128 + self.received,
            f"stopped by {name} to {self._sent_to}: the same command on every worker goes on from "
            "the newest checkpoint",
        )

    def _end_by_loss(self, name: str, how: str) -> NoReturn:
        for line in self._lines.values():
            line.send(f"gone {name}")
        _end(
            1,
            f"error: {self._cluster.describe(name)} {how}: its own last lines say why, if it had "
            f"time; {AGAIN}, and the run goes on from its newest checkpoint",
        )


def _end(code: int, text: str) -> NoReturn:
    """Ends the process from any thread, though another one waits in C++."""
    if sys.stderr.isatty():
        sys.stderr.write("\n")  # A bar of progress may be there.
    try:
        say(text)
    finally:  # stderr may be closed
        os._exit(code)

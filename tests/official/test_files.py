import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from official import files
from official.errors import RunError, UsageError
from official.files import (
    check_output,
    check_replaceable,
    find_files,
    glob_files,
    make_directory,
    read_small,
    write_atomically,
    write_directory_atomically,
)
from tests import replicas
from tests.command import ROOT


def test_text_and_bytes_replace_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(tmp_path) == ["file"]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=r"file: No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_missing_directory_and_a_file_in_the_way_are_named(tmp_path):
    with pytest.raises(RunError, match="nowhere"):
        write_atomically(tmp_path / "nowhere" / "file", "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file"):
        make_directory(tmp_path / "file" / "below")


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_text()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("there", [False, True])
def test_a_directory_appears_whole(tmp_path, there):
    target = tmp_path / "up" / "data"
    if there:
        target.mkdir(parents=True)
    with write_directory_atomically(target, "--flag") as directory:
        (directory / "in").mkdir()
        (directory / "in" / "a").write_text("1")
        assert (directory / "in").stat().st_dev == tmp_path.stat().st_dev
        assert not target.exists() or not os.listdir(target)
    assert contents(target) == {"in/a": "1"} and os.listdir(tmp_path / "up") == ["data"]
    # As any directory: others can read it where the user lets them.
    (tmp_path / "other").mkdir()
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("name", [".", "link", "down/.."])
def test_targets_without_a_name_of_their_own(tmp_path, monkeypatch, name):
    (tmp_path / "here" / "down").mkdir(parents=True)
    (tmp_path / "here" / "down").rmdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    target = {".": tmp_path / "here", "down/..": tmp_path / "here", "link": tmp_path / "elsewhere"}
    monkeypatch.chdir(tmp_path / "here")
    place = tmp_path / "link" if name == "link" else name
    with write_directory_atomically(place, "--flag") as directory:
        (directory / "a").write_text("1")
    assert contents(target[name]) == {"a": "1"}
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "here", "link"]


@pytest.mark.parametrize("error", [ValueError("odd"), KeyboardInterrupt(), RunError("bad data")])
def test_an_error_passes_and_leaves_nothing(tmp_path, error):
    with (
        pytest.raises(type(error)) as caught,
        write_directory_atomically(tmp_path / "data", "--flag") as directory,
    ):
        (directory / "a").write_text("1")
        raise error
    assert caught.value is error and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        # As TensorFlow's writers say it.
        tf.errors.ResourceExhaustedError(None, None, "file; No space left on device [Op:Save]"),
    ],
)
def test_a_full_disk_is_one_line(tmp_path, error):
    with (
        pytest.raises(
            RunError, match=r"^no space is left for .*/data \(.*\): nothing .*--flag$"
        ) as one,
        write_directory_atomically(tmp_path / "data", "--flag") as directory,
    ):
        (directory / "a").write_text("1")
        raise error
    assert "\n" not in str(one.value) and os.listdir(tmp_path) == []


def test_what_is_there_stays(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("old")
    (tmp_path / "file").write_text("old")
    for name in ("data", "file"):
        with (
            pytest.raises(RunError, match=rf"{name} exists and is not .*: choose another --flag"),
            write_directory_atomically(tmp_path / name, "--flag"),
        ):
            raise AssertionError("it was let in")
    with (
        pytest.raises(RunError, match=r"cannot write .*file/data: .*Not a directory"),
        write_directory_atomically(tmp_path / "file" / "data", "--flag"),
    ):
        raise AssertionError("it was let in")
    with (
        pytest.raises(RunError, match=r"cannot write .*new: .*not empty"),
        write_directory_atomically(tmp_path / "new", "--flag"),
    ):  # somebody who knows nothing of the lock
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "mine").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: True)
        with (
            pytest.raises(RunError, match=r"volume is a mount point: .* in it as --flag"),
            write_directory_atomically(tmp_path / "volume", "--flag"),
        ):
            raise AssertionError("it was let in")
    assert contents(tmp_path) == {"data/mine": "old", "file": "old", "new/mine": "old"}


def test_two_at_the_same_time(tmp_path):
    with write_directory_atomically(tmp_path / "data", "--flag") as directory:
        (directory / "a").write_text("first")
        with (
            pytest.raises(RunError, match=r"another process is writing .*data: wait for it"),
            write_directory_atomically(tmp_path / "data", "--flag"),
        ):
            raise AssertionError("it was let in")
        with write_directory_atomically(tmp_path / "other", "--flag"):
            pass  # another directory is another matter
    assert contents(tmp_path / "data") == {"a": "first"}
    assert sorted(os.listdir(tmp_path)) == ["data", "other"]


def test_where_nobody_can_tell_nothing_is_removed(tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    left = tmp_path / ".data.unfinished" / "content"
    left.mkdir(parents=True)
    with (
        pytest.raises(RunError, match=r"\.data\.unfinished is from .*: remove it if none is going"),
        write_directory_atomically(tmp_path / "data", "--flag"),
    ):
        raise AssertionError("it was let in")
    left.rmdir()
    with write_directory_atomically(tmp_path / "data", "--flag") as directory:
        (directory / "a").write_text("1")
    assert contents(tmp_path) == {"data/a": "1"}


# A process that is killed before its first operation on files, before its second, and so on, until
# one is not killed; after each, another one writes the same directory. Prints what each has left.
KILLED = """
import json, os, signal, shutil, sys
from pathlib import Path
from official.files import write_directory_atomically

def write(target):
    with write_directory_atomically(target, "--flag") as directory:
        for name in ("a", "b"):
            (directory / name).mkdir()
            (directory / name / "file").write_text(name)

def kill_before(operation):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event == "open" or event.split(".")[0] in ("os", "shutil", "fcntl"):
            seen += 1
            if seen == operation:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

root, empty_before = Path(sys.argv[1]), sys.argv[2] == "True"
target, operation, killed, left = root / "data", 0, True, []
while killed:
    operation += 1
    if empty_before:
        target.mkdir()
    pid = os.fork()
    if pid == 0:
        kill_before(operation)
        write(target)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    if not (target.exists() and any(target.iterdir())):
        write(target)
    after = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    left.append([files, after])
    shutil.rmtree(target)
    if operation < 100:  # what is left beside a whole target goes with the next one
        write(target)
        assert os.listdir(root) == ["data"], os.listdir(root)
        shutil.rmtree(target)
print(json.dumps(left))
"""


@pytest.mark.parametrize("empty_before", [False, True])
def test_whenever_a_process_is_killed_the_directory_is_old_or_new(tmp_path, empty_before):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path, str(empty_before)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    left = json.loads(done.stdout)
    whole = ["data/a/file", "data/b/file"]
    of_target = [[file for file in files if file.startswith("data/")] for files, _ in left]
    # The old one, then from some moment on the new one.
    assert of_target == sorted(of_target) and [] in of_target and whole in of_target
    assert all(files in ([], whole) for files in of_target)
    known = ("data/", ".data.unfinished/")
    assert all(file.startswith(known) for files, _ in left for file in files)
    assert all([file for file in after if file.startswith("data/")] == whole for _, after in left)
    assert len(left) > 10 and left[-1] == [whole, whole]
    assert "removing" in done.stderr and ".data.unfinished, which an interrupted run" in done.stderr


@pytest.fixture
def linked(tmp_path):
    """top: a.png, in/b.png, .hid/x.png, a link to a folder elsewhere, and links in circles."""
    top, elsewhere = tmp_path / "top [1]", tmp_path / "elsewhere"
    for path in (top / "a.png", top / "in" / "b.png", top / ".hid" / "x.png", elsewhere / "c.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    (top / ".y.png").write_text("hidden")
    (top / "link").symlink_to(elsewhere)
    (top / "in" / "again").symlink_to(elsewhere)  # the same once more, which is no circle
    (elsewhere / "round").symlink_to(top)
    (top / "in" / "self").symlink_to(top / "in")
    (top / "in" / "gone.png").symlink_to(tmp_path / "nowhere")
    return top


ALL = ("a.png", "in/again/c.png", "in/b.png", "in/gone.png", "link/c.png")


def names(paths, folder):
    return tuple(path.relative_to(folder).as_posix() for path in paths)


def test_linked_folders_are_followed_and_circles_end(linked, capsys):
    assert names(find_files(linked), linked) == ALL
    said = capsys.readouterr().err.splitlines()
    ends = [f"{linked}/{end} leads back" for end in ("in/again/round", "in/self", "link/round")]
    assert len(said) == 3 and all(end in line for end, line in zip(ends, said, strict=True))


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("**/*.png", ALL),
        ("**", ALL),
        ("*.png", ("a.png",)),
        ("*/c.png", ("link/c.png",)),
        ("**/again/**/c.*", ("in/again/c.png",)),
        ("in/**/[bc].png", ("in/again/c.png", "in/b.png")),
        ("**/*.jpg", ()),
    ],
)
def test_patterns_find_what_is_linked(linked, pattern, found, monkeypatch):
    root = linked / "in" if pattern.startswith("in/") else linked
    monkeypatch.chdir(linked)
    assert names(glob_files(pattern, root.relative_to(linked)), "") == found
    if "**" in pattern:
        assert names(glob_files(f"{linked}/{pattern}", root), linked) == found


def test_a_root_that_is_not_there_has_no_files(tmp_path):
    assert glob_files(f"{tmp_path}/nowhere/**/*.png", tmp_path / "nowhere") == []


def test_a_folder_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        find_files(tmp_path / "nowhere")


def hold(directory):
    """Owns the directory until it is killed."""
    with files.own_directory(directory, "--model_dir"):
        print("held", flush=True)
        time.sleep(600)


def test_a_directory_belongs_to_one_process(tmp_path):
    process = replicas.start_in_new_process(hold, str(tmp_path))
    try:
        lock = tmp_path / files.LOCK
        deadline = time.monotonic() + 120
        while not (lock.exists() and lock.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        owner = f"{socket.gethostname()}, process {process.pid} since 20"
        assert lock.read_text().startswith(owner)
        with (
            pytest.raises(RunError, match=f"--model_dir={tmp_path} is in use by {owner}"),
            files.own_directory(tmp_path, "--model_dir"),
        ):
            pytest.fail("two have it")
        # Stopped, it still has it.
        os.kill(process.pid, signal.SIGSTOP)
        with pytest.raises(RunError, match="in use"), files.own_directory(tmp_path, "--model_dir"):
            pytest.fail("two have it")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    # Killed, it has it no more.
    with files.own_directory(tmp_path, "--model_dir"):
        assert f"process {os.getpid()} " in lock.read_text()
        with pytest.raises(RunError, match="in use"), files.own_directory(tmp_path, "--model_dir"):
            pytest.fail("twice in one process")
    assert not lock.exists()
    with files.own_directory(tmp_path / "new", "--model_dir"):
        (tmp_path / "new" / "file").touch()
    with files.own_directory(tmp_path / "newer", "--model_dir"):
        pass
    # A directory into which nothing came was made for nothing.
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


@pytest.mark.parametrize(
    ("owner", "free"),
    [
        ("", True),
        ("HERE, process 999999999 since 2026-01-01", True),  # it is gone
        ("HERE, process MINE since 2026-01-01", False),
        ("elsewhere, process 1 since 2026-01-01", False),
        ("HERE, process x", False),
    ],
)
def test_without_locks_the_file_stands_for_one(tmp_path, monkeypatch, owner, free):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    lock = tmp_path / files.LOCK
    owner = owner.replace("HERE", socket.gethostname())
    lock.write_text(owner.replace("MINE", str(os.getpid())))
    if free:
        with files.own_directory(tmp_path, "--model_dir"):
            assert f"process {os.getpid()} " in lock.read_text()
        assert not lock.exists()
        return
    with (
        pytest.raises(RunError, match=f"no locks to tell: if it has ended, remove {lock}"),
        files.own_directory(tmp_path, "--model_dir"),
    ):
        pytest.fail("two have it")


def test_leftovers_of_dead_processes_go(tmp_path):
    names = (
        "a.json.999999999.tmp",
        f"b.json.{os.getpid()}.tmp",
        "c.tmp",
        "d.x.tmp",
        "new.999999998.tmp",
    )
    for name in names:
        (tmp_path / name).touch()
        if not name.startswith("new"):  # which may be another machine's
            os.utime(tmp_path / name, (0, 0))
    files.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])


def test_a_small_file_is_read_and_a_large_one_is_not(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"x" * 2**24)
    assert len(read_small(path)) == 2**24
    path.write_bytes(b"x" * (2**24 + 1))
    with pytest.raises(ValueError, match="larger than 16 MB"):
        read_small(path)


def test_what_is_read_is_not_written_over(tmp_path):
    (tmp_path / "read").write_text("1")
    (tmp_path / "link").symlink_to("read")
    os.link(tmp_path / "read", tmp_path / "hard")
    for name in ("read", "link", "hard", "../" + tmp_path.name + "/read"):
        with pytest.raises(UsageError, match=rf"--output=\S*{name} is a file that is read"):
            check_output(tmp_path / name, [tmp_path / "gone", tmp_path / "read"], "--output")
    check_output(tmp_path / "new", [tmp_path / "gone", tmp_path / "read"], "--output")


def test_only_an_older_file_of_its_kind_is_replaced(tmp_path):
    for name, content in (("old.json", '{"mine": 1}'), ("empty.json", ""), ("other.json", "{}")):
        (tmp_path / name).write_text(content)
    (tmp_path / "link.json").symlink_to("other.json")
    os.mkfifo(tmp_path / "pipe")
    for name in ("new.json", "nowhere/new.json", "old.json", "empty.json"):
        check_replaceable(tmp_path / name, "--output", '"mine"')
    for name in ("other.json", "link.json", "pipe"):
        with pytest.raises(UsageError, match=rf"--output=\S*{name} is there already"):
            check_replaceable(tmp_path / name, "--output", '"mine"')
    with pytest.raises(UsageError, match="--output=/dev/null is there"):
        check_replaceable("/dev/null", "--output", '"mine"')
    with pytest.raises(UsageError, match=r"--output=\S* is a directory: give a file"):
        check_replaceable(tmp_path, "--output", '"mine"')


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # nobody writes into it
    for path in (tmp_path / "pipe", "/dev/zero", "/dev/tty"):
        with pytest.raises(OSError, match=r"device or a pipe, not a file|No such device"):
            read_small(path)
    with pytest.raises(IsADirectoryError):
        read_small(tmp_path)


def test_a_pipe_of_the_shell_is_read():
    read, write = os.pipe()
    os.write(write, b"--a=1\n")
    os.close(write)
    assert read_small(f"/dev/fd/{read}") == b"--a=1\n"
    os.close(read)

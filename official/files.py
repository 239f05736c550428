"""Files and directories that are whole or not there, however the writer ends; finding files."""

import contextlib
import errno
import fcntl
import fnmatch
import glob
import os
import re
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from official.errors import RunError, UsageError, explain

LOCK = "run.lock"
"""The file in a directory that says which process has it."""

SMALL = 2**24
"""So many bytes has a file of those that `read_small` reads at most."""

_OWN_PIPES = ("/dev/fd", f"/proc/{os.getpid()}/fd")


def make_directory(path: str | os.PathLike[str]) -> Path:
    """Makes a directory with its parents, if it is not there yet.

    Raises:
        RunError: it cannot be made.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise RunError(f"cannot make the directory {path}: {error.strerror}") from None
    return Path(path)


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """Opens a file to read its bytes; a device would never end, and a named pipe never begin.

    A pipe of the process itself, as of the shell's <(command), is read: /dev/fd/63, /dev/stdin.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    is_file = stat.S_ISREG(os.stat(path).st_mode) or os.path.isdir(path)  # open() refuses folders
    if not is_file and os.path.dirname(os.path.realpath(path)) not in _OWN_PIPES:
        raise OSError(errno.EINVAL, "It is a device or a pipe, not a file", os.fspath(path))
    return open(path, "rb")


def read_small(path: str | os.PathLike[str]) -> bytes:
    """Reads a file that people write, or that this project writes: JSON, a list, a flagfile.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger than such files are.
    """
    with open_file(path) as file:
        content = file.read(SMALL + 1)
    if len(content) > SMALL:
        raise ValueError(f"it is larger than {SMALL // 2**20} MB, so it is another file")
    return content


def check_output(path: str | os.PathLike[str], inputs: Iterable[Path], flag: str) -> None:
    """Raises UsageError if a file to be written is one of those that are read.

    `check_replaceable` is for files that can be told from all others.
    """
    with contextlib.suppress(OSError):  # it is not there yet
        status = os.stat(path)
        for file in inputs:
            with contextlib.suppress(OSError):
                if os.path.samestat(status, os.stat(file)):
                    raise UsageError(f"{flag}={path} is a file that is read: give another one")


def check_replaceable(path: str | os.PathLike[str], flag: str, mark: str) -> None:
    """Checks that a file can be written without loss: none is there, or an older one of its kind.

    So nothing that is read, and nothing else that somebody has, is ever written over.

    Args:
        path: the file to come.
        flag: the flag that names it, such as "--output"; errors tell the user of it.
        mark: what stands in every file of its kind and in no other, within the first 16 MB.

    Raises:
        UsageError: it is a directory, a device, or another file that is not empty.
    """
    if os.path.isdir(path):
        raise UsageError(f"{flag}={path} is a directory: give a file")
    if not os.path.exists(path):
        return
    found = None
    if os.path.isfile(path):  # reading a device or a pipe might never end
        with contextlib.suppress(OSError), open(path, "rb") as file:
            found = file.read(2**24)
    if found is None or (found and mark.encode() not in found):
        raise UsageError(
            f"{flag}={path} is there already and is another kind of file than is written: give "
            "another one, or remove it first"
        )


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file under a temporary name beside `path`, then renames it over `path`.

    Raises:
        RunError: it cannot be written; what was at `path` before is still there.
    """
    # Made by plain open(), not by tempfile, whose files nobody else may read.
    temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def sync(path: str | os.PathLike[str]) -> None:
    """Brings a file, or the names in a directory, to the disk: a power cut takes it no more."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: str | os.PathLike[str]) -> None:
    """Removes the temporary files of `write_atomically` whose process was killed."""
    for path in Path(directory).glob("*.tmp"):
        match = re.fullmatch(r".+\.(\d+)\.tmp", path.name)
        with contextlib.suppress(OSError):
            # Another machine has other processes, but none of them writes a file for a minute.
            if match and not is_running(int(match[1])) and time.time() - path.stat().st_mtime > 60:
                path.unlink()


def is_running(process: int) -> bool:
    """Whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def own_directory(directory: str | os.PathLike[str], flag: str) -> Iterator[None]:
    """Keeps other processes out of a directory, as far as they come through here too.

    The lock is the operating system's, which takes it away with the process, even a killed one, and
    on NFS shows it to other machines. Where there are no locks, the file that says who has the
    directory stands for one: then a killed process leaves it locked to other machines.

    Args:
        directory: made if it is not there.
        flag: the flag that names it; errors tell the user of it.

    Raises:
        RunError: another process has it, or may have it, or it cannot be written.
    """
    is_new = not os.path.isdir(directory)
    path = make_directory(directory) / LOCK
    with contextlib.ExitStack() as stack:
        file = None
        while file is None:
            opened = stack.enter_context(_open_lock(path, flag))
            _claim(opened, path, f"{flag}={directory}")
            # Its last owner may have removed it meanwhile, and then it keeps nobody out.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(opened.fileno()), os.stat(path)):
                    file = opened
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        _say_owner(file, f"{socket.gethostname()}, process {os.getpid()} since {started}\n")
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
                if is_new:  # and nothing came into it
                    path.parent.rmdir()


def _claim(file: IO[str], path: Path, what: str) -> None:
    """Locks an open file; RunError if another process has it, or may have it."""
    file.seek(0)
    owner = file.read(200).strip()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(
            f"{what} is in use by {owner or 'another process'}: stop that first, or choose another "
            "directory"
        ) from None
    except OSError:  # no locks here
        host, _, number = owner.partition(", process ")
        number = number.partition(" ")[0]
        is_here = host == socket.gethostname() and number.isdecimal()
        if owner and not (is_here and not is_running(int(number))):
            raise RunError(
                f"{what} is in use by {owner}, or was when that ended without a word; its file "
                f"system has no locks to tell: if it has ended, remove {path}"
            ) from None


def _open_lock(path: Path, flag: str) -> IO[str]:
    try:
        return open(path, "a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise RunError(f"{flag}: cannot write {path}: {error.strerror}") from None


def _say_owner(file: IO[str], text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk; the lock holds without it
        file.truncate(0)
        file.write(text)
        file.flush()


def check_new_directory(path: str | os.PathLike[str], flag: str) -> None:
    """Checks that a directory can be made at `path`: nothing is there, or one that is empty.

    Args:
        path: the directory to come.
        flag: the flag that names it, such as "--output_dir"; errors tell the user of it.

    Raises:
        RunError: something else is there.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path} exists and is not an empty directory: choose another {flag}")
    if os.path.ismount(path):
        # The finished directory takes its name by a rename, which a volume's root cannot have.
        raise RunError(f"{path} is a mount point: choose a directory in it as {flag}")


@contextlib.contextmanager
def write_directory_atomically(target: str | os.PathLike[str], flag: str) -> Iterator[Path]:
    """Makes a directory, all of it or nothing:

        with write_directory_atomically(target, "--output_dir") as directory:
            ...  # write into `directory`

    What is written gets the name `target`, in one step, when the block ends. When it ends by an
    exception, nothing is left. A process that is killed leaves `.NAME.unfinished` beside the
    target, and `target` as it was before; the next one for the same target removes that.

    Args:
        target: the directory to make. It must not exist, or be empty.
        flag: the flag that names it; errors tell the user of it.

    Yields:
        an empty directory on the same file system, for this process alone.

    Raises:
        RunError: the target is not new, another process is making it, it cannot be written, or the
            disk is full. Other exceptions of the block are raised as they are.
    """
    target = Path(target)
    # As it was given, if possible: what stands above it may be a name that TensorFlow cannot take.
    if target.is_symlink() or target.name in ("", ".."):
        target = target.resolve()
    try:
        check_new_directory(target, flag)
        with _own_directory(target) as own:
            check_new_directory(target, flag)  # another process may just have made it
            content = own / "content"
            content.mkdir()
            yield content
            os.replace(content, target)
    except RunError:
        raise
    except Exception as error:
        problem = str(error) if isinstance(error, OSError) else explain(error)
        # TensorFlow passes on the system's words and not its number.
        if any(os.strerror(number) in problem for number in (errno.ENOSPC, errno.EDQUOT)):
            raise RunError(
                f"no space is left for {target} ({problem}): nothing was kept; make room or choose "
                f"another {flag}"
            ) from error
        if isinstance(error, OSError):
            raise RunError(f"cannot write {target}: {problem}") from error
        raise


@contextlib.contextmanager
def _own_directory(target: Path) -> Iterator[Path]:
    """An empty directory beside `target` for this process alone, removed in the end.

    A lock shows whether it is in use: the system takes it away with the process, even a killed one.

    Raises:
        RunError: it is another process', or there are no locks to tell.
    """
    directory = target.with_name(f".{target.name}.unfinished")
    lock_file = directory / "lock"

    def remove_content() -> None:
        for path in directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path != lock_file:
                path.unlink()

    with contextlib.ExitStack() as stack:
        held = None
        while held is None:
            directory.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # its owner is just removing it
                file = stack.enter_context(open(lock_file, "w"))
                locked = _lock(file, target)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(lock_file)):
                    held = locked
        if any(path != lock_file for path in directory.iterdir()):
            if not held:
                raise RunError(
                    f"{directory} is from an interrupted run or from one that is going on, and its "
                    "file system has no locks to tell: remove it if none is going on"
                )
            print(f"removing {directory}, which an interrupted run left", file=sys.stderr)
            remove_content()
        try:
            yield directory
        finally:
            # The lock goes last, so that nobody else begins in a directory that is being removed.
            with contextlib.suppress(OSError):
                remove_content()
                lock_file.unlink()
                directory.rmdir()


def _lock(file: IO[str], target: Path) -> bool:
    """Locks an open file; False if its file system has no locks.

    Raises:
        RunError: another process has locked it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunError(f"another process is writing {target}: wait for it") from None
    except OSError:  # some network file systems
        return False
    return True


def find_files(folder: str | os.PathLike[str]) -> list[Path]:
    """All files below a folder, sorted by path; what is hidden (.name) is left out.

    Linked folders are followed. A warning on stderr names a link that leads back to a folder in
    which it lies. A link that leads nowhere is among the files, so that its reader complains.

    Raises:
        OSError: a folder cannot be read.
    """
    return sorted(
        Path(parent, name)
        for parent, names in _walk_folders(os.fspath(folder), ())
        for name in names
        if not name.startswith(".") and not os.path.isdir(os.path.join(parent, name))
    )


def glob_files(pattern: str, root: str | os.PathLike[str]) -> list[Path]:
    """The files that a glob pattern stands for, sorted by path; ** is any depth.

    With ** linked folders are followed as in `find_files`; glob's own would run in circles.

    Args:
        pattern: the pattern.
        root: the folder in which it begins, which is a part of it: a name in it that looks like a
            pattern, such as `run[1]`, is none.
    """
    below = Path(pattern).parts[len(Path(root).parts) :]
    if "**" not in below:
        found = glob.glob(os.path.join(glob.escape(os.fspath(root)), *below))
        return sorted(path for path in map(Path, found) if not path.is_dir())
    if not os.path.isdir(root):
        return []
    return [path for path in find_files(root) if _fits(path.relative_to(root).parts, below)]


def _fits(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not path
    if pattern[0] == "**":
        return _fits(path, pattern[1:]) or (bool(path) and _fits(path[1:], pattern))
    return bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _walk_folders(
    folder: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, list[str]]]:
    """Each folder from `folder` on that is not hidden, with the names of all that it holds."""
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in above:
        print(f"warning: {folder} leads back to a folder that it is in: left out", file=sys.stderr)
        return
    names = sorted(os.listdir(folder))
    yield folder, names
    for name in names:
        path = os.path.join(folder, name)
        if not name.startswith(".") and os.path.isdir(path):
            yield from _walk_folders(path, (*above, here))

"""Files that are either whole or not there, however the writer ends; and finding files."""

import fnmatch
import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from official.errors import RunError


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
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def find_files(folder: str | os.PathLike[str]) -> list[Path]:
    """All files below a folder, sorted by path; what is hidden (.name) is left out.

    Linked folders are followed. A warning on stderr names a link that leads back to a folder in
    which it lies. A link that leads nowhere is among the files, so that its reader complains.

    Raises:
      OSError: a folder cannot be read.
    """
    return sorted(
        Path(parent, name)
        for parent, names in _folders(os.fspath(folder), ())
        for name in names
        if not name.startswith(".") and not os.path.isdir(os.path.join(parent, name))
    )


def glob_files(pattern: str, root: str | os.PathLike[str]) -> list[Path]:
    """The files that a glob pattern stands for, sorted by path; ** is any depth.

    With ** linked folders are followed as in `find_files`; glob's own would run in circles.

    Args:
      pattern: the pattern.
      root: the folders at its head that are meant by their very names.
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


def _folders(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, list[str]]]:
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
            yield from _folders(path, (*above, here))

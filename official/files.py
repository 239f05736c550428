"""Files that are either whole or not there, however the writer ends."""

import os
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

"""Paths that users give: `~` is their home; other machines, and names that break, are refused.

Commands define every path flag with `define_path`, so that a path that cannot work ends the command
before anything starts, and no directory `~` or `gs:` appears.
"""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from absl import flags

from official.errors import RunError

flags.disclaim_key_flags()  # a flag belongs to the module that calls define_path

PATTERN_CHARACTERS = "*?[\\"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def expand_path(text: str) -> str:
    """Replaces `~` and `~name` at the beginning of a user's path by the home directory.

    Raises:
        ValueError: it is no path on this machine, or one that a flagfile cannot hold.
    """
    if _SCHEME.match(text):
        raise ValueError("only paths on this machine are read and written: copy or mount it")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(
            f"there is no user {path.split('/')[0][1:]!r}; a name that begins with ~ is written ./~"
        )
    if text != text.strip() or len(text.splitlines()) > 1 or "\0" in text:
        raise ValueError(
            "it begins or ends with a blank or holds a line break, which a flagfile cannot keep: "
            "rename it"
        )
    try:
        path.encode()
    except UnicodeEncodeError:
        raise ValueError("its name is not UTF-8: rename it") from None
    return path


def check_no_pattern(path: str) -> None:
    """Refuses a path that TensorFlow takes for a pattern of names.

    Its readers of checkpoints and SavedModels match names where they should compare them: `run[1]`
    is written but never found again, and `run*` finds, and removes, what lies in `run2`.

    Raises:
        ValueError: the path has such a character.
    """
    found = [character for character in PATTERN_CHARACTERS if character in path]
    if found:
        raise ValueError(
            f"it has {' '.join(found)} in its name, which TensorFlow would take for a pattern and "
            "not find again: rename it, or start in a folder below it and give a relative path"
        )


def check_plain(path: str, what: str) -> None:
    """`check_no_pattern` where no flag has been read: its error is a RunError.

    Args:
        path: any.
        what: what the path is, for the error's line.

    Raises:
        RunError: the path has such a character.
    """
    try:
        check_no_pattern(path)
    except ValueError as error:
        raise RunError(f"{what} {path}: {error}") from None


def parse_path(text: str) -> Path:
    """Reads a path for argparse (its `type`): one to which TensorFlow can write.

    Raises:
        argparse.ArgumentTypeError: it is not such a path.
    """
    try:
        path = expand_path(text)
        check_no_pattern(path)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    return Path(path)


class _PathParser(flags.ArgumentParser):
    """Reads a path flag; the ValueError's message is shown to the user."""

    syntactic_help = "a path"

    def __init__(self, plain: bool) -> None:
        self._plain = plain

    def parse(self, argument: str) -> str:
        if not argument:
            raise ValueError("it is empty, as of a shell variable that is not set: give a path")
        path = expand_path(argument)
        if self._plain:
            check_no_pattern(path)
        return path


def define_path(
    name: str, default: str | None, help: str, *, plain: bool = False, **options: Any
) -> None:
    """Defines a flag whose value is a path on this machine.

    Args:
        name, default, help: as of flags.DEFINE_string.
        plain: TensorFlow writes checkpoints or a SavedModel there, or reads them: see
            check_no_pattern.
        options: as of flags.DEFINE, such as required.
    """
    serializer = flags.ArgumentSerializer()
    flags.DEFINE(_PathParser(plain), name, default, help, serializer=serializer, **options)

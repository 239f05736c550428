"""Flagfiles that name other flagfiles, so that what several recipes share is written once."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from official.files import read_small

MOST_FILES = 1000
"""Two that each name the next one twice, 30 deep, would be a billion."""

_FLAG = ("--flagfile", "-flagfile")

Located = tuple[str, Path | None]
"""An argument, and the flagfile in which it stands."""


def expand(
    arguments: Sequence[str], directory: str = "", *, also: Sequence[Path] = ()
) -> list[str]:
    """Replaces every --flagfile=FILE among arguments by the flags in that file.

    A file is UTF-8, with or without a byte order mark, and holds one flag a line; empty lines and
    lines that begin with # are skipped. A later flag wins over an earlier one. A flagfile that is
    named in a flagfile stands beside it: absl, which can read flagfiles too, would look for it
    where the command was started.

    Args:
        arguments: as on the command line, or the lines of a file.
        directory: the folder in which flagfiles are looked for.
        also: more such folders, for those that are not in the first.

    Raises:
        flags.CantOpenFlagFileError: a flagfile cannot be read, or contains itself, or there are too
            many.
    """
    return [argument for argument, _ in locate(arguments, directory, also=also)]


def locate(
    arguments: Sequence[str], directory: str = "", *, also: Sequence[Path] = ()
) -> list[Located]:
    """`expand` that gives each argument with the flagfile in which it stands, or None."""
    return _locate(arguments, Path(directory), also, (), [])


def _locate(
    arguments: Sequence[str],
    directory: Path,
    also: Sequence[Path],
    inside: tuple[Path, ...],
    read: list[Path],
) -> list[Located]:
    """`locate`; `inside` are the flagfiles that lead here, `read` grows by each that is read."""
    found: list[Located] = []
    here = inside[-1] if inside else None
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument == "--":  # what follows is no flag
            return [*found, *((other, here) for other in (argument, *rest))]
        if name not in _FLAG:
            found.append((argument, here))
            continue
        given = value if equals else next(rest, "")
        named = Path(os.path.expanduser(given))  # which leaves ~nosuchuser as it is
        places = [directory / named, *(place / named for place in also)]
        file = next((place for place in places if os.path.isfile(place)), places[0])
        where = f" (in {here})" if here else ""
        lines = _read_lines(file, where, also)
        if any(os.path.samefile(file, other) for other in inside):
            raise flags.CantOpenFlagFileError(
                f"--flagfile={file}{where} contains itself: take one of these lines out"
            )
        read.append(file)
        if len(read) > MOST_FILES:
            raise flags.CantOpenFlagFileError(
                f"--flagfile={read[0]} leads to more than {MOST_FILES} flagfiles, the last of them "
                f"{file}{where}: name each once"
            )
        found += _locate(lines, file.parent, also, (*inside, file), read)
    return found


def _read_lines(file: Path, where: str, also: Sequence[Path]) -> list[str]:
    try:
        text = read_small(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        reason = "not text in UTF-8: save it so"
    except ValueError as error:
        reason = str(error)
    except OSError as error:
        reason = error.strerror or str(error)
        known = [path.name for place in also for path in sorted(place.glob("*.cfg"))]
        similar = difflib.get_close_matches(file.name, known, 1)
        if isinstance(error, FileNotFoundError) and similar:
            reason += f". Did you mean --flagfile={similar[0]} ?"
    else:
        lines = [line.strip() for line in text.split("\n")]
        return [line for line in lines if line and not line.startswith(("#", "//"))]
    raise flags.CantOpenFlagFileError(f"--flagfile={file}{where} cannot be read: {reason}")

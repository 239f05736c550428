"""Flagfiles that name other flagfiles, so that what several recipes share is written once."""

from collections.abc import Sequence
from pathlib import Path

from absl import flags

_FLAG = ("--flagfile", "-flagfile")


def expanded(arguments: Sequence[str], directory: str = "") -> list[str]:
    """Arguments in which every --flagfile=FILE has been replaced by the flags in that file.

    A file holds one flag a line; empty lines and lines that begin with # are skipped. A later flag
    wins over an earlier one. A flagfile that is named in a flagfile stands beside it: absl, which
    can read flagfiles too, would look for it where the command was started.

    Args:
        arguments: as on the command line, or the lines of a file.
        directory: where relative names of flagfiles begin.

    Raises:
        flags.CantOpenFlagFileError: a flagfile cannot be read, or contains itself.
    """
    return _expanded(arguments, Path(directory), ())


def _expanded(arguments: Sequence[str], directory: Path, inside: tuple[Path, ...]) -> list[str]:
    found: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument == "--":  # what follows is no flag
            return [*found, argument, *rest]
        if name not in _FLAG:
            found.append(argument)
            continue
        file = directory / Path(value if equals else next(rest, "")).expanduser()
        where = f" (in {inside[-1]})" if inside else ""
        if file.resolve() in [other.resolve() for other in inside]:
            raise flags.CantOpenFlagFileError(
                f"--flagfile={file}{where} contains itself: take one of these lines out"
            )
        found += _expanded(_lines(file, where), file.parent, (*inside, file))
    return found


def _lines(file: Path, where: str) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise flags.CantOpenFlagFileError(
            f"--flagfile={file}{where} cannot be read: {reason}"
        ) from None
    return [line for line in lines if line and not line.startswith(("#", "//"))]

"""How a command begins, and how it ends when it fails: one line, an exit code, no traceback.

Exit code 2: the command line or a flagfile is wrong and nothing was started.
Exit code 1: data, a file or the run itself failed, or something that nobody foresaw: an error of
TensorFlow, a mistake of ours. Of those the line says what was being done, and names a file that
holds the traceback.
Exit code 130: Ctrl-C.
"""

import io
import os
import re
import shlex
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from absl import app, flags, logging

from official import command_help
from official.errors import RunError, UsageError, explain, shorten
from official.flagfiles import expand

LONGEST, LONGEST_WORD = 2000, 300
"""So many characters an error has at most, and a path or another word in it."""

TRACEBACK = "AUTO_DEEPLAB_TRACEBACK"
"""The environment variable that has the traceback of any error printed above its line."""


def run_app(
    main: Callable[[], None],
    *,
    help_text: Callable[[Sequence[str]], str] | None = None,
    flagfile_directories: Sequence[Path] = (),
) -> None:
    """Parses flags and flagfiles, runs `main()`; errors become one line on stderr and an exit code.

    Positional arguments are refused: in a flagfile they are what a line without `--` turns into.

    Args:
        main: reads the flags.
        help_text: see `answer_help`.
        flagfile_directories: see `flagfiles.expand`.

    Raises:
        SystemExit: `main` did not return, or help was asked for (exit code 0).
    """
    with errors_in_one_line():
        answer_help(help_text)
        app.define_help_flags()
        # A file's name may be no text: shown as \\udcff and the like, as on stderr anyway.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            arguments = flags.FLAGS(expand(sys.argv, also=flagfile_directories))
        except SystemExit:  # absl has answered --helpfull, and calls that a failure
            raise SystemExit(0) from None
        except RecursionError:  # absl looks for flags whose names are like an unknown one
            longest = shorten(max(sys.argv[1:], key=len), LONGEST_WORD // 2)
            raise UsageError(f"{longest} is no flag: flags are written --name=value") from None
        except ValueError as error:  # what absl says of --noNAME=VALUE
            raise UsageError(f"{error}: write --NAME=false, or --noNAME alone") from None
        if len(arguments) > 1:
            raise UsageError(
                f"unexpected argument {arguments[1]!r}: flags are written --name=value (in a "
                "flagfile too, one per line)"
            )
        # TensorFlow and tensorflow-datasets tell of every file that they read or write.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
        main()


def answer_help(help_text: Callable[[Sequence[str]], str] | None = None) -> None:
    """Prints the help and ends with exit code 0, if the command line asks for it.

    Args:
        help_text: is given the arguments. Default: the main module's words, and all flags that were
            not defined by a library.

    Raises:
        SystemExit: help was asked for.
    """
    if command_help.is_wanted(sys.argv[1:]):
        answer = (
            help_text(sys.argv[1:]) if help_text else command_help.describe_main_module(flags.FLAGS)
        )
        print(answer, end="", flush=True)
        raise SystemExit(0)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """A context in which an exception becomes one line on stderr, and SystemExit."""
    try:
        yield
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
    except (flags.Error, UsageError) as error:
        raise SystemExit(_say(error, str(error).removeprefix("ERROR:: "), 2)) from None
    except RunError as error:
        raise SystemExit(_say(error, str(error), 1)) from None
    except BrokenPipeError:  # of `... | head`: whoever read stdout has seen enough
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a file that may not be read, ...
        what = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
        raise SystemExit(_say(error, what, 1)) from None
    except KeyboardInterrupt as error:
        raise SystemExit(_say(error, "interrupted", 130)) from None
    except Exception as error:
        raise SystemExit(_say(error, _explain_unforeseen(error), 1)) from None


def _say(error: BaseException, message: str, code: int) -> int:
    if _shows_traceback():
        traceback.print_exception(error)
    line = re.sub(r"\s*\n\s*", " ", message.strip())
    line = shorten(line, len(line))  # escapes what does not print
    # A value of the command line or a name in a file can be as long as it likes. In the middle, as
    # the end says what to do.
    line = re.sub(r"\S+", lambda word: _cut_middle(word[0], LONGEST_WORD), line)
    line = _cut_middle(line, LONGEST)
    print(f"error: {line}", file=sys.stderr, flush=True)
    return code


def _cut_middle(text: str, longest: int) -> str:
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def _shows_traceback() -> bool:
    return os.environ.get(TRACEBACK, "0") not in ("", "0")


def _explain_unforeseen(error: Exception) -> str:
    """Says what was being done, what went wrong, and where the traceback is.

    What was being done is in the error's notes (BaseException.add_note), the innermost first.
    """
    notes = [note.splitlines()[0] for note in getattr(error, "__notes__", []) if note]
    doing = ", ".join([Path(sys.argv[0]).name, *reversed(notes)])
    what = f"{type(error).__name__}: {shorten(explain(error), 300)}".removesuffix(": ")
    return f"{doing}: {what} ({_keep_traceback(error)})"


def _keep_traceback(error: Exception) -> str:
    if _shows_traceback():
        return "the traceback is above"
    text = f"{shlex.join(sys.argv)}\n\n{''.join(traceback.format_exception(error))}"
    try:
        descriptor, path = tempfile.mkstemp(prefix="auto_deeplab-", suffix=".log")
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return f"{TRACEBACK}=1 shows the traceback"
    return f"the traceback is in {path}; {TRACEBACK}=1 shows it here"

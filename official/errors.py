"""How a command begins, and how a user's mistake ends it: one line, an exit code, no traceback.

Exit code 2: the command line or a flagfile is wrong and nothing was started.
Exit code 1: data, a file or the run itself failed.
Exit code 130: Ctrl-C.
"""

import io
import sys
from collections.abc import Callable

from absl import app, flags, logging

from official.flagfiles import expanded


class UsageError(Exception):
    """The command line or flagfile is wrong; nothing was started (exit code 2)."""


class RunError(Exception):
    """Data, a file or the run failed (exit code 1)."""


def run_app(main: Callable[[], None]) -> None:
    """Parses flags and flagfiles, runs `main()`; errors become one line on stderr and an exit code.

    Positional arguments are refused: in a flagfile they are what a line without `--` turns into.

    Raises:
        SystemExit: `main` did not return.
    """
    app.define_help_flags()
    # A file's name may be no text: it is shown as \\udcff and the like. stderr does so by itself.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = flags.FLAGS(expanded(sys.argv))
        if len(arguments) > 1:
            raise UsageError(
                f"unexpected argument {arguments[1]!r}: flags are written --name=value (in a "
                "flagfile too, one per line)"
            )
        # TensorFlow and tensorflow-datasets tell of every file that they read or write.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
        main()
    except (flags.Error, UsageError) as error:
        raise SystemExit(_say(str(error).removeprefix("ERROR:: "), 2)) from None
    except RunError as error:
        raise SystemExit(_say(str(error), 1)) from None
    except OSError as error:  # a full disk, a file that may not be read, ...
        what = str(error) if error.filename is None else f"{error.filename}: {error.strerror}"
        raise SystemExit(_say(what, 1)) from None
    except KeyboardInterrupt:
        raise SystemExit(_say("interrupted", 130)) from None


def _say(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code

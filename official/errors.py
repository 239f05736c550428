"""How a user's mistake ends a command: one line, the right exit code, no traceback.

Exit code 2: the command line or a flagfile is wrong and nothing was started.
Exit code 1: data, a file or the run itself failed.
"""

import sys
from collections.abc import Callable

from absl import app, flags


class UsageError(Exception):
    """The command line or flagfile is wrong; nothing was started (exit code 2)."""


class RunError(Exception):
    """Data, a file or the run failed (exit code 1)."""


def run_app(main: Callable[[], None]) -> None:
    """Parses absl flags, runs `main()` and exits; errors become one line on stderr.

    Positional arguments are refused: in a flagfile they are what a line without `--` turns into.
    """

    def parse(arguments: list[str]) -> list[str]:
        try:
            return flags.FLAGS(arguments)
        except flags.Error as error:
            raise SystemExit(_say(error, 2)) from None

    def checked_main(arguments: list[str]) -> None:
        try:
            if len(arguments) > 1:
                raise UsageError(
                    f"unexpected argument {arguments[1]!r}: flags are written --name=value "
                    "(in a flagfile too, one per line)"
                )
            main()
        except UsageError as error:
            raise SystemExit(_say(error, 2)) from None
        except RunError as error:
            raise SystemExit(_say(error, 1)) from None

    app.run(checked_main, flags_parser=parse)


def _say(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code

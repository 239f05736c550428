"""Starting TensorFlow without its notes about itself."""

import os
import signal
import sys


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras in silence; for the first lines of a command.

    Its native libraries write to stderr while they are loaded, before any log level applies, and
    more when they look for devices. TF_CPP_MIN_LOG_LEVEL=0 in the environment shows it all. Loading
    takes seconds, in which Ctrl-C ends the process without a traceback.
    """
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    shown = "TF_CPP_MIN_LOG_LEVEL" in os.environ
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        if not shown:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        import keras  # noqa: F401
        import tensorflow  # noqa: F401
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        signal.signal(signal.SIGINT, signal.default_int_handler)

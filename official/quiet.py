"""Starting TensorFlow and Keras: as this project needs them, and without their notes about
themselves.
"""

import atexit
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Iterator

from official.command_line import errors_in_one_line
from official.errors import RunError


def import_tensorflow() -> None:
    """Imports TensorFlow and Keras in silence; for the first lines of a command.

    Their native libraries write to stderr while they are loaded, before any log level applies, and
    more when they look for devices. TF_CPP_MIN_LOG_LEVEL=0 in the environment shows it all. Loading
    takes seconds, in which Ctrl-C ends the process without a traceback.
    """
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    # 3 is what a process that came through here hands on to those that it starts.
    shown = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") != "3"
    set_environment()
    with errors_in_one_line(), contextlib.nullcontext() if shown else _silence():
        import keras
        import tensorflow  # noqa: F401
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A user's keras.json may say otherwise.
    keras.config.set_image_data_format("channels_last")
    keras.config.set_floatx("float32")
    # Else Python looks through large graphs once more at the end, and takes them apart: a minute,
    # after a search, in which nothing happens that anyone needs.
    atexit.register(gc.freeze)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is written to stderr, not even by native libraries."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def set_environment() -> None:
    """Sets what TensorFlow and Keras read once, when they are imported; changes nothing later.

    oneDNN, TensorFlow's fast library for CPUs, is turned on everywhere: by itself TensorFlow uses
    it only on processors with AVX-512. A value of TF_ENABLE_ONEDNN_OPTS in the environment is left
    as it is. Keras is made to run on TensorFlow, whatever KERAS_BACKEND and keras.json say.

    Raises:
        RunError: Keras has been imported with another backend.
    """
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    keras = sys.modules.get("keras")
    if keras is not None and keras.config.backend() != "tensorflow":
        raise RunError(
            f"Keras was imported with the backend {keras.config.backend()}, but this needs "
            "tensorflow: set KERAS_BACKEND=tensorflow before Keras is imported"
        )
    os.environ["KERAS_BACKEND"] = "tensorflow"

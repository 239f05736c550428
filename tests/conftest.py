"""Every test process has two logical CPUs, so that tests can run two replicas without GPUs."""

import atexit
import gc
import signal

from official.quiet import set_environment

set_environment()  # as commands do, before TensorFlow is imported
atexit.register(gc.freeze)  # as commands do
# What is ignored stays so, in these processes and in those that they start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell's script

import contextlib  # noqa: E402
import ctypes  # noqa: E402

import keras  # noqa: E402
import pytest  # noqa: E402
import tensorflow as tf  # noqa: E402

from auto_deeplab.report import pages  # noqa: E402

# Possible only before TensorFlow starts, so it is done for all tests. Nothing else changes by it.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def two_replicas() -> tf.distribute.Strategy:
    # One for all tests: the collective operations of two strategies in one process collide.
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """Keras' names and graphs of a file's tests, and the heap's free pages, after its last one."""
    yield
    keras.utils.clear_session()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(autouse=True)
def pages_fail_loudly(monkeypatch):
    """A run only warns of a page that cannot be written; a test ends there."""
    monkeypatch.setattr(pages, "only_warned_of", lambda what: contextlib.nullcontext())

"""How commands end: exit codes, one line on stderr, and where the traceback of the rest is."""

import os
import re
import subprocess
import sys

import keras
import pytest
import tensorflow as tf
from absl import flags

from official import command_line
from official.errors import RunError, UsageError
from official.progress import Progress
from tests.command import ROOT


@pytest.fixture
def ended(monkeypatch, capsys, tmp_path):
    """(code, stderr) of a command whose main is the given function."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)  # it is remembered
    monkeypatch.delenv(command_line.TRACEBACK, raising=False)
    monkeypatch.setattr(sys, "argv", ["somewhere/command.py"])

    def run(main):
        with pytest.raises(SystemExit) as end, command_line.errors_in_one_line():
            main()
        return end.value.code, capsys.readouterr().err

    return run


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("--a=1: give 2"), 2, "--a=1: give 2"),
        (flags.Error("ERROR:: no flag"), 2, "no flag"),
        (RunError("two\n  lines"), 1, "two lines"),
        (RunError("'a  path'\nof two blanks"), 1, "'a  path' of two blanks"),
        (PermissionError(13, "Permission denied", "x.png"), 1, "x.png: Permission denied"),
        (OSError("disk on fire"), 1, "disk on fire"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (UsageError("--a=b\0c\x1b[2J"), 2, "--a=b\\x00c\\x1b[2J"),
        (UsageError(f"--a={'x' * 10**5}: no"), 2, f"--a={'x' * 144}...{'x' * 147}: no"),
        (UsageError("\x01" * 10**5), 2, r"\x01" * 37 + "..." + r"\x01" * 37),
        (RunError("a b " * 10**5 + "do"), 1, f"{'a b ' * 249}a ...{'a b ' * 249}do"),
    ],
)
def test_what_is_foreseen(ended, tmp_path, error, code, line):
    assert ended(raising(error)) == (code, f"error: {line}\n")
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_foresaw_leaves_its_traceback_in_a_file(ended, tmp_path):
    def main():
        with Progress("outer", 7, unit="steps", interval=1e9) as outer:
            outer.advance(2)
            with Progress("inner", None, interval=1e9):
                return {}["a key"]

    code, said = ended(main)
    (file,) = tmp_path.iterdir()
    assert (code, said) == (
        1,
        "error: command.py, outer: 2 of 7 steps, inner: 0 images: KeyError: 'a key' (the traceback "
        f"is in {file}; AUTO_DEEPLAB_TRACEBACK=1 shows it here)\n",
    )
    text = file.read_text()
    assert text.startswith("somewhere/command.py\n") and 'return {}["a key"]' in text
    assert re.fullmatch(r"auto_deeplab-.*\.log", file.name)


@pytest.mark.parametrize("error", [ValueError("odd"), RunError("bad data"), UsageError("--x")])
def test_the_traceback_on_the_screen(ended, monkeypatch, tmp_path, error):
    monkeypatch.setenv(command_line.TRACEBACK, "1")
    _, said = ended(raising(error))
    assert "Traceback (most recent call last)" in said and "raise error" in said
    assert said.splitlines()[-1].startswith("error: ") and str(error) in said.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_no_place_for_the_traceback(ended, monkeypatch):
    monkeypatch.setattr("tempfile.mkstemp", raising_anything(OSError("full")))
    code, said = ended(raising(ValueError("odd")))
    assert (code, len(said.splitlines())) == (1, 1)
    assert "ValueError: odd (AUTO_DEEPLAB_TRACEBACK=1 shows the traceback)" in said


def raising_anything(error):
    def fail(*arguments, **options):
        raise error

    return fail


class _Reshape(keras.Layer):
    def call(self, x):
        return tf.reshape(x, [3, 7])


@tf.function
def _reshape(x, rows):
    return tf.reshape(x, [rows, 7])


@tf.function(autograph=False)
def _reshape_at_run_time(x, sides):
    return tf.reshape(x, sides)


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        # Below "Exception encountered when calling _Reshape.call()." and colours.
        (
            lambda: _Reshape()(tf.ones([2])),
            "InvalidArgumentError: Input to reshape is a tensor with 2 values, but the requested "
            "shape has 21 (",
        ),
        # Below "in user code:" and AutoGraph's own traceback.
        (
            lambda: _reshape(tf.ones([3]), tf.constant(5)),
            "ValueError: Dimension size must be evenly divisible by 7 but is 3",
        ),
        # Below "Graph execution error:" and "Detected at node ...".
        (
            lambda: _reshape_at_run_time(tf.ones([3]), tf.constant([2, 2])),
            "InvalidArgumentError: Input to reshape is a tensor with 3 values, but the requested "
            "shape has 4 (",
        ),
        (
            lambda: tf.ones([2]) + tf.ones([3]),
            "InvalidArgumentError: Incompatible shapes: [2] vs. [3] (",
        ),
        # As TensorFlow writes it where operations run at the same time.
        (
            raising(
                tf.errors.InvalidArgumentError(
                    None, None, "2 root error(s) found.\n  (0) INVALID_ARGUMENT:  bad\n\t [[{{a}}]]"
                )
            ),
            "InvalidArgumentError: bad (",
        ),
        (raising(ValueError("x" * 1000)), "ValueError: " + 297 * "x" + "... ("),
        (raising(AssertionError()), "AssertionError ("),
    ],
)
def test_the_first_line_that_says_what_is_wrong(ended, fail, words):
    code, said = ended(fail)
    assert code == 1 and len(said.splitlines()) == 1
    assert f"command.py: {words}" in said, said


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, **options
    )


@pytest.mark.parametrize(
    ("module", "shown"),
    [
        ("tfrecords_tools.check", ["Looks through every record", "--data_dir=DIR", "--figure="]),
        ("tfrecords_tools.convert", ["--resize_factor=X", "1 keeps the files. Default: 1."]),
        ("auto_deeplab.import_tf1", ["--checkpoint=", "--output_dir=DIR"]),
    ],
)
def test_help_of_the_other_commands(module, shown):
    done = command("-m", module, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for words in shown:
        assert words in " ".join(done.stdout.split())
    assert "--verbosity" not in done.stdout  # a library's


SMALL = """
import sys
from absl import flags
from official.command_line import run_app
flags.DEFINE_integer("count", 1, "How many lines are printed.")
run_app(lambda: print("line\\n" * flags.FLAGS.count, end=""))
"""


def test_helpfull_is_no_failure():
    done = command("-c", SMALL, "--helpfull")
    assert done.returncode == 0 and "--count" in done.stdout and "--verbosity" in done.stdout


def test_a_reader_that_has_seen_enough():
    # Far more than a pipe holds, and so little that it is written when Python ends.
    many, one = (["-c", SMALL, f"--count={count}"] for count in (100_000, 1))
    for arguments in (many, one, ["auto_deeplab/train.py", "--help"]):
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=write,
            stderr=subprocess.PIPE,
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (1, b"")


def test_the_quickstart_ends_so_too(tmp_path):
    (tmp_path / "file").write_text("mine")
    done = command("auto_deeplab/quickstart.py", f"--output_dir={tmp_path / 'file'}")
    assert (done.returncode, done.stderr) == (1, f"error: {tmp_path / 'file'}: File exists\n")


def test_a_tensorflow_that_cannot_be_imported_is_one_line(tmp_path):
    # A stand-in for an installation that is broken: Python finds it first.
    (tmp_path / "tensorflow.py").write_text("raise ImportError('libtensorflow_cc.so.2 is missing')")
    code = "from official.quiet import import_tensorflow; import_tensorflow()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and "libtensorflow_cc.so.2 is missing" in line
    assert line.startswith("error: ") and str(tmp_path / "auto_deeplab-") in line

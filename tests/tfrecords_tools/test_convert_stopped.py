"""Conversions that are killed, stopped, started twice or meet a full disk."""

import errno
import os
import runpy
import shutil
import signal
import sys
import time

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from official import files
from official.errors import RunError
from official.records import read_description
from tests.miniature import write_cityscapes
from tests.replicas import start_in_new_process
from tfrecords_tools import convert as convert_module
from tfrecords_tools import source as source_module
from tfrecords_tools.convert import convert

IMAGES = 200


@pytest.fixture
def source(tmp_path):
    return write_cityscapes(tmp_path / "source", train=4, val=2)


def run_command_slowly(*flags: str) -> None:
    """The command, in this process; each image takes a tenth of a second."""
    read_image = source_module.read_image

    def slow(*arguments):
        time.sleep(0.1)
        return read_image(*arguments)

    source_module.read_image = slow
    sys.argv = ["convert.py", *flags]
    runpy.run_module("tfrecords_tools.convert", run_name="__main__")


def start(source, output):
    flags = ["--dataset=cityscapes", f"--source_dir={source}", f"--output_dir={output}"]
    return start_in_new_process(run_command_slowly, *flags)


def wait_for_records(process, directory):
    end = time.monotonic() + 120
    while not list(directory.rglob("*.tfrecord*")):
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.02)


def test_stopped_by_signals_and_started_again(tmp_path, capsys):
    source = write_cityscapes(tmp_path / "source", train=IMAGES, val=2, size=(8, 8))
    out = tmp_path / "out"
    signals = {"term": signal.SIGTERM, "int": signal.SIGINT, "kill": signal.SIGKILL}
    processes = {name: start(source, out / name) for name in signals}
    for name, process in processes.items():
        unfinished = out / f".{name}.unfinished"
        wait_for_records(process, unfinished)
        # Two at the same time: the second does not touch the first's work.
        before = {path for path in unfinished.rglob("*") if path.is_file()}
        with pytest.raises(RunError, match=r"another process is writing .*: wait for it"):
            convert("cityscapes", str(source), str(out / name))
        assert process.poll() is None and all(path.exists() for path in before)
        process.send_signal(signals[name])
    ends = {name: process.communicate(timeout=60) for name, process in processes.items()}

    assert {name: process.returncode for name, process in processes.items()} == {
        "term": 128 + signal.SIGTERM,
        "int": 128 + signal.SIGINT,
        "kill": -signal.SIGKILL,
    }
    for name, word in (("term", "terminated"), ("int", "interrupted")):
        assert ends[name][1].decode().splitlines()[-1] == f"error: {word}"
        assert "Traceback" not in ends[name][1].decode()
    # Whom nobody could stop from dying left something, but nothing that looks whole.
    assert [path.name for path in out.iterdir()] == [".kill.unfinished"]
    assert not list(out.rglob("dataset_info.json"))

    capsys.readouterr()
    convert("cityscapes", str(source), str(out / "kill"))
    assert "unfinished, which an interrupted run left" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["kill"]
    assert read_description(str(out / "kill")).split("train").num_examples == IMAGES


def test_a_dataset_that_another_process_has_just_finished_is_kept(source, tmp_path, monkeypatch):
    # The other one is done between the first look at the output directory and the lock.
    open_cityscapes = convert_module.SOURCES["cityscapes"]

    def open_while_another_converts(source_dir):
        monkeypatch.setitem(convert_module.SOURCES, "cityscapes", open_cityscapes)
        convert("cityscapes", str(source), str(tmp_path / "data"))
        return open_cityscapes(source_dir)

    monkeypatch.setitem(convert_module.SOURCES, "cityscapes", open_while_another_converts)
    with pytest.raises(RunError, match="exists and is not an empty directory: choose"):
        convert("cityscapes", str(source), str(tmp_path / "data"))
    assert read_description(str(tmp_path / "data")).split("train").num_examples == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "source"]


def test_where_there_are_no_locks_nothing_is_removed_on_suspicion(source, tmp_path, monkeypatch):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    left = tmp_path / ".data.unfinished" / "cityscapes"
    left.mkdir(parents=True)
    with pytest.raises(RunError, match=r"\.data\.unfinished is from .*: remove it if none"):
        convert("cityscapes", str(source), str(tmp_path / "data"))
    assert left.exists()
    shutil.rmtree(left.parent)
    convert("cityscapes", str(source), str(tmp_path / "data"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "source"]


class WriterToAFullDisk(tf.io.TFRecordWriter):
    """Linux has a file for that: nothing can be written to it, for lack of space."""

    def __init__(self, path):
        super().__init__("/dev/full")


def description_on_a_full_disk(info, directory):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), directory)


@pytest.mark.parametrize(
    ("place", "name", "fake"),
    [
        (tf.io, "TFRecordWriter", WriterToAFullDisk),
        (tfds.core.DatasetInfo, "write_to_directory", description_on_a_full_disk),
    ],
)
def test_a_full_disk_is_said_and_nothing_is_left(source, tmp_path, monkeypatch, place, name, fake):
    monkeypatch.setattr(place, name, fake)
    with pytest.raises(
        RunError, match=r"^no space is left for .*/out/data \(.*No space left on device.*\): no"
    ) as caught:
        convert("cityscapes", str(source), str(tmp_path / "out" / "data"))
    assert "\n" not in str(caught.value)
    assert not any((tmp_path / "out").iterdir())

"""What TensorBoard reads of a run, by TensorBoard's own reader."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from tensorboard.util import tensor_util

from official.summaries import Summaries

EVERYTHING = {"tensors": 0}


def read(model_dir):
    """By name, (step, value) of all that is shown, and the reader."""
    reader = EventAccumulator(str(model_dir / "summaries"), size_guidance=EVERYTHING).Reload()
    return {
        name: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto))
            for event in reader.Tensors(name)
        ]
        for name in reader.Tags()["tensors"]
    }, reader


def describe(row):
    return {"loss/loss_w": row["loss"], "architecture/alpha": np.array(row["alpha"])}


def draw(row):
    return {"picture": np.full([2, 3, 3], row["step"], np.uint8)}


ROWS = [
    {"step": step, "loss": 1 / step, "alpha": [0.25, 0.25, 0.5, step / 100]} for step in (4, 8, 12)
]


def make(model_dir, **hparams):
    return Summaries(str(model_dir), describe, draw, hparams)


def test_what_is_shown_is_read_again(tmp_path):
    summaries = make(tmp_path)
    summaries.start([])
    for row in ROWS:
        summaries.add(row)
    shown, _ = read(tmp_path)
    assert set(shown) == {"loss/loss_w", "architecture/alpha", "picture"}
    assert [step for step, _ in shown["loss/loss_w"]] == [4, 8, 12]
    np.testing.assert_allclose([x for _, x in shown["loss/loss_w"]], [1 / 4, 1 / 8, 1 / 12])
    # A histogram is rows of (left, right, count): 4 values from 0.04 to 0.5, and where they lie.
    (step, bins), *_ = shown["architecture/alpha"]
    assert step == 4 and bins[:, 2].sum() == 4
    assert bins[0, 0] == pytest.approx(0.04) and bins[-1, 1] == pytest.approx(0.5)
    middle = next(count for left, right, count in bins if left <= 0.25 < right)
    assert middle == 2
    # A picture is its width, its height, and a PNG for each of one.
    _, (width, height, content) = shown["picture"][0]
    assert (width, height) == (b"3", b"2") and content.startswith(b"\x89PNG")


def test_each_point_stands_once(tmp_path):
    """Of a process that was killed after step 8's checkpoint; the next one reports 12 again."""
    first = make(tmp_path)
    first.start([])
    for row in ROWS:
        first.add(row)
    second = make(tmp_path)
    second.start(ROWS[:2])
    second.add(ROWS[2] | {"loss": 5.0})
    shown, _ = read(tmp_path)
    assert [(step, float(value)) for step, value in shown["loss/loss_w"]] == [
        *((4, 0.25), (8, 0.125), (12, 5.0)),
    ]
    assert [step for step, _ in shown["architecture/alpha"]] == [4, 8, 12]
    # Pictures of steps before are kept, though nothing else of the first process is.
    assert [step for step, _ in shown["picture"]] == [4, 8, 12]
    assert len(list((tmp_path / "summaries").glob("*.numbers"))) == 1


def test_the_hparams_page_lists_the_run(tmp_path):
    summaries = make(tmp_path, seed=3, learning_rate=0.5, second_order=True, operations="[1]")
    summaries.start([])
    _, reader = read(tmp_path)
    content = reader.PluginTagToContent(metadata.PLUGIN_NAME)[metadata.SESSION_START_INFO_TAG]
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    # Under which the page lists it.
    assert start.group_name == f"{tmp_path.parent.name}/{tmp_path.name}"
    listed = start.hparams
    assert {name: value.WhichOneof("kind") for name, value in listed.items()} == {
        **{"seed": "number_value", "learning_rate": "number_value"},
        **{"second_order": "bool_value", "operations": "string_value"},
    }
    assert listed["seed"].number_value == 3


def test_what_cannot_be_shown_is_warned_of(tmp_path, capsys):
    """A run goes on where its summaries cannot be written, and where a report cannot be drawn."""
    (tmp_path / "summaries").write_text("a file in the folder's place")
    summaries = make(tmp_path)
    summaries.start(ROWS[:1])
    summaries.add(ROWS[1])
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all("is not written for TensorBoard" in line for line in said)

    (tmp_path / "other").mkdir()
    summaries = make(tmp_path / "other")
    summaries.start([])
    summaries.add({"step": 1})  # it lacks what `describe` wants
    summaries.add(ROWS[0])
    assert "KeyError" in capsys.readouterr().err
    assert [step for step, _ in read(tmp_path / "other")[0]["loss/loss_w"]] == [4]

"""The modes as functions: they take each other's results, and paths as Python has them."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from auto_deeplab.modes import decode, evaluate, export, predict, profile, search, train
from auto_deeplab.modes.data import Batches, Data
from auto_deeplab.modes.search import SearchSchedule, SearchSpace
from auto_deeplab.modes.train import NetworkOptions, TrainSchedule
from official.errors import UsageError
from tests.command import ROOT
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

SPACE = SearchSpace(
    ("sep_conv_3x3", "skip_connect"), num_layers=2, num_blocks=2, filter_multiplier=2
)
SCHEDULE = SearchSchedule(epochs=1, alpha_start_epoch=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("python")
    convert("cityscapes", str(write_cityscapes(root / "source")), str(root / "data"))
    return Data(root / "data")


def test_from_a_search_to_an_export(data, tmp_path, capsys):
    batches = Batches(batch_size=2, crop_size=(33, 33))
    found = search.search(tmp_path / "search", data, batches, space=SPACE, schedule=SCHEDULE)
    assert decode.decode(tmp_path / "search") == found
    # Not as whom the tests were called:
    assert "python auto_deeplab/train.py --mode=train" in capsys.readouterr().err
    options = {
        "network": NetworkOptions(2, (4, 4, 4), head_filters=4, batch_norm_decay=0.1),
        "schedule": TrainSchedule(train_steps=1, learning_rate=0.01),
    }
    train.train(tmp_path / "run", data, batches, found, **options)
    for folder in (tmp_path / "search", tmp_path / "run"):
        text = (folder / "report.html").read_text()
        assert "The network" in text and "IoU of each class" in text
        # Both of the two validation images.
        assert text.count('alt="predicted labels"') == 2
    metrics = evaluate.evaluate(tmp_path / "run", data, output=tmp_path / "mine.json")
    assert metrics == json.loads((tmp_path / "mine.json").read_text()) and metrics["step"] == 1
    pictures = data.data_dir.parent / "source" / "leftImg8bit" / "val"
    files = predict.predict(tmp_path / "run", tmp_path / "out", input=pictures)
    assert len(files) == 2
    (report,) = export.export(tmp_path / "run")
    assert Path(report["path"], "saved_model.pb").exists()
    of_run = profile.profile(model_dir=tmp_path / "run", crop_size=(33, 33))
    widths = {"filter_multiplier": 2, "stem_filters": (4, 4, 4), "head_filters": 4}
    assert profile.profile(found, network=widths, num_classes=19, crop_size=(33, 33)) == of_run


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"space": dataclasses.replace(SPACE, operations=("conv_9x9",))}, "--operations"),
        ({"space": dataclasses.replace(SPACE, alpha_sharing="all")}, "--alpha_sharing=all"),
        ({"space": dataclasses.replace(SPACE, stem_filters=(4,))}, "--stem_filters=4"),
        ({"schedule": dataclasses.replace(SCHEDULE, learning_rate=0.0)}, "--learning_rate=0.0"),
        (
            {"schedule": dataclasses.replace(SCHEDULE, arch_learning_rate=-1)},
            "--arch_learning_rate",
        ),
        ({"recompute": "all"}, "--recompute=all"),
    ],
)
def test_a_search_checks_its_arguments_before_it_writes(data, tmp_path, changed, words):
    arguments = {"space": SPACE, "schedule": SCHEDULE} | changed
    with pytest.raises(UsageError, match=words):
        search.search(tmp_path / "search", data, Batches(2, (33, 33)), **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (TrainSchedule(learning_rate=0.0), "--learning_rate=0.0"),
        (TrainSchedule(train_steps=0), "--train_steps=0"),
        (TrainSchedule(ema_decay=1.5), "--ema_decay=1.5"),
    ],
)
def test_a_training_checks_its_arguments_before_it_writes(data, tmp_path, schedule, words):
    with pytest.raises(UsageError, match=words):
        train.train(tmp_path / "run", data, Batches(2, (33, 33)), "published", schedule=schedule)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (NetworkOptions(stem_filters=(8, 16)), "--stem_filters=8,16"),
        (NetworkOptions(drop_path_keep_prob=0.0), "--drop_path_keep_prob=0.0"),
    ],
)
def test_a_training_checks_its_network_before_it_writes(data, tmp_path, network, words):
    with pytest.raises(UsageError, match=words):
        train.train(tmp_path / "run", data, Batches(2, (33, 33)), "published", network=network)
    assert not list(tmp_path.iterdir())


def test_a_cost_table_of_no_metric_is_refused(tmp_path):
    pieces = profile.Pieces(("skip_connect",), 2, 2, (4, 4, 4), 4, (33, 33), 3)
    with pytest.raises(UsageError, match="--cost_metric=money"):
        profile.measure_costs(tmp_path / "c.json", pieces, num_layers=2, cost_metric="money")


def test_every_mode_takes_arguments_with_hints_and_says_what_they_are():
    for function in (
        *(search.search, decode.decode, train.train, evaluate.evaluate, predict.predict),
        *(export.export, profile.profile, profile.measure_costs),
    ):
        for name, parameter in inspect.signature(function).parameters.items():
            assert parameter.annotation is not inspect.Parameter.empty, (function, name)
            assert name in function.__doc__, (function.__name__, name)


def test_importing_a_mode_sets_keras_and_onednn_up():
    code = (
        "import os; from auto_deeplab.modes.search import search; import keras\n"
        "print(keras.config.backend(), os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    )
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["tensorflow", "1"], done.stderr

"""Of the wiring of searches and trainings, what both have: see wiring.py."""

import dataclasses
import inspect
import re
from unittest import mock

import keras
import pytest
import tensorflow as tf

from auto_deeplab.modes import data as modes_data
from auto_deeplab.modes import evaluate, export, predict, search, train
from auto_deeplab.modes.flag_definitions import USED
from tests.auto_deeplab.modes.test_search_wiring import LOOKS_AT_SEARCH, rate_of_search
from tests.auto_deeplab.modes.test_train_wiring import LOOKS_AT_TRAIN, rate_of_training
from tests.auto_deeplab.modes.wiring import EPOCH_STEPS, SEARCH, TRAIN, batches_of, build, red


def test_what_is_decided_without_flags(root, searching, training):
    """Augmentation is on; a search reports after every epoch, a training twenty times."""
    scales = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
    plain = ("random_", "eval_every", "save_every", "cache_data", "resize_longer_side")
    for name, built, mode, learner, every in (
        ("search", searching, search, "Search", EPOCH_STEPS),
        ("train", training, train, "Retrain", 40 // 20),
    ):
        flags = [
            flag for flag in built.flags if not flag.startswith(tuple(f"--{x}" for x in plain))
        ]
        flags += ["--train_steps=40"] if name == "train" else []
        again = build(root, name, mode, learner, [*flags, f"--model_dir={root / name}_plain"])
        for stream in again.streams:
            assert stream["flip"] is True and stream["random_crop"] is True
            assert stream["scales"] == scales and stream["cache"] is False
            assert stream["resize_longer_side"] is None
        assert again.loop["report_every"] == again.loop["save_every"] == every


@pytest.mark.parametrize("name", ["search", "train"])
def test_what_a_report_says(searching, training, name):
    """The rate is that of the last step that was made."""
    built, rate = {
        "search": (searching, rate_of_search),
        "train": (training, rate_of_training),
    }[name]
    for done in (1, EPOCH_STEPS + 1):
        row = built.loop["arguments"][3](done)
        assert row["learning_rate"] == pytest.approx(rate(done - 1), rel=1e-6)
        both = name == "search" and done > EPOCH_STEPS
        assert row["phase"] == (
            "weights and architecture" if both else {"search": "weights"}.get(name, name)
        )
        assert row["val_images"] == 2


@pytest.mark.parametrize("name", ["search", "train"])
def test_float16_scales_the_loss(root, searching, training, name):
    """On a GPU alone: a pretended one, as nothing is computed here."""
    built, mode, learner = {
        "search": (searching, search, "Search"),
        "train": (training, train, "Retrain"),
    }[name]
    assert loss_scalers(built) == [False] * len(loss_scalers(built))
    flags = [*built.flags, "--precision=float16", f"--model_dir={root / name}_float16"]
    with mock.patch.object(tf.config, "list_physical_devices", lambda kind=None: ["GPU"]):
        scaled = build(root, name, mode, learner, flags)
    assert loss_scalers(scaled) == [True] * len(loss_scalers(built))


def loss_scalers(built):
    """Of each optimizer, whether it scales the loss."""
    optimizers = [value for name, value in vars(built.learner).items() if "optimizer" in name]
    assert optimizers
    return [isinstance(optimizer, keras.optimizers.LossScaleOptimizer) for optimizer in optimizers]


def test_every_flag_of_search_and_train_has_a_value_and_a_look():
    # Those of the other modes are compared where they are given.
    for mode, values_of, looks in (
        ("search", SEARCH, LOOKS_AT_SEARCH),
        ("train", TRAIN, LOOKS_AT_TRAIN),
    ):
        own = {name for name, modes in USED.items() if mode in modes}
        assert set(looks) == own - {"checkpoint"}  # which has tests of its own
        elsewhere = {"mode", "model_dir", "checkpoint", "cost_table", "genotype", "init_checkpoint"}
        assert set(values_of) | (elsewhere & own) == own


def test_defaults_in_python_are_those_of_the_command_line():
    from absl import flags
    from absl.testing import flagsaver

    from auto_deeplab.modes.flag_definitions import DEFAULTS

    kinds = {
        "search": (search.SearchSpace, search.SearchSchedule, search.CostLimit),
        "train": (train.NetworkOptions, train.TrainSchedule, train.PixelWeights),
        "eval": (evaluate.Views,),
    }
    shared = (modes_data.Data, modes_data.Batches, modes_data.Devices)
    shared += (modes_data.Compilation, modes_data.Reports)
    for mode, own in kinds.items():
        with flagsaver.flagsaver():
            for name, value in DEFAULTS.get(mode, {}).items():
                flags.FLAGS.set_default(name, value)
            for kind in (*own, *shared):
                for field in dataclasses.fields(kind):
                    if field.default is dataclasses.MISSING or mode not in USED[field.name]:
                        continue
                    default = flags.FLAGS[field.name].default
                    as_written = tuple(default) if isinstance(default, list) else default
                    assert field.default == as_written, field.name
    for function in (predict.predict, export.export):
        default = inspect.signature(function).parameters["max_pixels"].default
        assert flags.FLAGS["max_pixels"].default == default


@pytest.mark.parametrize("name", ["search", "train"])
def test_a_bad_loss_is_explained(root, searching, training, name):
    """By the images of its batch, and a tenth of the rate that was too high."""
    built = {"search": searching, "train": training}[name]
    steps = [(1, 0), (EPOCH_STEPS + 1, 0), (EPOCH_STEPS + 1, 1)] if name == "search" else [(4, 0)]
    for step, stream in steps:
        numbers = red(batches_of(built, step)[step - 1][stream])
        loss = "loss_arch" if stream else "loss_w"
        names = ", ".join(f"2007_{number:06d}" for number in numbers)
        said = built.loop["explain"](loss, step, "RUN/checkpoints/ckpt-1")
        assert f" (images {names}); to go on at a lower rate: python " in said
        assert f" --flagfile={built.run}/flags.cfg " in said
        assert said.endswith(" --checkpoint=RUN/checkpoints/ckpt-1")
        rates = {"learning_rate": 0.05}
        if name == "search":
            rates["min_learning_rate"] = 0.0125
        if stream:  # the weights may be what blew it up
            rates["arch_learning_rate"] = 0.00625
        assert re.findall(r"--(\w*rate)=(\S+)", said) == [(k, f"{v:g}") for k, v in rates.items()]
    # Nothing is there to go on from: anew.
    assert built.loop["explain"]("loss_w", 1, None).endswith(f" --model_dir={built.run}_2")


def test_a_constant_rate_is_the_flags_not_the_checkpoints(root, searching):
    """Where a search is led back with another rate of alpha and beta."""
    searching.loop["store"].save(2)
    flags = [*searching.flags, "--checkpoint=best", "--arch_learning_rate=0.5"]
    searching.loop["store"].save_best(2)
    again = build(root, "search", search, "Search", flags)
    assert again.loop["start_step"] == 2
    assert float(again.learner.architecture_optimizer.learning_rate) == 0.5

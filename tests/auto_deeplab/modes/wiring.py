"""Tests of wiring: every flag of every mode reaches what it is for.

For each mode one command gives all its flags, each with a value that is neither its default nor
another flag's. What the mode has built from them is caught shortly before the first step and looked
at, flag by flag. A table per mode names every flag of the mode: a flag without a look fails.
"""

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.modes import data as modes_data
from auto_deeplab.modes.flag_definitions import USED
from auto_deeplab.search.bilevel import Search
from auto_deeplab.space.genotype import Genotype
from official import convolutions, distribution, input_pipeline
from official.checkpoints import Checkpoints
from official.interrupts import Interrupts
from tests.command import train_here
from tests.deeplab_shards import encoded, example, write_shards

CLASSES, VOID = 5, 7  # void is not 255, and the data do not say so
SIDES = (48, 64)
NUM_MINE, NUM_THEIRS = 13, 4
WEIGHTS = [0.5, 1.5, 2.5, 3.5, 4.5]
CELL = (((0, "sep_conv_3x3"), (1, "atrous_conv_3x3")), ((2, "max_pool_3x3"), (0, "skip_connect")))
GENOTYPE = Genotype((0, 1), (CELL,))


class Stop(BaseException):
    """Ends a mode where its first step would come."""


@dataclasses.dataclass
class Built:
    """What a mode had built when it came to its first step.

    Attributes:
        root: the module's directory.
        learner: the Search or Retrain.
        loop: what training_loop.run was given, by name; its positional arguments are in order in
            "arguments".
        streams: what each call of distribute_batches was given, by name.
        evaluated: what make_split_evaluator was given, likewise.
        restored: the checkpoint that was asked for.
        initial: the values of all variables, by path.
        devices: what the functions of official.distribution were given.
        run: the model_dir.
    """

    root: Path
    run: Path
    learner: object = None
    loop: dict = dataclasses.field(default_factory=dict)
    streams: list = dataclasses.field(default_factory=list)
    evaluated: dict = dataclasses.field(default_factory=dict)
    restored: str | None = None
    initial: dict = dataclasses.field(default_factory=dict)
    devices: dict = dataclasses.field(default_factory=dict)
    flags: list = dataclasses.field(default_factory=list)


def groups_of(learner):
    """What has variables."""
    if isinstance(learner, Search):
        return [learner.supernet, learner.architecture]
    return [learner.network]


@contextlib.contextmanager
def caught(built, mode, learner):
    """Replaces what would run by what takes notes."""

    def run(*arguments, **options):
        built.loop = {"arguments": arguments, **options}
        variables = [v for group in groups_of(built.learner) for v in group.variables]
        built.initial = {variable.path: variable.numpy() for variable in variables}
        raise Stop

    kind, make_stream = getattr(mode, learner), input_pipeline.distribute_batches
    make_evaluator, make_strategy = modes_data.make_split_evaluator, distribution.make_strategy
    restore, set_precision = Checkpoints.restore, distribution.set_precision

    def make(*arguments, **options):
        built.learner = kind(*arguments, **options)
        built.learner.options = options
        return built.learner

    def stream(strategy, description, split, **options):
        built.streams.append({"description": description, "split": split, **options})
        return make_stream(strategy, description, split, **options)

    def evaluator(model, description, split, **options):
        built.evaluated = {"model": model, "split": split, **options}
        return make_evaluator(model, description, split, **options)

    def strategy_of(name):
        built.devices["distribution_strategy"] = name
        return make_strategy("one_device")  # whose devices are here

    def precision_of(name):
        built.devices["precision"] = name
        return set_precision(name)

    def restore_of(store, checkpoint=None):
        built.restored = checkpoint
        return restore(store, checkpoint)

    with (
        mock.patch.object(mode, "run", run),
        mock.patch.object(mode, learner, make),
        mock.patch.object(input_pipeline, "distribute_batches", stream),
        mock.patch.object(modes_data, "make_split_evaluator", evaluator),
        mock.patch.object(distribution, "make_strategy", strategy_of),
        mock.patch.object(distribution, "set_precision", precision_of),
        mock.patch.object(
            distribution, "make_deterministic", built.devices["deterministic"].append
        ),
        mock.patch.object(Checkpoints, "restore", restore_of),
    ):
        yield


def write_data(directory):
    """PNG pictures of which number i is red by i, and labels of all classes and void."""
    for split, count, first in (("mine", NUM_MINE, 0), ("theirs", NUM_THEIRS, 100)):
        examples = []
        for i in range(first, first + count):
            rng = np.random.default_rng(i)
            picture = rng.integers(0, 256, (*SIDES, 3)).astype(np.uint8)
            picture[..., 0] = i
            labels = rng.integers(0, CLASSES, SIDES).astype(np.uint8)
            labels[0] = VOID
            features = example(i, image_format="png")
            features["image/encoded"] = [encoded(picture, "png")]
            features["image/height"], features["image/width"] = [SIDES[0]], [SIDES[1]]
            features["image/segmentation/class/encoded"] = [encoded(labels, "png")]
            examples.append(features)
        write_shards(directory, split, examples, count=1)


def build(root, name, mode, learner, flags):
    """Runs a mode up to its first step."""
    built = Built(root, root / name)
    built.devices["deterministic"], built.flags = [], flags
    before = keras.config.dtype_policy()
    try:
        with caught(built, mode, learner), pytest.raises(Stop):
            done = train_here(f"--mode={name}", f"--model_dir={built.run}", *flags)
            pytest.fail(done.stderr)
    finally:
        keras.config.set_dtype_policy(before)
    return built


SEARCH = {
    "data_dir": None,  # the module's
    "seed": "3",
    "num_classes": str(CLASSES),
    "ignore_label": str(VOID),
    "train_split": "mine",
    "eval_split": "theirs",
    "eval_every": "9",
    "save_every": "11",
    "keep_checkpoints": "5",
    "max_eval_images": "2",
    "distribution_strategy": "mirrored",
    "precision": "bfloat16",
    "sync_batch_norm": "false",
    "jit_compile": "true",
    "steps_per_loop": "6",
    "max_bad_steps": "2",
    "deterministic": "true",
    "crop_size": "33,41",
    "batch_size": "2",
    "resize_longer_side": str(SIDES[1]),  # which all have: what is cropped are the pictures
    "random_scale": "false",
    "random_crop": "false",
    "random_flip": "false",
    "cache_data": "true",
    "learning_rate": "0.5",
    "weight_decay": "0.25",
    "filter_multiplier": "3",
    "stem_filters": "4,6,8",
    "class_weights": ",".join(map(str, WEIGHTS)),
    "epochs": "5",
    "alpha_start_epoch": "1",
    "min_learning_rate": "0.125",
    "gradient_clip_norm": "1.5",
    "arch_learning_rate": "0.0625",
    "arch_betas": "0.25,0.625",
    "arch_weight_decay": "0.75",
    "operations": "sep_conv_3x3,skip_connect,none",
    "num_layers": "3",
    "num_blocks": "2",
    "recompute": "node",
    "alpha_sharing": "layer",
    "partial_channels": "3",
    "second_order": "true",
    "stop_at_skip_connects": "4",
    "alpha_hessian_batches": "1",
    "cost_budget": "0.0001",
    "cost_weight": "7",
}
"""Flag -> a value of its own."""


# 13 images make two halves of 6, and those three steps of two images.
EPOCH_STEPS = 3


TOTAL = 5 * EPOCH_STEPS

TRAIN = {
    **{name: value for name, value in SEARCH.items() if "train" in USED[name]},
    "head_filters": "7",
    "train_steps": "10",
    "drop_path_keep_prob": "0.7",
    "batch_norm_decay": "0.8",
    "fine_tune_batch_norm": "true",
    "top_k_pixels": "0.6",
    "hard_mining_steps": "12",
    "ema_decay": "0.75",
    "last_layer_learning_rate_multiplier": "4",
}

SMALL = ("--filter_multiplier=3", "--stem_filters=4,6,8", "--head_filters=7")


def red(batch):
    """The numbers of the records in a batch: see write_data."""
    return [int(image[0, 0, 0]) for image in batch["image"].numpy()]


def batches_of(built, count):
    """The arguments of the first steps."""
    batches = built.loop["arguments"][2]
    if not hasattr(built, "taken"):
        built.taken = [next(batches) for _ in range(TOTAL)]
    return built.taken[:count]


def whole_middle(number):
    """The middle 33 x 41 of picture `number`, as it is."""
    picture = np.random.default_rng(number).integers(0, 256, (*SIDES, 3)).astype(np.uint8)
    picture[..., 0] = number
    top, left = (SIDES[0] - 33) // 2, (SIDES[1] - 41) // 2
    return picture[top : top + 33, left : left + 41]


def update(optimizer, variables, gradients):
    """The values after one update."""
    context = tf.distribute.OneDeviceStrategy("CPU:0")
    tensors = [
        tf.fill(v.shape, tf.cast(g, v.dtype)) for v, g in zip(variables, gradients, strict=True)
    ]
    context.run(lambda: optimizer.apply(tensors, variables))
    return [v.numpy() for v in variables]


def check_sgd(optimizer, variables, rate, decay_of, factor_of=lambda variable: 1.0):
    """Two updates by SGD with momentum 0.9: v <- 0.9 v - r (g + c w), w <- w + v.

    The first gradient is 1 everywhere, too long for --gradient_clip_norm=1.5; the second is 0.
    """
    start = [v.numpy() for v in variables]
    clipped = 1.5 / math.sqrt(sum(w.size for w in start))
    assert clipped < 1.0
    first = update(optimizer, variables, [1.0] * len(variables))
    second = update(optimizer, variables, [0.0] * len(variables))
    for v, w0, w1, w2 in zip(variables, start, first, second, strict=True):
        c, factor = decay_of(v), factor_of(v)
        change = -rate(0) * factor * (clipped + c * w0)
        np.testing.assert_allclose(w1, w0 + change, rtol=1e-5, atol=1e-6, err_msg=v.path)
        change = 0.9 * change - rate(1) * factor * c * w1
        np.testing.assert_allclose(w2, w1 + change, rtol=1e-5, atol=1e-6, err_msg=v.path)


def check_adam(optimizer, variables, rate, decay, betas):
    """Two updates by Adam, fed with g + c w."""
    values = [v.numpy() for v in variables]
    m, s = [np.zeros_like(w) for w in values], [np.zeros_like(w) for w in values]
    for step, gradient in enumerate((1.0, -0.5), start=1):
        found = update(optimizer, variables, [gradient] * len(variables))
        for i, w in enumerate(values):
            g = gradient + decay * w
            m[i], s[i] = (
                betas[0] * m[i] + (1 - betas[0]) * g,
                betas[1] * s[i] + (1 - betas[1]) * g * g,
            )
            corrected = m[i] / (1 - betas[0] ** step), s[i] / (1 - betas[1] ** step)
            values[i] = w - rate * corrected[0] / (np.sqrt(corrected[1]) + 1e-7)
            np.testing.assert_allclose(found[i], values[i], rtol=1e-4, atol=1e-5)


def check_plain_crops(built):
    """No scale, no shift, no mirror: the batch is the middle of the records' pictures."""
    images = np.concatenate([b["image"].numpy() for step in batches_of(built, 3) for b in step])
    for image in images:
        middle = whole_middle(int(image[0, 0, 0]))
        np.testing.assert_allclose(np.abs(image - middle).max(), 0, atol=1e-3)


def check_loop(built):
    names = ("model_dir", "report_every", "save_every", "steps_per_loop", "batch_size")
    assert [built.loop[name] for name in names] == [str(built.run), 9, 11, 6, 2]
    assert isinstance(built.loop["interrupts"], Interrupts)  # of the strategy, here one process's


def check_bad_steps(built):
    """How many are borne, what undoes them, and which loss ends the run: 100 ln C, weighted."""
    assert built.loop["max_bad_steps"] == 2 and built.learner.options["undoes_bad_steps"] is True
    assert built.loop["worst_loss"] == pytest.approx(100 * np.log(CLASSES) * max(WEIGHTS))


def check_kept(built):
    """Five of seven checkpoints, which go again."""
    store = built.loop["store"]
    for step in range(90, 97):
        store.save(step)
    kept = sorted(path.stem for path in (built.run / "checkpoints").glob("ckpt-*.index"))
    assert kept == [f"ckpt-{step}" for step in range(92, 97)]
    for step in range(92, 97):
        for path in (built.run / "checkpoints").glob(f"ckpt-{step}.*"):
            path.unlink()


def check_batches(built):
    for step in batches_of(built, TOTAL):
        for batch in step:
            assert batch["image"].shape == (2, 33, 41, 3) and batch["label"].shape == (2, 33, 41)
            # The first row of every label map is void, and cut off; the rest are classes.
            assert set(np.unique(batch["label"])) == set(range(CLASSES))


def check_option(name, value):
    """A look at what the Search or Retrain was given."""

    def look(built):
        assert built.learner.options[name] == value

    return look


def check_device(name, value):
    def look(built):
        assert built.devices[name] == value

    return look


def check_precision(built):
    assert built.devices["precision"] == "bfloat16"
    # Where the processor has no use for it, float32 is what is computed in.
    computes = convolutions.computes_well(tf.bfloat16)
    assert network_of(built).compute_dtype == ("bfloat16" if computes else "float32")


def network_of(built):
    return groups_of(built.learner)[0]


def check_streams(name, value):
    def look(built):
        assert built.streams and all(stream[name] == value for stream in built.streams)

    return look


def check_data(built):
    for stream in built.streams:
        assert stream["description"].data_dir == str(built.root / "data")
        assert stream["split"] == "mine"
    assert all(number < 100 for step in batches_of(built, 3) for b in step for number in red(b))


def check_num_classes(built):
    assert len(json.loads((built.run / "run.json").read_text())["class_names"]) == CLASSES


def check_resumed(root, built, name, mode, learner, flags):
    """A run that goes on does so from the checkpoint that it is told, not from the newest."""
    for step in (4, 6):
        built.loop["store"].save(step)
    chosen = built.run / "checkpoints" / "ckpt-4"
    again = build(root, name, mode, learner, [*flags, f"--checkpoint={chosen}"])
    assert again.restored == str(chosen) and again.loop["start_step"] == 4
    return again


def each(looks):
    """Every look once, under the name of its first flag."""
    first = {look: name for name, look in reversed(looks.items())}
    return pytest.mark.parametrize("look", [pytest.param(look, id=first[look]) for look in first])


@contextlib.contextmanager
def noted(module, name):
    """The keyword arguments of each call of a function, which does its work."""
    calls, function = [], getattr(module, name)

    def note(*arguments, **options):
        calls.append({"arguments": arguments, **options})
        return function(*arguments, **options)

    with mock.patch.object(module, name, note):
        yield calls


@contextlib.contextmanager
def devices_noted():
    """What is asked of official.distribution."""
    asked, make_strategy = {}, distribution.make_strategy
    set_precision = distribution.set_precision

    def strategy_of(name):
        asked["distribution_strategy"] = name
        return make_strategy("one_device")

    def precision_of(name):
        asked["precision"] = name
        return set_precision(name)

    before = keras.config.dtype_policy()
    with (
        mock.patch.object(distribution, "make_strategy", strategy_of),
        mock.patch.object(distribution, "set_precision", precision_of),
        mock.patch.object(distribution, "set_precision", precision_of),
        mock.patch.object(
            distribution, "make_deterministic", lambda seed: asked.update(deterministic=True)
        ),
    ):
        yield asked
    keras.config.set_dtype_policy(before)


WANTED_DEVICES = {
    "distribution_strategy": "mirrored",
    "precision": "bfloat16",
    "deterministic": True,
}

"""Every flag of every mode reaches what it is for.

For each mode one command gives all its flags, each with a value that is neither its default nor
another flag's. What the mode has built from them is looked at, flag by flag, shortly before the
first step. A table per mode names every flag of the mode: a flag without a look fails.
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

from auto_deeplab.budget import cost_table, expected_cost
from auto_deeplab.modes import data as modes_data
from auto_deeplab.modes import evaluate, export, predict, search, train
from auto_deeplab.modes.flag_definitions import USED
from auto_deeplab.network.network import Network
from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.bilevel import Search
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype
from official import distribution, input_pipeline
from official.checkpoints import Checkpoints
from official.normalization import BatchNorm
from tests.auto_deeplab.training import values
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
    restore = Checkpoints.restore

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

    def restore_of(store, checkpoint=None):
        built.restored = checkpoint
        return restore(store, checkpoint)

    with (
        mock.patch.object(mode, "run", run),
        mock.patch.object(mode, learner, make),
        mock.patch.object(input_pipeline, "distribute_batches", stream),
        mock.patch.object(modes_data, "make_split_evaluator", evaluator),
        mock.patch.object(distribution, "make_strategy", strategy_of),
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


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("wiring")
    write_data(root / "data")
    GENOTYPE.save(root / "genotype.json")
    return root


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


# Search.

SEARCH = {
    "data_dir": None,  # the module's
    "seed": "3",
    "num_classes": str(CLASSES),
    "ignore_label": str(VOID),
    "train_split": "mine",
    "eval_split": "theirs",
    "eval_every": "9",
    "save_every": "11",
    "max_eval_images": "2",
    "distribution_strategy": "mirrored",
    "precision": "bfloat16",
    "sync_batch_norm": "false",
    "jit_compile": "true",
    "steps_per_loop": "6",
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
    "second_order": "true",
    "cost_budget": "0.0001",
    "cost_weight": "7",
}
"""Flag -> a value of its own."""

# 13 images make two halves of 6, and those three steps of two images.
EPOCH_STEPS = 3
TOTAL = 5 * EPOCH_STEPS


@pytest.fixture(scope="module")
def searching(root):
    operations = SEARCH["operations"].split(",")
    settings = {"filter_multiplier": 2, "num_blocks": 2, "operations": operations}
    settings |= {"crop_size": [33, 33], "stem_filters": [4, 4, 6], "head_filters": 4}
    cost_table.measure(settings | {"num_classes": 3}, "multiply_adds").save(root / "costs.json")
    flags = SEARCH | {"data_dir": root / "data", "cost_table": root / "costs.json"}
    return build(
        *(root, "search", search, "Search"), [f"--{name}={value}" for name, value in flags.items()]
    )


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


def check_plain_crops(built):
    """No scale, no shift, no mirror: the batch is the middle of the records' pictures."""
    images = np.concatenate([b["image"].numpy() for step in batches_of(built, 3) for b in step])
    for image in images:
        middle = whole_middle(int(image[0, 0, 0]))
        np.testing.assert_allclose(np.abs(image - middle).max(), 0, atol=1e-3)


def rate_of_search(step):
    """The cosine from 0.5 to 0.125 over all steps."""
    return 0.125 + (0.5 - 0.125) * 0.5 * (1 + math.cos(math.pi * step / TOTAL))


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


def check_weight_updates(built):
    learner = built.learner
    check_sgd(
        *(learner.weight_optimizer, learner.supernet.trainable_variables),
        *(rate_of_search, lambda variable: 0.25),
    )


def check_architecture_updates(built):
    learner = built.learner
    a = learner.architecture.trainable_variables
    assert len(a) == 2
    check_adam(learner.architecture_optimizer, a, 0.0625, 0.75, (0.25, 0.625))


def check_halves(built):
    """The streams show two halves that share nothing, each all of its own in every epoch."""
    steps = batches_of(built, TOTAL)
    epoch = [step[0] for step in steps[:EPOCH_STEPS]]
    half_a = {number for batch in epoch for number in red(batch)}
    half_b = {number for step in steps[3 : 3 + EPOCH_STEPS] for number in red(step[1])}
    assert len(half_a) == len(half_b) == 6 and not half_a & half_b
    expected = input_pipeline.split_halves(NUM_MINE, 3)
    assert [half_a, half_b] == [set(half) for half in expected]
    # Not only other records, also another order: of equal places in the halves.
    orders = [
        [sorted(half).index(number) for batch in batches for number in red(batch)]
        for half, batches in (
            (half_a, epoch),
            (half_b, [step[1] for step in steps[3 : 3 + EPOCH_STEPS]]),
        )
    ]
    assert orders[0] != orders[1]
    assert [stream["seed"] for stream in built.streams] == [3, 3]
    assert [stream["stream"] for stream in built.streams] == [0, 1]


def check_seed(built):
    check_halves(built)
    own = built.learner.architecture
    again = Architecture(
        num_layers=3, num_blocks=2, operations=("sep_conv_3x3", "skip_connect", "none"), seed=3,
        alpha_sharing="layer",
    )  # fmt: skip
    assert json.loads((built.run / "run.json").read_text())["identity"]["seed"] == 3
    for variable, other in zip(own.variables, again.variables, strict=True):
        np.testing.assert_array_equal(built.initial[variable.path], other.numpy())
    keras.utils.set_random_seed(3)
    net = built.learner.supernet
    again = SuperNet(
        num_classes=CLASSES, num_layers=3, num_blocks=2, filter_multiplier=3,
        operations=("sep_conv_3x3", "skip_connect", "none"), stem_filters=(4, 6, 8),
    )  # fmt: skip
    for variable, other in zip(net.variables, again.variables, strict=True):
        np.testing.assert_array_equal(built.initial[variable.path], other.numpy())


def check_cost(built):
    """The penalty is weight * relu(cost / budget - 1)."""
    penalty, value = (float(x) for x in built.learner.expected_cost())
    table = cost_table.load(str(built.root / "costs.json"))
    low, high = expected_cost.compute_bounds(table, SEARCH["operations"].split(","), 3)
    assert low < value < high
    assert penalty == pytest.approx(7 * (value / 0.0001 - 1), rel=1e-5) and penalty > 0


def check_shapes(built):
    net, architecture = built.learner.supernet, built.learner.architecture
    # L alphas of B (B + 3) / 2 = 5 edges and 3 operations; beta [L, 4, 3].
    assert architecture.alpha.shape == (3, 5, 3) and architecture.beta.shape == (3, 4, 3)
    assert architecture.operations == net.operations == ("sep_conv_3x3", "skip_connect", "none")
    assert architecture.alpha_sharing == net.alpha_sharing == "layer"
    shapes = {variable.path: tuple(variable.shape) for variable in net.variables}
    assert shapes["stem/conv0.kernel"] == (3, 3, 3, 4)
    assert shapes["stem/conv2.kernel"] == (3, 3, 6, 8)
    # One of L nodes at level 0: 5 edges of F = 3 channels.
    assert shapes["layer_3_level_0/depthwise_kernel_3x3"][2] == 2 * 5 * 3
    assert shapes["head_level_0/classifier.kernel"] == (1, 1, 3 * 2 * 3, CLASSES)
    assert {path.split("/")[0] for path in shapes} >= {"layer_3_level_3", "layer_2_level_2"}
    assert "layer_4_level_0/moving_mean" not in shapes


def check_evaluation(built):
    assert built.evaluated["split"] == "theirs" and built.evaluated["max_images"] == 2
    assert built.evaluated["model"] == built.learner.logits


def check_steps(built):
    """Alpha and beta move from the second epoch on; every step's cost for the time left."""
    lengths = [len(step) for step in batches_of(built, TOTAL)]
    assert lengths == [1] * EPOCH_STEPS + [2] * (TOTAL - EPOCH_STEPS)
    assert (built.loop["total_steps"], built.loop["epoch_steps"]) == (TOTAL, EPOCH_STEPS)
    passes = built.loop["passes"]
    assert [passes(step) for step in (0, EPOCH_STEPS - 1, EPOCH_STEPS, TOTAL)] == [1, 1, 5, 5]
    assert built.learner.options["second_order"] is True


def check_loop(built):
    names = ("model_dir", "report_every", "save_every", "steps_per_loop", "batch_size")
    assert [built.loop[name] for name in names] == [str(built.run), 9, 11, 6, 2]


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
    # Where the processor has no use for it, float32 is what is computed in.
    wanted = "bfloat16" if modes_precision() == "bfloat16" else "float32"
    assert network_of(built).compute_dtype == wanted


def modes_precision():
    before = keras.config.dtype_policy()
    try:
        return distribution.set_precision("bfloat16")
    finally:
        keras.config.set_dtype_policy(before)


def network_of(built):
    return groups_of(built.learner)[0]


def check_sync(built):
    assert network_of(built).execution.sync_batch_norm is False


def check_jit_compile(built):
    assert built.learner.options["jit_compile"] is True
    # XLA needs a super-net without functions of its own; a network is the same for it.
    assert getattr(network_of(built), "execution", None) is None or (
        network_of(built).execution.inline
    )


def check_recompute(built):
    assert network_of(built).execution.recompute == "node"


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
        built.loop["save"](step)
    chosen = built.run / "checkpoints" / "ckpt-4"
    again = build(root, name, mode, learner, [*flags, f"--checkpoint={chosen}"])
    assert again.restored == str(chosen) and again.loop["start_step"] == 4
    return again


LOOKS_AT_SEARCH = {
    "mode": check_loop,
    "data_dir": check_data,
    "model_dir": check_loop,
    "seed": check_seed,
    "num_classes": check_num_classes,
    "ignore_label": check_option("ignore_label", VOID),
    "train_split": check_data,
    "eval_split": check_evaluation,
    "eval_every": check_loop,
    "save_every": check_loop,
    "max_eval_images": check_evaluation,
    "distribution_strategy": check_device("distribution_strategy", "mirrored"),
    "precision": check_precision,
    "sync_batch_norm": check_sync,
    "jit_compile": check_jit_compile,
    "steps_per_loop": check_loop,
    "deterministic": check_device("deterministic", [3]),
    "crop_size": check_batches,
    "batch_size": check_batches,
    "resize_longer_side": check_streams("resize_longer_side", SIDES[1]),
    "random_scale": check_plain_crops,
    "random_crop": check_plain_crops,
    "random_flip": check_plain_crops,
    "cache_data": check_streams("cache", True),
    "learning_rate": check_weight_updates,
    "weight_decay": check_weight_updates,
    "filter_multiplier": check_shapes,
    "stem_filters": check_shapes,
    "class_weights": check_option("class_weights", WEIGHTS),
    "epochs": check_steps,
    "alpha_start_epoch": check_steps,
    "min_learning_rate": check_weight_updates,
    "gradient_clip_norm": check_weight_updates,
    "arch_betas": check_architecture_updates,
    "arch_learning_rate": check_architecture_updates,
    "arch_weight_decay": check_architecture_updates,
    "operations": check_shapes,
    "num_layers": check_shapes,
    "num_blocks": check_shapes,
    "recompute": check_recompute,
    "alpha_sharing": check_shapes,
    "second_order": check_steps,
    "cost_table": check_cost,
    "cost_budget": check_cost,
    "cost_weight": check_cost,
}


def each(looks):
    """Every look once, under the name of its first flag."""
    first = {look: name for name, look in reversed(looks.items())}
    return pytest.mark.parametrize("look", [pytest.param(look, id=first[look]) for look in first])


@each(LOOKS_AT_SEARCH)
def test_search(searching, look):
    look(searching)


def test_a_search_goes_on_from_the_checkpoint_it_is_told(root, searching):
    again = check_resumed(root, searching, "search", search, "Search", searching.flags)
    # Stream B begins after an epoch of stream A alone.
    assert [stream["start_step"] for stream in again.streams] == [4, 4 - EPOCH_STEPS]


def test_the_default_stem_is_of_the_searchs_own_widths(root, searching):
    flags = [flag for flag in searching.flags if not flag.startswith("--stem_filters")]
    built = build(root, "search", search, "Search", [*flags, f"--model_dir={root / 'stem'}"])
    shapes = {v.path: tuple(v.shape) for v in built.learner.supernet.variables}
    # B F / 2 and B F for B = 2, F = 3.
    assert shapes["stem/conv0.kernel"] == (3, 3, 3, 3)
    assert shapes["stem/conv1.kernel"] == (3, 3, 3, 6)


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


def test_what_a_search_says_and_writes_at_its_end(root, searching):
    """As if its steps were made: alpha and beta have not moved, which it warns of."""
    flags = [f"--model_dir={root / 'end'}", *searching.flags]
    with (
        mock.patch.object(search, "run", lambda *arguments, **options: []),
        mock.patch.object(distribution, "make_deterministic", lambda seed: None),
        devices_noted(),
    ):
        done = train_here("--mode=search", *flags)
    assert done.code == 0, done.stderr
    meta = genotypes.load(root / "end" / "genotype.json").meta
    assert (meta["seed"], meta["step"]) == (3, TOTAL)
    # Of the command that comes next, and of the warning.
    assert f"--data_dir={root / 'data'}" in done.stderr and "--crop_size=33,41" in done.stderr
    updates = TOTAL - EPOCH_STEPS
    assert f"{updates} updates of --arch_learning_rate=0.0625 by mere chance" in done.stderr


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


# Train.

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


@pytest.fixture(scope="module")
def trained(root):
    """A training of four steps, saved after the second and the fourth."""
    done = train_here(
        *("--mode=train", f"--data_dir={root / 'data'}", f"--model_dir={root / 'trained'}"),
        *(f"--genotype={root / 'genotype.json'}", *SMALL, "--crop_size=33", "--batch_size=2"),
        *("--train_steps=4", "--save_every=2", "--batch_norm_decay=0.1", "--train_split=mine"),
        *("--eval_split=theirs", f"--num_classes={CLASSES}", f"--ignore_label={VOID}"),
    )
    assert done.code == 0, done.stderr
    return root / "trained"


@pytest.fixture(scope="module")
def training(root, trained):
    flags = TRAIN | {"data_dir": root / "data", "genotype": root / "genotype.json"}
    flags |= {"init_checkpoint": trained}
    return build(
        *(root, "train", train, "Retrain"), [f"--{name}={value}" for name, value in flags.items()]
    )


def rate_of_training(step):
    """The polynomial from 0.5 to 0 over all steps."""
    return 0.5 * (1 - step / 10) ** 0.9


def check_training_updates(built):
    """Kernels alone decay, and the last layer's rate is four times the others'."""
    check_sgd(
        *(built.learner.optimizer, built.learner.network.trainable_variables, rate_of_training),
        lambda variable: 0.25 if "kernel" in variable.name else 0.0,
        lambda variable: 4.0 if "decoder/logits" in variable.path else 1.0,
    )


def check_network(built):
    """It is the network of exactly these options."""
    network = built.learner.network
    assert network.genotype == GENOTYPE
    again = Network(
        GENOTYPE, num_classes=CLASSES, filter_multiplier=3, stem_filters=(4, 6, 8), head_filters=7
    )
    again.build((None, None, None, 3))
    shapes = [{v.path: tuple(v.shape) for v in net.variables} for net in (network, again)]
    assert shapes[0] == shapes[1]
    assert network.fine_tune_batch_norm is True and network.drop_path_keep_prob == 0.7
    momenta = {
        layer.momentum for layer in network._flatten_layers() if isinstance(layer, BatchNorm)
    }
    assert momenta == {0.8}


def check_sync_of_network(built):
    layers = built.learner.network._flatten_layers()
    assert {layer.synchronized for layer in layers if isinstance(layer, BatchNorm)} == {False}


def check_start(built):
    """The first weights are those of the other training; those of the averages too."""
    other = Network(
        GENOTYPE, num_classes=CLASSES, filter_multiplier=3, stem_filters=(4, 6, 8), head_filters=7
    )
    other.build((None, None, None, 3))
    Checkpoints(str(built.root / "trained" / "checkpoints"), {"weights": other.variables}).restore()
    for path, value in values(other.variables).items():
        np.testing.assert_array_equal(built.initial[path], value, err_msg=path)
    assert values(other.variables).keys() == built.initial.keys()
    averaged = built.learner.averaged.cells[0].first.kernel
    np.testing.assert_array_equal(averaged, other.cells[0].first.kernel)


def check_stream_of_training(built):
    (stream,) = built.streams
    assert built.learner.options["seed"] == 3  # of dropout and drop path
    assert (stream["seed"], stream.get("stream", 0), stream.get("records")) == (3, 0, None)
    seen = {number for (batch,) in batches_of(built, 6) for number in red(batch)}
    assert seen < set(range(NUM_MINE)) and len(seen) == 12  # no example comes twice in an epoch


def check_loop_of_training(built):
    check_loop(built)
    assert (built.loop["total_steps"], built.loop["epoch_steps"]) == (10, NUM_MINE // 2)


def check_evaluation_of_training(built):
    assert built.evaluated["split"] == "theirs" and built.evaluated["max_images"] == 2
    # The averages are what is evaluated.
    image = np.zeros((1, 33, 33, 3), np.float32)
    averaged = built.learner.averaged
    averaged.decoder.logits.bias.assign([1.0, 2.0, 3.0, 4.0, 5.0])
    answer = built.evaluated["model"](image)
    np.testing.assert_array_equal(answer, averaged(image, training=False))
    assert np.abs(answer - built.learner.network(image, training=False)).max() > 0.5


LOOKS_AT_TRAIN = {name: look for name, look in LOOKS_AT_SEARCH.items() if "train" in USED[name]} | {
    "mode": check_loop_of_training,
    "model_dir": check_loop_of_training,
    "seed": check_stream_of_training,
    "learning_rate": check_training_updates,
    "weight_decay": check_training_updates,
    "gradient_clip_norm": check_training_updates,
    "filter_multiplier": check_network,
    "stem_filters": check_network,
    "eval_split": check_evaluation_of_training,
    "max_eval_images": check_evaluation_of_training,
    "sync_batch_norm": check_sync_of_network,
    "genotype": check_network,
    "train_steps": check_option("total_steps", 10),
    "init_checkpoint": check_start,
    "drop_path_keep_prob": check_network,
    "batch_norm_decay": check_network,
    "fine_tune_batch_norm": check_network,
    "head_filters": check_network,
    "top_k_pixels": check_option("top_k_pixels", 0.6),
    "hard_mining_steps": check_option("hard_mining_steps", 12),
    "ema_decay": check_option("ema_decay", 0.75),
    "last_layer_learning_rate_multiplier": check_training_updates,
}


@each(LOOKS_AT_TRAIN)
def test_train(training, look):
    look(training)


def test_a_training_goes_on_from_the_checkpoint_it_is_told(root, training):
    again = check_resumed(root, training, "train", train, "Retrain", training.flags)
    assert [stream["start_step"] for stream in again.streams] == [4]


def test_batch_norm_can_be_left_alone(root, trained, training):
    flags = [*training.flags, "--fine_tune_batch_norm=false", f"--model_dir={root / 'frozen'}"]
    assert (
        build(root, "train", train, "Retrain", flags).learner.network.fine_tune_batch_norm is False
    )


# Eval, predict, export: what they write, and what they give to what works.


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


def test_eval(root, trained, tmp_path):
    out, checkpoint = tmp_path / "out" / "mine.json", trained / "checkpoints" / "ckpt-2"
    flags = {
        "mode": "eval",
        "data_dir": root / "data",
        "model_dir": trained,
        "num_classes": CLASSES,
        "ignore_label": VOID,
        "eval_split": "mine",
        "max_eval_images": 3,
        "checkpoint": checkpoint,
        "eval_scales": "0.5,1.25",
        "eval_flip": "true",
        "output": out,
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
    }
    assert flags.keys() == {name for name, modes in USED.items() if "eval" in modes}
    with devices_noted() as devices, noted(evaluate, "make_split_evaluator") as calls:
        done = train_here(*(f"--{name}={value}" for name, value in flags.items()))
    assert done.code == 0, done.stderr
    assert devices == WANTED_DEVICES
    (call,) = calls
    description = call["arguments"][1]
    assert (description.data_dir, description.ignore_label) == (str(root / "data"), VOID)
    metrics = json.loads(out.read_text())
    assert metrics == json.loads(done.stdout.splitlines()[-1])
    wanted = {"split": "mine", "num_images": 3, "step": 2, "checkpoint": str(checkpoint)}
    wanted |= {"scales": [0.5, 1.25], "flip": True}
    assert {name: metrics[name] for name in wanted} == wanted
    # Without a line of void and an odd class out, every pixel of the three images counts.
    counts = np.loadtxt(
        out.with_name("mine_confusion_matrix.csv"), int, delimiter=",", skiprows=1,
        usecols=range(1, 1 + CLASSES),
    )  # fmt: skip
    assert counts.sum() == 3 * (SIDES[0] - 1) * SIDES[1]


def test_predict(root, trained, tmp_path):
    common = {
        "mode": "predict",
        "model_dir": trained,
        "output_dir": tmp_path / "out",
        "num_classes": CLASSES,
        "checkpoint": trained / "checkpoints" / "ckpt-2",
        "eval_scales": "0.5,1.25",
        "eval_flip": "true",
        "predict_scale": "0.75",
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
    }
    of_split = {"data_dir": root / "data", "ignore_label": VOID, "eval_split": "theirs"}
    of_files = {"input": tmp_path / "in"}
    names = {*common, *of_split, *of_files, "submission"}
    assert names == {name for name, modes in USED.items() if "predict" in modes}
    (tmp_path / "in").mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    (tmp_path / "in" / "street.png").write_bytes(encoded(picture, "png"))
    for places, found in ((of_split, NUM_THEIRS), (of_files, 1)):
        with (
            devices_noted() as devices,
            noted(predict.prediction, "predict") as calls,
            noted(predict, "load_network") as loads,
        ):
            done = train_here(
                *(f"--{name}={value}" for name, value in {**common, **places}.items())
            )
        assert done.code == 0, done.stderr
        assert devices == WANTED_DEVICES
        (call,) = calls
        assert list(call["scales"]) == [0.5, 1.25] and call["flip"] is True
        assert call["sizes"].resize_factor == 0.75 and call["submission"] is None
        assert loads[0]["arguments"][:2] == (str(trained), str(common["checkpoint"]))
        files = [path.name for path in (tmp_path / "out").rglob("*_labels.png")]
        assert len(files) == found + (NUM_THEIRS if places is of_files else 0)
    # Its classes are not those of the benchmark, which is why it is refused.
    places = (f"--model_dir={trained}", f"--output_dir={tmp_path / 'out'}")
    done = train_here(
        *("--mode=predict", *places, f"--input={tmp_path / 'in'}", "--submission=cityscapes")
    )
    assert done.code == 2 and "--submission=cityscapes needs a network of the 19" in done.error


def test_export(root, trained, tmp_path):
    flags = {
        "mode": "export",
        "model_dir": trained,
        "num_classes": CLASSES,
        "checkpoint": trained / "checkpoints" / "ckpt-2",
        "export_dir": tmp_path / "models",
        "export_probabilities": "true",
        "predict_scale": "0.75",
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
    }
    assert flags.keys() == {name for name, modes in USED.items() if "export" in modes}
    with (
        devices_noted() as devices,
        noted(export, "write_saved_model") as calls,
        noted(export, "load_network") as loads,
    ):
        done = train_here(*(f"--{name}={value}" for name, value in flags.items()))
    assert done.code == 0, done.stderr
    assert devices == WANTED_DEVICES
    assert calls[0]["sizes"].resize_factor == 0.75
    assert loads[0]["arguments"][:2] == (str(trained), str(flags["checkpoint"]))
    signature = tf.saved_model.load(str(tmp_path / "models" / "1")).signatures["serving_default"]
    assert signature.structured_outputs.keys() == {"labels", "probabilities"}


# Profile and decode.


def test_profile(root, trained, tmp_path):
    network = {
        "mode": "profile",
        "genotype": root / "genotype.json",
        "filter_multiplier": 3,
        "stem_filters": "4,6,8",
        "head_filters": 7,
        "num_classes": 9,
        "crop_size": "65,97",
    }
    done = train_here(*(f"--{name}={value}" for name, value in network.items()))
    assert done.code == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    again = Network(
        GENOTYPE, num_classes=9, filter_multiplier=3, stem_filters=(4, 6, 8), head_filters=7
    )
    again.build((None, None, None, 3))
    assert said["params_millions"] * 1e6 == pytest.approx(again.count_params() - frozen(again))
    assert said["crop_size"] == [65, 97]
    # A run's network is counted by itself.
    done = train_here("--mode=profile", f"--model_dir={trained}", "--crop_size=65,97")
    of_run = json.loads(done.stdout.splitlines()[-1])
    classes = 9 - CLASSES  # a kernel [1, 1, 7, classes] and as many biases
    difference = said["params_millions"] - of_run["params_millions"]
    assert difference * 1e6 == pytest.approx((7 + 1) * classes)

    table = {
        "mode": "profile",
        "cost_table": tmp_path / "costs.json",
        "cost_metric": "latency",
        "operations": "skip_connect,sep_conv_5x5,none",
        "num_blocks": 3,
        "num_layers": 4,
        "distribution_strategy": "mirrored",
        "precision": "bfloat16",
        "deterministic": "true",
    } | {name: network[name] for name in cost_table.SETTINGS if name in network}
    given = {*network, *table, "model_dir"}
    assert given == {name for name, modes in USED.items() if "profile" in modes}
    with devices_noted() as devices:
        done = train_here(*(f"--{name}={value}" for name, value in table.items()))
    assert done.code == 0, done.stderr
    assert devices == WANTED_DEVICES
    said, found = json.loads(done.stdout.splitlines()[-1]), cost_table.load(table["cost_table"])
    assert (said["metric"], found.metric, said["num_layers"]) == ("latency", "latency", 4)
    wanted = {
        "operations": ["skip_connect", "sep_conv_5x5", "none"],
        "num_blocks": 3,
        "filter_multiplier": 3,
        "stem_filters": [4, 6, 8],
        "head_filters": 7,
        "num_classes": 9,
        "crop_size": [65, 97],
    }
    assert {name: found.settings[name] for name in wanted} == wanted
    bounds = expected_cost.compute_bounds(found, wanted["operations"], 4)
    assert (said["cheapest"], said["dearest"]) == pytest.approx(bounds)


def frozen(network):
    return sum(math.prod(variable.shape) for variable in network.non_trainable_variables)


def test_decode(root, searching):
    """From the checkpoint that is told: the two hold different alphas."""
    alpha = searching.learner.architecture.alpha
    for step in (7, 8):
        alpha.assign(np.eye(3, dtype=np.float32)[np.full((3, 5), step - 7)] * 9)
        searching.loop["save"](step)
    assert {name for name, modes in USED.items() if "decode" in modes} == {
        *("mode", "model_dir", "checkpoint")
    }
    for step, operation in ((7, "sep_conv_3x3"), (8, "skip_connect")):
        checkpoint = searching.run / "checkpoints" / f"ckpt-{step}"
        done = train_here(
            *("--mode=decode", f"--model_dir={searching.run}", f"--checkpoint={checkpoint}")
        )
        assert done.code == 0, done.stderr
        found = genotypes.load(searching.run / "genotype.json")
        assert {name for cell in found.cells for block in cell for _, name in block} == {operation}
        assert found.meta["step"] == step


# The tables.


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

"""Every flag of a search, and of decode, reaches what it is for: see wiring.py."""

import json
import math
from unittest import mock

import keras
import numpy as np
import pytest

from auto_deeplab.budget import cost_table, expected_cost
from auto_deeplab.modes import search
from auto_deeplab.modes.flag_definitions import USED
from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import genotype as genotypes
from official import distribution, input_pipeline
from tests.auto_deeplab.modes.wiring import (
    CLASSES,
    EPOCH_STEPS,
    NUM_MINE,
    SEARCH,
    SIDES,
    TOTAL,
    VOID,
    WEIGHTS,
    batches_of,
    build,
    check_adam,
    check_bad_steps,
    check_batches,
    check_data,
    check_device,
    check_kept,
    check_loop,
    check_num_classes,
    check_option,
    check_plain_crops,
    check_precision,
    check_resumed,
    check_sgd,
    check_streams,
    devices_noted,
    each,
    network_of,
    red,
)
from tests.command import train_here


def rate_of_search(step):
    """The cosine from 0.5 to 0.125 over all steps."""
    return 0.125 + (0.5 - 0.125) * 0.5 * (1 + math.cos(math.pi * step / TOTAL))


def check_weight_updates(built):
    learner = built.learner
    check_sgd(
        *(learner.weight_optimizer, learner.supernet.trainable_variables),
        *(rate_of_search, lambda variable: 0.25),
    )


def check_architecture_updates(built):
    learner = built.learner
    a = learner.architecture.trainable_variables
    assert len(a) == 3  # alpha, beta and the cell's edges
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
    assert [stream["seed"] for stream in built.streams] == [3, 3, 3]
    assert [stream["stream"] for stream in built.streams] == [0, 1, 1]  # see check_hessian


def check_seed(built):
    check_halves(built)
    own = built.learner.architecture
    again = Architecture(
        num_layers=3, num_blocks=2, operations=("sep_conv_3x3", "skip_connect", "none"), seed=3,
        alpha_sharing="layer", partial_channels=3,
    )  # fmt: skip
    assert json.loads((built.run / "run.json").read_text())["identity"]["seed"] == 3
    for variable, other in zip(own.variables, again.variables, strict=True):
        np.testing.assert_array_equal(built.initial[variable.path], other.numpy())
    keras.utils.set_random_seed(3)
    net = built.learner.supernet
    again = SuperNet(
        num_classes=CLASSES, num_layers=3, num_blocks=2, filter_multiplier=3,
        operations=("sep_conv_3x3", "skip_connect", "none"), stem_filters=(4, 6, 8),
        partial_channels=3,
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
    assert architecture.edges.shape == (3, 5) and net.partial_channels == 3
    assert architecture.alpha_sharing == net.alpha_sharing == "layer"
    shapes = {variable.path: tuple(variable.shape) for variable in net.variables}
    assert shapes["stem/conv0.kernel"] == (3, 3, 3, 4)
    assert shapes["stem/conv2.kernel"] == (3, 3, 6, 8)
    # One of L nodes at level 0: 5 edges whose operations see F / K = 1 channel.
    assert shapes["layer_3_level_0/depthwise_kernel_3x3"][2] == 2 * 5 * 1
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


def check_stop(built):
    """Four skip-connections end it, once alpha and beta have moved."""
    ends = built.loop["is_enough"]
    assert not ends({"step": EPOCH_STEPS, "skip_connects": 4})
    assert [ends({"step": EPOCH_STEPS + 1, "skip_connects": n}) for n in (3, 4)] == [False, True]


def check_hessian(built):
    """One batch of trainB, its first, wherever the search goes on; its Hessian is in reports."""
    assert built.streams[2]["start_step"] == 0
    np.testing.assert_array_equal(built.streams[2]["records"], built.streams[1]["records"])
    asked = []
    built.learner.measure_curvature = lambda batches: asked.append(len(batches)) or 2.5
    assert built.loop["arguments"][3](1)["alpha_hessian"] == 2.5 and asked == [1]


def check_sync(built):
    assert network_of(built).execution.sync_batch_norm is False


def check_jit_compile(built):
    assert built.learner.options["jit_compile"] is True
    # XLA needs a super-net without functions of its own.
    assert network_of(built).execution.inline


def check_recompute(built):
    assert network_of(built).execution.recompute == "node"


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
    "keep_checkpoints": check_kept,
    "max_eval_images": check_evaluation,
    "distribution_strategy": check_device("distribution_strategy", "mirrored"),
    "precision": check_precision,
    "sync_batch_norm": check_sync,
    "jit_compile": check_jit_compile,
    "steps_per_loop": check_loop,
    "max_bad_steps": check_bad_steps,
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
    "partial_channels": check_shapes,
    "second_order": check_steps,
    "stop_at_skip_connects": check_stop,
    "alpha_hessian_batches": check_hessian,
    "cost_table": check_cost,
    "cost_budget": check_cost,
    "cost_weight": check_cost,
}


@each(LOOKS_AT_SEARCH)
def test_search(searching, look):
    look(searching)


def test_a_search_goes_on_from_the_checkpoint_it_is_told(root, searching):
    again = check_resumed(root, searching, "search", search, "Search", searching.flags)
    # Stream B begins after an epoch of stream A alone.
    assert [stream["start_step"] for stream in again.streams] == [4, 4 - EPOCH_STEPS, 0]


def test_the_default_stem_is_of_the_searchs_own_widths(root, searching):
    flags = [flag for flag in searching.flags if not flag.startswith("--stem_filters")]
    built = build(root, "search", search, "Search", [*flags, f"--model_dir={root / 'stem'}"])
    shapes = {v.path: tuple(v.shape) for v in built.learner.supernet.variables}
    # B F / 2 and B F for B = 2, F = 3.
    assert shapes["stem/conv0.kernel"] == (3, 3, 3, 3)
    assert shapes["stem/conv1.kernel"] == (3, 3, 3, 6)


def test_what_a_search_says_and_writes_at_its_end(root, searching):
    """As if its steps were made: alpha and beta have not moved, which it warns of."""
    flags = [f"--model_dir={root / 'end'}", *searching.flags]
    with (
        mock.patch.object(search, "run", lambda *arguments, **options: [{"step": TOTAL}]),
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


def test_decode(root, searching):
    """From the checkpoint that is told: the two hold different alphas."""
    alpha = searching.learner.architecture.alpha
    for step in (7, 8):
        alpha.assign(np.eye(3, dtype=np.float32)[np.full((3, 5), step - 7)] * 9)
        searching.loop["store"].save(step)
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

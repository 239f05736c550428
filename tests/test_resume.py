"""A run that is stopped, killed or continued ends where it would have ended, bit for bit."""

import json
import shutil
import signal

import numpy as np
import pytest

from benchmarks import tiny_runs
from tests.command import (
    TINY_GENOTYPE,
    TINY_NETWORK,
    TINY_SEARCH,
    finish,
    kill_when,
    start_train,
)
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    write_cityscapes(root / "source", train=4, val=1)
    convert("cityscapes", str(root / "source"), str(root / "data"))
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    return root


def start(root, mode, *flags):
    common = ("--data_dir=data", "--deterministic")
    return start_train(f"--mode={mode}", *common, *flags, cwd=root)


def run(root, mode, *flags):
    done = finish(start(root, mode, *flags))
    assert done.code == 0, done.stderr
    return done


def tensors(directory, step):
    """Everything in a checkpoint by name."""
    return tiny_runs.tensors(directory / "checkpoints" / f"ckpt-{step}")


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not np.array_equal(one[name], other[name])]
    assert different == []


def history(directory, *but):
    rows = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    times = ("images_per_s", "wait_share", *but)
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def groups_that_moved(before, after):
    return {name.split("/")[0] for name in before if not np.array_equal(before[name], after[name])}


def test_a_search_goes_on_bit_for_bit_in_both_phases(root):
    # 4 images make halves of 2, one step an epoch: steps 2, 3 and 4 also move alpha and beta.
    flags = (
        *(*TINY_SEARCH, "--operations=sep_conv_3x3,atrous_conv_3x3,avg_pool_3x3,none"),
        *("--epochs=4", "--alpha_start_epoch=1", "--max_eval_images=1"),
    )
    four, two = root / "search_4", root / "search_2"
    run(root, "search", "--model_dir=search_4", *flags)
    # As if it had ended after step 2, but for what came after, which must go.
    shutil.copytree(four, two)
    for path in (two / "checkpoints").glob("ckpt-[34].*"):
        path.unlink()
    done = run(
        root, "search", "--model_dir=search_2", "--checkpoint=search_2/checkpoints/ckpt-2", *flags
    )
    assert "search goes on at step 2 of 4" in done.stderr

    at_two, at_four = tensors(two, 2), tensors(four, 4)
    assert groups_that_moved(at_two, at_four) == {
        *("weights", "weights_optimizer", "architecture", "architecture_optimizer", "step", "note")
    }  # the note holds the losses of the steps since the last report
    momenta = [
        value for name, value in at_two.items() if name.startswith("architecture_optimizer/")
    ]
    assert any(value.ndim and np.any(value) for value in momenta)  # saved within the second phase
    assert_same_bits(tensors(two, 4), at_four)
    assert history(two) == history(four) and len(history(four)) == 4
    assert (two / "genotype.json").read_bytes() == (four / "genotype.json").read_bytes()


def test_a_training_that_is_stopped_and_killed_ends_bit_for_bit_the_same(root):
    steps = 60
    flags = (
        *("--genotype=genotype.json", *TINY_NETWORK, f"--train_steps={steps}"),
        *("--drop_path_keep_prob=0.7", "--batch_norm_decay=0.9", "--ema_decay=0.99"),
        *("--top_k_pixels=0.5", "--hard_mining_steps=40"),
        *("--save_every=5", "--eval_every=20"),
    )
    whole, broken = root / "whole", root / "broken"
    run(root, "train", "--model_dir=whole", *flags)

    command = ("train", "--model_dir=broken", *flags)
    ckpt = broken / "checkpoints"
    stopped = kill_when(start(root, *command), ckpt / "ckpt-10.index", signal.SIGTERM)
    assert stopped.code == 128 + signal.SIGTERM, stopped.stderr
    assert "Traceback" not in stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert last.endswith("the same command goes on from there")
    step = int(last.split("at step ")[1].split(":")[0])
    assert 10 <= step < steps and (ckpt / f"ckpt-{step}.index").exists()

    process = start(root, *command)
    killed = kill_when(process, ckpt / "ckpt-30.index", signal.SIGKILL)
    assert killed.code == -signal.SIGKILL
    assert f"train goes on at step {step} of {steps}" in killed.stderr

    done = run(root, *command)
    assert "train goes on at step " in done.stderr
    assert_same_bits(tensors(broken, steps), tensors(whole, steps))
    assert "average" in {name.split("/")[0] for name in tensors(whole, steps)}
    # The means over the steps since the last report too, whichever process made them. Only when
    # what is on disk was saved is another matter.
    assert history(broken, "saved") == history(whole, "saved")
    assert [row["step"] for row in history(broken)] == [20, 40, 60]
    # Whatever the kill left of a checkpoint that was being written is gone.
    assert not [path for path in ckpt.iterdir() if path.name.startswith(".")]

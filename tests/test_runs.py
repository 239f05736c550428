"""Runs that nothing can hurt: two at once, damage, divergence, being led back; as commands."""

import json
import os
import re
import shlex
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab.modes.flag_definitions import SEARCH_IDENTITY, TRAIN_IDENTITY, USED
from tests.command import (
    TINY_GENOTYPE,
    TINY_NETWORK,
    TINY_SEARCH,
    finish,
    start_train,
    train_here,
)
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

SEARCH = ("--mode=search", *TINY_SEARCH, "--epochs=2", "--alpha_start_epoch=1")
SEARCH += ("--operations=sep_conv_3x3,none", "--max_eval_images=1")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_cityscapes(root / "source", train=4, val=1)
    convert("cityscapes", str(root / "source"), str(root / "data"))
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    return root


def training(root, run, *flags, steps=4):
    return (
        *("--mode=train", f"--data_dir={root / 'data'}", f"--model_dir={run}"),
        *(f"--genotype={root / 'genotype.json'}", *TINY_NETWORK, f"--train_steps={steps}"),
        *("--batch_norm_decay=0.1", "--save_every=1", "--eval_every=2", *flags),
    )


@pytest.fixture(scope="module")
def finished(root):
    """A training of four steps."""
    done = train_here(*training(root, root / "finished"))
    assert done.code == 0, done.stderr
    return root / "finished"


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def steps_of(run, name="ckpt"):
    return sorted(int(p.stem.split("-")[1]) for p in (run / "checkpoints").glob(f"{name}-*.index"))


def rows_of(run):
    return [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]


def tensors(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    names = [name for name in reader.get_variable_to_shape_map() if name.startswith("weights")]
    return {name: reader.get_tensor(name) for name in names}


def test_what_a_run_leaves(finished):
    assert steps_of(finished) == [2, 3, 4]
    rows = rows_of(finished)
    best = max(rows, key=lambda row: (row["val_miou"], -row["step"]))
    assert steps_of(finished, "best") == [best["step"]]
    assert not (finished / "run.lock").exists()


def test_the_best_can_be_named(root, run):
    (step,) = steps_of(run, "best")
    for path in (run / "checkpoints").glob("ckpt-*"):
        path.unlink()  # so that nothing else can be what is read
    done = train_here(
        *("--mode=eval", f"--model_dir={run}", f"--data_dir={root / 'data'}", "--checkpoint=best")
    )
    assert done.code == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["step"] == step and metrics["checkpoint"].endswith(f"best-{step}")
    (row,) = [row for row in rows_of(run) if row["step"] == step]
    assert metrics["miou"] == pytest.approx(row["val_miou"])
    assert train_here("--mode=export", f"--model_dir={run}", "--checkpoint=best").code == 0


def test_only_one_process_has_a_run_and_others_may_read(root, tmp_path):
    """Beside a training that saves at each step, and is stopped in the end."""
    run = tmp_path / "run"
    flags = training(root, run, "--eval_every=1000000", "--keep_checkpoints=2", steps=100_000)
    process = start_train(*flags, cwd=root)
    try:
        deadline = time.monotonic() + 300
        while not list((run / "checkpoints").glob("ckpt-*.index")):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.1)
        second = train_here(*flags)
        assert second.code == 1
        assert f"--model_dir={run} is in use by " in second.error
        assert f"process {process.pid} since " in second.error
        for number in range(3):
            arguments = ("--mode=eval", f"--data_dir={root / 'data'}", f"--model_dir={run}")
            arguments += (f"--output={tmp_path / f'{number}.json'}",)
            done = train_here(*arguments)
            assert done.code == 0, done.stderr
        done = train_here("--mode=export", f"--model_dir={run}", f"--export_dir={tmp_path / 'e'}")
        assert done.code == 0, done.stderr
    finally:
        process.send_signal(signal.SIGTERM)
        stopped = finish(process)
    assert stopped.code == 143, stopped.stderr


@pytest.mark.parametrize("torn", ["index", "data-00000-of-00001"])
def test_killed_in_the_very_first_save(root, tmp_path, torn):
    """As earlier versions left it: one torn checkpoint and no other."""
    run = tmp_path / "run"
    done = train_here(*training(root, run, "--eval_every=100", steps=1))
    assert done.code == 0, done.stderr
    path = run / "checkpoints" / f"ckpt-1.{torn}"
    path.write_bytes(path.read_bytes()[:40])
    (run / "history.jsonl").unlink()
    done = train_here(*training(root, run, "--eval_every=100", steps=1))
    assert done.code == 0, done.stderr
    assert "ckpt-1 is damaged" in done.stderr and "train starts at step 0 of 1" in done.stderr
    assert steps_of(run) == [1] and steps_of(run / "checkpoints" / "..") == [1]


def test_a_damaged_newest_costs_the_steps_since_the_one_before(root, run, finished):
    path = run / "checkpoints" / "ckpt-4.data-00000-of-00001"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    done = train_here(*training(root, run))
    assert done.code == 0, done.stderr
    assert "ckpt-4 is damaged" in done.stderr and "train goes on at step 3 of 4" in done.stderr
    assert steps_of(run) == [2, 3, 4]
    assert [row["step"] for row in rows_of(run)] == [2, 4]
    # The mean of steps 3 and 4 has both of them, though step 3 was another process'.
    assert rows_of(run)[1]["loss_w"] == pytest.approx(rows_of(finished)[1]["loss_w"], rel=1e-4)
    assert "resumed_within" not in rows_of(run)[1]


def test_lost_checkpoints_are_no_new_beginning(root, run):
    before = (run / "history.jsonl").read_bytes()
    shutil.rmtree(run / "checkpoints")
    done = train_here(*training(root, run))
    assert done.code == 1
    assert "history.jsonl tells of 4 steps, but" in done.error and "restore it" in done.error
    assert (run / "history.jsonl").read_bytes() == before
    # Where nothing had been saved, nothing is lost.
    rows = [row | {"saved": 0} for row in rows_of(run)]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = train_here(*training(root, run))
    assert done.code == 0 and "train starts at step 0 of 4" in done.stderr, done.stderr


@pytest.mark.parametrize("mode", ["search", "train"])
def test_a_run_that_diverges_tells_the_command_that_goes_on(root, tmp_path, mode):
    run = tmp_path / "run"
    flags = training(root, run, "--weight_decay=0")
    if mode == "search":
        flags = (*SEARCH, "--epochs=4", f"--data_dir={root / 'data'}", f"--model_dir={run}")
        flags += ("--save_every=1", "--min_learning_rate=0")
    # At a first step with rate 0.01 nothing happens; led back there with 1e9, it diverges.
    good = train_here(*flags, "--learning_rate=0.01")
    assert good.code == 0, good.stderr
    at_two = tensors(run / "checkpoints" / "ckpt-2")
    done = train_here(
        *flags, "--learning_rate=1e9", f"--checkpoint={run / 'checkpoints' / 'ckpt-2'}"
    )
    assert done.code == 1, done.stderr
    words = re.search(r"loss_\w+ is (\S+) at step .* \(images (.*)\); to go on", done.error)
    assert not float(words[1]) < 1000, done.error
    assert words[2].count("leftImg8bit/train/town/") == 2, done.error
    aside = {path.stem for path in (run / "checkpoints" / "set_aside").glob("ckpt-*.index")}
    # Step 3 is made at the rate that is too high. What it led to, the loss of alpha and beta shows
    # at once; without one, it is saved, and the next step's loss shows it.
    led_there = "what led there is kept as set_aside/ckpt-3" in done.error
    assert led_there == (mode == "train") and steps_of(run)[-1] == 2
    assert aside == {"ckpt-3", "ckpt-4"}  # of the first training, or of this one

    command = shlex.split(done.error.partition("lower rate: ")[2])[2:]
    assert f"--checkpoint={run / 'checkpoints' / 'ckpt-2'}" in command
    command = [flag.replace("=1e+08", "=0.001") for flag in command]
    command = [flag for flag in command if not flag.startswith("--arch_learning_rate")]
    assert "--learning_rate=0.001" in command
    again = train_here(*command)
    assert again.code == 0, again.stderr
    assert "goes on at step 2 of 4" in again.stderr
    for name, value in tensors(run / "checkpoints" / "ckpt-2").items():
        np.testing.assert_array_equal(value, at_two[name])
    record = json.loads((run / "run.json").read_text())
    assert record["identity"]["learning_rate"] == 0.001
    assert [branch["changed"] for branch in record["branches"]] == [
        {"learning_rate": [0.01, 1e9]},
        {"learning_rate": [1e9, 0.001]},
    ]
    # The same command again, as after a kill, goes on; it is not led back a second time.
    again = train_here(*command)
    assert again.code == 0 and "goes on at step 4 of 4" in again.stderr, again.stderr
    # And without being led back, the rate must be the run's.
    refused = train_here(*[flag for flag in command if "checkpoint" not in flag], "--seed=0",
                         "--learning_rate=0.5")  # fmt: skip
    assert refused.code == 2 and "--learning_rate is 0.5, but 0.001 in the run" in refused.error


IDENTITY = {
    "search": {*SEARCH_IDENTITY, "cost_table"},
    "train": {*TRAIN_IDENTITY, "genotype"},
}
NO_MATTER = {
    # What the data say, which are compared as a whole.
    "data_dir": "fingerprint of the data",
    "num_classes": "fingerprint of the data",
    "ignore_label": "fingerprint of the data",
    # Where, how fast, how often: see docs/reliability.md for how far devices move numbers.
    "mode": "the run's",
    "model_dir": "where",
    "checkpoint": "from where",
    "distribution_strategy": "devices",
    "jit_compile": "devices",
    "deterministic": "devices",
    "recompute": "memory",
    "cache_data": "memory",
    "steps_per_loop": "speed",
    "eval_split": "reports",
    "eval_every": "reports",
    "max_eval_images": "reports",
    "alpha_hessian_batches": "reports",
    "save_every": "checkpoints",
    "keep_checkpoints": "checkpoints",
    "max_bad_steps": "a run goes on where it would have ended",
}


@pytest.mark.parametrize("mode", ["search", "train"])
def test_each_flag_is_compared_or_does_not_matter(mode):
    own = {name for name, modes in USED.items() if mode in modes}
    assert own == IDENTITY[mode] | (set(NO_MATTER) & own)
    assert not IDENTITY[mode] & set(NO_MATTER)


@pytest.mark.parametrize(
    ("flag", "before"), [("precision=bfloat16", "float32"), ("sync_batch_norm=false", "true")]
)
def test_what_changes_numbers_is_compared(root, run, flag, before):
    name, _, value = flag.partition("=")
    done = train_here(*training(root, run), f"--{flag}")
    assert done.code == 2
    assert f"--{name} is {value}, but {before} in the run" in done.error
    # Of runs that are older than the comparison it is not known.
    record = json.loads((run / "run.json").read_text())
    del record["identity"][name]
    (run / "run.json").write_text(json.dumps(record))
    assert train_here(*training(root, run), f"--{flag}").code == 0


def test_metrics_are_printed_before_they_cannot_be_written(root, run):
    (run / "metrics.json").mkdir()  # in the way
    done = train_here("--mode=eval", f"--model_dir={run}", f"--data_dir={root / 'data'}")
    assert done.code == 1 and "cannot write" in done.error
    assert json.loads(done.stdout)["step"] == 4


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("mode", ["search", "train"])
def test_a_split_without_a_label_is_an_error_before_the_first_step(root, tmp_path, mode, split):
    write_cityscapes(tmp_path / "source", train=4, val=1)
    for path in (tmp_path / "source" / "gtFine" / split).rglob("*_labelIds.png"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)  # unlabelled
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"))
    run = tmp_path / "run"
    flags = training(root, run) if mode == "train" else (*SEARCH, f"--model_dir={run}")
    done = train_here(*flags, f"--data_dir={tmp_path / 'data'}")
    assert done.code == 1, done.stderr
    assert f"no image of split '{split}' has a labelled pixel" in done.error
    assert not run.exists() or not os.listdir(run)

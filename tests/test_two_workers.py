"""--distribution_strategy=multi_worker_mirrored as a command: two processes that end as one."""

import signal
import time

import pytest

from tests.command import TINY_NETWORK, finish, start_train
from tests.miniature import write_cityscapes
from tests.official.test_workers import config, find_addresses
from tests.test_resume import assert_same_bits, history, tensors
from tfrecords_tools.convert import convert

STEPS = 20
# What takes longest is to build the graphs, eight times.
GENOTYPE = '{"format": 1, "path": [0], "cells": [[[[0, "skip_connect"], [1, "skip_connect"]]]]}'


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("two_workers")
    write_cityscapes(root / "source", train=4, val=2)
    convert("cityscapes", str(root / "source"), str(root / "data"))
    (root / "genotype.json").write_text(GENOTYPE)
    return root


def start_both(root, model_dir):
    """Two workers of a training, and where they are."""
    flags = (
        *("--mode=train", "--distribution_strategy=multi_worker_mirrored", "--deterministic"),
        *("--data_dir=data", "--genotype=genotype.json", *TINY_NETWORK),
        *(f"--train_steps={STEPS}", "--save_every=2", "--eval_every=20"),
        *("--batch_norm_decay=0.9", "--drop_path_keep_prob=0.7", f"--model_dir={model_dir}"),
    )
    addresses = find_addresses(2)
    return [
        start_train(*flags, cwd=root, TF_CONFIG=config(addresses, index)) for index in range(2)
    ], addresses


def wait_for(path, processes):
    end = time.monotonic() + 300
    while not path.exists():
        ended = [process for process in processes if process.poll() is not None]
        assert not ended and time.monotonic() < end, [process.communicate() for process in ended]
        time.sleep(0.05)


def test_two_workers_stop_together_and_go_on_bit_for_bit(root):
    whole, broken = root / "whole", root / "broken"
    for done in map(finish, start_both(root, "whole")[0]):
        assert done.code == 0, done.stderr

    checkpoints = broken / "checkpoints"
    processes, _ = start_both(root, "broken")
    wait_for(checkpoints / "ckpt-2.index", processes)
    processes[1].send_signal(signal.SIGTERM)
    last = set()
    for stopped in map(finish, processes):
        assert stopped.code == 128 + signal.SIGTERM, stopped.stderr
        last.add(stopped.stderr.splitlines()[-1])
    (line,) = last
    assert line.endswith("the same command goes on from there")
    step = int(line.split("at step ")[1].split(":")[0])
    assert 2 <= step < STEPS
    for own in (checkpoints, checkpoints / "worker_1"):
        assert (own / f"ckpt-{step}.index").exists()

    processes, addresses = start_both(root, "broken")
    wait_for(checkpoints / f"ckpt-{step // 2 * 2 + 2}.index", processes)
    processes[0].kill()
    began = time.monotonic()
    left = finish(processes[1], timeout=30)
    assert time.monotonic() - began < 30
    finish(processes[0])
    assert left.code == 1
    assert left.error.startswith(f"error: worker 0 ({addresses[0]}) is gone")
    assert f"train goes on at step {step} of {STEPS}" in left.stderr

    for done in map(finish, start_both(root, "broken")[0]):
        assert done.code == 0, done.stderr
        assert "train goes on at step " in done.stderr
    assert_same_bits(tensors(broken, STEPS), tensors(whole, STEPS))
    assert [row["step"] for row in history(broken)] == [20]

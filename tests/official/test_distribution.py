import json
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf

from official import convolutions, distribution, optimizers
from official.checkpoints import Checkpoints
from official.errors import UsageError
from tests import replicas


def test_one_device_and_mirrored():
    assert distribution.make_strategy("one_device").num_replicas_in_sync == 1
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    strategy = distribution.make_strategy("mirrored")
    assert strategy.num_replicas_in_sync == len(devices)
    assert distribution.is_chief(strategy)
    assert distribution.worker_directory("run", strategy) == "run"


@pytest.mark.parametrize("name", ["two_device", "", "Mirrored"])
def test_unknown_strategy(name):
    with pytest.raises(UsageError, match=r"--distribution_strategy.*one_device"):
        distribution.make_strategy(name)


def test_no_tpu():
    with pytest.raises(UsageError, match="--distribution_strategy=tpu"):
        distribution.make_strategy("tpu")


@pytest.mark.parametrize(
    "config",
    [
        None,
        "{",
        "[]",
        "{}",
        json.dumps({"cluster": {"worker": ["localhost:1"]}}),
        json.dumps({"cluster": {"worker": ["localhost:1"]}, "task": {"type": "chief", "index": 0}}),
    ],
)
def test_bad_tf_config(monkeypatch, config):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(UsageError, match="TF_CONFIG"):
        distribution.make_strategy("multi_worker_mirrored")


def test_batch_size_must_divide(two_replicas):
    distribution.check_batch_size(4, two_replicas)
    distribution.check_batch_size(1, distribution.make_strategy("one_device"))
    for batch_size in (0, 3, -2):
        with pytest.raises(UsageError, match=rf"--batch_size={batch_size} .*replicas, 2"):
            distribution.check_batch_size(batch_size, two_replicas)


def test_sum_over_replicas(two_replicas):
    def function():
        number = tf.cast(
            tf.distribute.get_replica_context().replica_id_in_sync_group + 1, tf.float32
        )
        return distribution.sum_over_replicas([number, 10 * number])

    results = tf.function(lambda: two_replicas.run(function))()
    # 1 + 2 and 10 + 20, on either replica.
    for result, expected in zip(results, (3, 30), strict=True):
        assert [float(r) for r in two_replicas.experimental_local_results(result)] == [expected] * 2
    assert float(distribution.sum_over_replicas(tf.constant(5.0))) == 5


@pytest.mark.parametrize("precision", distribution.PRECISIONS)
@pytest.mark.parametrize("instructions", [True, False])
def test_precision(precision, instructions, monkeypatch):
    monkeypatch.setattr(
        convolutions, "computes_well", lambda dtype: instructions or dtype != tf.bfloat16
    )
    before = keras.config.dtype_policy()
    expected = "float32" if precision == "bfloat16" and not instructions else precision
    try:
        assert distribution.set_precision(precision) == expected
        layer = keras.layers.Dense(1)
        layer.build([1, 1])
        assert layer.compute_dtype == expected and layer.kernel.dtype == "float32"
    finally:
        keras.config.set_dtype_policy(before)
    with pytest.raises(UsageError, match="--precision=fp16"):
        distribution.set_precision("fp16")


def work_and_save(directory):
    """One SGD step of two workers, saved and restored; returns what this worker saw."""
    strategy = distribution.make_strategy("multi_worker_mirrored")
    with strategy.scope():
        variable = keras.Variable(np.float32([8]), name="kernel")
        optimizer = optimizers.sgd(0.5, l2=1.0)
        optimizer.build([variable])
    groups = {"weights": [variable], "optimizer": optimizer.variables}
    run = Checkpoints(directory, groups, save_to=distribution.worker_directory(directory, strategy))

    @tf.function
    def step(share):
        # (A bare argument has no device, which the all-reduce needs: hence the identity.)
        strategy.run(lambda gradient: optimizer.apply([tf.identity(gradient)]), (share,))

    share = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant([context.replica_id_in_sync_group + 1.0])
    )
    step(share)
    after_one = float(variable.numpy()[0])
    run.save(1)
    step(share)
    run.save(2)
    restored = run.restore(f"{directory}/ckpt-1")
    chief = distribution.is_chief(strategy)
    return chief, restored, after_one, float(variable.numpy()[0])


def test_two_workers(tmp_path, monkeypatch):
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        hosts = [f"127.0.0.1:{s.getsockname()[1]}" for s in (one, two)]
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(task))
        processes.append(replicas.start_in_new_process(work_and_save, str(tmp_path), cpus=1))
    # w - rate * (sum of the gradients 1 and 2 + l2 * w) = 8 - 0.5 * (3 + 8) = 2.5 on both.
    results = [replicas.result_of(process) for process in processes]
    assert results == [(True, 1, 2.5, 2.5), (False, 1, 2.5, 2.5)]
    assert (tmp_path / "ckpt-2.index").exists() and (tmp_path / "worker_1/ckpt-2.index").exists()

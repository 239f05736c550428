"""Where and in which precision the computation runs: devices, replicas, workers, dtype policy."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from official import convolutions, workers
from official.errors import UsageError, explain
from official.interrupts import Interrupts

STRATEGIES = ("one_device", "mirrored", "multi_worker_mirrored", "tpu")
_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
PRECISIONS = tuple(_POLICIES)
FEW_CORES = 4


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The strategy of this process; make it before any other use of TensorFlow.

    Args:
        name: one_device: the first GPU, or the CPU; mirrored: a replica on each GPU, or on each
            logical CPU where there is no GPU; multi_worker_mirrored: replicas on all the machines
            that the environment variable TF_CONFIG lists, for which it waits; tpu: the TPU of this
            machine, or the one that the environment variable TPU_NAME names.

    Raises:
        UsageError: the name is unknown or its devices are not there.
    """
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy(_local_devices()[0])
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(_local_devices())
    if name == "multi_worker_mirrored":
        return _multi_worker_strategy()
    if name == "tpu":
        return _tpu_strategy()
    raise UsageError(f"--distribution_strategy={name} is not one of {', '.join(STRATEGIES)}")


def _local_devices() -> list[str]:
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return [device.name for device in devices]


def _multi_worker_strategy() -> tf.distribute.Strategy:
    crew = workers.gather(workers.read_cluster(os.environ.get("TF_CONFIG")))
    try:
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UsageError(
            "--distribution_strategy=multi_worker_mirrored: TensorFlow cannot connect the workers "
            f"of the environment variable TF_CONFIG ({explain(error)})"
        ) from None
    crew.take_signals()
    strategy.crew = crew
    return strategy


def interrupts_of(strategy: tf.distribute.Strategy) -> Interrupts | workers.Crew:
    """What ends a run by a signal: of this process, or of all the strategy's workers."""
    return getattr(strategy, "crew", None) or Interrupts()


def _tpu_strategy() -> tf.distribute.Strategy:
    address = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UsageError(
            f"--distribution_strategy=tpu: no TPU answers at TPU_NAME={address} ({error})"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def check_batch_size(batch_size: int, strategy: tf.distribute.Strategy) -> None:
    """Raises UsageError unless every replica gets an equal, non-empty part of the global batch."""
    replicas = strategy.num_replicas_in_sync
    if batch_size < 1 or batch_size % replicas:
        raise UsageError(
            f"--batch_size={batch_size} is the size of the global batch: give a positive multiple "
            f"of the number of replicas, {replicas}"
        )


def sum_over_replicas(tensors: Any) -> Any:
    """Sums tensors (any nesting) over the replicas; every replica gets the same result.

    Call it in the replica function; with one replica, or under no strategy, it changes nothing.
    """
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tensors)


def assign(variables: Sequence[Any], values: Sequence[tf.Tensor]) -> None:
    """Gives variables values that are the same on all replicas; call it in the replica function."""

    def on_all_replicas(strategy: tf.distribute.Strategy, values: Sequence[Any]) -> None:
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(
                getattr(variable, "value", variable),
                lambda variable, value: variable.assign(value),
                args=(value,),
            )

    tf.distribute.get_replica_context().merge_call(on_all_replicas, args=(list(values),))


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the run's files; True everywhere but on further workers."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return True
    resolver = strategy.cluster_resolver
    if "chief" in resolver.cluster_spec().jobs:
        return bool(resolver.task_type == "chief")
    return bool(resolver.task_type == "worker" and resolver.task_id == 0)


def worker_directory(directory: str, strategy: tf.distribute.Strategy) -> str:
    """`directory` for the chief, a sub-directory of its own for every other worker.

    Saving under several workers takes part of all of them, so every worker must save; two that
    wrote the same file would damage it.
    """
    if is_chief(strategy):
        return directory
    return os.path.join(directory, f"worker_{strategy.cluster_resolver.task_id}")


def set_precision(precision: str) -> str:
    """Sets the type that layers made from now on compute in; variables stay float32.

    Make the strategy before. float16 also needs optimizers.with_loss_scale.

    Returns:
        the precision; float32 instead of bfloat16 where that is missing or brings nothing.

    Raises:
        UsageError: it is not float32, bfloat16 or float16.
    """
    if precision not in _POLICIES:
        raise UsageError(f"--precision={precision} is not one of {', '.join(PRECISIONS)}")
    if not convolutions.computes_well(tf.as_dtype(precision)):
        precision = "float32"
    keras.config.set_dtype_policy(_POLICIES[precision])
    return precision


def expect_many_operations() -> None:
    """Settings for graphs of very many small operations; call it before TensorFlow starts.

    TensorFlow's graph optimizations take longer than they ever save there. And two operations at a
    time, each in one thread, are faster than one in two: on few cores, where all are kept busy.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    chosen = tf.config.threading.get_intra_op_parallelism_threads()
    cores = os.cpu_count() or 1
    if not chosen and cores <= FEW_CORES:
        # A process in which TensorFlow has started keeps its threads.
        with contextlib.suppress(RuntimeError):
            tf.config.threading.set_inter_op_parallelism_threads(cores)
            tf.config.threading.set_intra_op_parallelism_threads(1)


def make_deterministic(seed: int, threads: int = 1) -> None:
    """Makes equal runs give equal bits, at some cost in speed; call it before TensorFlow starts.

    The number of threads is fixed too, because it decides the order in which sums are formed.
    """
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()

"""What the tests of the two training steps share: batches, and comparing one device with two."""

from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from official.training_step import mean_loss, pixels_of_all_replicas

VOID = 255
CLASSES = 3


def random_batch(seed, size=(33, 33)):
    """Four examples whose labels follow the colours; void: none, a third, almost all, all of it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, CLASSES, (4, size[0] // 8 + 1, size[1] // 8 + 1))
    label = coarse.repeat(8, 1).repeat(8, 2)[:, : size[0], : size[1]].astype("int32")
    noise = rng.integers(0, 100, (4, *size, 3))
    image = (noise + 150 * np.eye(3, dtype=int)[label]).astype("float32")
    label[1, : size[0] // 3] = VOID
    label[2, 2:] = VOID
    label[3] = VOID
    return {"image": image, "label": label, "number": np.arange(4 * seed, 4 * seed + 4)}


def of_replica(batch, replica, num_replicas):
    """One of the consecutive parts of a global batch, as the input pipeline hands them out."""
    return {key: np.split(value, num_replicas)[replica] for key, value in batch.items()}


def per_replica(strategy, batch):
    """All the parts, each on its replica."""

    def part(key, context):
        own = of_replica(batch, context.replica_id_in_sync_group, strategy.num_replicas_in_sync)
        return tf.constant(own[key])

    return {
        key: strategy.experimental_distribute_values_from_function(partial(part, key))
        for key in batch
    }


def of_both_replicas(batch, one, other):
    """What an update by two replicas, whose BN is not synchronised, makes of the variables.

    The loss is the mean over all pixels that count; so are its gradients, and with them the updates
    of SGD. Every replica has the same say in the moving statistics.

    Args:
        one, other: what either makes of them alone with its half of the batch, {path: array}.

    Returns:
        ({path: array}, the share of each replica in the loss).
    """
    counts = [np.sum(half != VOID) for half in np.split(batch["label"], 2)]
    shares = np.array(counts) / np.sum(counts)
    both = {
        path: np.tensordot([0.5, 0.5] if "moving" in path else shares, [one[path], other[path]], 1)
        for path in one
    }
    return both, shares


def compiled_calls(function, *inputs):
    """How many calls of functions compiled with XLA are in a traced function."""
    operations = function.get_concrete_function(*inputs).graph.get_operations()
    calls = [call for call in operations if call.type.endswith("PartitionedCall")]
    return sum("_XlaMustCompile" in call.node_def.attr for call in calls)


def loss_of(label, logits, top_k_pixels=1.0, **options):
    """`mean_loss` of the pixels of all replicas."""
    pixels = pixels_of_all_replicas(label, VOID, top_k_pixels)
    return mean_loss(label, logits, VOID, pixels, top_k_pixels=top_k_pixels, **options)


def values(variables):
    """{path: NumPy array}; the paths must be different."""
    found = {v.path: v.numpy() for v in variables}
    assert len(found) == len(variables)
    return found


def assert_same(actual, wanted):
    """Bit for bit."""
    assert actual.keys() == wanted.keys()
    for path, value in wanted.items():
        np.testing.assert_array_equal(actual[path], value, err_msg=path)


def assert_same_change(actual, wanted, before, tolerance):
    """Two results agree in what happened to every variable since `before`."""
    assert actual.keys() == wanted.keys() == before.keys()
    for path, old in before.items():
        change, error = wanted[path] - old, actual[path] - wanted[path]
        assert np.any(change), path
        # Rounding is relative to the value, too.
        allowed = tolerance * np.linalg.norm(change) + 1e-6 * np.linalg.norm(wanted[path])
        assert np.linalg.norm(error) <= allowed, path


def skip_without_convolutions(precision, gradients=False):
    """Skips a test in float16 where TensorFlow lacks convolutions, or gradients of dilated ones.

    bfloat16 is never skipped: where it is missing, float32 is computed in.
    """
    if precision != "float16":
        return
    image, kernel = tf.ones([1, 9, 9, 3], precision), tf.ones([3, 3, 3, 4], precision)
    try:
        tf.nn.conv2d(image, kernel, 2, "SAME")
        with tf.GradientTape() as tape:
            tape.watch((image, kernel))
            dilated = tf.nn.conv2d(image, kernel, 1, "SAME", dilations=2)
        if gradients:
            tape.gradient(dilated, (image, kernel))
    except (tf.errors.AbortedError, tf.errors.InvalidArgumentError) as error:
        pytest.skip(f"no convolutions in float16 on this processor: {error.message[:80]}")

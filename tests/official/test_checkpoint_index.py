"""What an index of a checkpoint tells of is looked at before TensorFlow, which it could end."""

import numpy as np
import pytest
import tensorflow as tf

from official import checkpoint_index, checkpoints
from official.checkpoints import DamagedError
from tests import checkpoint_tables
from tests.checkpoint_tables import entry, table


def test_a_table_as_of_the_tests_is_one_for_tensorflow(tmp_path):
    prefix = tmp_path / "ckpt-1"
    data = np.float32([3, 4]).tobytes()
    crc = checkpoint_tables.masked_crc(data)
    checkpoint_tables.write(prefix, {"v": entry([2], size=8, crc32c=crc)}, data)
    checkpoints.verify(str(prefix))
    np.testing.assert_array_equal(tf.train.load_variable(str(prefix), "v"), [3, 4])


def test_bytes_are_counted(tmp_path):
    variables = {f"name{n}": tf.Variable(tf.zeros([n, 3], tf.float64)) for n in range(300)}
    prefix = tf.train.Checkpoint(**variables).write(str(tmp_path / "a"))
    content = (tmp_path / "a.index").read_bytes()
    held = (tmp_path / "a.data-00000-of-00001").stat().st_size
    numbers = 8 * 3 * sum(range(300))
    assert prefix and numbers < checkpoint_index.count_bytes(content) <= held


def test_a_variable_in_parts_counts_once(tmp_path):
    # As TF1's partitioned variables are saved.
    parts = [f"10 4 {start},5:0,4" for start in (0, 5)]
    tf.raw_ops.SaveV2(
        prefix=str(tmp_path / "a"),
        tensor_names=["v", "v"],
        shape_and_slices=parts,
        tensors=[tf.zeros([5, 4])] * 2,
    )
    checkpoints.verify(str(tmp_path / "a"))
    assert checkpoint_index.count_bytes((tmp_path / "a.index").read_bytes()) == 160


NONE = "a shape in its index is none"
ENTRIES = {
    "more numbers than can be": (entry([2**40, 2**40]), NONE),
    "so too where there are none": (entry([2**40, 2**40, 0]), NONE),
    "a side below 0": (entry([-3]), NONE),
    "too many sides": (entry([1] * 255), NONE),
    "no type": (entry([2], dtype=77), "an entry of its index cannot be read"),
    "a resource": (entry([2], dtype=20), "an entry of its index is a resource"),
    "a reference": (entry([2], dtype=101), "an entry of its index is a float32_ref"),
    "more than the data": (entry([2**40]), "tells of 4398046511104 bytes and has 64"),
    "strings": (entry([2**40], dtype=7), "tells of 1099511627776 bytes and has 64"),
}


@pytest.mark.parametrize("kind", ENTRIES)
def test_tensors_that_can_not_be(tmp_path, kind):
    made, saying = ENTRIES[kind]
    checkpoint_tables.write(tmp_path / "ckpt-1", {"v": made})
    with pytest.raises(DamagedError, match=f"ckpt-1 is damaged .*{saying}"):
        checkpoints.verify(str(tmp_path / "ckpt-1"))


UNKNOWN = entry([])
UNKNOWN.shape.unknown_rank = True
GOOD = [(b"", b""), (b"v", entry([2]).SerializeToString())]
TABLES = {
    "nothing": (b"", "has no end"),
    "something else": (bytes(100), "has no end"),
    "a block of 1 PB": (table(GOOD, handle=(0, 2**50)), "a block of its index is not in it"),
    "a block far away": (table(GOOD, handle=(2**60, 9)), "a block of its index is not in it"),
    "a number without an end": (b"\xff" * 92 + table(GOOD)[-8:], "a number in its index has no"),
    "no message": (table([(b"v", b"\xff")]), "an entry of its index cannot be read"),
    "a shape of any rank": (table([(b"v", UNKNOWN.SerializeToString())]), NONE),
    "a long name": (table([(b"v" * 5000, b"")]), "an entry of its index is not in its block"),
    "a block twice": (table([(b"", bytes(100))], times=9), "blocks of its index overlap"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_are_none(kind):
    content, saying = TABLES[kind]
    with pytest.raises(ValueError, match=saying):
        checkpoint_index.count_bytes(content)

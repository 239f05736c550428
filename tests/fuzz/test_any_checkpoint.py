"""Whatever a checkpoint's index tells of, it is read or refused; the process goes on."""

import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from official import checkpoints
from tests import checkpoint_tables
from tests.fuzz.promise import answer
from tests.fuzz.values import damaged

SIZES = st.integers(-3, 9) | st.sampled_from([2**31, 2**40, 2**62, 2**63 - 1, -(2**63)])
ENTRIES = st.builds(
    checkpoint_tables.entry,
    st.lists(SIZES, max_size=4),
    st.integers(-1, 25) | st.just(101),
    size=SIZES,
    offset=SIZES,
    shard_id=st.integers(0, 2),
)


@given(entries=st.dictionaries(st.sampled_from(["v", "step", "g/v", "\0"]), ENTRIES, min_size=1))
def test_any_entry(folder, entries):
    checkpoint_tables.write(folder / "ckpt-1", entries)
    answer(checkpoints.verify, str(folder / "ckpt-1"))


@given(value=st.data())
def test_damaged_bytes(folder, value):
    path = folder / "good"
    if not path.exists():
        tf.train.Checkpoint(v=tf.Variable([1.0, 2.0])).write(str(folder / "ckpt-2"))
        path.write_bytes((folder / "ckpt-2.index").read_bytes())
    (folder / "ckpt-2.index").write_bytes(value.draw(damaged(path.read_bytes())))
    answer(checkpoints.verify, str(folder / "ckpt-2"))

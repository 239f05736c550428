"""Whatever a MATLAB file holds, its field is read or there is one short line."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from tests.fuzz.promise import answer
from tests.fuzz.values import damaged
from tfrecords_tools.matlab import read_field


def saved(**options):
    stream = io.BytesIO()
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    savemat(stream, {"GTcls": {"Segmentation": values, "Boundaries": [[1.5]]}}, **options)
    return stream.getvalue()


@given(content=st.sampled_from([saved(), saved(do_compression=True)]).flatmap(damaged))
def test_damaged_bytes(folder, content):
    path = folder / "a.mat"
    path.write_bytes(content)
    values, _ = answer(read_field, path, "GTcls", "Segmentation", errors=ValueError)
    assert values is None or isinstance(values, np.ndarray)

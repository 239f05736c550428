"""Fields of MATLAB files, as scipy writes them, and files that would fill all memory."""

import struct
import zlib

import numpy as np
import pytest
from scipy import sparse
from scipy.io import savemat

from tfrecords_tools import matlab
from tfrecords_tools.matlab import read_field


def like_sbd(values) -> dict:
    """A structure as SBD's are: beside the array, cells of sparse arrays and a list."""
    edges = np.empty((20, 1), object)
    edges[:, 0] = [sparse.csc_matrix(np.eye(3, dtype=bool)) for _ in range(20)]
    return {"Boundaries": edges, "Segmentation": values, "CategoriesPresent": np.array([3, 15])}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 3), (2, 2), (5, 7), (8, 16), (0, 0)])
def test_what_scipy_writes_is_read(tmp_path, compressed, dtype, shape):
    values = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    content = {"other": np.arange(5), "GTcls": like_sbd(values), "last": "text"}
    savemat(tmp_path / "a.mat", content, do_compression=compressed)
    found = read_field(tmp_path / "a.mat", "GTcls", "Segmentation")
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, values)


def compressed(content: bytes) -> bytes:
    packed = zlib.compress(content, 9)
    return struct.pack("<II", 15, len(packed)) + packed


def element(kind: int, content: bytes, claimed: int | None = None) -> bytes:
    size = len(content) if claimed is None else claimed
    return struct.pack("<II", kind, size) + content + bytes(-len(content) % 8)


def array(array_class: int, sides: tuple[int, ...], name: bytes, *parts: bytes) -> bytes:
    flags = element(6, struct.pack("<II", array_class, 0))
    return element(
        14,
        flags
        + element(5, struct.pack(f"<{len(sides)}i", *sides))
        + b"".join((element(1, name), *parts)),
    )


def structure(field: bytes, length: int = 13) -> bytes:
    names = b"Segmentation".ljust(max(length, 0), b"\0")
    return array(
        2, (1, 1), b"GTcls", element(5, struct.pack("<i", length)), element(1, names), field
    )


HEADER = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
GOOD = array(9, (2, 2), b"", element(2, bytes(4)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no MATLAB file of version 5"),
        (HEADER[:-2] + b"HM", "no MATLAB file"),
        (HEADER, "has no GTcls"),
        (HEADER + structure(GOOD)[:-20], "cut off"),
        (HEADER + element(14, b"", 2**32 - 1), "cut off"),
        (HEADER + element(14, b""), "an array in it is cut off"),
        (HEADER + element(14, element(6, bytes(8))), "an array in it is cut off"),
        # 300 MB, then three times as much: in 0.3 MB, and in a few kB.
        (HEADER + compressed(bytes(3 * 10**8)), "more than 268435456 bytes"),
        (HEADER + element(15, b"no zlib"), "damaged"),
        # 2^31 - 1 rows and columns, of four numbers.
        (
            HEADER + structure(array(9, (2**31 - 1, 2**31 - 1), b"", element(2, bytes(4)))),
            "4 numbers",
        ),
        (HEADER + structure(array(9, (-2, -2), b"", element(2, bytes(4)))), "4 numbers"),
        # A cell of 2^31 - 1 cells, which are not there.
        (HEADER + structure(array(1, (2**31 - 1, 1), b"")), "no array of numbers"),
        (HEADER + structure(GOOD, length=0), "no length"),
        (HEADER + structure(GOOD, length=-1), "no length"),
        (HEADER + array(9, (1, 1), b"GTcls", element(2, b"\0")), "no structure"),
        (HEADER + structure(array(9, (1, 1), b"", element(9, bytes(3)))), "of type 9"),
    ],
)
def test_what_is_damaged_or_huge_is_refused_at_once(tmp_path, content, message):
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_field(tmp_path / "a.mat", "GTcls", "Segmentation")


def test_the_pieces_of_those_files_make_a_good_one(tmp_path):
    (tmp_path / "a.mat").write_bytes(HEADER + structure(GOOD))
    assert read_field(tmp_path / "a.mat", "GTcls", "Segmentation").tolist() == [[0, 0], [0, 0]]


def test_a_large_file_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(matlab, "LARGEST", 200)
    (tmp_path / "a.mat").write_bytes(HEADER + structure(GOOD))
    with pytest.raises(ValueError, match="more than 200 bytes"):
        read_field(tmp_path / "a.mat", "GTcls", "Segmentation")

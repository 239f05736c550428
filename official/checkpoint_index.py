"""A checkpoint's index, looked at before TensorFlow opens it.

TensorFlow ends the process at a shape that is none, and makes room for whatever a shape or the
length of a block tells of. The index is a table as of LevelDB: blocks of keys and values, and a
footer that says where the block lies that says where the others lie. Check sums are TensorFlow's.
"""

import math
from collections.abc import Iterator, Sequence

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import tensor_bundle_pb2

_FOOTER, _TRAILER = 48, 5
_MAGIC = bytes.fromhex("57fb808b247547db")
_LONGEST_KEY = 4096

_Handle = tuple[int, int]
"""Where a block begins, and how long it is."""


def count_bytes(content: bytes) -> int:
    """The bytes that the tensors in an index take at least.

    Raises:
        ValueError: it is no index, or one of its tensors can not be.
    """
    told, parts = [0], 0
    for key, value in _read_entries(content):
        if not key:  # the header
            continue
        try:
            entry = tensor_bundle_pb2.BundleEntryProto.FromString(value)
            kind = tf.as_dtype(entry.dtype)
        except (DecodeError, TypeError):
            raise ValueError("an entry of its index cannot be read") from None
        # Resources and references are no values.
        if not (kind.size or kind == tf.string) or kind != kind.base_dtype:
            raise ValueError(f"an entry of its index is a {kind.name}")
        shape = [dimension.size for dimension in entry.shape.dim]
        _check_shape(shape, entry.shape.unknown_rank)
        size = math.prod(shape) * (kind.size or 1)  # a string's length takes a byte
        if entry.slices:  # which are entries of their own
            told.append(size)
        else:
            parts += size
    return max(parts, *told)


def _check_shape(shape: Sequence[int], is_unknown: bool) -> None:
    most = math.prod(filter(None, shape))  # TensorFlow multiplies from the left
    if is_unknown or len(shape) > 254 or min(shape, default=0) < 0 or most >= 2**63:
        raise ValueError("a shape in its index is none")


def _read_entries(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a table."""
    footer = content[-_FOOTER:]
    if len(footer) < _FOOTER or not footer.endswith(_MAGIC):
        raise ValueError("its index has no end")
    _, place = _read_handle(footer, 0)
    index, _ = _read_handle(footer, place)
    left = len(content)
    for _, value in _read_block(content, index):
        block, _ = _read_handle(value, 0)
        left -= block[1]
        if left < 0:
            raise ValueError("blocks of its index overlap")
        yield from _read_block(content, block)


def _read_block(content: bytes, handle: _Handle) -> Iterator[tuple[bytes, bytes]]:
    place, end = handle[0], sum(handle)
    if end + _TRAILER > len(content):
        raise ValueError("a block of its index is not in it")
    if content[end]:
        raise ValueError("its index is compressed")
    # In the end are the places of keys that stand there whole, and their number.
    end -= 4 + 4 * int.from_bytes(content[end - 4 : end], "little")
    key = b""
    while place < end:
        shared, place = _read_number(content, place)
        more, place = _read_number(content, place)
        length, place = _read_number(content, place)
        value_at, rest = place + more, place + more + length
        if shared > len(key) or shared + more > _LONGEST_KEY or rest > end:
            raise ValueError("an entry of its index is not in its block")
        key, place = key[:shared] + content[place:value_at], rest
        yield key, content[value_at:rest]


def _read_handle(content: bytes, place: int) -> tuple[_Handle, int]:
    offset, place = _read_number(content, place)
    size, place = _read_number(content, place)
    return (offset, size), place


def _read_number(content: bytes, place: int) -> tuple[int, int]:
    """An integer in bytes of 7 bits each, the lowest first, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = content[place + shift // 7 : place + shift // 7 + 1]
        if not byte:
            break
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number, place + shift // 7 + 1
    raise ValueError("a number in its index has no end")

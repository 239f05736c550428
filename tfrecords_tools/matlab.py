"""A field of a structure in a MATLAB file of version 5, and nothing else of it.

scipy's reader builds all that such a file holds, and one of 900 bytes can make it fill all memory.
This one takes no more than a part of what is there. The format is that of The MathWorks' "MAT-File
Format", chapter "Level 5 MAT-Files": after a header of 128 bytes follow elements, each of them a
type, a number of bytes, and these bytes, padded to eight.
"""

import itertools
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LARGEST = 2**28
"""So many bytes a file may have, and what is compressed in it."""

_HEADER, _VERSION = 128, 0x0100
_TYPES = {
    1: "i1",
    2: "u1",
    3: "i2",
    4: "u2",
    5: "i4",
    6: "u4",
    7: "f4",
    9: "f8",
    12: "i8",
    13: "u8",
}
_MATRIX, _COMPRESSED = 14, 15
_STRUCTURE = 2
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4"}

_Element = tuple[int, bytes]


def read_field(path: Path, variable: str, field: str) -> np.ndarray:
    """Reads a field, an array of numbers, of a variable, a structure of one element.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, too large, of another kind, or has no such field.
    """
    with open(path, "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it has more than {LARGEST} bytes")
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
    if (
        order is None
        or struct.unpack(f"{order}H", content[_HEADER - 4 : _HEADER - 2])[0] != _VERSION
    ):
        raise ValueError("it is no MATLAB file of version 5")
    try:
        for element in _elements(content[_HEADER:], order):
            kind, data = element
            if kind == _COMPRESSED:
                kind, data = next(_elements(_decompress(data), order))
            name, array_class, _, parts = _open_matrix(kind, data, order)
            if name == variable:
                if array_class != _STRUCTURE:
                    raise ValueError(f"{variable} is no structure")
                return _read_numbers(*_find_field(parts, field, order), order)
    except (struct.error, zlib.error, StopIteration) as error:
        raise ValueError(f"it is damaged ({error or 'cut off'})") from None
    raise ValueError(f"it has no {variable}")


def _elements(data: bytes, order: str) -> Iterator[_Element]:
    """The elements, type and bytes, that stand one after the other."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        begin, room = place + 8, len(data) - place - 8
        if kind >> 16:  # a small one: two bytes each for size and type, then at most four
            kind, size, begin, room = kind & 0xFFFF, kind >> 16, place + 4, 4
        if size > room:
            raise ValueError("it is cut off")
        yield kind, data[begin : begin + size]
        place = begin + size + (0 if kind == _COMPRESSED else -(begin + size - place) % 8)


def _decompress(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    content = stream.decompress(data, LARGEST)
    if stream.unconsumed_tail:
        raise ValueError(f"what is compressed in it has more than {LARGEST} bytes")
    return content


def _open_matrix(
    kind: int, data: bytes, order: str
) -> tuple[str, int, tuple[int, ...], Iterator[_Element]]:
    """Name, class and sides of an array, and the elements that follow them in it."""
    if kind != _MATRIX:
        raise ValueError(f"an element of it is of type {kind}, no array")
    parts = _elements(data, order)
    try:
        (_, flags), (_, sides), (_, name) = itertools.islice(parts, 3)
    except ValueError:
        raise ValueError("an array in it is cut off") from None
    array_class = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    return name.decode("latin-1"), array_class, tuple(np.frombuffer(sides, f"{order}i4")), parts


def _find_field(parts: Iterator[_Element], field: str, order: str) -> _Element:
    """The array that a structure of one element has as that field."""
    length = struct.unpack_from(f"{order}i", next(parts)[1])[0]
    names = next(parts)[1]
    if length < 1:
        raise ValueError("the names of its fields have no length")
    for start, element in zip(range(0, len(names), length), parts, strict=False):
        if names[start : start + length].rstrip(b"\0") == field.encode():
            return element
    raise ValueError(f"its structure has no {field}")


def _read_numbers(kind: int, data: bytes, order: str) -> np.ndarray:
    _, array_class, sides, parts = _open_matrix(kind, data, order)
    if array_class not in _CLASSES:
        raise ValueError(f"its field is of class {array_class}, no array of numbers")
    stored, numbers = next(parts)  # which may be of a smaller type than the array
    if stored not in _TYPES or len(numbers) % int(_TYPES[stored][1]):
        raise ValueError(f"its numbers are of type {stored}")
    values = np.frombuffer(numbers, order + _TYPES[stored]).astype(_CLASSES[array_class])
    if min(sides, default=0) < 0 or math.prod(map(int, sides)) != values.size:
        raise ValueError(f"its field has {values.size} numbers for sides of {sides}")
    return values.reshape(sides, order="F")

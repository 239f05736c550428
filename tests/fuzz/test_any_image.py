"""Whatever bytes an image file has, there are pixels, or one short line; and never much memory."""

import io
import struct
import zlib

import numpy as np
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from official.errors import RunError
from official.images import decode_image, decode_label, open_image, read_orientation, read_size
from official.prediction import read_picture
from tests.fuzz.promise import answer
from tests.fuzz.values import damaged
from tfrecords_tools.source import read_image, read_index_png

PIXELS = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)


def encoded(mode, form, **options):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(stream, form, **options)
    return stream.getvalue()


GOOD = [
    *(encoded(mode, "png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *(encoded(mode, "jpeg") for mode in ("L", "RGB", "CMYK")),
    encoded("RGB", "jpeg", progressive=True),
    encoded("RGB", "jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"),
    *(encoded("RGB", form) for form in ("gif", "bmp", "tiff", "webp", "dds")),
]
LIMIT = PIXELS.shape[0] * PIXELS.shape[1]
SIDES = st.sampled_from([0, 1, 9, 13, 14, 1000, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1])


def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


@st.composite
def rearranged(draw):
    """A PNG of whole chunks, of which one is new, gone or another."""
    file = draw(st.sampled_from([file for file in GOOD if file.startswith(b"\x89PNG")]))
    chunks, place = [], 8
    while place < len(file):
        (length,) = struct.unpack(">I", file[place : place + 4])
        chunks.append((file[place + 4 : place + 8], file[place + 8 : place + 8 + length]))
        place += 12 + length
    sides = draw(st.tuples(SIDES, SIDES))
    size = struct.pack(">II", *sides)
    kinds = [b"IHDR", b"PLTE", b"IDAT", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"acTL", b"abCd"]
    new = draw(st.sampled_from(kinds)), size + draw(st.sampled_from([chunks[0][1][8:], b"", b"x"]))
    place = draw(st.integers(0, len(chunks)))
    chunks[place : place + draw(st.integers(0, 1))] = [new] if draw(st.integers(0, 3)) else []
    return file[:8] + b"".join(chunk(*each) for each in chunks)


@st.composite
def resized(draw):
    """A JPEG whose frame says another size."""
    file = draw(st.sampled_from([file for file in GOOD if file.startswith(b"\xff\xd8")]))
    frame = max(file.find(b"\xff\xc0"), file.find(b"\xff\xc2"))
    size = struct.pack(">HH", *(min(side, 2**16 - 1) for side in draw(st.tuples(SIDES, SIDES))))
    return file[: frame + 5] + size + file[frame + 9 :]


FILES = st.sampled_from(GOOD).flatmap(damaged) | rearranged() | resized() | st.binary(max_size=60)


@given(file=FILES)
# What no decoder knows stands before the size, where a size is looked for.
@example(file=GOOD[4][:8] + chunk(b"abCd", struct.pack(">II5x", 1, 1)) + GOOD[4][8:])
def test_nothing_larger_than_the_limit_is_decoded(folder, file):
    path = folder / "b.png"
    path.write_bytes(file)
    for read, source, errors in (
        (open_image, file, ValueError),
        (decode_image, file, tf.errors.InvalidArgumentError),
        (read_picture, path, RunError),
    ):
        for limit in (LIMIT, LIMIT - 1):
            image, _ = answer(read, source, limit, errors=errors)
            height, width = (0, 0) if image is None else size_of(image)
            assert height * width <= limit


def size_of(image):
    return image.size[::-1] if isinstance(image, Image.Image) else image.shape[:2]


@given(file=FILES)
def test_any_bytes(folder, file):
    path = folder / "a.png"
    path.write_bytes(file)
    size, _ = answer(read_size, file, errors=ValueError)
    answer(open_image, file, errors=ValueError)
    assert read_orientation(file) in range(1, 9)
    for decode in (decode_image, lambda file: decode_label(file, "a: ")):
        image, _ = answer(decode, file, errors=tf.errors.InvalidArgumentError)
        if image is not None and size:
            assert tuple(image.shape[:2]) == size
    for read in (read_picture, read_index_png, lambda path: read_image(path).encode()):
        _, message = answer(read, path)
        assert message is None or str(path) in message

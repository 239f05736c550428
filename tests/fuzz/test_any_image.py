"""Whatever bytes an image file has, there are pixels, or one short line; and never much memory."""

import io

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

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
FILES = st.sampled_from(GOOD).flatmap(damaged) | st.binary(max_size=60)


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

"""Image files: the one decoder, whose pixels whatever reads one sees, and the one encoder.

Converter, training, evaluation, prediction and the exported network decode with these TensorFlow
operations:

    PNG    8 bits per channel, or of 16 the upper 8; grey and palette become RGB, transparency is
           dropped
    JPEG   baseline and progressive, all samplings; grey, CMYK and YCCK become RGB. The inverse
           cosine transform is libjpeg's accurate one, and colours are interpolated: but for CMYK
           the pixels are those of Pillow and most others, where TensorFlow's default is off by 6
    GIF, BMP, WebP, ...   refused

Colour profiles change nothing. Neither does a camera's rotation mark (EXIF orientation): pixels are
taken as the file stores them.

What is written are PNGs, by Pillow.
"""

import io

import tensorflow as tf
from PIL import ExifTags, Image

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of image files' names, in lower case."""

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_ACCURATE = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
# A PNG begins with 8 bytes and its first chunk: length, "IHDR", width, height, bits, colour type.
_PNG_BITS, _PNG_COLOUR_TYPE = 24, 25
_COLOUR_TYPES = ("grey", "", "RGB", "palette", "grey and alpha", "", "RGBA")


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG or JPEG file (scalar string) to uint8 [H, W, 3], RGB.

    Raises:
        tf.errors.InvalidArgumentError: the file is damaged or of another format.
    """

    def png() -> tf.Tensor:  # the operation would take GIF and others too
        return tf.cond(
            _begins_with(encoded, _PNG),
            lambda: tf.io.decode_png(encoded, channels=3),
            lambda: _refuse("neither PNG nor JPEG", (0, 0, 3)),
        )

    image = tf.cond(is_jpeg(encoded), lambda: tf.io.decode_jpeg(encoded, **_ACCURATE), png)
    return tf.ensure_shape(image, [None, None, 3])


def decode_jpeg_window(encoded: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """Decodes a part of a JPEG file and nothing else: uint8 [h, w, 3].

    The outermost two rows and columns differ from those of the whole picture, unless they are at
    its border: colours may be stored for every second pixel, and come from both sides.

    Args:
        encoded: scalar string.
        window: int32 [4], top, left, height, width.
    """
    return tf.io.decode_and_crop_jpeg(encoded, window, **_ACCURATE)


def decode_label(encoded: tf.Tensor, whose: tf.Tensor) -> tf.Tensor:
    """Decodes a label map, a PNG file of one grey channel of 8 bits, to uint8 [H, W].

    All else would be turned into grey levels that are no class numbers (colours, palettes, 16 bits,
    1 bit), so it is refused.

    Args:
        encoded: scalar string, the file.
        whose: scalar string, the beginning of an error: "" or the record's name and a colon.

    Raises:
        tf.errors.InvalidArgumentError: the file is damaged or of another kind.
    """
    header = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_PNG_COLOUR_TYPE + 1)
    kind = tf.gather(header, (*range(len(_PNG)), _PNG_BITS, _PNG_COLOUR_TYPE))

    def refused() -> tf.Tensor:
        colour = tf.gather(_COLOUR_TYPES, tf.minimum(tf.cast(kind[-1], tf.int32), 6))
        found = tf.strings.join(["a PNG, ", tf.strings.as_string(kind[-2]), "-bit ", colour])
        found = tf.where(_begins_with(encoded, _PNG), found, "no PNG")
        wrong = [
            whose,
            "the label map is ",
            found,
            ": it must be an 8-bit grey PNG of class numbers",
        ]
        return _refuse(tf.strings.join(wrong), (0, 0))

    return tf.cond(
        tf.reduce_all(kind == tf.constant((*_PNG, 8, 0), tf.uint8)),
        lambda: tf.io.decode_png(encoded, channels=1)[..., 0],
        refused,
    )


def is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a file (scalar string) begins as a JPEG does: scalar bool."""
    return _begins_with(encoded, _JPEG)


def read_orientation(file: bytes) -> int:
    """Reads the rotation mark (EXIF orientation, 1..8) of a PNG or JPEG file.

    1 means upright; it is the answer too where there is no mark or no image. Nothing here turns
    pictures by it: it is for warnings.
    """
    # Pillow decodes a whole PNG to look for it; hardly any has one.
    if file.startswith(_PNG) and b"eXIf" not in file and b"Raw profile type" not in file:
        return 1
    try:
        found = Image.open(io.BytesIO(file)).getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds for damaged EXIF, by which nobody turns an image
        return 1
    return found if found in range(1, 9) else 1


def read_size(file: bytes) -> tuple[int, int]:
    """Height and width of a PNG or JPEG file, from its header.

    Raises:
        ValueError: it is damaged, or no image.
    """
    try:
        with Image.open(io.BytesIO(file)) as image:
            return image.height, image.width
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"its image cannot be read: {error}") from error


def encode_png(image: Image.Image) -> bytes:
    """The bytes of a PNG file with these pixels."""
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


def _begins_with(encoded: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.equal(tf.strings.substr(encoded, 0, len(magic)), magic)


def _refuse(message: tf.Tensor | str, shape: tuple[int, ...]) -> tf.Tensor:
    """A branch of tf.cond that raises InvalidArgumentError when it is taken.

    tf.cond wants a tensor from each branch: this one is uint8, of the given number of dimensions.
    """
    # The operation itself, whose error outside of graphs has the message alone too.
    failure = tf.raw_ops.Assert(condition=False, data=[message])
    with tf.control_dependencies([failure]):
        return tf.zeros(shape, tf.uint8)

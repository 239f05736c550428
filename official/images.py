"""The one decoder: whatever reads an image file or a label map sees the pixels that this gives.

Converter, training, evaluation, prediction and the exported network decode with these TensorFlow
operations:

    PNG    8 bits per channel, or of 16 the upper 8; grey and palette become RGB, transparency is
           dropped
    JPEG   baseline and progressive, all samplings; grey, CMYK and YCCK become RGB. The inverse
           cosine transform is libjpeg's accurate one, and colours are interpolated: the pixels are
           those of Pillow and most other readers, where TensorFlow's default is off by up to 6
    GIF, BMP, WebP, ...   refused

Colour profiles change nothing. Neither does a camera's rotation mark (EXIF orientation): pixels are
taken as the file stores them.
"""

import io

import tensorflow as tf
from PIL import ExifTags, Image

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of image files' names, in lower case."""

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"
_ACCURATE = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
# A PNG begins with 8 bytes and its first chunk: length, "IHDR", width, height, bits, colour type.
_PNG_BITS, _PNG_COLOR_TYPE = 24, 25
_COLOR_TYPES = ("grey", "", "RGB", "palette", "grey and alpha", "", "RGBA")
_FILE = tf.TensorSpec([], tf.string)


# Functions of TensorFlow also where they are called from Python: faster, and with errors that say
# what the assertions say.
@tf.function(input_signature=[_FILE], autograph=False)
def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a PNG or JPEG file (scalar string) to uint8 [H, W, 3], RGB.

    Raises:
      tf.errors.InvalidArgumentError: the file is damaged or of another format.
    """
    image = tf.cond(
        is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, **_ACCURATE),
        lambda: _decode_png(encoded),
    )
    return tf.ensure_shape(image, [None, None, 3])


def decode_jpeg_window(encoded: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """That part of a JPEG file's pixels alone, uint8 [h, w, 3].

    The outermost two rows and columns differ from those of the whole picture, unless they are at
    its border: colours may be stored for every second pixel, and come from both sides.

    Args:
      encoded: scalar string.
      window: int32 [4], top, left, height, width.
    """
    return tf.io.decode_and_crop_jpeg(encoded, window, **_ACCURATE)


@tf.function(input_signature=[_FILE, _FILE], autograph=False)
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
    header = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_PNG_COLOR_TYPE + 1)
    bits, color_type = header[_PNG_BITS], header[_PNG_COLOR_TYPE]
    is_png = tf.equal(tf.strings.substr(encoded, 0, len(_PNG)), _PNG)
    color = tf.gather(_COLOR_TYPES, tf.minimum(tf.cast(color_type, tf.int32), 6))
    kind = tf.strings.join(["a PNG, ", tf.strings.as_string(bits), "-bit ", color])
    kind = tf.where(is_png, kind, "no PNG")
    wrong = tf.strings.join(
        [whose, "the label map is ", kind, ": it must be an 8-bit grey PNG of class numbers"]
    )
    right = is_png & (bits == 8) & (color_type == 0)
    with tf.control_dependencies([tf.debugging.Assert(right, [wrong])]):
        return tf.io.decode_png(encoded, channels=1)[..., 0]


def is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a file (scalar string) begins as a JPEG does: scalar bool."""
    return tf.equal(tf.strings.substr(encoded, 0, len(_JPEG)), _JPEG)


def orientation(file: bytes) -> int:
    """A PNG's or JPEG's EXIF orientation, 1..8; 1 is upright, or there is none, or no image.

    Nothing here obeys it; it is for warnings.
    """
    # Pillow decodes a whole PNG to look for it; hardly any has one.
    if file.startswith(_PNG) and b"eXIf" not in file and b"Raw profile type" not in file:
        return 1
    try:
        found = Image.open(io.BytesIO(file)).getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds for damaged EXIF, by which nobody turns an image
        return 1
    return found if found in range(1, 9) else 1


def _decode_png(encoded: tf.Tensor) -> tf.Tensor:
    # The operation would take GIF and others too.
    is_png = tf.equal(tf.strings.substr(encoded, 0, len(_PNG)), _PNG)
    with tf.control_dependencies([tf.debugging.Assert(is_png, ["neither PNG nor JPEG"])]):
        return tf.io.decode_png(encoded, channels=3)

"""Image files: the one decoder, whose pixels whatever reads one sees, and the one encoder.

Converter, training, evaluation, prediction and the exported network decode with these TensorFlow
operations:

    PNG    8 bits per channel, or of 16 the upper 8; grey and palette become RGB, transparency is
           dropped
    JPEG   baseline and progressive, all samplings; grey, CMYK and YCCK become RGB. The inverse
           cosine transform is libjpeg's accurate one, and colours are interpolated: but for CMYK
           the pixels are those of Pillow and most others, where TensorFlow's default is off by 6
    GIF, BMP, WebP, ...   refused

A file of a few kB can claim to be as large as memory: what the header says is looked at first.

Colour profiles change nothing. Neither does a camera's rotation mark (EXIF orientation): pixels are
taken as the file stores them.

What is written are PNGs, by Pillow.
"""

import io
import os
import warnings

import tensorflow as tf
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg")
"""Of image files' names, in lower case."""

MAX_PIXELS = 2**27
"""Images with more are decoded where that is asked for alone; so many take 400 MB."""

TOO_LARGE = "pixels are more than the limit of"
"""What errors say of images with more."""

# A PNG begins with 8 bytes and its first chunk: length, "IHDR", width, height, bits, colour type.
# Where another chunk comes first, decoders disagree about what its size is.
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_ACCURATE = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
_PNG_WIDTH, _PNG_BITS, _PNG_COLOUR_TYPE = 16, 24, 25
_BYTES_OF_PIXEL = 8  # RGBA of 16 bits
_COLOUR_TYPES = ("grey", "", "RGB", "palette", "grey and alpha", "", "RGBA")


def decode_image(encoded: tf.Tensor, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """Decodes a PNG or JPEG file (scalar string) to uint8 [H, W, 3], RGB.

    Raises:
        tf.errors.InvalidArgumentError: the file is damaged, of another format, or says that it has
            more pixels.
    """

    def jpeg() -> tf.Tensor:
        with tf.control_dependencies([check_pixels(jpeg_size(encoded), max_pixels)]):
            return tf.io.decode_jpeg(encoded, **_ACCURATE)

    def png() -> tf.Tensor:
        with tf.control_dependencies([check_pixels(_png_size(encoded), max_pixels)]):
            return tf.io.decode_png(encoded, channels=3)

    def other() -> tf.Tensor:  # which decode_png would take too, a GIF for one
        return tf.cond(
            _begins_with(encoded, _PNG), png, lambda: _refuse("neither PNG nor JPEG", (0, 0, 3))
        )

    image = tf.cond(is_jpeg(encoded), jpeg, other)
    return tf.ensure_shape(image, [None, None, 3])


def check_pixels(size: tf.Tensor, max_pixels: int = MAX_PIXELS) -> tf.Operation | None:
    """An operation that fails if an image of that size has more pixels; run at once if eagerly.

    Args:
        size: integers [2], height and width.
        max_pixels: how many it may have.

    Raises:
        tf.errors.InvalidArgumentError: it has more.
    """
    size = tf.cast(size, tf.int64)
    fits = size[0] <= max_pixels // tf.maximum(size[1], 1)  # their product may not fit 64 bits
    sides = tf.strings.reduce_join(tf.strings.as_string(size), separator=" x ")
    words = tf.strings.join([sides, f" {TOO_LARGE} {max_pixels} in all"])
    return tf.raw_ops.Assert(condition=fits, data=[words])


def jpeg_size(encoded: tf.Tensor) -> tf.Tensor:
    """Height and width that a JPEG file (scalar string) claims: int32 [2]."""
    return tf.io.extract_jpeg_shape(encoded)[:2]


def _png_size(encoded: tf.Tensor) -> tf.Tensor:
    header = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_PNG_BITS)
    sides = tf.reshape(tf.cast(header[_PNG_WIDTH:], tf.int64), [2, 4])
    return tf.reduce_sum(sides * (2**24, 2**16, 2**8, 1), 1)[::-1]


def fit_size(size: tuple[int, int], max_pixels: int) -> tuple[int, int]:
    """The size (height, width); where that has more pixels, a smaller one of its shape."""
    shrunk = min(1.0, (max_pixels / (size[0] * size[1])) ** 0.5)
    height, width = (max(1, int(shrunk * side)) for side in size)
    return height, width


def image_size(encoded: tf.Tensor) -> tf.Tensor:
    """Height and width that a PNG or JPEG file (scalar string) claims: int64 [2]."""
    return tf.cond(
        is_jpeg(encoded),
        lambda: tf.cast(jpeg_size(encoded), tf.int64),
        lambda: _png_size(encoded),
    )


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

    def grey() -> tf.Tensor:
        with tf.control_dependencies([check_pixels(_png_size(encoded))]):
            return tf.io.decode_png(encoded, channels=1)[..., 0]

    is_grey = tf.reduce_all(kind == tf.constant((*_PNG, 8, 0), tf.uint8))
    return tf.cond(is_grey, grey, refused)


def is_jpeg(encoded: tf.Tensor) -> tf.Tensor:
    """Whether a file (scalar string) begins as a JPEG does: scalar bool."""
    return _begins_with(encoded, _JPEG)


def read_image_file(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image file, which may be as many as so many pixels have uncompressed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is larger, or a directory, or a pipe or device, which might never end.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError("it is no file")
    largest = _BYTES_OF_PIXEL * max(max_pixels, MAX_PIXELS)
    if os.path.getsize(path) > largest:
        raise ValueError(f"it is larger than {largest // 2**20} MB, which no image here is")
    with open(path, "rb") as file:
        return file.read()


def read_orientation(file: bytes) -> int:
    """Reads the rotation mark (EXIF orientation, 1..8) of a PNG or JPEG file.

    1 means upright; it is the answer too where there is no mark or no image. Nothing here turns
    pictures by it: it is for warnings.
    """
    # Pillow decodes a whole PNG to look for it; hardly any has one.
    if file.startswith(_PNG) and b"eXIf" not in file and b"Raw profile type" not in file:
        return 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = open_image(file).getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many kinds for damaged EXIF, by which nobody turns an image
        return 1
    return found if found in range(1, 9) else 1


def read_size(file: bytes) -> tuple[int, int]:
    """Height and width of a PNG or JPEG file, from its header.

    Raises:
        ValueError: it is damaged, or no image.
    """
    try:
        image = open_image(file)
    except ValueError as error:
        raise ValueError(f"its image cannot be read: {error}") from error
    return image.height, image.width


def open_image(file: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens a PNG or JPEG file with Pillow, which reads its header and not yet its pixels.

    Raises:
        ValueError: it is damaged, of another format, or says that it has more pixels.
    """
    if not file.startswith((_PNG, _JPEG)):
        raise ValueError("it is neither PNG nor JPEG: save it as PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Of other formats Pillow has decoders that nobody here needs.
            image = Image.open(io.BytesIO(file), formats=("PNG", "JPEG"))
    except Image.DecompressionBombError:
        raise ValueError(f"its {TOO_LARGE} {max_pixels} in all") from None
    except Exception as error:  # Pillow raises many kinds for damaged headers
        # Its own words for this one name an object in memory.
        what = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        raise ValueError(f"{what}") from error
    if image.height * image.width > max_pixels:
        raise ValueError(f"{image.height} x {image.width} {TOO_LARGE} {max_pixels} in all")
    return image


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

"""The one decoder: Pillow's pixels, windows that equal the whole, and what it refuses."""

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official.images import (
    TOO_LARGE,
    decode_image,
    decode_jpeg_window,
    decode_label,
    encode_png,
    read_orientation,
    read_size,
)

HEIGHT, WIDTH = 37, 50  # no multiples of 8 or 16, the blocks of a JPEG
JPEGS = {
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "progressive 4:2:0": ("RGB", {"subsampling": 2, "progressive": True}),
    "progressive 4:4:4": ("RGB", {"subsampling": 0, "progressive": True}),
    "with restart markers": ("RGB", {"subsampling": 2, "restart_marker_blocks": 2}),
    "no YCbCr": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "progressive grey": ("L", {"progressive": True}),
    "CMYK": ("CMYK", {}),
}


def photo(mode: str = "RGB") -> Image.Image:
    """Smooth colours under noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    noisy = np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255).astype(np.uint8)
    if mode == "CMYK":  # with some black, which Pillow's conversion never gives
        return Image.fromarray(np.concatenate([noisy, smooth[..., :1].astype(np.uint8)], -1), mode)
    return Image.fromarray(noisy).convert(mode)


def encoded(image: Image.Image, form: str = "png", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def jpeg(kind: str) -> bytes:
    mode, options = JPEGS[kind]
    return encoded(photo(mode), "jpeg", quality=85, **options)


def seen(file: bytes) -> np.ndarray:
    """The pixels as Pillow reads them: uint8 [H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpegs_pixels_are_pillows(kind):
    # Of CMYK only the decoded inks are the same: their product is rounded in another way.
    np.testing.assert_allclose(decode_image(jpeg(kind)), seen(jpeg(kind)), atol=kind == "CMYK")


@pytest.mark.parametrize("kind", JPEGS)
def test_a_window_without_its_margin_is_that_part_of_the_whole(kind):
    file = jpeg(kind)
    whole = decode_image(file).numpy()
    # Around all borders, those of blocks of 8 and 16, and one in between.
    rows, columns = ((0, 1, 2, 3, 7, 8, 9, 16, 21, n - 3, n - 1, n) for n in (HEIGHT, WIDTH))
    spans = [list(itertools.combinations(sorted(axis), 2)) for axis in (rows, columns)]
    for (top, bottom), (left, right) in itertools.product(*spans):
        # The margin of 2 that input_pipeline takes, as far as the picture goes.
        above, before = max(top - 2, 0), max(left - 2, 0)
        window = above, before, min(bottom + 2, HEIGHT) - above, min(right + 2, WIDTH) - before
        found = decode_jpeg_window(file, tf.constant(window)).numpy()
        inside = found[top - above :, left - before :][: bottom - top, : right - left]
        assert np.array_equal(inside, whole[top:bottom, left:right]), (top, bottom, left, right)


def test_pngs_of_all_kinds_become_rgb_of_8_bits():
    rgb, grey = np.asarray(photo()), np.asarray(photo("L"))
    shown_grey = np.repeat(grey[..., None], 3, -1)
    alpha = Image.fromarray(grey)
    # Of 16 bits: v * 256 + anything below is v.
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 200)
    for image, expected in (
        (photo(), rgb),
        (photo("L"), shown_grey),
        (photo("1"), np.repeat(np.asarray(photo("1"))[..., None] * np.uint8(255), 3, -1)),
        (Image.merge("RGBA", (*photo().split(), alpha)), rgb),
        (Image.merge("LA", (photo("L"), alpha)), shown_grey),
        (deep, shown_grey),
    ):
        np.testing.assert_array_equal(decode_image(encoded(image)), expected)
    palette = photo().quantize(64)
    np.testing.assert_array_equal(decode_image(encoded(palette)), palette.convert("RGB"))
    see_through = encoded(palette, transparency=3)
    np.testing.assert_array_equal(decode_image(see_through), palette.convert("RGB"))


@pytest.mark.parametrize("form", ["gif", "bmp", "webp", "tiff"])
def test_other_formats_are_refused(form):
    with pytest.raises(tf.errors.InvalidArgumentError, match="neither PNG nor JPEG"):
        decode_image(encoded(photo(), form))


@pytest.mark.parametrize("size", [0, 1, 3, 60])
@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_damaged_files_are_errors(form, size):
    file = encoded(photo(), form)
    for cut in (file[:size], file[: len(file) // 2]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode_image(cut)


def test_a_rotation_mark_changes_no_pixel_and_is_told():
    exif = Image.Exif()
    for mark in range(1, 9):
        exif[0x0112] = mark
        for form in ("png", "jpeg"):
            file = encoded(photo(), form, exif=exif)
            assert read_orientation(file) == mark
            np.testing.assert_array_equal(decode_image(file), decode_image(encoded(photo(), form)))
    for file in (encoded(photo()), jpeg("4:2:0"), b"", b"no image"):
        assert read_orientation(file) == 1


def label_of(file: bytes) -> np.ndarray:
    return decode_label(file, "town 7: ").numpy()


def test_a_label_map_is_what_its_file_holds():
    values = np.arange(256, dtype=np.uint8).reshape(8, 32)
    np.testing.assert_array_equal(label_of(encoded(Image.fromarray(values))), values)


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (photo(), "a PNG, 8-bit RGB"),
        (photo("RGBA"), "a PNG, 8-bit RGBA"),
        (photo("LA"), "a PNG, 8-bit grey and alpha"),
        (photo().quantize(200), "a PNG, 8-bit palette"),
        (photo().quantize(4), "a PNG, 2-bit palette"),
        (photo("1"), "a PNG, 1-bit grey"),
        (Image.fromarray(np.asarray(photo("L"), np.uint16)), "a PNG, 16-bit grey"),
    ],
)
def test_label_maps_that_would_lose_their_numbers_are_refused_by_name(image, kind):
    message = f"town 7: the label map is {kind}: it must be an 8-bit grey PNG"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        label_of(encoded(image))


def test_a_label_map_that_is_no_png_is_refused():
    for file in (jpeg("grey"), encoded(photo("L"), "gif"), b"", b"\x89PN"):
        with pytest.raises(tf.errors.InvalidArgumentError, match="7: the label map is no PNG"):
            label_of(file)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_png_has_the_pixels_that_it_was_made_of(mode):
    image = photo().convert(mode)
    with Image.open(io.BytesIO(encode_png(image))) as found:
        assert (found.format, found.mode) == ("PNG", mode)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(image))


@pytest.mark.parametrize("file", [encoded(photo()), jpeg("4:2:0")])
def test_the_size_is_in_the_header(file):
    assert read_size(file[:1000]) == (HEIGHT, WIDTH)  # the pixels are not there
    with pytest.raises(ValueError, match="its image cannot be read"):
        read_size(file[:10])


def claims(file: bytes, height: int, width: int) -> bytes:
    """A PNG or JPEG whose header says another size."""
    if file.startswith(b"\x89PNG"):
        header = b"IHDR" + struct.pack(">II", width, height) + file[24:29]
        return file[:12] + header + struct.pack(">I", zlib.crc32(header)) + file[33:]
    (frame,) = [file.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in file]
    return file[: frame + 5] + struct.pack(">HH", height, width) + file[frame + 9 :]


@pytest.mark.parametrize("kind", ["png", "4:2:0", "progressive 4:2:0", "CMYK"])
def test_what_claims_to_be_huge_is_not_decoded(kind):
    file = claims(encoded(photo()) if kind == "png" else jpeg(kind), 60_000, 60_000)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"60000 x 60000 {TOO_LARGE} {2**27}"):
        decode_image(file)
    with pytest.raises(ValueError, match=TOO_LARGE):
        read_size(file)
    if kind == "png":  # sides that do not even fit 31 bits, and a product that does not fit 64
        with pytest.raises(tf.errors.InvalidArgumentError, match="4294967295 x 1 pixels"):
            decode_image(claims(file, 2**32 - 1, 1))
        grey = claims(encoded(photo("L")), 60_000, 60_000)
        with pytest.raises(tf.errors.InvalidArgumentError, match=TOO_LARGE):
            decode_label(grey, "")


@pytest.mark.parametrize("kind", ["png", "4:2:0"])
def test_the_limit_is_the_last_size_that_is_decoded(kind):
    file = encoded(photo()) if kind == "png" else jpeg(kind)
    assert decode_image(file, HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{HEIGHT} x {WIDTH} {TOO_LARGE}"):
        decode_image(file, HEIGHT * WIDTH - 1)


@pytest.mark.parametrize("form", ["dds", "gif", "bmp", "tiff", "webp", "avif", "ppm"])
def test_other_formats_are_not_even_tried(form, tmp_path):
    photo().save(tmp_path / "a.png", form)
    file = (tmp_path / "a.png").read_bytes()
    for content in (file, file[: len(file) // 2]):
        with pytest.raises(ValueError, match="neither PNG nor JPEG"):
            read_size(content)
        with pytest.raises(tf.errors.InvalidArgumentError, match="neither PNG nor JPEG"):
            decode_image(content)

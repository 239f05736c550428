"""Files that photographs and label maps come in, real ones, against what a person sees."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from official.errors import RunError
from official.images import decode_image
from tfrecords_tools.source import read_image, read_index_png

SIZE = HEIGHT, WIDTH = 24, 40


@pytest.fixture
def photo():
    # Smooth, so that the two JPEG decoders agree, and with no symmetry.
    coarse = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def with_alpha(image):
    alpha = np.random.default_rng(1).integers(0, 256, SIZE, np.uint8)
    image = image.copy()
    image.putalpha(Image.fromarray(alpha))
    return image


def png(bits, colour_type, rows):
    """A PNG file as its definition says (Pillow does not write all kinds); rows: list of bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", WIDTH, len(rows), bits, colour_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def sixteen_bits(channels):
    """Random values of 16 bits [H, W, channels], and a PNG of them."""
    values = np.random.default_rng(2).integers(0, 2**16, (HEIGHT, WIDTH, channels))
    colour_type = {1: 0, 3: 2, 2: 4, 4: 6}[channels]
    return values, png(16, colour_type, [row.astype(">u2").tobytes() for row in values])


def record_of(path, label_size=None):
    """What read_image finds, with the file that a record gets and what training reads from it."""
    found = read_image(path, label_size)
    encoded, image_format = found.encode()
    pixels = decode_image(encoded).numpy()
    assert image_format == ("png" if encoded[:4] == b"\x89PNG" else "jpeg")
    assert pixels.shape[:2] == found.size
    return found, encoded, pixels


def differs(pixels, seen):
    """The largest difference between pixels [H, W, 3] and an image that a person sees."""
    seen = np.asarray(seen.convert("RGB"))
    assert pixels.shape == seen.shape
    return np.abs(pixels.astype(int) - seen).max()


@pytest.mark.parametrize(
    ("name", "change", "options"),
    [
        ("rgb.png", lambda im: im, {}),
        ("grey.png", lambda im: im.convert("L"), {}),
        ("one_colour_is_transparent.png", lambda im: im, {"transparency": (1, 2, 3)}),
        ("rgb.jpg", lambda im: im, {}),
        ("grey.jpg", lambda im: im.convert("L"), {}),
        ("progressive.jpg", lambda im: im, {"progressive": True}),
        ("full_colour.jpg", lambda im: im, {"subsampling": 0}),
        ("no_ycbcr.jpg", lambda im: im, {"keep_rgb": True}),
        (
            "several.jpg",
            lambda im: im,
            {"format": "MPO", "save_all": True, "append_images": "self"},
        ),
        ("profile.jpg", lambda im: im, {"icc_profile": "srgb"}),
    ],
)
def test_what_a_record_can_hold_keeps_its_bytes(photo, tmp_path, name, change, options):
    if options.get("append_images"):
        options = options | {"append_images": [ImageOps.mirror(photo)]}
    if options.get("icc_profile"):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        options = options | {"icc_profile": profile.tobytes()}
    image, path = change(photo), tmp_path / name
    image.save(path, **options)
    found, encoded, pixels = record_of(path)
    assert encoded == path.read_bytes() and found.changes == ""
    assert found.mode == image.mode
    assert differs(pixels, Image.open(path)) == 0


@pytest.mark.parametrize(
    ("name", "change", "mode", "changes"),
    [
        ("rgba.png", with_alpha, "RGB", "transparency"),
        ("la.png", lambda im: with_alpha(im).convert("LA"), "L", "transparency"),
        ("palette.png", lambda im: im.quantize(64), "RGB", "palette"),
        ("palette_of_4_bits.png", lambda im: im.quantize(16), "RGB", "palette"),
        ("palette_and_alpha.png", lambda im: with_alpha(im).quantize(64), "RGB", "palette"),
        ("bits.png", lambda im: im.convert("1"), "L", "1-bit"),
        ("cmyk.jpg", lambda im: im.convert("CMYK"), "RGB", "CMYK"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_no_record_can_hold_becomes_a_png(photo, tmp_path, name, change, mode, changes):
    path = tmp_path / name
    change(photo).save(path)
    found, encoded, pixels = record_of(path)
    seen = Image.open(path)
    if found.mode == "RGB" and "palette" in name:
        seen = seen.convert("RGBA")  # Pillow warns of what it drops otherwise
    assert differs(pixels, seen) == 0
    assert (found.changes, found.mode) == (changes, mode)
    assert encoded[24:26] == bytes([8, {"L": 0, "RGB": 2}[mode]])  # bits and colour type


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_16_bits_the_upper_8_are_kept(tmp_path, channels):
    values, file = sixteen_bits(channels)
    (tmp_path / "photo.png").write_bytes(file)
    found, encoded, pixels = record_of(tmp_path / "photo.png")
    colours = values[..., :3] if channels > 2 else values[..., :1]
    assert np.array_equal(pixels, np.broadcast_to(colours >> 8, (*SIZE, 3)))
    assert "16-bit" in found.changes and encoded[24] == 8


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotation_mark_turns_nothing_and_label_maps_must_agree(
    photo, tmp_path, orientation, suffix
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo{suffix}"
    photo.save(path, exif=exif)
    seen = ImageOps.exif_transpose(Image.open(path))
    for label_size in (SIZE, None):  # of the stored pixels, or there is none
        found, encoded, pixels = record_of(path, label_size)
        assert encoded == path.read_bytes() and found.changes == ""
        assert found.marked == (orientation > 1)
        assert differs(pixels, Image.open(path)) == 0
    turned = orientation >= 5  # 5..8 exchange height and width (EXIF 2.3, tag 0x0112)
    assert (seen.height, seen.width) == (SIZE[::-1] if turned else SIZE)
    if turned:
        with pytest.raises(RunError, match=rf"photo{suffix} .*EXIF orientation {orientation}.*was"):
            read_image(path, (seen.height, seen.width))


@pytest.mark.parametrize(
    ("orientation", "size", "ambiguous"),
    [(1, SIZE, False), (3, SIZE, True), (4, SIZE, True), (6, SIZE, False), (6, (24, 24), True)],
)
def test_labels_of_unknown_orientation_are_refused_where_sizes_do_not_tell(
    photo, tmp_path, orientation, size, ambiguous
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "photo.jpg"
    photo.resize(size[::-1]).save(path, exif=exif)
    read_image(path, size)  # the makers of a public dataset labelled the stored pixels
    read_image(path, None, turned_labels=True)  # nothing to go wrong
    if ambiguous:
        with pytest.raises(RunError, match=rf"photo.jpg .*orientation {orientation}.*may have"):
            read_image(path, size, turned_labels=True)
    else:
        read_image(path, size, turned_labels=True)


def test_a_damaged_exif_block_turns_nothing(photo, tmp_path):
    path = tmp_path / "photo.jpg"
    photo.save(path, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff and no more")
    found, encoded, _ = record_of(path, SIZE)
    assert encoded == path.read_bytes() and not found.marked


def without_crc(file):
    start = file.index(b"IDAT")
    end = start + 4 + struct.unpack(">I", file[start - 4 : start])[0]
    return file[:end] + b"\0\0\0\0" + file[end + 4 :]


@pytest.mark.parametrize(
    ("suffix", "damage", "message"),
    [
        (".png", lambda f: f[:-100], "cannot be read as an image: image file is truncated"),
        (".png", lambda f: f[:-12], "cannot be read by TensorFlow: Invalid PNG data"),
        (".png", lambda f: f[:200] + bytes(8) + f[208:], "cannot be read"),
        (".png", without_crc, "cannot be read by TensorFlow: Invalid PNG data"),
        (".jpg", lambda f: f[:-100], "cannot be read as an image: image file is truncated"),
        (".jpg", lambda f: f[:50], "cannot be read as an image"),
        (
            ".jpg",
            lambda f: b"",
            "cannot be read as an image: it is neither PNG nor JPEG: save it as PNG$",
        ),
    ],
)
def test_damaged_photographs_are_refused(photo, tmp_path, suffix, damage, message):
    path = tmp_path / f"photo{suffix}"
    photo.save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=f"photo{suffix} {message}"):
        read_image(path).encode()
    if "TensorFlow" not in message:  # Pillow overlooks the others, training would stop at them
        with pytest.raises(RunError, match=f"photo{suffix} cannot be read"):
            read_image(path).decode()


@pytest.mark.parametrize("suffix", [".bmp", ".gif", ".tif", ".webp"])
def test_other_formats_are_refused(photo, tmp_path, suffix):
    photo.save(tmp_path / f"photo{suffix}")
    with pytest.raises(RunError, match="it is neither PNG nor JPEG: save it as PNG"):
        read_image(tmp_path / f"photo{suffix}")


def packed(values, bits):
    """Rows of values as a PNG of a few bits per pixel stores them, the first in the upper bits."""
    as_bits = (values[..., None] >> np.arange(bits)[::-1] & 1).reshape(len(values), -1)
    return [row.tobytes() for row in np.packbits(as_bits, axis=1)]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("colour_type", ["grey", "palette"])
def test_label_values_are_those_that_the_file_stores(tmp_path, bits, colour_type):
    values = np.random.default_rng(0).integers(0, 2**bits, SIZE, np.uint8)
    path = tmp_path / "mask.png"
    if colour_type == "grey":
        path.write_bytes(png(bits, 0, packed(values, bits)))
    else:
        image = Image.fromarray(values)
        image.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tolist())
        image.save(path, bits=bits)
    assert path.read_bytes()[24:26] == bytes([bits, 0 if colour_type == "grey" else 3])
    found = read_index_png(path)
    assert found.dtype == np.uint8 and np.array_equal(found, values)


def test_label_maps_of_16_bits_may_hold_values_of_8(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, SIZE).astype(np.uint16)
    path = tmp_path / "mask.png"
    Image.fromarray(values).save(path)
    assert path.read_bytes()[24] == 16
    assert np.array_equal(read_index_png(path), values)
    values[3, 4] = 256
    Image.fromarray(values).save(path)
    with pytest.raises(RunError, match=r"mask.png holds the values 0\.\.256: .* 0\.\.255"):
        read_index_png(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_label_maps_of_colours_are_refused(photo, tmp_path, mode):
    photo.convert(mode).save(tmp_path / "mask.png")
    with pytest.raises(
        RunError, match=rf"mask.png is no label map: .* mode is {mode}: colours have to be replaced"
    ):
        read_index_png(tmp_path / "mask.png")


def test_label_maps_that_are_not_exact_are_refused(photo, tmp_path):
    photo.convert("L").save(tmp_path / "mask.png", "JPEG")
    with pytest.raises(RunError, match=r"mask.png is a JPEG file"):
        read_index_png(tmp_path / "mask.png")

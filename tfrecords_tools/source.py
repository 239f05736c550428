"""What a dataset module tells the converter, and what such modules share: pairs, reading files."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from official.errors import RunError, explain
from official.images import (
    decode_image,
    encode_png,
    open_image,
    read_image_file,
    read_orientation,
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One image and where its labels come from.

    Attributes:
        name: the image's path in the source directory, without suffix.
        image: path of the image file.
        label: path of the label file; None if there is no file for this image alone.
    """

    name: str
    image: Path
    label: Path | None


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset as its makers publish it, found in a directory.

    Attributes:
        class_names: one name per class.
        palette: one (red, green, blue) per class.
        splits: pairs per split, sorted; only the splits that are there.
        read_label: pair -> uint8 [H, W], 0..classes-1 or 255; None for an image without labels, all
            of which is void then.
        published: number of images per split according to the makers, where they say one.
        min_foreground: images with fewer pixels of the classes 1, 2, ... are left out.
        turned_labels: label maps may have been drawn on photographs that a tool had turned as their
            rotation mark says (a user's own). See `read_image`.
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, list[Pair]]
    read_label: Callable[[Pair], np.ndarray | None]
    published: Mapping[str, int] = dataclasses.field(default_factory=dict)
    min_foreground: int = 0
    turned_labels: bool = False


def make_pair(image: Path, label: Path | None, source_dir: Path) -> Pair:
    """Makes the pair of these files, named after the image's path below `source_dir`."""
    return Pair(image.relative_to(source_dir).with_suffix("").as_posix(), image, label)


def match(
    images: Mapping[str, Path], labels: Mapping[str, Path], source_dir: Path, label_pattern: str
) -> list[Pair]:
    """Pairs images and labels that have the same key, in the order of the keys.

    What has no partner, as in part of a download, is left out with a warning.

    Raises:
        RunError: nothing has a partner.
    """
    both = sorted(images.keys() & labels.keys())
    for ours, theirs, what in (
        (images, labels, f"image has no label ({label_pattern})"),
        (labels, images, "label has no image"),
    ):
        alone = sorted(ours.keys() - theirs.keys())
        if alone:
            more = f", and {len(alone) - 1} more like it" if len(alone) > 1 else ""
            if not both:
                raise RunError(f"{ours[alone[0]]}: this {what}{more}")
            print(f"warning: {ours[alone[0]]} is left out: this {what}{more}")
    return [make_pair(images[key], labels[key], source_dir) for key in both]


def read_index_png(path: Path) -> np.ndarray:
    """Reads a label map: an image file of one channel of grey values or palette indices.

    The values are those that the file stores, whatever their number of bits: a file of 1 bit holds
    the values 0 and 1, one of 16 bits may hold 0..255.

    Returns:
        uint8 [H, W].

    Raises:
        RunError: the file is damaged, of another kind, or holds values above 255.
    """
    file, image = _open(path)
    _load(path, image)
    values = np.asarray(image)
    needed = "a label map must have one channel of label values"
    if image.format in ("JPEG", "MPO"):
        raise RunError(
            f"{path} is a JPEG file, which does not keep values exactly: {needed}, as a PNG"
        )
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise RunError(
            f"{path} is no label map: {needed}, but its mode is {image.mode}: colours have to be "
            "replaced by the numbers of their classes"
        )
    if image.mode == "L" and _bits(image, file) < 8:  # Pillow spreads 0..15 over 0..255
        values = values // (255 // (2 ** _bits(image, file) - 1))
    if values.min() < 0 or values.max() > 255:
        raise RunError(f"{path} holds the values {values.min()}..{values.max()}: {needed}, 0..255")
    return values.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Photograph:
    """An image file; its pixels are decoded when somebody needs them.

    Attributes:
        path: the file.
        size: (height, width).
        format: "png" or "jpeg", of the file.
        mode: Pillow's mode of what `decode` gives, "RGB" or "L".
        changes: in words, why a record cannot hold the file as it is; empty if it can.
        marked: whether it has a rotation mark (EXIF orientation), which nobody here obeys.
    """

    path: Path
    size: tuple[int, int]
    format: str
    mode: str
    changes: str
    marked: bool
    _file: bytes
    _opened: Image.Image

    def decode(self) -> Image.Image:
        """Decodes the pixels that all readers see: RGB or grey, 8 bits per channel.

        Raises:
            RunError: the file is damaged.
        """
        try:
            rgb = decode_image(self._file).numpy()
        except tf.errors.OpError as error:
            _load(self.path, self._opened)  # says better what is wrong, if it sees it
            raise RunError(
                f"{self.path} cannot be read by TensorFlow: {explain(error)}: save it again"
            ) from error
        return Image.fromarray(rgb if self.mode == "RGB" else np.ascontiguousarray(rgb[..., 0]))

    def encode(self) -> tuple[bytes, str]:
        """Gives the file's own bytes and format if a record can hold them, else a new PNG.

        Raises:
            RunError: the file is damaged.
        """
        pixels = self.decode()  # finds all damage that training would
        return (encode_png(pixels), "png") if self.changes else (self._file, self.format)


def read_image(
    path: Path, label_size: tuple[int, int] | None = None, turned_labels: bool = False
) -> Photograph:
    """Reads a photograph.

    A photograph may have a rotation mark (EXIF orientation). People and tools see it turned;
    everything here, up to the exported network, takes pixels as they are stored. So a label map of
    the turned size alone is an error. Where both sizes fit (a square, a mirror image, half a turn)
    and label maps may have been drawn on turned photographs, nobody can tell: an error too.

    Args:
        path: the file.
        label_size: (height, width) of its label map, None if there is none.
        turned_labels: whether label maps may have been drawn on turned photographs.

    Raises:
        RunError: the file is neither PNG nor JPEG, its header is damaged, or its label map was or
            may have been drawn on the turned image.
    """
    file, image = _open(path)
    bits, mark = _bits(image, file), read_orientation(file)
    stored = (image.height, image.width)
    upright = stored[::-1] if mark > 4 else stored
    if mark > 1 and label_size == upright and (turned_labels or upright != stored):
        drawn = "its label map was" if upright != stored else "its label map may have been"
        raise RunError(
            f"{path} has a rotation mark (EXIF orientation {mark}), and {drawn} drawn on the "
            "turned image, while pixels are taken as they are stored: save it as the label map has "
            "it, without the mark (mogrify -auto-orient, exiftran -ai)"
        )
    changes = []
    if image.mode in ("LA", "RGBA"):
        changes.append("transparency")
    if image.mode in ("P", "CMYK"):
        changes.append({"P": "palette", "CMYK": "CMYK"}[image.mode])
    elif bits != 8:
        changes.append(f"{bits}-bit")
    return Photograph(
        path,
        stored,
        "png" if image.format == "PNG" else "jpeg",
        "L" if image.mode in ("1", "L", "LA") or image.mode.startswith("I") else "RGB",
        " + ".join(changes),
        mark > 1,
        file,
        image,
    )


def _open(path: Path) -> tuple[bytes, Image.Image]:
    """A file's bytes and, opened, what they hold; RunError if it cannot be read."""
    try:
        file = read_image_file(path)
        return file, open_image(file)
    except (OSError, ValueError) as error:
        what = error.strerror if isinstance(error, OSError) else error
        raise RunError(f"{path} cannot be read as an image: {what}") from error


def _load(path: Path, image: Image.Image) -> None:
    """Decodes an opened image's pixels; RunError if they are damaged."""
    try:
        image.load()
    except Exception as error:  # Pillow raises many kinds
        raise RunError(f"{path} cannot be read as an image: {error}") from error


def _bits(image: Image.Image, file: bytes) -> int:
    """Finds the bits per channel; Pillow's modes do not tell all of them."""
    # A PNG begins with 8 bytes, then its first chunk: length, "IHDR", width, height, bits.
    return file[24] if image.format == "PNG" else 8

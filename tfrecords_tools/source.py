"""What a dataset module tells the converter, and what such modules share: pairs, reading files."""

import dataclasses
import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from official.errors import RunError

# What Pillow raises for files that are no images, cut off or damaged.
_BROKEN = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


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
    """

    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    splits: Mapping[str, list[Pair]]
    read_label: Callable[[Pair], np.ndarray | None]
    published: Mapping[str, int] = dataclasses.field(default_factory=dict)
    min_foreground: int = 0


def match(
    images: Mapping[str, Path], labels: Mapping[str, Path], source_dir: Path, label_pattern: str
) -> list[Pair]:
    """Pairs images and labels that have the same key, in the order of the keys.

    Raises:
      RunError: an image without label or a label without image; names the first and their number.
    """
    for ours, theirs, what in (
        (images, labels, f"image has no label ({label_pattern})"),
        (labels, images, "label has no image"),
    ):
        alone = sorted(ours.keys() - theirs.keys())
        if alone:
            more = f", and {len(alone) - 1} more like it" if len(alone) > 1 else ""
            raise RunError(f"{ours[alone[0]]}: this {what}{more}")
    return [
        Pair(
            images[key].relative_to(source_dir).with_suffix("").as_posix(), images[key], labels[key]
        )
        for key in sorted(images)
    ]


def read_index_png(path: Path) -> np.ndarray:
    """Reads a label file of one 8-bit channel (grey or palette index) as uint8 [H, W].

    Raises:
      RunError: the file is damaged or of another kind.
    """
    try:
        with Image.open(path) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    except _BROKEN as error:
        raise RunError(f"{path} cannot be read as an image: {error}") from error
    if mode not in ("L", "P"):
        raise RunError(
            f"{path} is no label map: it must have one 8-bit channel of label values, but its mode "
            f"is {mode}"
        )
    return values


def read_image(path: Path) -> tuple[bytes, str, Image.Image]:
    """Reads a photograph.

    Returns:
      The file's bytes, its format ("png" or "jpeg") and the decoded image.

    Raises:
      RunError: the file is damaged, neither PNG nor JPEG, or neither RGB nor grey with 8 bits per
        channel.
    """
    try:
        encoded = path.read_bytes()
        image = Image.open(io.BytesIO(encoded))
        image.load()
    except _BROKEN as error:
        raise RunError(f"{path} cannot be read as an image: {error}") from error
    if image.format not in ("PNG", "JPEG") or image.mode not in ("RGB", "L"):
        raise RunError(
            f"{path} must be an 8-bit RGB or grey PNG or JPEG, but it is {image.format} of mode "
            f"{image.mode}"
        )
    return encoded, image.format.lower(), image

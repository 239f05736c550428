"""Label maps and colour overlays for a user's own pictures."""

import glob
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import tensorflow as tf
from PIL import Image, ImageDraw, ImageFont, ImageOps

from auto_deeplab.evaluation import Logits, class_logits
from official.errors import RunError
from official.files import make_directory, write_atomically
from official.progress import Progress

SUFFIXES = (".png", ".jpg", ".jpeg")
Palette = Sequence[Sequence[int]]


def predict(
    model: Logits,
    inputs: str,
    output_dir: str,
    *,
    class_names: Sequence[str],
    palette: Palette,
) -> list[Path]:
    """Segments pictures, each at its own size.

    Writes for each picture <stem>_labels.png (8-bit palette PNG whose values are the classes) and
    <stem>_overlay.png, and once legend.png. Sub-folders of the input come back in output_dir.

    Args:
      model: float32 images [N, H, W, 3] in 0..255 -> float32 logits [N, H, W, C].
      inputs: a picture, a folder (searched with its sub-folders) or a glob pattern (** for any
        depth); PNG or JPEG.
      output_dir: made if it is not there; older answers of the same names are replaced.
      class_names: C names, C <= 256.
      palette: C colours (red, green, blue) in 0..255.

    Returns:
      the paths of the label maps, in the order of the pictures' names.

    Raises:
      RunError: no picture matches, two would get the same name, one is unreadable (those before it
        are done), a file cannot be written, or the classes are not the network's.
    """
    if len(class_names) > 256:
        raise RunError(f"{len(class_names)} classes do not fit 8-bit label maps: at most 256")
    pictures = find_pictures(inputs, output_dir)
    make_directory(output_dir)

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)], autograph=False)
    def classify(images: tf.Tensor) -> tf.Tensor:
        logits = class_logits(model, images, len(class_names))
        return tf.cast(tf.argmax(logits, -1, output_type=tf.int32), tf.uint8)

    colours = np.asarray(palette, np.uint8)
    write_atomically(Path(output_dir, "legend.png"), _png(draw_legend(class_names, palette)))
    written = []
    with Progress("predict", len(pictures)) as progress:
        for picture, name in pictures:
            image = read_picture(picture)
            labels = classify(image[np.newaxis])[0].numpy()
            target = Path(output_dir, name)
            make_directory(target.parent)
            written.append(target.with_name(f"{target.name}_labels.png"))
            write_atomically(
                target.with_name(f"{target.name}_overlay.png"),
                _png(Image.fromarray(draw_overlay(image, labels, colours))),
            )
            write_atomically(written[-1], _png(label_image(labels, palette)))
            progress.advance()
    return written


def find_pictures(inputs: str, output_dir: str) -> list[tuple[Path, str]]:
    """The pictures that a file name, folder or glob pattern stands for.

    Files in output_dir are left out of folders and patterns: they are earlier answers.

    Returns:
      (picture, its path below the folder or the pattern's fixed part, without suffix), sorted.

    Raises:
      RunError: there are none, or two of them would write the same files.
    """
    if os.path.isfile(inputs):
        return [(Path(inputs), Path(inputs).stem)]
    if os.path.isdir(inputs):
        root, pattern = Path(inputs), os.path.join(glob.escape(inputs), "**", "*")
    else:
        root, pattern = _fixed_part(inputs), inputs
    answers = Path(output_dir).resolve()
    pictures: dict[str, Path] = {}
    for match in sorted(glob.glob(pattern, recursive=True)):
        path = Path(match)
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        if answers in path.resolve().parents:
            continue
        name = str(path.relative_to(root).with_suffix(""))
        if name in pictures:
            raise RunError(
                f"{pictures[name]} and {path} would both become {name}_labels.png in "
                f"{output_dir}: rename one, or predict them into two directories"
            )
        pictures[name] = path
    if not pictures:
        raise RunError(
            f"--input={inputs} matches no .png, .jpg or .jpeg file outside {output_dir}: give a "
            "picture, a folder, or a quoted pattern such as 'photos/**/*.jpg'"
        )
    return [(path, name) for name, path in pictures.items()]


def _fixed_part(pattern: str) -> Path:
    """The folders before the first one that has a wildcard."""
    parts = Path(pattern).parts[:-1]
    fixed = 0
    while fixed < len(parts) and not glob.has_magic(parts[fixed]):
        fixed += 1
    return Path(*parts[:fixed])


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a PNG or JPEG as it should be looked at: uint8 [H, W, 3], RGB in 0..255.

    Grey, palette and CMYK become RGB, transparency is dropped, 16 bits lose the lower 8 (as in
    TensorFlow's decoder, which made the training data) and a camera's rotation mark is obeyed.

    Raises:
      RunError: it is unreadable, or damaged anywhere.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow raises a dozen types for damaged files, without a base.
        raise RunError(f"cannot read the image {path}: {error}") from None


def label_image(labels: np.ndarray, palette: Palette) -> Image.Image:
    """A palette image of uint8 [H, W]: its values are the classes, viewers show the colours."""
    image = Image.fromarray(labels)
    image.putpalette([int(value) for colour in palette for value in colour])
    return image


def draw_overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Classes' colours over the picture, with a light line where two classes meet.

    Args:
      image: uint8 [H, W, 3].
      labels: integers [H, W] in 0..C-1.
      palette: uint8 [C, 3].

    Returns:
      uint8 [H, W, 3].
    """
    blend = 0.5 * image + 0.5 * palette[labels]
    width = 1 + min(labels.shape) // 700  # stays visible when a large picture is shown small
    border = np.zeros(labels.shape, bool)
    border[:, width:] |= labels[:, width:] != labels[:, :-width]
    border[width:] |= labels[width:] != labels[:-width]
    blend[border] = 0.25 * blend[border] + 0.75 * 255
    return blend.round().astype(np.uint8)


def draw_legend(class_names: Sequence[str], palette: Palette) -> Image.Image:
    """A picture that names every colour, with the class' number; long lists get more columns."""
    # Matplotlib's font has Greek, Cyrillic and accents; Pillow's own does not.
    font_file = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(font_file, 20)
    row, swatch, gap = 36, 44, 14
    rows = min(len(class_names), 25)
    columns = -(-len(class_names) // rows)
    number_width = _text_width(font, [str(len(class_names) - 1)])
    name_width = _text_width(font, class_names)
    column = swatch + number_width + name_width + 4 * gap
    legend = Image.new("RGB", (columns * column + gap, rows * row + 2 * gap), "white")
    draw = ImageDraw.Draw(legend)
    for index, (name, colour) in enumerate(zip(class_names, palette, strict=True)):
        left = gap + index // rows * column
        top = gap + index % rows * row
        middle = top + row // 2
        box = (left, top + 4, left + swatch, top + row - 4)
        draw.rectangle(box, fill=tuple(int(value) for value in colour), outline="#808080")
        left += swatch + gap + number_width
        draw.text((left, middle), str(index), font=font, fill="#808080", anchor="rm")
        draw.text((left + gap, middle), name, font=font, fill="black", anchor="lm")
    return legend


def _text_width(font: ImageFont.FreeTypeFont, texts: Iterable[str]) -> int:
    return max(round(font.getlength(text)) for text in texts)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()

"""A contact sheet: images of a split beside the same under their classes' colours, as one PNG.

    python -m tfrecords_tools.browse --data_dir=DIR --split=train --output=sheet.png
    python -m tfrecords_tools.browse --data_dir=DIR --split=train --output=crops.png \\
        --augmented --crop_size=321

With --augmented the pictures are what training is fed instead: scaled by 0.5 to 2, cropped and
mirrored at random as train.py does by default; with the same --seed they are the first examples of
`--mode=train`, in their order.

Void is grey under stripes; what was added around an image that is smaller than the crop is a
checkerboard.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow as tf
from absl import flags
from PIL import Image, ImageDraw

from official.command_line import run_app
from official.drawing import (
    LEGEND_ROW,
    SWATCH,
    draw_checkerboard,
    draw_legend,
    draw_overlay,
    load_font,
    measure_text,
)
from official.errors import RunError, UsageError, shorten
from official.files import check_output, make_directory, write_atomically
from official.images import decode_image, encode_png
from official.input_pipeline import (
    check_crop_size,
    decode_label_or_void,
    make_data_error,
    make_record_reader,
    make_train_batches,
    pick_record,
)
from official.paths import define_path
from official.preprocessing import PAD_VALUE, RANDOM_SCALES
from official.progress import Progress
from official.records import Description
from tfrecords_tools import data_flags
from tfrecords_tools.findings import find_mismatches

# In pixels.
WIDTH = 1920  # of the sheet without its legend
PICTURE = (260, 460)  # a picture's height, unless it becomes wider than that
CAPTION, GAP = 26, 16


@dataclasses.dataclass(frozen=True)
class Example:
    """What one place of the sheet shows.

    Attributes:
        caption: the record's name and its size, or how it was cropped.
        image: uint8 [H, W, 3].
        label: uint8 [H, W].
        padding: bool [H, W], what does not belong to the image.
    """

    caption: str
    image: np.ndarray
    label: np.ndarray
    padding: np.ndarray


def read_stored(description: Description, split: str, count: int, seed: int) -> Iterator[Example]:
    """Reads `count` records of a split, chosen by the seed, in their order.

    Raises:
        RunError: a record cannot be used.
    """
    numbers, read = make_record_reader(description, split)
    order = tf.random.experimental.stateless_shuffle(tf.constant(numbers), seed=[seed, 2]).numpy()
    for number in np.sort(order[:count]):
        try:
            record = read(number)
            image = decode_image(record["image"]).numpy()
            label = decode_label_or_void(record, image.shape[:2], description.ignore_label).numpy()
        except tf.errors.OpError as error:
            raise make_data_error(error, description) from None
        name = shorten(record["filename"].numpy().decode(errors="replace"))
        counts = np.bincount(label.ravel(), minlength=256)
        wrong = find_mismatches(counts, label.shape, image.shape[:2], description)
        if wrong:
            raise RunError(
                f"{description.data_dir}: {name}: {wrong[0]} "
                "(python -m tfrecords_tools.check names every bad record)"
            )
        height, width = label.shape
        yield Example(f"{name}  {height} x {width}", image, label, np.zeros(label.shape, bool))


def read_augmented(
    description: Description,
    split: str,
    count: int,
    seed: int,
    crop_size: tuple[int, int],
    resize_longer_side: int | None = None,
) -> Iterator[Example]:
    """Reads the first `count` examples that a training with this seed is fed.

    Args:
        description: of the dataset.
        split: one of its splits.
        count: how many.
        seed, crop_size, resize_longer_side: the training's.

    Raises:
        UsageError: no image fills the crop.
        RunError: a record cannot be used.
    """
    check_crop_size(description, split, crop_size, RANDOM_SCALES, resize_longer_side)
    numbers, read = make_record_reader(description, split)
    batches = make_train_batches(
        description,
        split,
        seed=seed,
        batch_size=1,
        crop_size=crop_size,
        scales=RANDOM_SCALES,
        random_crop=True,
        flip=True,
        resize_longer_side=resize_longer_side,
    )
    try:
        for batch in batches.take(count):
            image, label = batch["image"][0].numpy(), batch["label"][0].numpy()
            record = pick_record(batch["number"][0], len(numbers), len(numbers), seed, 0)
            name = shorten(read(record)["filename"].numpy().decode(errors="replace"))
            pixels = image.round().astype(np.uint8)
            yield Example(name, pixels, label.astype(np.uint8), find_padding(image))
    except tf.errors.OpError as error:
        raise make_data_error(error, description) from None


def find_padding(image: np.ndarray) -> np.ndarray:
    """Finds where a training crop (float32 [H, W, 3]) shows no image: bool [H, W].

    Padding is whole rows and columns; a pixel of an image may have its value by chance.
    """
    grey = np.all(image == PAD_VALUE, axis=-1)
    return grey.all(axis=1)[:, np.newaxis] | grey.all(axis=0)


def draw_sheet(examples: list[Example], description: Description, title: str) -> Image.Image:
    """Draws all examples in rows, each as image and overlay, and a legend of their classes."""
    pairs = [_draw_pair(example, description) for example in examples]
    cell = max(pair.width for pair in pairs)
    row = max(pair.height for pair in pairs) + CAPTION + GAP
    columns = max(1, min((WIDTH - GAP) // (cell + GAP), len(pairs)))
    rows = -(-len(pairs) // columns)
    top = 44
    legend = _draw_legend(examples, description, max(rows * row // LEGEND_ROW - 1, 8))
    left_part = GAP + columns * (cell + GAP)
    width = max(left_part + legend.width, measure_text(load_font(20), title) + 2 * GAP)
    height = max(top + rows * row, top + legend.height)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, top // 2), title, font=load_font(20), fill="black", anchor="lm")
    for index, (pair, example) in enumerate(zip(pairs, examples, strict=True)):
        left = GAP + index % columns * (cell + GAP)
        above = top + index // columns * row
        text = _shorten(example.caption, cell)
        draw.text(
            (left, above + CAPTION // 2), text, font=load_font(14), fill="#444444", anchor="lm"
        )
        sheet.paste(pair, (left, above + CAPTION))
    sheet.paste(legend, (left_part, top + CAPTION - GAP))
    return sheet


def browse(
    description: Description,
    split: str,
    output: str,
    *,
    images: int = 12,
    seed: int = 0,
    crop_size: tuple[int, int] | None = None,
    resize_longer_side: int | None = None,
) -> None:
    """Writes the sheet.

    Args:
        description: of the dataset.
        split: one of its splits.
        output: the PNG file to write.
        images: how many images to show, at most all.
        seed: chooses them, and their augmentation.
        crop_size: (height, width) of the training crops to show; None for the images as they are.
        resize_longer_side: the longer side of images before they are scaled and cropped; None
            leaves them as they are. See `preprocessing.draw_crop_positions`.

    Raises:
        UsageError: no image fills the crop.
        RunError: the data cannot be used or the file cannot be written.
    """
    check_output(output, description.files(), "--output")
    total = description.split(split).num_examples
    count = min(images, total)
    title = f"{description.name}, {split}: "
    if crop_size is None:
        examples = read_stored(description, split, count, seed)
        title += f"{count} of {total:,} images"
    else:
        examples = read_augmented(description, split, count, seed, crop_size, resize_longer_side)
        title += f"training crops of {crop_size[0]} x {crop_size[1]} pixels, seed {seed}"
    found = []
    with Progress("browse", count) as progress:
        for example in examples:
            found.append(example)
            progress.advance()
    make_directory(Path(output).parent)
    write_atomically(output, encode_png(draw_sheet(found, description, title)))
    print(f"wrote {output}")


def main() -> None:
    """Reads the flags and writes the sheet."""
    values = flags.FLAGS
    if values.crop_size and not values.augmented:
        raise UsageError("--crop_size is the size of the crops of --augmented: give both")
    if values.resize_longer_side and not values.augmented:
        raise UsageError("--resize_longer_side is a part of --augmented: give both")
    crop_size = None
    if values.augmented:
        crop_size = _parse_crop_size(values.crop_size or ["321"])
    browse(
        data_flags.read(values),
        values.split,
        values.output,
        images=values.images,
        seed=values.seed,
        crop_size=crop_size,
        resize_longer_side=values.resize_longer_side,
    )


def _draw_pair(example: Example, description: Description) -> Image.Image:
    """Draws image and overlay side by side, at the size of the sheet, so that lines stay sharp."""
    height, width = example.label.shape
    scale = min(PICTURE[0] / height, PICTURE[1] / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image, label, padding = (
        np.asarray(Image.fromarray(pixels).resize(size, method))
        for pixels, method in (
            (example.image, Image.Resampling.LANCZOS),
            (_replace_void(example.label, description), Image.Resampling.NEAREST),
            (example.padding, Image.Resampling.NEAREST),
        )
    )
    overlay = draw_overlay(image, label, np.array(description.palette, np.uint8))
    nothing = draw_checkerboard(label.shape)
    between = np.full((size[1], 4, 3), 255, np.uint8)
    parts = [np.where(padding[..., np.newaxis], nothing, part) for part in (image, overlay)]
    return Image.fromarray(np.concatenate([parts[0], between, parts[1]], axis=1))


def _replace_void(label: np.ndarray, description: Description) -> np.ndarray:
    """Replaces the void label by the number of classes, which no class has: int32 [H, W]."""
    label = label.astype(np.int32)  # there may be 256 classes
    return np.where(label == description.ignore_label, np.int32(description.num_classes), label)


def _draw_legend(examples: list[Example], description: Description, max_rows: int) -> Image.Image:
    palette = np.array(description.palette, np.uint8)
    grey = np.full((*SWATCH, 3), 128, np.uint8)
    shown = [
        set(np.unique(_replace_void(example.label[~example.padding], description)).tolist())
        for example in examples
    ]
    classes = sorted(set().union(*shown))
    marks = {}
    if description.num_classes in classes:
        classes.remove(description.num_classes)
        marks["void"] = draw_overlay(grey, np.full(SWATCH, len(palette)), palette)
    if any(example.padding.any() for example in examples):
        marks["padding"] = draw_checkerboard(SWATCH)
    return draw_legend(
        description.class_names, palette.tolist(), classes=classes, marks=marks, max_rows=max_rows
    )


def _shorten(text: str, width: int) -> str:
    """Cuts the start of a text that is wider than `width` pixels: names differ at their ends."""
    start = 0
    while (
        measure_text(
            load_font(14), text if start == 0 else "\N{HORIZONTAL ELLIPSIS}" + text[start:]
        )
        > width
    ):
        start += 1
    return text if start == 0 else "\N{HORIZONTAL ELLIPSIS}" + text[start:]


def _parse_crop_size(sides: list[str]) -> tuple[int, int]:
    if len(sides) not in (1, 2) or not all(side.isdecimal() and int(side) for side in sides):
        raise UsageError(
            f"--crop_size={','.join(sides)}: give one positive number, or height,width"
        )
    return int(sides[0]), int(sides[-1])


if __name__ == "__main__":
    data_flags.define()
    flags.DEFINE_string("split", "train", "the split to look at")
    define_path("output", None, "the PNG file to write", required=True)
    flags.DEFINE_integer("images", 12, "how many images to show", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "chooses them", lower_bound=0, upper_bound=2**31 - 1)
    flags.DEFINE_bool("augmented", False, "show what training is fed")
    flags.DEFINE_list("crop_size", None, "with --augmented: height,width or one side. Default: 321")
    flags.DEFINE_integer(
        "resize_longer_side", None, "with --augmented: the longer side of images first", 1
    )
    run_app(main)

"""Pictures of label maps: colours over an image, legends, and marks for what has no class."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Palette = Sequence[Sequence[int]]

SWATCH = (28, 44)  # height and width of a colour in a legend
LEGEND_ROW = 36  # height of a line in a legend
MEAN = 0.35  # of a picture's values in 0..1: darker ones are brightened under an overlay


def draw_overlay(image: np.ndarray, labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Draws classes' colours over a picture, with a light line where two classes meet.

    A dark picture is brightened first: a photograph of a night would not be seen under the colours.

    Args:
        image: uint8 [H, W, 3].
        labels: integers [H, W]: 0..C-1, or anything above for void: there the picture is dark and
            grey under diagonal stripes.
        palette: uint8 [C, 3].

    Returns:
        uint8 [H, W, 3].
    """
    void = labels >= len(palette)
    image = brighten(image)
    blend = 0.5 * image + 0.5 * palette[np.where(void, 0, labels)]
    if void.any():
        striped = 0.35 * image.mean(axis=-1, keepdims=True) + 150.0 * draw_stripes(labels.shape)
        blend = np.where(void[..., np.newaxis], striped, blend)
    width = 1 + min(labels.shape) // 700  # stays visible when a large picture is shown small
    border = np.zeros(labels.shape, bool)
    border[:, width:] |= labels[:, width:] != labels[:, :-width]
    border[width:] |= labels[width:] != labels[:-width]
    blend[border] = 0.25 * blend[border] + 0.75 * 255
    return blend.round().astype(np.uint8)


def brighten(image: np.ndarray) -> np.ndarray:
    """Brightens a dark picture until its values are MEAN on average; others stay as they are.

    First all values are multiplied, at most until one in a hundred is white. If that is not enough,
    a power of them lifts the dark ones most. Neither changes the order of the values.

    Args:
        image: uint8 [H, W, 3].

    Returns:
        float64 [H, W, 3] in 0..255.
    """
    values = image / 255
    if not 0 < values.mean() < MEAN:
        return 255 * values
    gain = min(MEAN / values.mean(), 1 / max(np.percentile(values, 99), 1 / 255))
    values = np.minimum(gain * values, 1)
    # The mean of a power is not the power of the mean: near enough for eyes.
    power = min(1, math.log(MEAN) / math.log(values.mean()))
    return 255 * values**power


def draw_stripes(shape: tuple[int, ...]) -> np.ndarray:
    """Draws thin diagonal stripes: bool [H, W, 1], True on a stripe."""
    rows, columns = np.indices(shape)
    return ((rows + columns) % 10 < 2)[..., np.newaxis]


def draw_checkerboard(shape: tuple[int, ...]) -> np.ndarray:
    """Draws squares of two light greys, editors' sign for "no picture here": uint8 [H, W, 3]."""
    rows, columns = np.indices(shape) // 8
    return np.where((rows + columns) % 2, 255, 215)[..., np.newaxis].repeat(3, -1).astype(np.uint8)


def draw_legend(
    class_names: Sequence[str],
    palette: Palette,
    *,
    classes: Iterable[int] | None = None,
    marks: Mapping[str, np.ndarray] | None = None,
    max_rows: int = 25,
) -> Image.Image:
    """Draws a legend: colour, number and name of each class; long lists get more columns.

    Args:
        class_names: C names.
        palette: C colours (red, green, blue) in 0..255.
        classes: the numbers of those to show; None for all.
        marks: further names with a pattern, uint8 [*SWATCH, 3], each; they come last.
        max_rows: lines of a column.
    """
    entries = [
        (str(index), class_names[index], np.full((*SWATCH, 3), palette[index], np.uint8))
        for index in (range(len(class_names)) if classes is None else classes)
    ]
    entries += [("", name, pattern) for name, pattern in (marks or {}).items()]
    text, gap = load_font(20), 14
    rows = min(len(entries), max_rows)
    columns = -(-len(entries) // rows)
    number_width = max(measure_text(text, number) for number, _, _ in entries)
    name_width = max(measure_text(text, name) for _, name, _ in entries)
    column = SWATCH[1] + number_width + name_width + 4 * gap
    legend = Image.new("RGB", (columns * column + gap, rows * LEGEND_ROW + 2 * gap), "white")
    draw = ImageDraw.Draw(legend)
    for index, (number, name, swatch) in enumerate(entries):
        left = gap + index // rows * column
        middle = gap + index % rows * LEGEND_ROW + LEGEND_ROW // 2
        top = middle - SWATCH[0] // 2
        legend.paste(Image.fromarray(swatch), (left, top))
        draw.rectangle((left, top, left + SWATCH[1], top + SWATCH[0]), outline="#808080")
        left += SWATCH[1] + gap + number_width
        draw.text((left, middle), number, font=text, fill="#808080", anchor="rm")
        draw.text((left + gap, middle), name, font=text, fill="black", anchor="lm")
    return legend


def count_classes(labels: np.ndarray) -> list[tuple[int, int]]:
    """The classes that labels, integers [H, W], have, each with its pixels, largest first."""
    counts = np.bincount(labels.ravel())
    order = np.argsort(-counts, kind="stable")
    return [(int(index), int(counts[index])) for index in order if counts[index]]


def inset_legend(
    overlay: Image.Image, labels: np.ndarray, class_names: Sequence[str], palette: Palette
) -> Image.Image:
    """Puts a legend of the classes that a picture has into its lower left corner.

    They stand there from the largest down, as many as take less than half the height; a picture
    that is too small for one that can be read stays as it is.

    Args:
        overlay: of `draw_overlay`.
        labels: integers [H, W] in 0..C-1.
        class_names: C names.
        palette: C colours (red, green, blue) in 0..255.
    """
    classes = [index for index, _ in count_classes(labels)]
    width, height = overlay.size
    scale = min(max(min(width, height) / 720, 0.6), 4.0)
    rows = int((0.5 * height / scale - 28) // LEGEND_ROW)
    if rows < 1:
        return overlay
    legend = draw_legend(class_names, palette, classes=classes[:rows])
    legend = legend.resize(
        (round(scale * legend.width), round(scale * legend.height)), Image.Resampling.LANCZOS
    )
    if legend.width > 0.6 * width:
        return overlay
    place = (0, height - legend.height)
    under = overlay.crop((*place, legend.width, height))
    drawn = overlay.copy()
    drawn.paste(Image.blend(under, legend, 0.85), place)
    return drawn


def load_font(size: int) -> ImageFont.FreeTypeFont:
    """Loads the font of all pictures, matplotlib's: Pillow's own lacks Greek, Cyrillic, accents."""
    file = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(file, size)


def measure_text(text_font: ImageFont.FreeTypeFont, text: str) -> int:
    """Measures the width of a line of text in pixels."""
    return round(text_font.getlength(text))

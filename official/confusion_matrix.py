"""The confusion matrix of an evaluation, as a table and as a picture."""

import csv
import io
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from official.files import write_atomically

PathLike = str | os.PathLike[str]

INK, GREY, PALE_GREY = "#222222", "#8a8a8a", "#d8d8d8"
LONGEST_NAME = 28  # characters: some of ADE20K's names are lists of synonyms


def write(path: PathLike, confusion: np.ndarray, class_names: Sequence[str]) -> None:
    """Writes a CSV file of pixel counts: rows are true classes, columns predicted ones.

    Args:
        path: the file; an older one is replaced.
        confusion: int64 [C, C], as of segmentation_metrics.count_confusions.
        class_names: C names, which become the first row and the first column.

    Raises:
        RunError: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["truth \\ prediction", *class_names])
    for name, counts in zip(class_names, confusion.tolist(), strict=True):
        table.writerow([name, *counts])
    write_atomically(path, text.getvalue())


def draw(
    path: PathLike, confusion: np.ndarray, metrics: dict[str, Any], *, split: str, step: int
) -> None:
    """Draws what became of each class' pixels: every row adds up to 100 %.

    Cells have numbers as long as these can be read. Rows of classes without ground truth are
    hatched.

    Args:
        path: the PNG file to write.
        confusion: int64 [C, C], rows truth, columns prediction; at least one pixel.
        metrics: an Evaluator's: class_names, miou, num_images.
        split: the name of the split.
        step: number of training steps of the network.

    Raises:
        RunError: the file cannot be written.
    """
    classes, pixels = len(confusion), confusion.sum(axis=1)
    shares = 100.0 * confusion / np.where(pixels == 0, 1, pixels)[:, np.newaxis]
    # In inches: cells with numbers fill a page; without, they are as high as a line of small text.
    cell = min(0.9, max(0.125, 9.0 / classes))
    side, has_numbers = max(1.8, cell * classes), cell >= 0.22
    figure = Figure(figsize=(side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    # The square root makes a confusion of one percent visible.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto")
    _draw_lines(axes, pixels)
    _draw_names(axes, metrics["class_names"], pixels, 72 * min(0.8 * cell, 0.14))
    if has_numbers:
        _draw_numbers(axes, shares, 72 * min(0.33 * cell, 0.17), decimals=int(classes <= 12))
    else:  # From cells in the middle it is a long way to the names: they are on all sides.
        axes.tick_params(labeltop=True, labelright=True)
    bar = figure.add_axes((1 + (0.25 if has_numbers else 2.0) / side, 0, 0.15 / side, 1))
    scale = figure.colorbar(image, cax=bar, ticks=[0, 1, 5, 10, 25, 50, 100], format="%g %%")
    scale.outline.set_visible(False)
    title = f"{split}, step {step:,}, {metrics['num_images']:,} images: "
    title += f"mIoU {100 * metrics['miou']:.1f} %\n"
    title += "each row: what the pixels of a class were taken for, in %"
    title += "\nhatched: no such pixels" if np.any(pixels == 0) else ""
    text_size = 12.0 if has_numbers else 18.0
    axes.set_title(title, loc="left", size=text_size, parse_math=False)
    axes.set_xlabel("prediction", size=text_size)
    axes.set_ylabel("truth", size=text_size)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # Names in a script that matplotlib's font lacks are shown as boxes; the table has them.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(picture, dpi=150, format="png", facecolor="white", bbox_inches="tight")
    write_atomically(path, picture.getvalue())


def _draw_lines(axes: Axes, pixels: np.ndarray) -> None:
    """Lines between the cells, boxes around the diagonal, hatches for rows without pixels."""
    classes = len(pixels)
    borders = np.arange(classes + 1) - 0.5
    axes.set_xticks(borders, minor=True)
    axes.set_yticks(borders, minor=True)
    axes.grid(which="minor", color=PALE_GREY, linewidth=0.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    for row, count in enumerate(pixels):
        if count:
            axes.add_patch(Rectangle((row - 0.5, row - 0.5), 1, 1, fill=False, edgecolor=INK))
        else:
            empty = Rectangle((-0.5, row - 0.5), classes, 1, facecolor="white", linewidth=0)
            empty.set(hatch="////", edgecolor=PALE_GREY)
            axes.add_patch(empty)


def _draw_names(axes: Axes, class_names: Sequence[str], pixels: np.ndarray, size: float) -> None:
    """The names of rows and columns; those of rows without pixels are grey."""
    names = [
        name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
        for name in class_names
    ]
    axes.set_xticks(range(len(names)), names, rotation=90, size=size, parse_math=False)
    axes.set_yticks(range(len(names)), names, size=size, parse_math=False)
    for tick, count in zip(axes.yaxis.get_major_ticks(), pixels, strict=True):
        for label in (tick.label1, tick.label2):
            label.set_color(INK if count else GREY)


def _draw_numbers(axes: Axes, shares: np.ndarray, size: float, decimals: int) -> None:
    """Percents; what rounds to nothing stays empty."""
    for row, column in np.argwhere(shares.round(decimals) > 0):
        share = shares[row, column]
        axes.text(
            column,
            row,
            f"{share:.{decimals}f}",
            color="white" if share > 40 else INK,
            weight="bold" if row == column else "normal",
            size=size,
            ha="center",
            va="center",
        )

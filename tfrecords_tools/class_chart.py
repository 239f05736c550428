"""A bar chart of how often every class occurs in every split, as a PNG file."""

import io
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from official.files import write_atomically
from official.records import Description
from tfrecords_tools.findings import Findings

INK, GREY, PALE_GREY = "#222222", "#8a8a8a", "#e3e3e3"
FILLS = ("#1f5fbf", "#d2791e", "#2e8b57", "#8e44ad", "#168f9c", "#a83279")
"""Colours of the splits, over and over."""

# In inches.
BAR, BETWEEN, PANEL, NAMES, MARGIN = 0.15, 0.1, 3.6, 2.3, 0.35
HIGHEST = 13.0
"""A column of classes that would be higher is cut into several."""
LONGEST_NAME = 26  # characters: some of ADE20K's names are lists of synonyms


def draw(
    path: str | os.PathLike[str], splits: Mapping[str, Findings], description: Description
) -> None:
    """Draws the share of each class in the valid pixels of each split, and of void in all pixels.

    Lengths are square roots of the shares, so that a share of 0.01 % is still seen beside one of
    40 %; the numbers stand at the bars. What does not occur says so.

    Args:
        path: the PNG file to write.
        splits: what was found, by the splits' names.
        description: of their dataset.

    Raises:
        RunError: the file cannot be written.
    """
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # Names in a script that matplotlib's font lacks are shown as boxes; the table has them.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        draw_figure(splits, description).savefig(picture, dpi=120, format="png", facecolor="white")
    write_atomically(path, picture.getvalue())


def draw_figure(splits: Mapping[str, Findings], description: Description) -> Figure:
    """Draws the picture that `draw` writes."""
    void = description.ignore_label
    rows = [i for i in range(description.num_classes) if i != void]
    labelled = {
        name: _compute_shares(findings, description)
        for name, findings in splits.items()
        if findings.shares(description).any()
    }
    pitch = BAR * max(len(labelled), 1) + BETWEEN
    columns = math.ceil((len(rows) + 1) * pitch / HIGHEST)
    length = math.ceil((len(rows) + 1) / columns)  # void is the last row
    width = columns * (NAMES + PANEL) + MARGIN
    legend_columns = 2 * columns
    top, bottom = 0.6 + 0.22 * math.ceil(len(splits) / legend_columns), 0.5
    height = top + bottom + length * pitch
    drawn = Figure(figsize=(width, height))
    largest = max([0.01, *(share for shares in labelled.values() for share in shares.values())])
    for column in range(columns):
        axes = drawn.add_axes(
            (
                (column * (NAMES + PANEL) + NAMES) / width,
                bottom / height,
                PANEL / width,
                length * pitch / height,
            )
        )
        part = [*rows, void][column * length : (column + 1) * length]
        _draw_column(axes, part, length, labelled, description, largest, pitch)
    _draw_head(drawn, splits, list(labelled), description, legend_columns)
    return drawn


def _draw_head(
    drawn: Figure,
    splits: Mapping[str, Findings],
    labelled: Sequence[str],
    description: Description,
    legend_columns: int,
) -> None:
    """Draws the title, and below it which colour is which split."""
    width, height = drawn.get_size_inches()
    title = f"{description.name}: share of each class in the pixels that are not void"
    at = (0.12 / width, 1 - 0.14 / height)
    drawn.text(*at, title, size=12, color=INK, va="top", parse_math=False)
    fills = {name: _choose_fill(number) for number, name in enumerate(labelled)}
    legend = drawn.legend(
        [Rectangle((0, 0), 1, 1, color=fills.get(name, "white")) for name in splits],
        [
            f"{name} ({findings.records:,} images{'' if name in labelled else ', no labels'})"
            for name, findings in splits.items()
        ],
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.4 / height),
        ncols=legend_columns,
        frameon=False,
        fontsize=9,
        handlelength=1.2,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _compute_shares(findings: Findings, description: Description) -> dict[int, float]:
    void = description.ignore_label
    shares = dict(enumerate(findings.shares(description).tolist()))
    return {**shares, void: float(findings.pixels[void] / findings.pixels.sum())}


def _choose_fill(split: int) -> str:
    return FILLS[split % len(FILLS)]


def _draw_column(
    axes: Axes,
    labels: Sequence[int],
    length: int,
    shares: Mapping[str, Mapping[int, float]],
    description: Description,
    largest: float,
    pitch: float,
) -> None:
    """Draws the bars of some labels from top to bottom; the unit of both axes is the inch."""
    longest = PANEL - 0.75  # room for the number behind the longest bar
    for row, label in enumerate(labels):
        is_void = label == description.ignore_label
        name = "void (of all pixels)" if is_void else description.class_names[label]
        if len(name) > LONGEST_NAME:
            name = name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
        start = row * pitch + BETWEEN / 2
        middle = row * pitch + pitch / 2
        if row % 2 == 0:
            axes.axhspan(row * pitch, (row + 1) * pitch, color="#f6f6f6", zorder=0)
        text: dict[str, Any] = {"va": "center_baseline", "clip_on": False, "parse_math": False}
        axes.text(-0.34, middle, name, ha="right", size=9, color=INK, **text)
        colour = "white" if is_void else [value / 255 for value in description.palette[label]]
        swatch: dict[str, Any] = {
            "facecolor": colour,
            "edgecolor": GREY,
            "linewidth": 0.6,
            "clip_on": False,
        }
        if is_void:
            swatch["hatch"] = "//////"
        axes.add_patch(Rectangle((-0.26, middle - 0.06), 0.18, 0.12, **swatch))
        for number, (split, values) in enumerate(shares.items()):
            share, at = values[label], start + (number + 0.5) * BAR
            size = longest * math.sqrt(share / largest)
            axes.add_patch(
                Rectangle(
                    (0, at - 0.42 * BAR), size, 0.84 * BAR, color=_choose_fill(number), label=split
                )
            )
            shown = _format_percent(share) if share or is_void else "never"
            ink = INK if share or is_void else "#c0392b"
            axes.text(size + 0.05, at, shown, ha="left", size=7.5, color=ink, **text)
    axes.axvline(0, color=GREY, linewidth=0.8)
    ticks = [percent for percent in (0, 1, 4, 10, 20, 40, 60, 80) if percent <= 100 * largest]
    places = [longest * math.sqrt(percent / 100 / largest) for percent in ticks]
    axes.set_xticks(places, [f"{percent} %" for percent in ticks], size=8, color=GREY)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("lengths are square roots of the shares", size=8, color=GREY)
    axes.set_xlim(0, PANEL)
    axes.set_ylim(length * pitch, 0)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color=PALE_GREY, linewidth=0.6, zorder=0)
    axes.set_axisbelow(True)


def _format_percent(share: float) -> str:
    """Writes percent with two significant digits, as a person does."""
    percent = 100 * share
    if percent >= 9.95 or percent == 0:
        return f"{percent:.0f} %"
    decimals = 1 if percent >= 0.995 else 2
    return f"{percent:.{decimals}f} %" if percent >= 0.005 else "< 0.01 %"

"""Makes the pictures of README.md and docs/.

python docs/draw.py                               all but README's first
python docs/draw.py --quickstart=build/quickstart README's first, of what `make quickstart` made
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image, ImageDraw

from auto_deeplab.report import figures
from auto_deeplab.space import genotype
from official.datasets import CITYSCAPES_PALETTE
from official.drawing import draw_overlay, load_font

HERE = Path(__file__).resolve().parent
INK, BLUE, GREEN, GRAY = "#1f2933", "#1b6ca8", "#2e7d4f", "#7b8794"

# What there is on the road: text, centre, colour of the border.
THINGS = {
    "source": ("images and labels", (0.0, 0.0), GRAY),
    "records": ("records\n--data_dir", (3.4, 0.0), INK),
    "genotype": ("genotype.json\npath and cell", (6.8, 0.0), INK),
    "network": ("trained network\n--model_dir", (10.2, 0.0), INK),
    "model": ("SavedModel", (13.6, 0.0), GREEN),
    "check": ("class table", (3.4, -1.7), GREEN),
    "profile": ("parameters,\nmultiply-adds", (6.8, -1.7), GREEN),
    "metrics": ("metrics.json", (10.2, -1.7), GREEN),
    "overlays": ("label maps,\noverlays", (13.6, -1.7), GREEN),
    "presets": ("presets:\npublished, ...", (6.8, 1.5), GRAY),
}
# What leads from one to the other: the command or mode, and where its name stands.
ROADS = (
    ("source", "records", "convert", (0.0, 0.2)),
    ("records", "genotype", "search", (0.0, 0.2)),
    ("genotype", "network", "train", (0.0, 0.2)),
    ("network", "model", "export", (0.0, 0.2)),
    ("records", "check", "check", (0.45, 0.0)),
    ("genotype", "profile", "profile", (0.5, 0.0)),
    ("network", "metrics", "eval", (0.35, 0.0)),
    ("network", "overlays", "predict", (0.62, 0.2)),
    ("presets", "network", "", (0.0, 0.0)),
)
WIDTH, HEIGHT = 2.2, 0.8
# The floors of auto_deeplab from the top, neighbours side by side: the folder, and what is in it.
FLOORS = (
    (("train.py, quickstart.py, import_tf1.py, console.py", "commands: only here are flags read"),),
    (("modes/", "a function for each --mode: puts the parts together, calls the loop"),),
    (("runs/", "what a model_dir remembers; saved networks"),),
    (("report/", "figures, pages, summaries"),),
    (("budget/", "what networks cost"),),
    (
        ("search/", "super-net, alpha and beta,\nthe bilevel step"),
        ("network/", "the derived network,\nits training step"),
    ),
    (("space/", "search space, genotype, decoding: no TensorFlow"),),
)
TITLE = {"fontsize": 11, "weight": "bold"}
PICTURE = (640, 320)  # pixels of one of the quickstart's pictures


def draw_road() -> Figure:
    """Things as boxes, commands as arrows between them."""
    figure = Figure(figsize=(11, 3.9))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-1.3, 14.9), ylim=(-2.3, 3.0))
    axes.set_axis_off()
    for text, (x, y), colour in THINGS.values():
        corner = (x - WIDTH / 2 + 0.1, y - HEIGHT / 2 + 0.1)
        style = {"boxstyle": "round,pad=0.1", "facecolor": "white", "linewidth": 1.6}
        axes.add_patch(FancyBboxPatch(corner, WIDTH - 0.2, HEIGHT - 0.2, edgecolor=colour, **style))
        axes.text(x, y, text, ha="center", va="center", fontsize=10.5, color=INK)
    for start, end, name, (dx, dy) in ROADS:
        (x0, y0), (x1, y1) = THINGS[start][1], THINGS[end][1]
        if y0 == y1 or start == "presets" or end == "overlays":
            (x0, x1) = (x0 + WIDTH / 2, x1 - WIDTH / 2)
        else:
            (y0, y1) = (y0 - HEIGHT / 2, y1 + HEIGHT / 2)
        if start == "presets":  # a little above the arrow from genotype.json
            y1 += 0.3
        arrow(axes, (x0, y0), (x1, y1))
        label(axes, (x0 + x1) / 2 + dx, (y0 + y1) / 2 + dy, name)
    # Training reads the records too.
    (x0, y0), (x1, _) = THINGS["records"][1], THINGS["network"][1]
    top = y0 + 2.4
    axes.plot([x0, x0, x1], [y0 + HEIGHT / 2, top, top], color=BLUE, linewidth=1.8)
    arrow(axes, (x1, top), (x1, y0 + HEIGHT / 2))
    label(axes, (x0 + x1) / 2, top + 0.2, "train and eval read the records too")
    return figure


def draw_house() -> Figure:
    """The packages as a house: everything imports only what is below it."""
    figure = Figure(figsize=(11, 6.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11), ylim=(-1.75, 8.4))
    axes.set_axis_off()
    left, right = 4.0, 10.8
    top = 0.4
    for floor in reversed(FLOORS):
        height = 1.3 if len(floor) > 1 else 0.85
        width = (right - left - 0.15 * (len(floor) - 1)) / len(floor)
        for number, (name, content) in enumerate(floor):
            start = left + number * (width + 0.15)
            draw_room(axes, (start, top), (width, height), name, content, BLUE)
        top += height + 0.15
    axes.text((left + right) / 2, top + 0.2, "auto_deeplab/", ha="center", color=BLUE, **TITLE)
    height = top - 0.55
    content = (
        "convert: a dataset as its owners\ndistribute it becomes records\n\n"
        "check, browse, class_weights:\nlook at them\n\n"
        "toy_scenes: paints street scenes"
    )
    draw_room(axes, (0.2, 0.4), (3.2, height), "", content, GREEN)
    axes.text(1.8, top + 0.2, "tfrecords_tools/", ha="center", color=GREEN, **TITLE)
    content = (
        "records, input pipeline, losses, optimizers, checkpoints, training loop, evaluation, "
        "prediction, export:\nwhat any segmentation project could use"
    )
    draw_room(axes, (0.2, -1.6), (10.6, 1.4), "official/", content, INK)
    for x in (1.8, (left + right) / 2):
        arrow(axes, (x, 0.35), (x, -0.15))
    return figure


def draw_room(
    axes: Axes,
    corner: tuple[float, float],
    size: tuple[float, float],
    name: str,
    content: str,
    colour: str,
) -> None:
    """A box with a name and, below it, what is inside; `corner` is its lower left one."""
    (x, y), (width, height) = corner, size
    style = {"boxstyle": "round,pad=0.1", "facecolor": "white", "linewidth": 1.6}
    inner = (x + 0.1, y + 0.1), width - 0.2, height - 0.2
    axes.add_patch(FancyBboxPatch(*inner, edgecolor=colour, **style))
    middle = x + width / 2, y + height / 2
    lines = content.count("\n") + 1
    if name:
        place = (middle[0], middle[1] + 0.19 * lines)
        axes.text(*place, name, ha="center", va="center", color=colour, **TITLE)
        middle = (middle[0], middle[1] - 0.2)
    axes.text(*middle, content, ha="center", va="center", fontsize=10, color=INK)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """An arrow between two points."""
    style = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops={**style, "mutation_scale": 14})


def label(axes: Axes, x: float, y: float, text: str) -> None:
    """The name of a road."""
    axes.text(x, y, text, ha="center", va="center", fontsize=10.5, color=BLUE, weight="bold")


def draw_quickstart(made: Path) -> Image.Image:
    """A street and what the network says of it, above the path and the cell that were found.

    Args:
        made: the quickstart's --output_dir.
    """
    scene = min((made / "scenes" / "leftImg8bit" / "val" / "toyville").glob("*.png"))
    found = made / "search" / "figures"
    street = Image.open(scene).convert("RGB").resize(PICTURE)
    labels = Image.open(made / "predictions" / f"{scene.stem}_labels.png")
    labels = np.asarray(labels.resize(PICTURE, Image.Resampling.NEAREST))
    overlay = draw_overlay(np.asarray(street), labels, np.array(CITYSCAPES_PALETTE, np.uint8))
    pictures = (
        ("a street that the network has never seen", street),
        ("the labels that it predicts", Image.fromarray(overlay)),
        ("the path of resolutions that was found", Image.open(found / "network.png")),
        ("the cell that was found", Image.open(found / "cell.png")),
    )
    (width, height), caption, gap = PICTURE, 34, 20
    sheet = Image.new("RGB", (2 * width + gap, 2 * (height + caption) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (text, picture) in enumerate(pictures):
        left, top = number % 2 * (width + gap), number // 2 * (height + caption + gap)
        shown = picture.convert("RGB")
        shown.thumbnail(PICTURE, Image.Resampling.LANCZOS)
        place = left + (width - shown.width) // 2, top + (height - shown.height) // 2
        sheet.paste(shown, place)
        middle = (left + width // 2, top + height + caption // 2)
        draw.text(middle, text, font=load_font(18), fill=INK, anchor="mm")
    return sheet.quantize(256)


def main() -> None:
    """Draws all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quickstart", type=Path, help="a run of make quickstart")
    made = parser.parse_args().quickstart
    if made is not None:
        draw_quickstart(made).save(HERE / "quickstart.png", optimize=True)
        return
    for name, figure in (("road", draw_road()), ("architecture", draw_house())):
        matplotlib.rcParams["svg.hashsalt"] = name  # the same file every time
        figure.savefig(HERE / f"{name}.svg", facecolor="white", metadata={"Date": None})
    for name in genotype.PRESET_PATHS:
        figures.draw_network(genotype.load(name), HERE / f"{name}_network.png")
    figures.draw_cell(genotype.load("published"), HERE / "published_cell.png")


if __name__ == "__main__":
    main()

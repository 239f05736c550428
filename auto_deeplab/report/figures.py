"""Pictures of an architecture and of a search, as PNG files, or as SVG where a name ends so.

They are drawn with matplotlib's Agg canvas alone: no display is needed and no global state kept.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from auto_deeplab.space import decoding, search_space
from auto_deeplab.space.genotype import Block, Branch, Cell, Genotype
from official.errors import shorten
from official.files import write_atomically

PathLike = str | os.PathLike[str]
Point = tuple[float, float]

BLUE, PALE_BLUE, INK, GREY, PALE_GREY = "#1f5fbf", "#dbe7f8", "#222222", "#8a8a8a", "#e3e3e3"
WIRES = (
    *("#222222", "#c0392b"),
    *("#1f5fbf", "#2e8b57", "#8e44ad", "#d2791e", "#168f9c", "#a83279", "#7a7a12", "#6d4c41"),
)
"""The colours of a cell's tensors: H^{l-1}, H^{l-2}, block 0, ...; with more blocks they recur."""
OPERATION_FILLS = {
    "sep": "#dbe7f8",
    "atr": "#fde3c8",
    "dil": "#fbf0b8",
    "avg": "#dcefdc",
    "max": "#dcefdc",
    "ski": "#eeeeee",
}
WIDEST = 6.0
"""Of an edge of the trellis that is certain, in points."""
TITLE_HEIGHT, CELL_TITLE = 0.5, 0.6
"""Of a picture's title, in inches, and of a cell's, in the units of its picture."""
NODE_RADIUS, DASHES = 0.2, (0, (3, 2))  # of the trellis: nodes are 1 apart
# Of the picture of a cell, whose unit is half an inch.
MARGIN, ROW, BRANCH, INPUT_END, BOX_WIDTH, PANEL_WIDTH, TRACK = 0.5, 2.1, 0.48, 1.7, 1.7, 3.2, 0.34
HISTORY_PANELS = {
    "training loss": {"loss_w": "weights", "loss_arch": "architecture (trainB)"},
    "validation mIoU": {"val_miou": "mIoU"},
    "mean entropy (nats)": {
        "alpha_entropy": r"$\alpha$: an edge's operations",
        "beta_entropy": r"$\beta$: a node's outgoing edges",
        "edge_entropy": "edge weights: a block's inputs",
    },
    "learning rate of the weights": {"learning_rate": "learning rate"},
}


def draw_network(genotype: Genotype, path: PathLike, beta: np.ndarray | None = None) -> None:
    """Draws the path on the trellis (as Fig. 1 and 3 do): rows are strides, columns layers.

    Args:
        genotype: whose path it is; with several cells, the nodes of the path carry their numbers.
        path: the file to write.
        beta: float [L, 4, 3], probabilities. If given, edges of the trellis are as wide as they are
            probable, and grey dashed arrows mark the most probable edge out of every node, unless
            it is on the path.

    Raises:
        ValueError: beta is of another number of layers, or holds no probabilities.
    """
    figure, axes = _make_canvas(*_network_extent(genotype))
    _draw_trellis(axes, genotype, beta)
    _save(figure, path)


def _network_extent(genotype: Genotype) -> Point:
    """Width and height of a network's picture, in inches."""
    return 0.72 * (genotype.num_layers + 5.4), 0.72 * 6.0


def _draw_trellis(axes: Axes, genotype: Genotype, beta: np.ndarray | None) -> None:
    num_layers = genotype.num_layers
    if beta is not None and len(beta) != num_layers:
        raise ValueError(f"beta has {len(beta)} layers, the genotype {num_layers}")
    for layer, source, level in search_space.edges(num_layers):
        width = 1.2
        if beta is not None:
            share = beta[layer - 1, source, search_space.direction(source, level)]
            width = 0.3 + WIDEST * float(share)
        _draw_line(axes, (layer - 1, source), (layer, level), PALE_GREY, width)
    route = list(enumerate((0, *genotype.path)))
    path_edges = set(pairwise(route))
    if beta is not None:
        for layer, source, level in decoding.find_strongest_edges(beta):
            edge = (layer - 1, source), (layer, level)
            if edge not in path_edges:
                _draw_edge(axes, *edge, colour=GREY, width=1.3, style=DASHES)
    for start, end in [((-1, -1), (0, 0)), *sorted(path_edges)]:
        stem = end == (0, 0)
        _draw_edge(axes, start, end, colour=GREY if stem else BLUE, width=2.6)
    for node in [(-1, -1), (0, 0)]:
        axes.add_patch(Circle(node, NODE_RADIUS, facecolor="#b5b5b5", edgecolor=GREY, zorder=3))
    for node in search_space.nodes(num_layers):
        on_path = node in route
        fill = BLUE if on_path else PALE_BLUE
        axes.add_patch(Circle(node, NODE_RADIUS, facecolor=fill, edgecolor=BLUE, zorder=3))
        if on_path and genotype.cell_of_layer:
            number = str(genotype.cell_of_layer[node[0] - 1])
            axes.text(*node, number, color="white", ha="center", va="center", fontsize=9)
    _draw_ends(axes, route[-1])
    _draw_scales(axes, num_layers)
    _draw_network_legend(axes, genotype, beta is not None)


def _draw_ends(axes: Axes, last: tuple[int, int]) -> None:
    """What comes before and after the trellis: the image and the ASPP."""
    layer, level = last
    axes.text(-1.75, -1, "image", ha="center", va="center", fontsize=10, color=GREY)
    _draw_arrow(axes, (-1.42, -1), (-1 - NODE_RADIUS, -1), GREY, 2.0)
    box = (layer + 0.75, level - 0.3)
    _draw_arrow(axes, (layer + NODE_RADIUS, level), (box[0], level), BLUE, 2.6)
    _draw_box(axes, *box, 0.95, 0.6, "#fde3c8", INK, "ASPP", fontsize=10)


def _draw_scales(axes: Axes, num_layers: int) -> None:
    top = -1.75
    axes.plot([-3.35, -1.95], [top - 0.45, top + 0.25], color=INK, linewidth=0.8)
    axes.text(-2.0, top - 0.3, "layer", ha="right", va="center", fontsize=9)
    axes.text(-3.35, top + 0.2, "downsample", ha="left", va="center", fontsize=9)
    for level in range(-1, search_space.NUM_LEVELS):
        text = str(search_space.stride(level))
        axes.text(-2.75, level, text, ha="center", va="center", fontsize=11)
    axes.text(-0.5, top, "stem", ha="center", va="center", fontsize=11, color=GREY)
    for layer in range(1, num_layers + 1):
        axes.text(layer, top, str(layer), ha="center", va="center", fontsize=11)
    axes.set_xlim(-3.5, num_layers + 1.9)
    axes.set_ylim(3.6, top - 0.65)  # downwards: coarser levels stand lower


def _draw_network_legend(axes: Axes, genotype: Genotype, with_beta: bool) -> None:
    cell = " (number: its cell)" if genotype.cell_of_layer else ""
    entries = [
        Line2D([], [], color=BLUE, linewidth=2.6, marker="o", label=f"path{cell}"),
        Line2D([], [], color=PALE_GREY, marker="o", mfc=PALE_BLUE, mec=BLUE, label="search space"),
    ]
    if with_beta:
        label = r"width: $\beta$; strongest outgoing edge"
        entries.append(Line2D([], [], color=GREY, linewidth=1.3, linestyle=DASHES, label=label))
    # The corner below the stem, where the trellis has no nodes.
    place = {"loc": "lower left", "bbox_to_anchor": (-2.2, 3.4), "bbox_transform": axes.transData}
    axes.legend(handles=entries, frameon=False, fontsize=9, borderpad=0, **place)


def draw_cell(genotype: Genotype, path: PathLike) -> None:
    """Draws each distinct cell as a graph from left to right.

    Every block has rows of its own and stands right of all that it reads; wires run along rows and
    turn only between columns, so that none passes behind a box or lies on another. Where the
    genotype says by which alpha it was decoded, an operation's box shows its probability in %.

    Args:
        genotype: whose cells they are.
        path: the file to write.
    """
    figure, axes = _make_canvas(*_cells_extent(genotype))
    _draw_cells(axes, genotype)
    _save(figure, path)


def draw_alpha(genotype: Genotype, path: PathLike) -> None:
    """Draws alpha as a heat map, one for each cell of the path: a row for each edge of the cell.

    A field is the probability of an operation in percent, Eq. 3; frames mark what decoding kept.

    Args:
        genotype: whose meta holds alpha, as decoding writes it.
        path: the file to write.

    Raises:
        ValueError: its meta holds no alpha, or one of another search space.
    """
    alphas, names = _find_alphas(genotype), genotype.meta["operations"]
    edges = search_space.cell_edges(genotype.num_blocks)
    sources = ["$H^{l-1}$", "$H^{l-2}$", *(f"block {n}" for n in range(genotype.num_blocks))]
    titles = _cell_titles(genotype) or [r"$\alpha$ in %; frames: kept"]
    size = 2.2 + 0.62 * len(names), 0.8 + 0.28 * len(edges)
    figure = Figure(figsize=(size[0], size[1] * len(alphas)), layout="constrained")
    for place, (alpha, cell, title) in enumerate(zip(alphas, genotype.cells, titles, strict=True)):
        axes = figure.add_subplot(len(alphas), 1, place + 1)
        axes.imshow(alpha, cmap="Blues", vmin=0, vmax=1.6 * alpha.max(), aspect="auto")
        for (row, column), share in np.ndenumerate(alpha):
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
        for number, block in enumerate(cell):
            for source, name in block:
                corner = names.index(name) - 0.47, edges.index((number, source)) - 0.45
                axes.add_patch(Rectangle(corner, 0.94, 0.9, fill=False, edgecolor=INK, lw=1.6))
        for row in range(1, len(edges)):
            if edges[row][0] != edges[row - 1][0]:
                axes.axhline(row - 0.5, color=INK, linewidth=0.8)
        axes.set_xticks(range(len(names)), [operation_label(name) for name in names], fontsize=8)
        axes.xaxis.tick_top()
        labels = [f"{sources[source]} → block {number}" for number, source in edges]
        axes.set_yticks(range(len(edges)), labels, fontsize=8)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=11)
    _save(figure, path)


def draw_architecture(genotype: Genotype, path: PathLike) -> None:
    """Draws both in one picture: what the genotype is, its path above and its cells below.

    Beta and alpha are drawn too where its meta, which decoding writes, holds them.

    Args:
        genotype: what to draw.
        path: the file to write.
    """
    (width, height), (cells_width, cells_height) = (
        _network_extent(genotype),
        _cells_extent(genotype),
    )
    whole = max(width, cells_width), TITLE_HEIGHT + height + cells_height
    figure = Figure(figsize=whole)

    def place(top: float, width: float, height: float) -> Axes:
        box = (0, 1 - (top + height) / whole[1], width / whole[0], height / whole[1])
        axes = figure.add_axes(box)
        axes.set_axis_off()
        axes.set_aspect("equal")
        return axes

    title = _describe_origin(genotype.meta)
    figure.text(0.2 / whole[0], 1 - 0.25 / whole[1], title, va="center", fontsize=12)
    _draw_trellis(place(TITLE_HEIGHT, width, height), genotype, _read_beta(genotype))
    _draw_cells(place(TITLE_HEIGHT + height, cells_width, cells_height), genotype)
    _save(figure, path)


def _describe_origin(meta: Mapping[str, Any]) -> str:
    """Where an architecture comes from, as far as its meta tells, in a line."""
    parts = [str(meta[key]) for key in ("preset", "dataset", "drawn") if meta.get(key) is not None]
    names = {"search_seed": "search seed", "seed": "seed", "step": "step", "number": "number"}
    parts += [f"{name} {meta[key]}" for key, name in names.items() if meta.get(key) is not None]
    return shorten(", ".join(parts) or "an architecture", 100).replace("$", r"\$")


def _read_beta(genotype: Genotype) -> np.ndarray | None:
    """The beta by which the genotype was decoded, if its meta has one that fits."""
    try:
        beta = decoding.check_beta(genotype.meta["beta"])
    except (KeyError, TypeError, ValueError):  # meta may be anything
        return None
    return beta if len(beta) == genotype.num_layers else None


def _find_alphas(genotype: Genotype) -> list[np.ndarray]:
    """Of each cell, the alpha by which it was decoded: float [E, operations].

    Raises:
        ValueError: meta, which may be anything, holds none that fits.
    """
    meta = genotype.meta
    try:
        names, sharing = meta["operations"], meta["alpha_sharing"]
        alphas, _ = decoding.find_alphas(meta["alpha"], genotype.path, sharing)
        checked = [decoding.check_alpha(one, names, genotype.num_blocks) for one in alphas]
        kept = {name for cell in genotype.cells for block in cell for _, name in block}
        if len(checked) == len(genotype.cells) and kept <= {*names}:
            return checked
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise ValueError("the genotype does not say by which alpha it was decoded")


def _read_shares(genotype: Genotype) -> list[dict[tuple[int, Branch], float]]:
    """For each cell, (block, branch) -> the probability by which that operation was decoded."""
    try:
        alphas, names = _find_alphas(genotype), genotype.meta["operations"]
    except ValueError:
        return [{} for _ in genotype.cells]
    rows = {edge: row for row, edge in enumerate(search_space.cell_edges(genotype.num_blocks))}
    return [
        {
            (number, (source, name)): float(alpha[rows[number, source], names.index(name)])
            for number, block in enumerate(cell)
            for source, name in block
        }
        for cell, alpha in zip(genotype.cells, alphas, strict=True)
    ]


def _read_edge_weights(genotype: Genotype) -> list[dict[tuple[int, int], float]]:
    """For each cell, (block, source) -> the weight by which that edge was decoded, if any."""
    meta = genotype.meta
    try:
        weights = np.asarray(meta["edge_weights"], float)[..., np.newaxis]
        rows = search_space.cell_edges(genotype.num_blocks)
        of_cells, _ = decoding.find_alphas(weights, genotype.path, meta["alpha_sharing"])
        return [dict(zip(rows, cell[:, 0], strict=True)) for cell in of_cells]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return [{} for _ in genotype.cells]


def _cells_extent(genotype: Genotype) -> Point:
    """Width and height of the picture of all cells, in inches."""
    extents = [_cell_extent(blocks) for blocks in genotype.cells]
    titles = CELL_TITLE * len(_cell_titles(genotype))
    widest = max(width for width, _ in extents)
    return 0.5 * widest, 0.5 * (sum(height for _, height in extents) + titles)


def _draw_cells(axes: Axes, genotype: Genotype) -> None:
    titles, top = _cell_titles(genotype), 0.0
    shares, weights = _read_shares(genotype), _read_edge_weights(genotype)
    for number, blocks in enumerate(genotype.cells):
        if titles:
            axes.text(0.2, top + 0.4, titles[number], ha="left", va="center", fontsize=11)
            top += CELL_TITLE
        _draw_one_cell(axes, blocks, top, shares[number], weights[number])
        top += _cell_extent(blocks)[1]
    axes.set_xlim(0, max(_cell_extent(blocks)[0] for blocks in genotype.cells))
    axes.set_ylim(top, 0)


def operation_label(name: str) -> str:
    """The short name of an operation in pictures: `sep 3x3`, `atr 5x5`, `avg 3x3`, `skip`."""
    words = name.split("_")
    has_window = name not in (search_space.SKIP_CONNECT, search_space.NONE)
    return f"{words[0][:3]} {words[-1]}" if has_window else words[0]


def _operation_label(branch: Branch, share: float | None) -> str:
    label = operation_label(branch[1])
    return label if share is None else f"{label}  {share:.0%}"


def _cell_titles(genotype: Genotype) -> list[str]:
    if genotype.cell_of_layer is None:
        return []
    titles = []
    for number in range(len(genotype.cells)):
        layers = [str(n) for n, used in enumerate(genotype.cell_of_layer, 1) if used == number]
        used_by = f"used by layers {', '.join(layers)}" if layers else "not used"
        titles.append(f"cell {number}: {used_by}")
    return titles


def _depths(blocks: Cell) -> list[int]:
    """The column of each tensor, in the order H^{l-1}, H^{l-2}, blocks; both inputs' is 0."""
    depths = [0, 0]
    for block in blocks:
        depths.append(1 + max(depths[source] for source, _ in block))
    return depths


def _tracks(blocks: Cell) -> tuple[list[float], list[float]]:
    """Horizontal places in a cell's picture, in its units.

    Returns:
        where each column of blocks starts, and, for each tensor, where its wire turns up or down
        towards the blocks that read it; 0 for a tensor that none reads.
    """
    depths = _depths(blocks)
    read = {source for block in blocks for source, _ in block}
    starts, tracks = [0.0], [0.0] * len(depths)
    end = INPUT_END
    for column in range(max(depths) + 1):
        turning = [tensor for tensor in sorted(read) if depths[tensor] == column]
        for number, tensor in enumerate(turning, start=1):
            tracks[tensor] = end + TRACK * number
        starts.append(end + TRACK * (len(turning) + 2))
        end = starts[-1] + PANEL_WIDTH
    return starts, tracks


def _cell_extent(blocks: Cell) -> tuple[float, float]:
    """The width and height of a cell's picture."""
    return _tracks(blocks)[0][-1] + 3.3, ROW * len(blocks) + 2 * MARGIN


def _draw_one_cell(
    axes: Axes,
    blocks: Cell,
    top: float,
    shares: Mapping[tuple[int, Branch], float],
    weights: Mapping[tuple[int, int], float],
) -> None:
    num_blocks, depths = len(blocks), _depths(blocks)
    starts, tracks = _tracks(blocks)
    # The inputs stand at the height of a border between two blocks, where no wire runs.
    borders = (num_blocks // 3, num_blocks - num_blocks // 3)
    rows = [top + MARGIN + ROW * border for border in borders]
    rows += [top + MARGIN + ROW * (number + 0.5) for number in range(num_blocks)]
    ends = [INPUT_END, INPUT_END] + [starts[depth] + PANEL_WIDTH - 0.35 for depth in depths[2:]]
    for tensor, name in enumerate(("$H^{l-1}$", "$H^{l-2}$")):
        _draw_box(axes, 0.3, rows[tensor] - 0.35, 1.4, 0.7, "white", _wire(tensor), name)
    concat = starts[-1]
    for number, block in enumerate(blocks):
        tensor = number + 2
        left = starts[depths[tensor]]
        branches = _order_branches(block, rows)
        labels = [_operation_label(branch, shares.get((number, branch))) for branch in branches]
        _draw_block(axes, number, branches, labels, left, rows[tensor])
        _draw_arrow(axes, (ends[tensor], rows[tensor]), (concat, rows[tensor]), _wire(tensor), 1.5)
    for tensor in range(num_blocks + 2):
        numbers, targets = [], []
        for number, block in enumerate(blocks):
            ordered = zip(_order_branches(block, rows), (-BRANCH, BRANCH), strict=True)
            for (source, _), offset in ordered:
                if source == tensor:
                    numbers.append(number)
                    targets.append((starts[depths[number + 2]] + 0.25, rows[number + 2] + offset))
        for number, (x, y) in zip(numbers, targets, strict=True):
            if (number, tensor) in weights:
                weight = f"{weights[number, tensor]:.0%}"
                axes.text(x - 0.2, y - 0.08, weight, ha="right", va="bottom", fontsize=7)
        _draw_wire(axes, (ends[tensor], rows[tensor]), tracks[tensor], targets, _wire(tensor))
    height = ROW * num_blocks - 0.3
    _draw_box(axes, concat, top + MARGIN + 0.15, 0.9, height, "#f2f2f2", INK)
    middle = top + MARGIN + ROW * num_blocks / 2
    axes.text(concat + 0.45, middle, "concat", rotation=90, ha="center", va="center", fontsize=11)
    _draw_arrow(axes, (concat + 0.9, middle), (concat + 1.8, middle), INK, 2.0)
    axes.text(concat + 2.3, middle, "$H^l$", ha="center", va="center", fontsize=14)


def _order_branches(block: Block, rows: Sequence[float]) -> list[Branch]:
    """A block's branches from top to bottom, in the order of their sources: wires cross less so."""
    return sorted(block, key=lambda branch: rows[branch[0]])


def _wire(tensor: int) -> str:
    return WIRES[tensor % len(WIRES)]


def _draw_block(
    axes: Axes,
    number: int,
    branches: Sequence[Branch],
    labels: Sequence[str],
    left: float,
    row: float,
) -> None:
    """A panel with a block's two operations and their sum, whose wire starts on its right."""
    colour = _wire(number + 2)
    panel = _draw_box(
        axes, left, row - ROW / 2 + 0.12, PANEL_WIDTH, ROW - 0.24, "#fafafa", PALE_GREY
    )
    panel.set_zorder(0)
    label_at = (left + PANEL_WIDTH - 0.12, row - ROW / 2 + 0.36)
    axes.text(*label_at, f"block {number}", ha="right", va="center", fontsize=8, color=colour)
    center = (left + PANEL_WIDTH - 0.6, row)
    for (_, name), label, offset in zip(branches, labels, (-BRANCH, BRANCH), strict=True):
        box = (left + 0.25, row + offset - 0.3)
        fill = OPERATION_FILLS[name[:3]]
        size = 10 if label == operation_label(name) else 8.5
        _draw_box(axes, *box, BOX_WIDTH, 0.6, fill, INK, label, fontsize=size)
        start = (box[0] + BOX_WIDTH, row + offset)
        end = (center[0] - 0.18, row + 0.3 * offset)
        _draw_arrow(axes, start, end, INK, 1.2)
    axes.add_patch(Circle(center, 0.25, facecolor="white", edgecolor=colour, linewidth=1.8))
    axes.text(*center, "+", ha="center", va="center_baseline", fontsize=13, color=colour)


def _draw_wire(
    axes: Axes, start: Point, track: float, targets: Sequence[Point], colour: str
) -> None:
    """Draws one tensor's wire to all blocks that read it.

    It runs from `start` along its row to x = `track`, there up or down, then along each target's
    row to the target.
    """
    if not targets:
        if start[0] == INPUT_END:  # a block that no other reads still goes to the concatenation
            axes.text(start[0] + 0.15, start[1], "not used", color=colour, va="center", fontsize=8)
        return
    heights = [start[1], *(y for _, y in targets)]
    _draw_line(axes, start, (track, start[1]), colour, 1.5)
    _draw_line(axes, (track, min(heights)), (track, max(heights)), colour, 1.5)
    for x, y in targets:
        _draw_arrow(axes, (track, y), (x, y), colour, 1.5)
    for height in heights:
        axes.plot([track], [height], "o", color=colour, markersize=3.5)


def draw_history(
    rows: Sequence[Mapping[str, Any]], path: PathLike, uniform: Mapping[str, float] | None = None
) -> None:
    """Draws the curves of a search or a training: losses, mIoU, entropies, learning rate.

    A curve that no row has a value for is left out, and so is a panel without curves: a training
    has no entropies. All axes start at 0, so that a value twice as large stands twice as high. A
    dashed line marks where `phase` first changes: from there on alpha and beta are learned too.

    Args:
        rows: the objects of history.jsonl: `epoch`, `phase`, and any of the values drawn; what is
            missing, None or not finite is left out.
        path: the file to write.
        uniform: key of a row -> the entropy of uniform probabilities, drawn as a dotted line; see
            decoding.uniform_entropies.
    """
    clock = "epoch" if all(_is_finite(row.get("epoch")) for row in rows) else "step"
    rows = [row for row in rows if _is_finite(row.get(clock))]
    change = _phase_change(rows, clock)
    panels = {
        title: curves
        for title, curves in HISTORY_PANELS.items()
        if any(_is_finite(row.get(key)) for row in rows for key in curves)
    }
    columns = max(1, len(panels) if len(panels) < 4 else 2)  # no place stays empty
    lines = -(-len(panels) // columns) or 1
    figure = Figure(figsize=(4.6 * columns, 3.25 * lines), layout="constrained")
    if not panels:
        figure.text(0.5, 0.5, "nothing reported yet", color=GREY, ha="center", va="center")
    for place, (title, curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(lines, columns, place)
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(clock)
        axes.spines[["top", "right"]].set_visible(False)
        for (key, label), colour in zip(curves.items(), (BLUE, WIRES[1], WIRES[3]), strict=False):
            points = [(row[clock], row[key]) for row in rows if _is_finite(row.get(key))]
            if points:
                axes.plot(
                    *zip(*points, strict=True), ".-", color=colour, label=label, linewidth=1.5
                )
            if points and key in (uniform or {}):
                dots: dict[str, Any] = {"linestyle": ":", "color": colour, "linewidth": 1.4}
                axes.axhline((uniform or {})[key], label="the same, if uniform", **dots)
        if change is not None:
            label = "architecture phase starts"
            axes.axvline(change, color=GREY, linestyle="--", linewidth=1.2, label=label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color=PALE_GREY, linewidth=0.6)
        if len(axes.get_lines()) > 1:
            axes.legend(frameon=False, fontsize=9)
    _save(figure, path)


def draw_front(samples: Sequence[Mapping[str, Any]], path: PathLike) -> None:
    """Draws mIoU in the super-net against cost; the Pareto front is a line through its names.

    Args:
        samples: of front.json: "name", "miou", "cost" in one "unit", "on_front".
        path: of the picture.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    front = sorted((one["cost"], one["miou"], one["name"]) for one in samples if one["on_front"])
    others = [(one["cost"], one["miou"]) for one in samples if not one["on_front"]]
    if others:
        axes.scatter(*zip(*others, strict=True), color=GREY, marker="x", label="others")
    costs, worths, names = zip(*front, strict=True)
    axes.plot(
        costs, worths, color=BLUE, marker="o", drawstyle="steps-post", label="the Pareto front"
    )
    for cost, worth, name in zip(costs, worths, names, strict=True):
        axes.annotate(
            *(shorten(name, 30), (cost, worth), (0, -15), "data", "offset points"),
            size=9,
            ha="center",
        )
    axes.set_xlabel(samples[0]["unit"])
    axes.set_ylabel("mIoU in the super-net")
    axes.margins(x=0.12, y=0.1)
    axes.grid(color=PALE_GREY)
    axes.legend(loc="lower right")
    _save(figure, path)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _phase_change(rows: Sequence[Mapping[str, Any]], clock: str) -> float | None:
    """The epoch, or step, of the last report of the first phase; None if there is one phase."""
    for before, after in pairwise(row for row in rows if row.get("phase")):
        if before["phase"] != after["phase"]:
            return float(before[clock])
    return None


def _make_canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches that is one drawing area, equally scaled in x and y."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_aspect("equal")
    return figure, axes


def _draw_line(axes: Axes, start: Point, end: Point, colour: str, width: float) -> None:
    (x, y), (x_end, y_end) = start, end
    axes.plot([x, x_end], [y, y_end], color=colour, linewidth=width, zorder=1)


def _draw_arrow(
    axes: Axes, start: Point, end: Point, colour: str, width: float, style: Any = "-"
) -> None:
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=8 + 2 * width,
            shrinkA=0,
            shrinkB=0,
            color=colour,
            linewidth=width,
            linestyle=style,
            zorder=2,
        )
    )


def _draw_edge(
    axes: Axes, start: Point, end: Point, colour: str, width: float, style: Any = "-"
) -> None:
    """An arrow from one node's rim to another's, so that no node hides its head."""
    (x, y), (x_end, y_end) = start, end
    share = NODE_RADIUS / math.hypot(x_end - x, y_end - y)
    dx, dy = share * (x_end - x), share * (y_end - y)
    _draw_arrow(axes, (x + dx, y + dy), (x_end - dx, y_end - dy), colour, width, style)


def _draw_box(
    axes: Axes,
    left: float,
    top: float,
    width: float,
    height: float,
    fill: str,
    edge: str,
    text: str = "",
    fontsize: float = 12,
) -> FancyBboxPatch:
    box = FancyBboxPatch(
        (left + 0.1, top + 0.1),
        width - 0.2,
        height - 0.2,
        boxstyle="round,pad=0.1",
        facecolor=fill,
        edgecolor=edge,
        zorder=3,
    )
    axes.add_patch(box)
    center = (left + width / 2, top + height / 2)
    axes.text(*center, text, ha="center", va="center", fontsize=fontsize, zorder=4)
    return box


def _save(figure: Figure, path: PathLike) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture = io.BytesIO()
    form = "svg" if os.fspath(path).lower().endswith(".svg") else "png"
    # Without the date and with names of its own, the same picture is the same file.
    with rc_context({"svg.hashsalt": "auto_deeplab"}):
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(picture, dpi=150, format=form, facecolor="white", metadata=metadata)
    write_atomically(path, picture.getvalue())

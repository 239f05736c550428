"""Where everything stands in the charts of a report page: plain numbers that templates draw."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from auto_deeplab.space import search_space

Points = Sequence[tuple[float, float]]
Layout = dict[str, Any]

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 520, 230, 48, 10, 190  # of a chart, in its own units
LABEL = 15  # the height of a curve's name
SPARK = (150, 24)  # width and height of a curve in a table
COLUMN, ROW = 64, 56  # of the trellis
CELL_ROW = 46  # of the picture of a cell


def lay_out_lines(
    title: str,
    series: Mapping[str, Points],
    *,
    x_label: str,
    levels: Mapping[str, float] | None = None,
    change: float | None = None,
    right: int = 400,
) -> Layout | None:
    """A chart of curves whose axes start at 0; each curve's name stands at its end.

    Args:
        title: of the chart.
        series: name -> the points (x, y) of a curve; one without points is left out.
        x_label: what x is.
        levels: name -> the y of a dashed line.
        change: the x where the search begins to move alpha and beta.
        right: where the curves end and the names begin.

    Returns:
        None where there is nothing to draw.
    """
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    levels = levels or {}
    xs = [x for points in series.values() for x, _ in points]
    ys = [*(y for points in series.values() for _, y in points), *levels.values()]
    columns, rows = _ticks(0, max(xs)), _ticks(min(0, *ys), max(ys))
    x_scale = (right - LEFT) / (columns[-1] or 1)
    y_scale = (BOTTOM - TOP) / ((rows[-1] - rows[0]) or 1)

    def place(x: float, y: float) -> tuple[float, float]:
        return round(LEFT + x_scale * x, 1), round(BOTTOM - y_scale * (y - rows[0]), 1)

    drawn = {name: [place(*point) for point in points] for name, points in series.items()}
    labels = _spread([points[-1][1] for points in drawn.values()])
    last = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in series.items())
    return {
        **{"title": title, "width": WIDTH, "height": HEIGHT, "x_label": x_label},
        **{"left": LEFT, "right": right, "top": TOP, "bottom": BOTTOM, "x_scale": x_scale},
        "summary": f"{title} by {x_label}; last: {last}",
        "rows": [(place(0, y)[1], f"{y:.4g}") for y in rows],
        "columns": [(place(x, 0)[0], f"{x:.6g}") for x in columns],
        "levels": [(place(0, y)[1], name) for name, y in levels.items()],
        "change": (place(change, 0)[0], "alpha, beta move") if change is not None else None,
        "series": [
            {"label": name, "points": points, "label_y": label + 4}
            for (name, points), label in zip(drawn.items(), labels, strict=True)
        ],
    }


def lay_out_scatter(
    groups: Mapping[str, Sequence[tuple[float, float, str]]], *, x_label: str, y_label: str
) -> Layout | None:
    """Points (x, y, name), a marker for each group, and the Pareto front: small x, large y."""
    points = [point for group in groups.values() for point in group]
    if not points:
        return None
    columns = _ticks(min(0, *(x for x, _, _ in points)), max(x for x, _, _ in points))
    low, high = min(y for _, y, _ in points), max(y for _, y, _ in points)
    rows = _ticks(low - 0.1 * (high - low), high + 0.1 * (high - low))
    right, bottom = 640, 330

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            round(LEFT + (right - LEFT) * (x - columns[0]) / ((columns[-1] - columns[0]) or 1), 1),
            round(bottom - (bottom - TOP) * (y - rows[0]) / ((rows[-1] - rows[0]) or 1), 1),
        )

    best, front = -math.inf, []
    for x, y, _ in sorted(points, key=lambda point: (point[0], -point[1])):
        if y > best:
            front.append(place(x, y))
            best = y
    return {
        **{"width": 860, "height": bottom + 40, "x_label": x_label},
        **{"left": LEFT, "right": right, "top": TOP, "bottom": bottom, "front": front},
        "summary": f"{y_label} against {x_label}; {len(front)} of {len(points)} on the front",
        "rows": [(place(0, y)[1], f"{y:.4g}") for y in rows],
        "columns": [(place(x, 0)[0], f"{x:.4g}") for x in columns],
        "groups": [
            {
                "label": label,
                "points": [
                    {
                        "x": place(x, y)[0],
                        "y": place(x, y)[1],
                        "name": name,
                        "tip": f"{name} ({label}): {y_label} {y:.4g}, {x_label} {x:.4g}",
                    }
                    for x, y, name in group
                ],
            }
            for label, group in groups.items()
        ],
    }


def lay_out_spark(points: Points, last_x: float, highest: float) -> Points:
    """A curve without axes."""
    width, height = SPARK
    return [
        (round(width * x / (last_x or 1), 1), round(height - (height - 2) * y / (highest or 1), 1))
        for x, y in points
    ]


def lay_out_trellis(num_layers: int) -> Layout:
    """The nodes of the trellis, the stem's first, and the edges, as those of search_space."""

    def place(layer: int, level: int) -> tuple[int, int]:
        return COLUMN + COLUMN * layer, 44 + ROW * level

    return {
        "width": COLUMN * (num_layers + 2),
        "height": ROW * search_space.NUM_LEVELS + 10,
        "rows": [
            (place(0, level)[1], str(search_space.stride(level)))
            for level in range(search_space.NUM_LEVELS)
        ],
        "columns": [
            (place(layer, 0)[0], str(layer) if layer else "stem") for layer in range(num_layers + 1)
        ],
        "nodes": [place(*node) for node in [(0, 0), *search_space.nodes(num_layers)]],
        "edges": [
            (*place(layer - 1, source), *place(layer, level))
            for layer, source, level in search_space.edges(num_layers)
        ],
    }


def lay_out_heat(labels: Sequence[str], operations: Sequence[str]) -> Layout:
    """The places of alpha's shares, row by row."""
    rows, columns = range(len(labels)), range(len(operations))
    return {
        "width": 114 + 52 * len(operations),
        "height": 26 + 22 * len(labels),
        "columns": [(114 + 52 * x + 25, name) for x, name in enumerate(operations)],
        "rows": [(24 + 22 * y, label) for y, label in enumerate(labels)],
        "places": [(114 + 52 * x, 24 + 22 * y) for y in rows for x in columns],
    }


def lay_out_cell(num_blocks: int, tensors: Sequence[str]) -> Layout:
    """The tensors of a cell from top to bottom, and for each row of alpha an arc on their left."""
    # The farther input stands on top, so that most arcs are short.
    order = [1, 0, *range(2, num_blocks + 2)]
    heights = {tensor: 26 + CELL_ROW * place for place, tensor in enumerate(order)}
    paths = []
    for block, source in search_space.cell_edges(num_blocks):
        start, end = heights[source], heights[block + 2]
        out = 130 - min(124, 24 + 0.42 * (end - start))
        paths.append(f"M130 {start} C{out:.0f} {start} {out:.0f} {end - 6} 130 {end - 6}")
    return {
        "height": CELL_ROW * (num_blocks + 2) + 8,
        "tensors": [(heights[tensor], tensors[tensor]) for tensor in order],
        "paths": paths,
    }


def _ticks(low: float, high: float) -> list[float]:
    if low == high:
        low, high = min(low, 0.0), max(high, 1.0) if high >= 0 else 0.0
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]


def _spread(heights: Sequence[float]) -> list[float]:
    """Moves heights down until no two names lie on each other; the last one may need room."""
    moved = [0.0] * len(heights)
    free = -math.inf
    for index in sorted(range(len(heights)), key=lambda index: heights[index]):
        free = moved[index] = max(heights[index], free)
        free += LABEL
    over = max(0.0, max(moved, default=0.0) - (HEIGHT - 20))
    return [height - over for height in moved]

"""The two-level search space of Auto-DeepLab as data (paper, Sec. 3): a trellis and a cell.

The trellis (Sec. 3.2). A node is (layer, level): layers 1..L hold one cell each per level, level k
works at stride 4 * 2^k. Layer 0 is the stem's output at stride 4 (level 0 only); layer -1 is the
stem's stride-2 tensor, level -1, which only ever serves as H^{l-2}. Node (l, k) exists iff k <= l,
and an edge joins (l-1, j) to (l, k) iff both exist and |j - k| <= 1. Everything else in the
project asks this file which nodes and edges there are.

The cell (Sec. 3.1). Block i adds two operations, each on one of its 2 + i inputs: 0 is H^{l-1},
1 is H^{l-2}, 2 + j is block j. The cell's output is the concatenation of its blocks.
"""

import difflib
import math
from collections.abc import Iterable

from official.errors import shorten

NONE = "none"
SKIP_CONNECT = "skip_connect"

OPERATIONS = (
    "sep_conv_3x3",
    "sep_conv_5x5",
    "atrous_conv_3x3",
    "atrous_conv_5x5",
    "avg_pool_3x3",
    "max_pool_3x3",
    SKIP_CONNECT,
    NONE,
)
"""The paper's eight operations (Sec. 3.1); the order of alpha's columns."""

DIL_OPERATIONS = tuple(name.replace("atrous_", "dil_") for name in OPERATIONS)
"""The same with depthwise-separable atrous convolutions, as DARTS has them."""

KNOWN_OPERATIONS = (*OPERATIONS, "dil_conv_3x3", "dil_conv_5x5")

ALPHA_SHARING = ("global", "level", "layer")
"""Which cells share one alpha: all (the paper), those of a level, or those of a layer (Sec. 6)."""

NUM_LEVELS = 4
UP, SAME, DOWN = 0, 1, 2
"""Directions of an edge, in the order of beta's last axis: to the finer level, to the same, to the
coarser one."""


def validate_operations(names: Iterable[str]) -> tuple[str, ...]:
    """Returns `names` as a tuple if a search over them makes sense.

    Raises:
        ValueError: a name is unknown or given twice, or there is nothing besides `none`.
    """
    operations = tuple(names)
    for name in operations:
        if name not in KNOWN_OPERATIONS:
            raise ValueError(explain_unknown_operation(name))
        if operations.count(name) > 1:
            raise ValueError(f"operation {name!r} is listed twice: name every operation once")
    if not set(operations) - {NONE}:
        raise ValueError(
            "no operation to search over: list at least one besides none, such as "
            + ", ".join(OPERATIONS[:2])
        )
    return operations


def explain_unknown_operation(name: object) -> str:
    """The error message for a name that is no operation, with the nearest known one."""
    close = difflib.get_close_matches(str(name)[:100], KNOWN_OPERATIONS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    shown = shorten(repr(name), 60)
    return f"unknown operation {shown}: {hint}known are {', '.join(KNOWN_OPERATIONS)}"


def stride(level: int) -> int:
    """Input pixels per feature of a level: 4, 8, 16, 32 (2 for the stem's level -1)."""
    return 2 ** (level + 2)


def levels_at(layer: int) -> range:
    """The levels of the nodes of `layer` (0..L), finest first."""
    return range(min(layer + 1, NUM_LEVELS))


def exists(layer: int, level: int) -> bool:
    """Whether the trellis has a node (layer, level), layer 0 being the stem's output."""
    return level in levels_at(layer)


def predecessors(layer: int, level: int) -> list[int]:
    """The levels at `layer - 1` that feed node (layer, level), finest first."""
    if not exists(layer, level):
        return []
    return [source for source in levels_at(layer - 1) if abs(source - level) <= 1]


def successors(layer: int, level: int) -> list[int]:
    """The levels at `layer + 1` that node (layer, level) feeds, finest first."""
    if not exists(layer, level):
        return []
    return [target for target in levels_at(layer + 1) if abs(target - level) <= 1]


def nodes(num_layers: int) -> list[tuple[int, int]]:
    """All (layer, level) of layers 1..num_layers, layer by layer."""
    return [(layer, level) for layer in range(1, num_layers + 1) for level in levels_at(layer)]


def edges(num_layers: int) -> list[tuple[int, int, int]]:
    """All edges as (layer, source level at layer - 1, level), in the order of `nodes`."""
    return [
        (layer, source, level)
        for layer, level in nodes(num_layers)
        for source in predecessors(layer, level)
    ]


def direction(source_level: int, level: int) -> int:
    """The direction of an edge: UP (s -> s/2), SAME or DOWN (s -> 2s).

    Raises:
        ValueError: no edge joins levels that far apart.
    """
    if abs(level - source_level) > 1:
        raise ValueError(f"no edge goes from level {source_level} to level {level}")
    return level - source_level + 1


def legal_directions(layer: int, source_level: int) -> tuple[int, ...]:
    """The legal entries of beta's row (layer, source_level), ascending.

    Beta has shape [L, 4, 3]. The edge from (l-1, j) to (l, k), l = 1..L, has its weight at
    [l - 1, j, direction(j, k)]. The row of a source node that does not exist has no legal entry.
    """
    return tuple(direction(source_level, level) for level in successors(layer - 1, source_level))


def second_source(layer: int, level: int) -> tuple[int, int, int]:
    """Where node (layer, level) takes its second input H^{l-2} from.

    It is the node of the same level two layers back. If that layer has none so coarse, it is the
    coarsest tensor there, which a convolution of stride 2 or 4 then brings to the node's size.
    Layer -1 has the stem's stride-2 tensor alone (level -1).

    Returns:
        (source layer, source level, stride factor 1, 2 or 4).
    """
    source_layer = layer - 2
    coarsest = levels_at(source_layer)[-1] if source_layer >= 0 else -1
    source_level = min(level, coarsest)
    return source_layer, source_level, 2 ** (level - source_level)


def count_paths(num_layers: int) -> int:
    """The number of paths of `num_layers` edges through the trellis, from the stem's output on."""
    ends = {0: 1}
    for layer in range(1, num_layers + 1):
        ends = {
            level: sum(ends[source] for source in predecessors(layer, level))
            for level in levels_at(layer)
        }
    return sum(ends.values())


def cell_edges(num_blocks: int) -> list[tuple[int, int]]:
    """The cell's edges as (block, input), by block, then input: the order of alpha's rows."""
    return [(block, source) for block in range(num_blocks) for source in range(2 + block)]


def num_blocks_of(num_edges: int) -> int:
    """The number of blocks of a cell with so many edges; the inverse of `num_cell_edges`."""
    return next(blocks for blocks in range(num_edges + 1) if num_cell_edges(blocks) >= num_edges)


def num_cell_edges(num_blocks: int) -> int:
    """The number of alpha's rows: 2 + 3 + ... over the blocks, 20 for five blocks."""
    return num_blocks * (num_blocks + 3) // 2


def num_alphas(sharing: str, num_layers: int) -> int:
    """How many alphas there are under one of ALPHA_SHARING."""
    return {"global": 1, "level": NUM_LEVELS, "layer": num_layers}[sharing]


def alpha_index(sharing: str, layer: int, level: int) -> int:
    """The index, below `num_alphas`, of the alpha that the cells of node (layer, level) use."""
    return {"global": 0, "level": level, "layer": layer - 1}[sharing]


def count_cells(num_blocks: int, num_operations: int) -> int:
    """The number of cells (I_1, I_2, O_1, O_2 per block) as Sec. 5.1 counts them.

    The same input may be chosen twice, and a block's two branches count in order.
    """
    inputs = math.prod(2 + block for block in range(num_blocks))
    return inputs**2 * num_operations ** (2 * num_blocks)

"""What the network that a search will decode is expected to cost, as a function of alpha and beta.

The paper's search knows no cost; here a term can pull it towards a budget. Beta is read as Sec. 4.3
reads it: what leaves a node are the chances of the next level. So a path is drawn from a Markov
chain, move by move. Alpha is read as decoding does: `none` is never chosen, so an edge's operation
is drawn from the others, in proportion. Which 2 of its 2 + i inputs block i keeps is not read from
alpha: all pairs are equally likely.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from auto_deeplab.budget.cost_table import CostTable, triples
from auto_deeplab.space import search_space
from auto_deeplab.space.search_space import NUM_LEVELS

AlphaOf = Callable[[int, int], tf.Tensor]
Term = Callable[[AlphaOf, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

TINY = 1e-30
"""Added to probabilities: where `none` has them all, the other operations are equally likely."""


def expected(
    table: CostTable, operations: Sequence[str], alpha_of: AlphaOf, beta: tf.Tensor
) -> tf.Tensor:
    """The mean cost over all paths and cells.

    With one path and one convolution certain it is exactly that network's cost. A skip-connection
    or pool may cost more at stride 2, which only the cell's own inputs have: there, as where the
    edges' operations differ, the mean over the inputs that a block may keep remains.

    Args:
      table: has all of `operations`.
      operations: the names of alpha's columns.
      alpha_of: (layer, level) -> probabilities [edges, operations] of that node's cell.
      beta: probabilities [L, 4, 3]; see search_space.legal_directions.

    Returns:
      scalar of beta's dtype in the table's unit, differentiable in alpha and beta.
    """
    num_layers = beta.shape[0]
    # moves[l - 1, j, k]: the chance to go from level j of layer l - 1 to level k of layer l. Beta
    # is 0 where there is no edge; all that can be are among the first layers'.
    places = np.zeros([NUM_LEVELS, 3, NUM_LEVELS])
    for _, source, level in search_space.edges(NUM_LEVELS):
        places[source, search_space.direction(source, level), level] = 1.0
    moves = tf.einsum("ljd,jdk->ljk", beta, tf.constant(places, beta.dtype))
    at = [tf.one_hot(0, NUM_LEVELS, dtype=beta.dtype)]  # at[l][k]: the path is at k in layer l
    for layer in range(1, num_layers + 1):
        at.append(tf.linalg.matvec(moves[layer - 1], at[-1], transpose_a=True))
    pairs = tf.stack(at[:-1])[:, :, None] * moves  # [L, 4, 4]: at j in l - 1, then at k
    before = pairs[:-1, :, :, None] * moves[1:, None]  # [L - 1, 4, 4, 4]: layers l - 2, l - 1, l

    first, later = np.zeros(NUM_LEVELS), np.zeros(before.shape)
    for triple in triples(1):
        first[triple[2]] = table.inputs(1, *triple) + _decoder(table, triple[2])
    for layer in range(2, num_layers + 1):
        for triple in triples(layer):
            later[layer - 2][triple] = table.inputs(layer, *triple)

    def mean(chances: tf.Tensor, costs: np.ndarray | list[float]) -> tf.Tensor:
        return tf.reduce_sum(chances * tf.constant(costs, beta.dtype))

    return (
        table("stem")
        + mean(at[1], first)
        + mean(before, later)
        + mean(at[-1], [table("aspp", level) for level in range(NUM_LEVELS)])
        + _cells(table, operations, alpha_of, pairs)
    )


def _cells(
    table: CostTable, operations: Sequence[str], alpha_of: AlphaOf, pairs: tf.Tensor
) -> tf.Tensor:
    """The mean cost of all cells but for the projections of their inputs."""
    nodes = search_space.nodes(pairs.shape[0])
    columns = [column for column, name in enumerate(operations) if name != search_space.NONE]
    # [nodes, edges, operations], given that it is not none.
    alpha = tf.gather(tf.stack([alpha_of(*node) for node in nodes]), columns, axis=-1) + TINY
    alpha /= tf.reduce_sum(alpha, -1, keepdims=True)
    costs = np.zeros([2, NUM_LEVELS, alpha.shape[1], len(columns)])
    for stride in (1, 2):
        for level in range(stride - 1, NUM_LEVELS):
            costs[stride - 1, level] = _edge_costs(table, operations, level, stride)
    levels = [level for _, level in nodes]
    by_stride = tf.einsum("neo,sneo->sn", alpha, tf.constant(costs[:, levels], alpha.dtype))
    # The stride of an edge of the trellis is 2 where it goes down.
    edges = search_space.edges(pairs.shape[0])
    cell = [
        (_stride(source, level) - 1, nodes.index((layer, level))) for layer, source, level in edges
    ]
    blocks = tf.constant([table("blocks", level) for _, _, level in edges], pairs.dtype)
    chances = tf.gather_nd(pairs, [(layer - 1, source, level) for layer, source, level in edges])
    return tf.reduce_sum(chances * (tf.gather_nd(by_stride, cell) + blocks))


def _edge_costs(
    table: CostTable, operations: Sequence[str], level: int, stride: int
) -> list[list[float]]:
    """[edges, operations but none]: the costs in a cell, times the chance that the edge is kept."""
    return [
        [
            2 / (2 + block) * table("operation", name, level, stride if source < 2 else 1)
            for name in operations
            if name != search_space.NONE
        ]
        for block, source in search_space.cell_edges(table.settings["num_blocks"])
    ]


def _stride(source: int, level: int) -> int:
    """The stride of a cell whose H^{l-1} is of level `source`."""
    return 2 if search_space.direction(source, level) == search_space.DOWN else 1


def _decoder(table: CostTable, first_level: int) -> float:
    """The decoder's cost by the level of layer 1: it takes the stem's if the path goes down."""
    return table("decoder", "stem" if first_level > 0 else "cell")


def bounds(table: CostTable, operations: Sequence[str], num_layers: int) -> tuple[float, float]:
    """The least and the greatest value that `expected` can take.

    Each cell for itself: if all share one alpha, not every value in between can be reached.
    """
    found = []
    for choose in (min, max):
        cells = {
            (level, stride): table("blocks", level)
            + sum(map(choose, _edge_costs(table, operations, level, stride)))
            for level in range(NUM_LEVELS)
            for stride in ((1, 2) if level else (1,))
        }
        totals = {(-1, 0): table("stem")}  # by the levels of the last two layers
        for layer in range(1, num_layers + 1):
            reached: dict[tuple[int, int], list[float]] = {}
            for triple in triples(layer):
                _, last, level = triple
                total = totals[triple[:2]] + table.inputs(layer, *triple)
                total += cells[level, _stride(last, level)]
                total += _decoder(table, level) if layer == 1 else 0.0
                reached.setdefault((last, level), []).append(total)
            totals = {ends: choose(values) for ends, values in reached.items()}
        found.append(choose(total + table("aspp", level) for (_, level), total in totals.items()))
    return found[0], found[1]


def budget_term(
    table: CostTable, operations: Sequence[str], *, budget: float, weight: float
) -> Term:
    """What to add to the architecture's loss: (alpha_of, beta) -> (penalty, expected cost).

    penalty = weight * relu(expected / budget - 1), so that the weight has no unit. A network
    within the budget pays nothing: a budget asks for the best network that fits, and a cheaper one
    is no better. There the search is the paper's own.

    Args:
      table, operations: as in `expected`.
      budget: > 0, in the table's unit.
      weight: >= 0; the penalty at twice the budget.
    """

    def term(alpha_of: AlphaOf, beta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        cost = expected(table, operations, alpha_of, beta)
        return weight * tf.nn.relu(cost / budget - 1.0), cost

    return term


def check(table: CostTable, operations: Sequence[str], num_blocks: int) -> None:
    """Checks that a table is one for a search.

    Raises:
      ValueError: it is not; one line.
    """
    settings = table.settings
    missing = [name for name in operations if name not in (*settings["operations"], "none")]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}: measure it with the same --operations")
    if settings["num_blocks"] != num_blocks:
        raise ValueError(
            f"it is for cells of {settings['num_blocks']} blocks, not {num_blocks}: measure it "
            "with the same --num_blocks"
        )

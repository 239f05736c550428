"""What the network that a search will decode is expected to cost, as a function of alpha and beta.

The paper's search knows no cost; here a term can pull it towards a budget. Beta is read as Sec. 4.3
reads it: the probabilities of the edges that leave a node are the chances of where the path goes
next, so that a path is drawn from a Markov chain, edge by edge. Alpha is read as decoding reads it:
`none` is never chosen, so the operation of a cell's edge is drawn from the others, in proportion.
Which 2 of its 2 + i inputs block i keeps is not read from alpha: all pairs are equally likely.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from auto_deeplab.budget.cost_table import CostTable, list_level_triples
from auto_deeplab.space import search_space
from auto_deeplab.space.genotype import Genotype
from auto_deeplab.space.search_space import NUM_LEVELS

AlphaOf = Callable[[int, int], tf.Tensor]
Term = Callable[[AlphaOf, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

TINY = 1e-30
"""Added to probabilities: where `none` has them all, the other operations are equally likely."""


def compute(
    table: CostTable, operations: Sequence[str], alpha_of: AlphaOf, beta: tf.Tensor
) -> tf.Tensor:
    """Computes the mean cost over all paths and cells, weighted by their probabilities.

    Where beta is certain of a path, and alpha of one convolution on all edges, this is exactly the
    cost of that network. Otherwise the mean runs over the pairs of inputs that a block may keep
    too, even where alpha is certain: their edges may have different operations, and a
    skip-connection or pool costs more at stride 2, which only the cell's own two inputs have.

    Args:
        table: has all of `operations`.
        operations: the names of alpha's columns.
        alpha_of: (layer, level) -> probabilities [edges, operations] of that node's cell.
        beta: probabilities [L, 4, 3]; see search_space.legal_directions.

    Returns:
        scalar of beta's dtype in the table's unit, differentiable in alpha and beta.
    """
    num_layers = beta.shape[0]
    # chances[l - 1, j, k]: where the path is at level j of layer l - 1, the chance that it takes
    # the edge to level k of layer l. `places` has every edge that a layer can have; where a layer
    # has not, beta is 0.
    places = np.zeros([NUM_LEVELS, 3, NUM_LEVELS])
    for _, source, level in search_space.edges(NUM_LEVELS):
        places[source, search_space.direction(source, level), level] = 1.0
    chances = tf.einsum("ljd,jdk->ljk", beta, tf.constant(places, beta.dtype))
    at = [tf.one_hot(0, NUM_LEVELS, dtype=beta.dtype)]  # at[l][k]: the path is at k in layer l
    for layer in range(1, num_layers + 1):
        at.append(tf.linalg.matvec(chances[layer - 1], at[-1], transpose_a=True))
    taken = tf.stack(at[:-1])[:, :, None] * chances  # [L, 4, 4]: the path takes this edge
    # [L - 1, 4, 4, 4]: the path takes these two edges, from layer l - 2 to l - 1 and on to l.
    taken_in_turn = taken[:-1, :, :, None] * chances[1:, None]

    first, later = np.zeros(NUM_LEVELS), np.zeros(taken_in_turn.shape)
    for triple in list_level_triples(1):
        first[triple[2]] = table.cost_of_inputs(1, *triple) + _find_decoder_cost(table, triple[2])
    for layer in range(2, num_layers + 1):
        for triple in list_level_triples(layer):
            later[layer - 2][triple] = table.cost_of_inputs(layer, *triple)

    def mean(chances: tf.Tensor, costs: np.ndarray | list[float]) -> tf.Tensor:
        return tf.reduce_sum(chances * tf.constant(costs, beta.dtype))

    return (
        table("stem")
        + mean(at[1], first)
        + mean(taken_in_turn, later)
        + mean(at[-1], [table("aspp", level) for level in range(NUM_LEVELS)])
        + _compute_cells(table, operations, alpha_of, taken)
    )


def _compute_cells(
    table: CostTable, operations: Sequence[str], alpha_of: AlphaOf, taken: tf.Tensor
) -> tf.Tensor:
    """The mean cost of all cells, without the projections of their inputs.

    Args:
        taken: [L, 4, 4], the chance that the path takes the edge from one level to another.
    """
    nodes = search_space.nodes(taken.shape[0])
    columns = [column for column, name in enumerate(operations) if name != search_space.NONE]
    # [nodes, edges, operations], given that it is not none.
    alpha = tf.gather(tf.stack([alpha_of(*node) for node in nodes]), columns, axis=-1) + TINY
    alpha /= tf.reduce_sum(alpha, -1, keepdims=True)
    costs = np.zeros([2, NUM_LEVELS, alpha.shape[1], len(columns)])
    for stride in (1, 2):
        for level in range(stride - 1, NUM_LEVELS):
            costs[stride - 1, level] = _compute_edge_costs(table, operations, level, stride)
    levels = [level for _, level in nodes]
    by_stride = tf.einsum("neo,sneo->sn", alpha, tf.constant(costs[:, levels], alpha.dtype))
    # The stride of a cell's own inputs is 2 where the path takes an edge down to it.
    edges = search_space.edges(taken.shape[0])
    cell = [
        (_find_stride(source, level) - 1, nodes.index((layer, level)))
        for layer, source, level in edges
    ]
    blocks = tf.constant([table("blocks", level) for _, _, level in edges], taken.dtype)
    chances = tf.gather_nd(taken, [(layer - 1, source, level) for layer, source, level in edges])
    return tf.reduce_sum(chances * (tf.gather_nd(by_stride, cell) + blocks))


def _compute_edge_costs(
    table: CostTable, operations: Sequence[str], level: int, stride: int
) -> list[list[float]]:
    """What each operation on each edge of a cell adds to the mean: its cost times the chance that
    the edge is kept, [edges, operations without `none`].
    """
    return [
        [
            2 / (2 + block) * table("operation", name, level, stride if source < 2 else 1)
            for name in operations
            if name != search_space.NONE
        ]
        for block, source in search_space.cell_edges(table.settings["num_blocks"])
    ]


def _find_stride(source: int, level: int) -> int:
    """The stride of a cell at `level` whose H^{l-1} is of level `source`."""
    return 2 if search_space.direction(source, level) == search_space.DOWN else 1


def _find_decoder_cost(table: CostTable, first_level: int) -> float:
    """The decoder's cost by the level of layer 1: if the path leaves stride 4 at once, the decoder
    takes the stem's feature.
    """
    return table("decoder", "stem" if first_level > 0 else "cell")


def cost_of(table: CostTable, genotype: Genotype) -> float:
    """The cost of one network, the sum of its pieces', in the table's unit."""
    path = genotype.path
    total = table("stem") + _find_decoder_cost(table, path[0]) + table("aspp", path[-1])
    for layer, triple in enumerate(zip((-1, 0, *path), (0, *path), path, strict=False), start=1):
        _, last, level = triple
        total += table.cost_of_inputs(layer, *triple) + table("blocks", level)
        for block in genotype.cell(layer):
            for source, name in block:
                stride = _find_stride(last, level) if source < 2 else 1
                total += table("operation", name, level, stride)
    return total


def compute_bounds(
    table: CostTable, operations: Sequence[str], num_layers: int
) -> tuple[float, float]:
    """Computes the least and the greatest value that `compute` can take.

    They are reached where every cell may have operations of its own; a search whose cells share
    one alpha may not reach them.
    """
    found = []
    for choose in (min, max):
        cells = {
            (level, stride): table("blocks", level)
            + sum(map(choose, _compute_edge_costs(table, operations, level, stride)))
            for level in range(NUM_LEVELS)
            for stride in ((1, 2) if level else (1,))
        }
        totals = {(-1, 0): table("stem")}  # by the levels of the last two layers
        for layer in range(1, num_layers + 1):
            reached: dict[tuple[int, int], list[float]] = {}
            for triple in list_level_triples(layer):
                _, last, level = triple
                total = totals[triple[:2]] + table.cost_of_inputs(layer, *triple)
                total += cells[level, _find_stride(last, level)]
                total += _find_decoder_cost(table, level) if layer == 1 else 0.0
                reached.setdefault((last, level), []).append(total)
            totals = {ends: choose(values) for ends, values in reached.items()}
        found.append(choose(total + table("aspp", level) for (_, level), total in totals.items()))
    return found[0], found[1]


def make_budget_term(
    table: CostTable, operations: Sequence[str], *, budget: float, weight: float
) -> Term:
    """Makes what is added to the architecture's loss: (alpha_of, beta) -> (penalty, expected cost).

    penalty = weight * relu(expected / budget - 1), so that the weight has no unit. A network
    within the budget pays nothing: a budget asks for the best network that fits, and a cheaper one
    is no better. There the search is the paper's own.

    Args:
        table, operations: as in `compute`.
        budget: > 0, in the table's unit.
        weight: >= 0; the penalty at twice the budget.
    """

    def term(alpha_of: AlphaOf, beta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        cost = compute(table, operations, alpha_of, beta)
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

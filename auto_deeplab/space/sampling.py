"""Architectures at random, from the whole space or by what a search made of it, and its best ones.

All are drawn by alpha and beta, as decoding.py has them. A path is a Markov chain: beta's row of a
node holds the probabilities of where it goes next (paper, Sec. 3.2). A cell is what decoding can
find: each block keeps two different inputs, each with one operation that is not `none`. Of an edge
with the operations' probabilities p, the operation is drawn by p without `none`, and the two inputs
by the largest of these, which is the strength by which decoding compares edges; one after the other
and never the same twice.

Chance itself is one alpha and beta among others: alpha alike, and a beta by which every path is as
probable as any other (`make_uniform`).
"""

import heapq
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from auto_deeplab.space import decoding, search_space
from auto_deeplab.space.genotype import Block, Cell, Genotype

Array = np.ndarray
_Ranked = tuple[float, tuple[int, ...]]
"""Minus the log-probability, and what it is of: sorted, the best come first, then the lowest."""


def make_uniform(
    num_layers: int, num_blocks: int, operations: Sequence[str]
) -> tuple[Array, Array]:
    """Alpha [E, operations] and beta [L, 4, 3] by which all architectures are equally probable.

    Beta's edges are as probable as paths go on from where they lead: in this way every path has the
    probability 1 / search_space.count_paths. (Equal probabilities at each node would prefer paths
    along the trellis' borders.)
    """
    operations = search_space.validate_operations(operations)
    alpha = np.full([search_space.num_cell_edges(num_blocks), len(operations)], 1 / len(operations))
    beta = np.zeros([num_layers, search_space.NUM_LEVELS, 3])
    ways = np.ones(search_space.NUM_LEVELS)  # from each level of a layer on to layer L
    for layer in range(num_layers, 0, -1):
        before = np.zeros(search_space.NUM_LEVELS)
        for source in search_space.levels_at(layer - 1):
            targets = search_space.successors(layer - 1, source)
            before[source] = sum(ways[target] for target in targets)
            for target in targets:
                direction = search_space.direction(source, target)
                beta[layer - 1, source, direction] = ways[target] / before[source]
        ways = before
    return alpha, beta


def count_cells(num_blocks: int, operations: Sequence[str]) -> int:
    """How many cells can be drawn: for each block two different inputs, and two operations."""
    choices = len(set(operations) - {search_space.NONE})
    return math.prod(math.comb(2 + block, 2) * choices**2 for block in range(num_blocks))


def draw_path(beta: Array, rng: np.random.Generator) -> tuple[int, ...]:
    """Draws the level of every layer by beta [L, 4, 3].

    Raises:
        ValueError: beta is not of that shape or holds no probabilities.
    """
    beta = decoding.check_beta(beta)
    path = [0]
    for row in beta:
        direction = _draw(row[path[-1]], rng)
        path.append(path[-1] + direction - search_space.SAME)
    return tuple(path[1:])


def draw_cell(
    alpha: Array, operations: Sequence[str], num_blocks: int, rng: np.random.Generator
) -> Cell:
    """Draws a cell by alpha [E, operations].

    Raises:
        ValueError: as decoding.decode_cell.
    """
    cell: list[Block] = []
    names, rows_of = _split(alpha, operations, num_blocks)
    for rows in rows_of:
        strength = rows.max(axis=1)
        one = _draw(strength, rng)
        strength[one] = 0.0
        pair = sorted((one, _draw(strength, rng, but=one)))
        first, second = ((source, names[_draw(rows[source], rng)]) for source in pair)
        cell.append((first, second))
    return tuple(cell)


def draw(
    alpha: Array,
    beta: Array,
    operations: Sequence[str],
    num_blocks: int,
    rng: np.random.Generator,
    *,
    alpha_sharing: str = "global",
) -> Genotype:
    """Draws a path, and a cell for each alpha that its nodes use; arguments as decoding.decode."""
    path = draw_path(beta, rng)
    alphas, cell_of_layer = decoding.find_alphas(alpha, path, alpha_sharing)
    cells = tuple(draw_cell(one, operations, num_blocks, rng) for one in alphas)
    return Genotype(path, cells, cell_of_layer)


def find_best(
    alpha: Array,
    beta: Array,
    operations: Sequence[str],
    num_blocks: int,
    count: int,
    *,
    alpha_sharing: str = "global",
) -> list[Genotype]:
    """The most probable architectures: the first is decoding's, and so on downwards.

    An architecture's probability is the product of those of its path's edges and of the operations
    of its cells.

    Args:
        alpha, beta, operations, num_blocks, alpha_sharing: as decoding.decode.
        count: how many; fewer are found if there are no more.
    """
    names = _without_none(operations)
    found: list[tuple[float, tuple[int, ...], tuple[tuple[int, ...], ...]]] = []
    for score, path in _best_paths(decoding.check_beta(beta), count):
        ranked: list[tuple[float, tuple[tuple[int, ...], ...]]] = [(score, ())]
        for one in decoding.find_alphas(alpha, path, alpha_sharing)[0]:
            cells = _best_cells(_split(one, operations, num_blocks)[1], count)
            ranked = _combine(ranked, [(worth, (cell,)) for worth, cell in cells], count)
        found += [(score, path, cells) for score, cells in ranked]
    return [
        Genotype(
            path,
            tuple(_to_cell(cell, names) for cell in cells),
            decoding.find_alphas(alpha, path, alpha_sharing)[1],
        )
        for _, path, cells in heapq.nsmallest(count, found)
    ]


def _best_paths(beta: Array, count: int) -> list[_Ranked]:
    # From the last layer to the first, as decode_path, which settles ties alike.
    best: dict[int, list[_Ranked]] = {k: [(0.0, ())] for k in range(search_space.NUM_LEVELS)}
    for layer in range(len(beta), 0, -1):
        before = {}
        for source in search_space.levels_at(layer - 1):
            ways = []
            for target in search_space.successors(layer - 1, source):
                edge = beta[layer - 1, source, search_space.direction(source, target)]
                ways += [(_cost(edge) + worth, (target, *rest)) for worth, rest in best[target]]
            before[source] = heapq.nsmallest(count, ways)
        best = before
    return best[0]


def _best_cells(rows_of: Sequence[Array], count: int) -> list[_Ranked]:
    """The best cells, as input, operation, input, operation, ... of all their blocks."""
    ranked: list[_Ranked] = [(0.0, ())]
    for rows in rows_of:
        costs = _cost(rows)
        blocks = [
            (costs[one, first] + costs[other, second], (one, first, other, second))
            for one, other in itertools.combinations(range(len(rows)), 2)
            for first, second in itertools.product(range(rows.shape[1]), repeat=2)
        ]
        ranked = _combine(ranked, heapq.nsmallest(count, blocks), count)
    return ranked


def _combine(some: list[Any], others: list[Any], count: int) -> list[Any]:
    """The best of all pairs: scores are added, and what they are of is put together."""
    pairs = ((a + b, one + other) for (a, one), (b, other) in itertools.product(some, others))
    return heapq.nsmallest(count, pairs)


def _cost(probabilities: Any) -> Any:
    """Minus the logarithm; to base 2, products of 1/2 and 1/4 that tie do so exactly.

    What has the probability 0 comes last, and not after infinitely many others.
    """
    return -np.log2(np.maximum(probabilities, np.finfo(np.float64).tiny))


def _to_cell(numbers: Sequence[int], names: Sequence[str]) -> Cell:
    blocks = zip(*(iter(numbers),) * 4, strict=True)
    return tuple(((one, names[a]), (other, names[b])) for one, a, other, b in blocks)


def _without_none(operations: Sequence[str]) -> list[str]:
    return [name for name in operations if name != search_space.NONE]


def _split(
    alpha: Array, operations: Sequence[str], num_blocks: int
) -> tuple[list[str], list[Array]]:
    """The operations but `none`, and for each block its inputs' probabilities of them."""
    alpha = decoding.check_alpha(alpha, operations, num_blocks)
    columns = [column for column, name in enumerate(operations) if name != search_space.NONE]
    ends = np.cumsum([2 + block for block in range(num_blocks)])[:-1]
    return _without_none(operations), np.split(alpha[:, columns], ends)


def _draw(weights: Array, rng: np.random.Generator, but: int | None = None) -> int:
    """Draws an index by weights >= 0; all but one alike if they are all 0."""
    weights = np.asarray(weights, np.float64)
    if not weights.any():
        weights = np.ones(len(weights))
        weights[[] if but is None else but] = 0.0
    return int(rng.choice(len(weights), p=weights / weights.sum()))

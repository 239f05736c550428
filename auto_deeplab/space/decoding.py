"""From the architecture's probabilities to one discrete architecture (paper, Sec. 4.3), in NumPy.

Alpha [E, operations] has a row for each edge of the cell, in `search_space.cell_edges`' order.
Where cells do not all share one alpha there are G of them, [G, E, operations]. Beta [L, 4, 3] has a
row for each source node of the trellis (see `search_space.legal_directions`). Both are
*probabilities*, the softmax that the super-net itself used: rows sum to 1; illegal directions, and
the rows of nodes that do not exist, are 0. Every tie goes to the lowest index.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from auto_deeplab.space import genotype, search_space

Array = np.ndarray


def decode(
    alpha: Array,
    beta: Array,
    operations: Sequence[str],
    num_blocks: int,
    meta: Mapping[str, Any] | None = None,
    *,
    alpha_sharing: str = "global",
    edge_weights: Array | None = None,
) -> genotype.Genotype:
    """Decodes path and cells; `operations`, alpha and beta are kept in the genotype's meta.

    Where alpha is not shared by all cells, each alpha that a node of the path uses gives a cell.
    Where edges have weights, the strength of an edge is multiplied by its own, and the weights are
    kept too.

    Args:
        alpha: float [E, number of operations], probabilities; or [G, E, number of operations].
        beta: float [L, 4, 3], probabilities.
        operations: the names of alpha's columns.
        num_blocks: B, with E = B (B + 3) / 2.
        alpha_sharing: one of search_space.ALPHA_SHARING.
        edge_weights: float [E] or [G, E]; None: all alike.
        meta: more to keep: dataset, seed, step, ... (plain JSON).

    Raises:
        ValueError: a shape does not fit, or a probability is not a finite number >= 0.
    """
    path = decode_path(beta)
    alphas, cell_of_layer = find_alphas(weigh(alpha, edge_weights), path, alpha_sharing)
    weights = {} if edge_weights is None else {"edge_weights": np.asarray(edge_weights).tolist()}
    return genotype.Genotype(
        path=path,
        cells=tuple(decode_cell(one, operations, num_blocks) for one in alphas),
        cell_of_layer=cell_of_layer,
        meta={
            **(meta or {}),
            "operations": list(operations),
            "alpha_sharing": alpha_sharing,
            "alpha": np.asarray(alpha).tolist(),
            "beta": np.asarray(beta).tolist(),
            **weights,
        },
    )


def weigh(alpha: Array, edge_weights: Array | None) -> Array:
    """Alpha times the weights of its edges (PC-DARTS' strength); as it is if they have none.

    Raises:
        ValueError: a shape does not fit, or a weight is not a finite number >= 0.
    """
    if edge_weights is None:
        return alpha
    alpha = np.asarray(alpha, np.float64)
    edge_weights = _check_probabilities(np.asarray(edge_weights, np.float64), "edge_weights")
    if edge_weights.shape != alpha.shape[:-1]:
        raise ValueError(f"edge_weights has shape {edge_weights.shape}, not {alpha.shape[:-1]}")
    return alpha * edge_weights[..., np.newaxis]


def find_alphas(
    alpha: Array, path: Sequence[int], alpha_sharing: str
) -> tuple[list[Array], tuple[int, ...] | None]:
    """The alphas that the nodes of a path use, and for each layer which of them; None if all one.

    Args:
        alpha: float [E, number of operations] or [G, E, number of operations].
        path: levels of the layers.
        alpha_sharing: one of search_space.ALPHA_SHARING.

    Raises:
        ValueError: there are more or fewer alphas than that sharing has.
    """
    alpha = np.asarray(alpha)
    alphas = alpha if alpha.ndim == 3 else alpha[np.newaxis]
    count = search_space.num_alphas(alpha_sharing, len(path))
    if len(alphas) != count:
        raise ValueError(f"there are {len(alphas)} alphas, but {alpha_sharing} sharing has {count}")
    indices = [
        search_space.alpha_index(alpha_sharing, layer, level)
        for layer, level in enumerate(path, start=1)
    ]
    used = sorted(set(indices))
    of_layer = None if alpha_sharing == "global" else tuple(map(used.index, indices))
    return [alphas[index] for index in used], of_layer


def decode_cell(alpha: Array, operations: Sequence[str], num_blocks: int) -> genotype.Cell:
    """Keeps the two strongest inputs of every block, each with its most likely operation.

    The strength of an edge is its largest probability over all operations but `none`, which is
    never chosen however likely it is. Within a block, the inputs come in ascending order.

    Raises:
        ValueError: as `decode`; or there is no operation besides `none`.
    """
    alpha = check_alpha(alpha, operations, num_blocks)
    edges = search_space.cell_edges(num_blocks)
    # A probability of exactly 0 is still better than none.
    allowed = np.where(np.asarray(operations) == search_space.NONE, -1.0, alpha)
    strength, best = allowed.max(axis=1), allowed.argmax(axis=1)
    cell = []
    for block in range(num_blocks):
        rows = [row for row, (target, _) in enumerate(edges) if target == block]
        strongest = sorted(rows, key=lambda row: -strength[row])[:2]  # a stable sort
        first, second = ((edges[row][1], operations[best[row]]) for row in sorted(strongest))
        cell.append((first, second))
    return tuple(cell)


def decode_path(beta: Array) -> tuple[int, ...]:
    """The most probable path from the stem's output to layer L: Viterbi's algorithm (Sec. 4.3).

    A path's probability is the product of its edges'. Of several equally probable paths it is the
    one that takes the finer level where they first differ.

    Returns:
        The level 0..3 of every layer 1..L.

    Raises:
        ValueError: the shape is not [L, 4, 3], or a probability is not a finite number >= 0.
    """
    beta = check_beta(beta)
    num_layers = len(beta)
    with np.errstate(divide="ignore"):
        score = np.log2(beta)  # to base 2, products of 1/2 and 1/4 that tie do so exactly
    # From the last layer to the first: for each node, the log-probability of the best way from it
    # to layer L, and the level that this goes to next. Starting at the end lets a tie be settled
    # at the first edge in which the tied paths differ.
    rest = np.zeros(search_space.NUM_LEVELS)
    next_level = np.zeros([num_layers, search_space.NUM_LEVELS], int)
    for layer in range(num_layers, 0, -1):
        value = np.full(search_space.NUM_LEVELS, -np.inf)
        for source in search_space.levels_at(layer - 1):
            targets = search_space.successors(layer - 1, source)
            worth = [
                score[layer - 1, source, search_space.direction(source, target)] + rest[target]
                for target in targets
            ]
            best = int(np.argmax(worth))
            value[source], next_level[layer - 1, source] = worth[best], targets[best]
        rest = value
    path = [0]
    for following in next_level:
        path.append(int(following[path[-1]]))
    return tuple(path[1:])


def find_strongest_edges(beta: Array) -> list[tuple[int, int, int]]:
    """The most probable edge out of every node, as (layer, source level at layer - 1, level)."""
    beta = check_beta(beta)
    edges = []
    for layer in range(1, len(beta) + 1):
        for source in search_space.levels_at(layer - 1):
            legal = search_space.legal_directions(layer, source)
            chosen = legal[int(np.argmax(beta[layer - 1, source, list(legal)]))]
            edges.append((layer, source, source + chosen - search_space.SAME))
    return edges


def alpha_entropy(alpha: Array) -> float:
    """The mean entropy of a cell's edges, over their operations, in nats: 0..log(operations).

    Of several alphas, the mean over the edges of all.
    """
    return float(np.mean(_entropy(np.asarray(alpha, np.float64))))


def edge_entropy(edge_weights: Array) -> float:
    """The mean entropy of a cell's blocks over the edges that end in them, in nats.

    Of several cells, the mean over the blocks of all.
    """
    weights = np.asarray(edge_weights, np.float64)
    num_blocks = search_space.num_blocks_of(weights.shape[-1])
    ends = np.cumsum([2 + block for block in range(num_blocks)])[:-1]
    return float(np.mean([_entropy(block) for block in np.split(weights, ends, axis=-1)]))


def beta_entropy(beta: Array) -> float:
    """The mean entropy of the nodes, each over its outgoing edges, in nats: 0..log 3."""
    beta = check_beta(beta)
    rows = [
        _entropy(beta[layer - 1, source, list(search_space.legal_directions(layer, source))])
        for layer in range(1, len(beta) + 1)
        for source in search_space.levels_at(layer - 1)
    ]
    return float(np.mean(rows))


def uniform_entropies(num_operations: int, num_layers: int, num_blocks: int) -> dict[str, float]:
    """The entropies of uniform alpha, beta and edge weights, under history.jsonl's names."""
    choices = [
        len(search_space.legal_directions(layer, source))
        for layer in range(1, num_layers + 1)
        for source in search_space.levels_at(layer - 1)
    ]
    inputs = [2 + block for block in range(num_blocks)]
    return {
        "alpha_entropy": float(np.log(num_operations)),
        "beta_entropy": float(np.mean(np.log(choices))),
        "edge_entropy": float(np.mean(np.log(inputs))),
    }


def count_skip_connects(cell: genotype.Cell) -> int:
    """The number of skip-connections among a cell's 2 B operations; a collapsed search has many."""
    return sum(name == search_space.SKIP_CONNECT for block in cell for _, name in block)


def count_none_edges(alpha: Array, operations: Sequence[str]) -> int:
    """The number of the cell's edges whose most likely operation is `none`.

    Of several alphas, the number among the edges of all.
    """
    alpha = np.asarray(alpha)
    alpha = check_alpha(alpha.reshape([-1, alpha.shape[-1]]), operations)
    return sum(operations[best] == search_space.NONE for best in alpha.argmax(axis=1))


def _entropy(probabilities: Array) -> Array:
    safe = np.where(probabilities > 0, probabilities, 1.0)  # 0 log 0 = 0
    return -np.sum(probabilities * np.log(safe), axis=-1)


def check_alpha(alpha: Array, operations: Sequence[str], num_blocks: int | None = None) -> Array:
    """Alpha as float64; ValueError as `decode`."""
    search_space.validate_operations(operations)
    alpha = np.asarray(alpha, np.float64)
    if alpha.ndim != 2 or alpha.shape[1] != len(operations):
        raise ValueError(
            f"alpha has shape {alpha.shape}, not [edges, {len(operations)}], a column per operation"
        )
    if num_blocks is not None and len(alpha) != search_space.num_cell_edges(num_blocks):
        raise ValueError(
            f"alpha has {len(alpha)} rows, but {num_blocks} blocks have "
            f"{search_space.num_cell_edges(num_blocks)} edges"
        )
    return _check_probabilities(alpha, "alpha")


def check_beta(beta: Array) -> Array:
    """Beta as float64; ValueError as `decode`."""
    beta = np.asarray(beta, np.float64)
    if beta.ndim != 3 or beta.shape[1:] != (search_space.NUM_LEVELS, 3) or not len(beta):
        raise ValueError(f"beta has shape {beta.shape}, not [layers, {search_space.NUM_LEVELS}, 3]")
    return _check_probabilities(beta, "beta")


def _check_probabilities(array: Array, name: str) -> Array:
    if not np.all(np.isfinite(array) & (array >= 0)):
        raise ValueError(f"{name} holds values that are not probabilities (NaN, inf or below 0)")
    return array

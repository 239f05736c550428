"""One architecture as alpha and beta: decoding's other direction, without a probability left."""

from collections.abc import Sequence

import numpy as np

from auto_deeplab.space import search_space
from auto_deeplab.space.genotype import Genotype


def encode(
    genotype: Genotype,
    operations: Sequence[str],
    num_layers: int,
    num_blocks: int,
    *,
    alpha_sharing: str = "global",
) -> tuple[np.ndarray, np.ndarray]:
    """Alpha and beta that are 1 for what the architecture has, and 0 for all else.

    An edge that it has not gives nothing, as if its operation were `none`; an edge that it has
    twice in one block counts twice.

    Args:
        genotype: the architecture.
        operations: the names of alpha's columns.
        num_layers, num_blocks: L and B of the super-net.
        alpha_sharing: one of search_space.ALPHA_SHARING.

    Returns:
        alpha float32 [E, operations], or [G, E, operations] where cells do not share one; and beta
        float32 [L, 4, 3].

    Raises:
        ValueError: the super-net does not hold this architecture.
    """
    if genotype.num_layers != num_layers or genotype.num_blocks != num_blocks:
        raise ValueError(
            f"it has {genotype.num_layers} layers and cells of {genotype.num_blocks} blocks, the "
            f"super-net {num_layers} and {num_blocks}"
        )
    rows = {edge: row for row, edge in enumerate(search_space.cell_edges(num_blocks))}
    cells = []
    for cell in genotype.cells:
        one = np.zeros((len(rows), len(operations)), np.float32)
        for block, branches in enumerate(cell):
            for source, operation in branches:
                if operation not in operations:
                    raise ValueError(f"it has {operation}, which the super-net has not")
                one[rows[block, source], operations.index(operation)] += 1
        cells.append(one)

    count = search_space.num_alphas(alpha_sharing, num_layers)
    of_alpha: dict[int, int] = {}
    beta = np.zeros((num_layers, search_space.NUM_LEVELS, 3), np.float32)
    source = 0
    for layer, level in enumerate(genotype.path, 1):
        beta[layer - 1, source, search_space.direction(source, level)] = 1
        source = level
        cell_number = genotype.cell_of_layer[layer - 1] if genotype.cell_of_layer else 0
        index = search_space.alpha_index(alpha_sharing, layer, level)
        if of_alpha.setdefault(index, cell_number) != cell_number:
            raise ValueError("it has two cells where the super-net's layers share one alpha")
    alphas = [cells[of_alpha.get(index, 0)] for index in range(count)]
    return (alphas[0] if count == 1 else np.stack(alphas)), beta

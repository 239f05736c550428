"""The mixed cell of the search (paper, Sec. 4.1.1, Eqs. 1, 2, 5), in fused form.

Written plainly, block i is the sum over its inputs j and the operations k of
alpha[j -> i, k] * O_k(H_j): 20 edges x 8 operations, each a few small kernels. Here everything that
leaves one state h_j is computed at once, for all n later blocks that it feeds and for the A arrows
(cells that end in one node and share its weights): A * n copies of relu(h_j) side by side along the
channels, grouped convolutions, and alpha as the scale of the last normalisation (which has no
learned scale in the search). What the later blocks have received so far is `pending`,
[N, H, W, A, n * C]; its first C channels are the next block.

Edges are packed *by source*: those that leave H^{l-1}, then H^{l-2}, then block 0, block 1, ...;
within a source by destination. `tests/auto_deeplab/reference.py` is the plain form that this
equals.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab.space import search_space
from official.convolutions import conv2d, depthwise_conv2d
from official.normalization import PackedNorm
from official.resizing import dimensions

EPSILON = 1e-3
POOLS = ("avg_pool_3x3", "max_pool_3x3")
PLAIN = (*POOLS, search_space.SKIP_CONNECT)  # without weights

# Weights or scales of the edges that leave one source, by name.
SourceTensors = Mapping[str, tf.Tensor]


def num_destinations(num_blocks: int) -> list[int]:
    """How many blocks each source feeds: H^{l-1}, H^{l-2}, block 0, ..., block B - 2."""
    return [num_blocks, num_blocks, *range(num_blocks - 1, 0, -1)]


def edge_rows(num_blocks: int) -> list[list[int]]:
    """For each source, the rows of alpha of the edges that leave it, by destination."""
    row = {edge: index for index, edge in enumerate(search_space.cell_edges(num_blocks))}
    return [
        [row[block, source] for block in range(max(0, source - 1), num_blocks)]
        for source in range(num_blocks + 1)
    ]


def kernel_size(operation: str) -> int:
    """3 for `..._3x3`, 5 for `..._5x5`."""
    return int(operation[-1])


def weight_shapes(
    operations: Sequence[str], num_blocks: int, channels: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of one node's packed weights; every edge owns `channels` of the packed axis.

    The packed axis is the last one, except in depthwise kernels ([k, k, edges * C, 1]).
    """
    wide = search_space.num_cell_edges(num_blocks) * channels
    shapes: dict[str, tuple[int, ...]] = {}
    for operation in operations:
        k = kernel_size(operation) if "conv" in operation else 0
        if operation.startswith("atrous_conv"):
            shapes[f"{operation}.kernel"] = (k, k, channels, wide)
        elif "conv" in operation:
            for stage in ("1", "2") if operation.startswith("sep_conv") else ("1",):
                shapes[f"{operation}.depthwise_kernel_{stage}"] = (k, k, wide, 1)
                shapes[f"{operation}.pointwise_kernel_{stage}"] = (1, 1, channels, wide)
    return shapes


def split_by_source(
    weights: Mapping[str, tf.Tensor], num_blocks: int, channels: int
) -> list[dict[str, tf.Tensor]]:
    """The packed weights of one node as one dict per source."""
    sizes = [n * channels for n in num_destinations(num_blocks)]
    sources: list[dict[str, tf.Tensor]] = [{} for _ in sizes]
    for name, weight in weights.items():
        for source, piece in zip(
            sources, tf.split(weight, sizes, axis=2 if "depthwise" in name else 3), strict=True
        ):
            source[name] = piece
    return sources


def scales(
    alpha: tf.Tensor, operations: Sequence[str], num_blocks: int, channels: int
) -> list[dict[str, tf.Tensor]]:
    """What alpha becomes inside the cells with `channels` channels; made once a step.

    Args:
        alpha: probabilities, float32 [edges, operations].

    Returns:
        per source: for each convolution the scale of its last normalisation, float32 [n * C]; and
        as "mix" the 1x1 kernel, float32 [1, 1, P * C, n * C], which adds up the P pools and the
        skip connection, weighted.
    """
    convolutions = [name for name in operations if "conv" in name]
    plain = [name for name in operations if name in PLAIN]
    sources = []
    for rows in edge_rows(num_blocks):
        leaving = tf.gather(alpha, rows)  # [n, operations]
        copies = tf.tile(leaving[..., None], [1, 1, channels])  # [n, operations, C]
        by_name = dict(zip(operations, tf.unstack(copies, axis=1), strict=True))
        source = {name: tf.reshape(by_name[name], [-1]) for name in convolutions}
        if plain:
            columns = tf.gather(leaving, [operations.index(name) for name in plain], axis=1)
            # [P, C, n, C]: alpha where both channels are the same, else 0.
            mix = tf.einsum("np,cd->pcnd", columns, np.eye(channels, dtype=np.float32))
            source["mix"] = tf.reshape(mix, [1, 1, len(plain) * channels, len(rows) * channels])
        sources.append(source)
    return sources


def statistics_size(operations: Sequence[str], destinations: int, channels: int) -> int:
    """The number of channels that `leave` normalises for one arrow."""
    count = 0
    for operation in operations:
        if "conv" in operation:
            count += destinations * channels * (2 if operation.startswith("sep_conv") else 1)
        elif operation in POOLS:
            count += channels
    return count


def any_size(operations: Sequence[str], dtype: str) -> tuple[tf.TensorSpec, Any, Any]:
    """The first three arguments of `leave` for all sizes at once: what a function is traced for."""
    weights = {
        name: tf.TensorSpec((*size, None, 1 if "depthwise" in name else None), dtype)
        for name, (*size, _, _) in weight_shapes(operations, 1, 1).items()
    }
    scale = {name: tf.TensorSpec([None]) for name in operations if "conv" in name}
    if any(name in PLAIN for name in operations):
        scale["mix"] = tf.TensorSpec([1, 1, None, None])
    return tf.TensorSpec([None] * 5, dtype), weights, scale


def leave(
    h: tf.Tensor,
    weights: SourceTensors,
    scale: SourceTensors,
    operations: Sequence[str],
    norm: PackedNorm,
) -> tf.Tensor:
    """What one state contributes to all n blocks that it feeds (Eq. 2 for n edges at once).

    Nothing here needs to know a size before it runs: traced for unknown ones, the same function
    serves every state of every cell.

    Args:
        h: the state in each of A cells that share weights, [N, H, W, A, C].
        weights: this source's part of `weight_shapes`.
        scale: this source's entry of `scales`.
        norm: normalises, in this function's order.

    Returns:
        [N, H, W, A, n * C], by destination.
    """
    _, height, width, arrows, channels = dimensions(h)
    wide = dimensions(next(iter(scale.values())))[-1]  # n * C
    # What treats every pixel by itself may have the arrows as columns; what treats every channel by
    # itself, as channels. Nothing moves in memory.
    state_as_channels = as_shape(-1, height, width, arrows * channels)
    state_as_columns = as_shape(-1, height, width * arrows, channels)
    as_channels = as_shape(-1, height, width, arrows * wide)
    as_columns = as_shape(-1, height, width * arrows, wide)

    def for_all_arrows(weight: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.tile(weight, [arrows if i == axis else 1 for i in range(weight.shape.rank)])

    def weighted(x: tf.Tensor, operation: str) -> tf.Tensor:
        return norm(x, for_all_arrows(scale[operation], 0))

    def separable(x: tf.Tensor, operation: str, stage: str, rate: int) -> tf.Tensor:
        depthwise = for_all_arrows(weights[f"{operation}.depthwise_kernel_{stage}"], 2)
        x = tf.reshape(depthwise_conv2d(x, depthwise, rate), as_columns)
        # C input channels per filter: a grouped convolution, one group per destination.
        x = conv2d(x, weights[f"{operation}.pointwise_kernel_{stage}"])
        return tf.reshape(x, as_channels)

    x = tf.reshape(h, state_as_channels)
    active = tf.nn.relu(x)
    copies = tf.tile(tf.reshape(active, state_as_columns), [1, 1, 1, wide // channels])
    copies = tf.reshape(copies, as_channels)
    plain, terms = [], []
    for operation in operations:
        if operation.startswith("sep_conv"):
            y = tf.nn.relu(norm(separable(copies, operation, "1", rate=1)))
            terms.append(weighted(separable(y, operation, "2", rate=1), operation))
        elif operation.startswith("dil_conv"):
            terms.append(weighted(separable(copies, operation, "1", rate=2), operation))
        elif operation.startswith("atrous_conv"):
            # Likewise one group per arrow.
            kernel = for_all_arrows(weights[f"{operation}.kernel"], 3)
            terms.append(weighted(conv2d(active, kernel, rate=2), operation))
        elif operation == "avg_pool_3x3":
            plain.append(norm(tf.nn.avg_pool2d(x, 3, 1, "SAME")))
        elif operation == "max_pool_3x3":
            plain.append(norm(tf.nn.max_pool2d(x, 3, 1, "SAME")))
        elif operation == search_space.SKIP_CONNECT:
            plain.append(x)
        else:
            assert operation == search_space.NONE, operation  # contributes nothing
    if plain:
        y = tf.concat([tf.reshape(y, state_as_columns) for y in plain], -1)
        y = conv2d(y, tf.cast(scale["mix"], h.dtype))
        terms.append(tf.reshape(y, as_channels))
    return tf.reshape(tf.add_n(terms), as_shape(-1, height, width, arrows, wide))


def mixed_cells(
    first: tf.Tensor, from_second: tf.Tensor, leaving: Callable[[tf.Tensor, int], tf.Tensor]
) -> list[tf.Tensor]:
    """The A cells of the arrows that end in one node (Eq. 5): they share weights and H^{l-2}.

    Args:
        first: H^{l-1} as each arrow brings it, adapted, [N, H, W, A, C].
        from_second: what H^{l-2} contributes to the B blocks, [N, H, W, 1, B * C] (see `leave`).
        leaving: `leave` for (state, index of the source: 0 for H^{l-1}, 2 + j for block j).

    Returns:
        the B blocks of all cells, [N, H, W, A, C] each.
    """
    arrows, channels = first.shape[3:]
    pending = tf.concat([from_second] * arrows, 3) + leaving(first, 0)
    blocks: list[tf.Tensor] = []
    while pending.shape[-1] > channels:
        block, pending = tf.split(pending, [channels, pending.shape[-1] - channels], axis=-1)
        blocks.append(block)
        pending += leaving(block, 1 + len(blocks))
    return [*blocks, pending]


def as_shape(*sizes: Any) -> Any:
    """What tf.reshape takes, made once for many."""
    return sizes if all(isinstance(size, int) for size in sizes) else tf.stack(sizes)

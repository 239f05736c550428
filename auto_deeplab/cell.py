"""The mixed cell of the search (paper, Sec. 4.1.1, Eqs. 1, 2, 5), in fused form.

Written plainly, block i is the sum over its inputs j and the operations k of
alpha[j -> i, k] * O_k(H_j): 20 edges x 8 operations, each a few small kernels. Here everything that
leaves one state h_j is computed at once, for all n later blocks that it feeds: n copies of
relu(h_j) side by side along the channels, grouped convolutions, and alpha as the scale of the last
normalisation (which has no learned scale in the search). What the later blocks have received so far
is `pending`, [N, H, W, n * C]; its first C channels are the next block.

Edges are packed *by source*: those that leave H^{l-1}, then H^{l-2}, then block 0, block 1, ...;
within a source by destination. `tests/auto_deeplab/reference.py` is the plain form that this
equals.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from auto_deeplab import search_space
from official.normalization import PackedNorm

EPSILON = 1e-3
POOLS = ("avg_pool_3x3", "max_pool_3x3")

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
    plain = [name for name in operations if name in (*POOLS, search_space.SKIP_CONNECT)]
    sources = []
    for rows in edge_rows(num_blocks):
        leaving = tf.gather(alpha, rows)  # [n, operations]
        source = {
            name: tf.repeat(leaving[:, operations.index(name)], channels) for name in convolutions
        }
        if plain:
            columns = tf.gather(leaving, [operations.index(name) for name in plain], axis=1)
            # [P, C, n, C]: alpha where both channels are the same, else 0.
            mix = tf.einsum("np,cd->pcnd", columns, np.eye(channels, dtype=np.float32))
            source["mix"] = tf.reshape(mix, [1, 1, len(plain) * channels, len(rows) * channels])
        sources.append(source)
    return sources


def statistics_size(operations: Sequence[str], destinations: int, channels: int) -> int:
    """The number of channels that `leave` normalises."""
    count = 0
    for operation in operations:
        if "conv" in operation:
            count += destinations * channels * (2 if operation.startswith("sep_conv") else 1)
        elif operation in POOLS:
            count += channels
    return count


def leave(
    h: tf.Tensor,
    destinations: int,
    weights: SourceTensors,
    scale: SourceTensors,
    operations: Sequence[str],
    norm: PackedNorm,
) -> tf.Tensor:
    """What one state contributes to all the blocks that it feeds (Eq. 2 for n edges at once).

    Args:
        h: the state, [N, H, W, C].
        destinations: n.
        weights: this source's part of `weight_shapes`.
        scale: this source's entry of `scales`.
        norm: normalises, in this function's order.

    Returns:
        [N, H, W, n * C], by destination.
    """
    dtype = h.dtype
    plain, terms = [], []
    active = tf.nn.relu(h)
    copies = tf.tile(active, [1, 1, 1, destinations])

    def separable(x: tf.Tensor, operation: str, stage: str, rate: int) -> tf.Tensor:
        depthwise = weights[f"{operation}.depthwise_kernel_{stage}"]
        x = tf.nn.depthwise_conv2d(x, depthwise, [1] * 4, "SAME", dilations=[rate, rate])
        # C input channels per filter: a grouped convolution, one group per destination.
        return tf.nn.conv2d(x, weights[f"{operation}.pointwise_kernel_{stage}"], 1, "SAME")

    for operation in operations:
        if operation.startswith("sep_conv"):
            x = tf.nn.relu(norm(separable(copies, operation, "1", rate=1)))
            terms.append(norm(separable(x, operation, "2", rate=1), scale[operation]))
        elif operation.startswith("dil_conv"):
            terms.append(norm(separable(copies, operation, "1", rate=2), scale[operation]))
        elif operation.startswith("atrous_conv"):
            kernel = weights[f"{operation}.kernel"]
            x = tf.nn.conv2d(active, kernel, 1, "SAME", dilations=2)
            terms.append(norm(x, scale[operation]))
        elif operation == "avg_pool_3x3":
            plain.append(norm(tf.nn.avg_pool2d(h, 3, 1, "SAME")))
        elif operation == "max_pool_3x3":
            plain.append(norm(tf.nn.max_pool2d(h, 3, 1, "SAME")))
        elif operation == search_space.SKIP_CONNECT:
            plain.append(h)
        else:
            assert operation == search_space.NONE, operation  # contributes nothing
    if plain:
        terms.append(tf.nn.conv2d(tf.concat(plain, -1), tf.cast(scale["mix"], dtype), 1, "SAME"))
    return tf.add_n(terms)


def mixed_cell(
    first: tf.Tensor,
    from_second: tf.Tensor,
    weights: Sequence[SourceTensors],
    scale: Sequence[SourceTensors],
    operations: Sequence[str],
    norm: PackedNorm,
) -> tf.Tensor:
    """One cell (Eq. 5).

    Args:
        first: the adapted H^{l-1}, [N, H, W, C].
        from_second: what H^{l-2} contributes to the B blocks, [N, H, W, B * C] (see `leave`): the
            up to three cells of a node share it.
        weights, scale: one entry per source, without H^{l-2}'s.

    Returns:
        the concatenated blocks, [N, H, W, B * C].
    """
    channels = first.shape[-1]
    remaining = from_second.shape[-1] // channels
    pending = from_second + leave(first, remaining, weights[0], scale[0], operations, norm)
    blocks = []
    while True:
        block, remaining = pending[..., :channels], remaining - 1
        blocks.append(block)
        if remaining == 0:
            return tf.concat(blocks, -1)
        source = len(blocks)
        leaving = leave(block, remaining, weights[source], scale[source], operations, norm)
        pending = pending[..., channels:] + leaving

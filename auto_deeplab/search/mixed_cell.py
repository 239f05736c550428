"""The mixed cell of the search (paper, Sec. 4.1.1, Eqs. 1, 2, 5), in fused form.

Written plainly, block i is the sum over its inputs j and the operations k of
alpha[j -> i, k] * O_k(H_j): 20 edges x 8 operations, each a few small kernels. Here the edges that
leave one state h_j are computed at once (`mixed_edges`), to all n later blocks that it feeds, and
for all A cells that end in one node and share its weights: A * n copies of relu(h_j) side by side
along the channels, grouped convolutions, and alpha as the scale of the last normalisation (which
has no learned scale in the search).

The weights of edges are packed *by source*: those that leave H^{l-1}, then H^{l-2}, then block 0,
block 1, ...; within a source by destination. `tests/auto_deeplab/reference.py` is the plain form
that this equals.

With partial channels (PC-DARTS, arXiv:1907.05737, Sec. 3.2) an edge's operations see the first C/K
channels of a state, and the others pass. Edges then have weights. All edges that end in a block
shuffle its channels alike, so that it is done once, to their sum.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab.search.execution import Execution, Function, delay
from auto_deeplab.search.packed_weights import PackedWeights
from auto_deeplab.space import search_space
from official.convolutions import conv2d, depthwise_conv2d
from official.normalization import MovingStatistics, PackedNorm, Statistics
from official.resizing import dimensions

POOLS = ("avg_pool_3x3", "max_pool_3x3")
PLAIN = (*POOLS, search_space.SKIP_CONNECT)  # without weights

SourceTensors = Mapping[str, tf.Tensor]
"""Weights or scales of the edges that leave one source, by name."""


class MixedCell(keras.layers.Layer):
    """The cells of one node, with a mixed operation on every edge (Eqs. 1, 2, 5).

    Eq. 6 has one cell for each edge of the trellis that ends in the node, A of them. They share
    weights, alpha and H^{l-2}, so that they are computed at once, and H^{l-2}'s edges only once.

    All cells with as many channels call one traced function for the edges that leave a state. It
    leaves sizes open, but does not serve other numbers of channels: TensorFlow's CPU kernel for BN
    keeps the number in itself, so that two calls of one function at the same time, for different
    numbers, damage memory. Therefore no two calls of it may run at the same time: every state waits
    for the one before.

    Args:
        operations: names, the columns of alpha.
        num_blocks: B.
        channels: C, of every block.
        partial_channels: K, which divides C; 1: operations see all channels.
        execution: of the super-net.
        name: of the node.
    """

    def __init__(
        self,
        *,
        operations: Sequence[str],
        num_blocks: int,
        channels: int,
        execution: Execution,
        name: str,
        partial_channels: int = 1,
    ) -> None:
        super().__init__(name=name, autocast=False)
        self.operations, self.num_blocks = operations, num_blocks
        self.partial_channels = partial_channels
        self.channels = channels // partial_channels
        """What the operations see."""
        self.rest = channels - self.channels
        self.execution = execution
        self.kernels = PackedWeights(name, weight_shapes(operations, num_blocks, self.channels))
        self.built = True

    def call(
        self,
        first: tf.Tensor,
        second: tf.Tensor,
        scales: Sequence[SourceTensors],
        *,
        norm: PackedNorm,
        norm_of_second: PackedNorm,
        training: bool = False,
        fixed_weights: bool = False,
    ) -> list[tf.Tensor]:
        """H^l = Cell(H^{l-1}, H^{l-2}; alpha), for A cells (Eq. 5).

        Args:
            first: H^{l-1} as each cell has it, [N, H, W, A, C].
            second: H^{l-2}, which all have, [N, H, W, C].
            scales: alpha, as `make_scales` gives it.
            norm: normalises all edges but those that leave H^{l-2}.
            norm_of_second: normalises those.
            training: whether they normalise by the batch.
            fixed_weights: the weights get no gradients.

        Returns:
            the blocks of all cells, [N, H, W, A, C] each: H^l is their concatenation.
        """
        weights = split_by_source(self.kernels.read(), self.num_blocks, self.channels)
        function = self._share_mixed_edges(training, fixed_weights)
        destinations = num_destinations(self.num_blocks)
        passing: dict[int, tf.Tensor] = {}  # of each source, the channels that no operation sees

        def edges_from(state: tf.Tensor, source: int, norm: PackedNorm) -> tf.Tensor:
            n, cells = destinations[source], state.shape[3]
            scale = dict(scales[source])
            if self.rest:
                state, passing[source] = tf.split(state, [self.channels, self.rest], axis=-1)
                del scale["pass"]
            normalized = cells * statistics_size(self.operations, n, self.channels)
            y = norm.nested(function, normalized, state, weights[source], scale)
            # A function that is traced for all sizes cannot tell:
            y.set_shape([*state.shape[:-1], n * self.channels])
            return y

        def finish(mixed: tf.Tensor, block: int) -> tf.Tensor:
            """The whole block, of the sum of its edges' operations."""
            if not self.rest:
                return mixed
            passed = [
                tf.cast(scales[source]["pass"][block - max(0, source - 1)], x.dtype) * x
                for source, x in sorted(passing.items())
            ]
            # H^{l-2}, which all cells share, is the second.
            whole = tf.concat([mixed, sum(passed[1:], passed[0])], -1)
            return shuffle(whole, self.partial_channels)

        from_second = edges_from(second[..., None, :], 1, norm_of_second)
        if not self.execution.inline:
            (first,) = delay([first], until=from_second)
        # Eq. 1: a block is the sum of the edges that end in it. `pending` are these sums so far,
        # for all blocks from the next one on, side by side along the channels.
        pending = tf.concat([from_second] * first.shape[3], 3) + edges_from(first, 0, norm)
        blocks: list[tf.Tensor] = []
        for source in range(2, 1 + self.num_blocks):
            sizes = [self.channels, pending.shape[-1] - self.channels]
            mixed, pending = tf.split(pending, sizes, axis=-1)
            blocks.append(finish(mixed, len(blocks)))
            pending += edges_from(blocks[-1], source, norm)
        return [*blocks, finish(pending, len(blocks))]

    def _share_mixed_edges(self, training: bool, fixed_weights: bool) -> Function:
        """`mixed_edges` as a Function, (moving statistics, h, weights, scale) -> (tensor, ...)."""

        def function(
            moving: MovingStatistics, h: tf.Tensor, weights: SourceTensors, scale: SourceTensors
        ) -> tuple[tf.Tensor, Statistics | None]:
            if fixed_weights:
                weights = {name: tf.stop_gradient(weight) for name, weight in weights.items()}
            norm = self.execution.make_norm(moving)
            return mixed_edges(h, weights, scale, self.operations, norm), norm.statistics()

        moving = () if training else (tf.TensorSpec([None]), tf.TensorSpec([None]))
        signature = (moving, *make_signature(self.operations, self.compute_dtype))
        key = (fixed_weights, self.channels)
        return self.execution.share(function, "cell", training, *key, signature=signature)


def shuffle(x: tf.Tensor, groups: int) -> tf.Tensor:
    """Channel c of group g of x [..., C] becomes channel c * groups + g."""
    *sizes, channels = dimensions(x)
    x = tf.reshape(x, make_shape(*sizes, groups, channels // groups))
    return tf.reshape(tf.linalg.matrix_transpose(x), make_shape(*sizes, channels))


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


def make_scales(
    alpha: tf.Tensor,
    operations: Sequence[str],
    num_blocks: int,
    channels: int,
    edge_weights: tf.Tensor | None = None,
    *,
    passes: bool = False,
) -> list[dict[str, tf.Tensor]]:
    """What alpha becomes inside cells whose operations see `channels` channels; made once a step.

    Args:
        alpha: probabilities, float32 [edges, operations].
        edge_weights: float32 [edges]; None: all 1.
        passes: whether there are channels that no operation sees.

    Returns:
        per source: for each convolution the scale of its last normalisation, float32 [n * C]; and
        as "mix" the 1x1 kernel, float32 [1, 1, P * C, n * C], which adds up the P pools and the
        skip connection, weighted; and as "pass" the edges' weights, float32 [n], if `passes`.
    """
    if edge_weights is None:
        edge_weights = tf.ones(len(alpha)) if passes else None
    if edge_weights is not None:  # an edge is linear in its alpha
        alpha *= edge_weights[:, None]
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
        if passes:
            source["pass"] = tf.gather(edge_weights, rows)
        sources.append(source)
    return sources


def statistics_size(operations: Sequence[str], destinations: int, channels: int) -> int:
    """The number of channels that `mixed_edges` normalises for one cell."""
    count = 0
    for operation in operations:
        if "conv" in operation:
            count += destinations * channels * (2 if operation.startswith("sep_conv") else 1)
        elif operation in POOLS:
            count += channels
    return count


def make_signature(operations: Sequence[str], dtype: str) -> tuple[tf.TensorSpec, Any, Any]:
    """The first three arguments of `mixed_edges` for all sizes at once, to trace a function for."""
    weights = {
        name: tf.TensorSpec((*size, None, 1 if "depthwise" in name else None), dtype)
        for name, (*size, _, _) in weight_shapes(operations, 1, 1).items()
    }
    scale = {name: tf.TensorSpec([None]) for name in operations if "conv" in name}
    if any(name in PLAIN for name in operations):
        scale["mix"] = tf.TensorSpec([1, 1, None, None])
    return tf.TensorSpec([None] * 5, dtype), weights, scale


def mixed_edges(
    h: tf.Tensor,
    weights: SourceTensors,
    scale: SourceTensors,
    operations: Sequence[str],
    norm: PackedNorm,
) -> tf.Tensor:
    """The mixed operations (Eq. 2) of all n edges that leave one state: sum over k of alpha_k O_k.

    Nothing here needs to know a size before it runs: traced for unknown ones, the same function
    serves every state of every cell.

    Args:
        h: the state in each of A cells that share weights, [N, H, W, A, C].
        weights: this source's part of `weight_shapes`.
        scale: this source's entry of `make_scales`.
        norm: normalises, in this function's order.

    Returns:
        [N, H, W, A, n * C], by destination.
    """
    _, height, width, cells, channels = dimensions(h)
    wide = dimensions(next(iter(scale.values())))[-1]  # n * C
    # What treats every pixel by itself may have the cells as columns; what treats every channel by
    # itself, as channels. Nothing moves in memory.
    state_as_channels = make_shape(-1, height, width, cells * channels)
    state_as_columns = make_shape(-1, height, width * cells, channels)
    as_channels = make_shape(-1, height, width, cells * wide)
    as_columns = make_shape(-1, height, width * cells, wide)

    def for_all_cells(weight: tf.Tensor, axis: int) -> tf.Tensor:
        return tf.tile(weight, [cells if i == axis else 1 for i in range(weight.shape.rank)])

    def weighted(x: tf.Tensor, operation: str) -> tf.Tensor:
        return norm(x, for_all_cells(scale[operation], 0))

    def separable(x: tf.Tensor, operation: str, stage: str, rate: int) -> tf.Tensor:
        depthwise = for_all_cells(weights[f"{operation}.depthwise_kernel_{stage}"], 2)
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
            # Likewise one group per cell.
            kernel = for_all_cells(weights[f"{operation}.kernel"], 3)
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
    # Eq. 2: the sum over the operations, which alpha has scaled already.
    return tf.reshape(tf.add_n(terms), make_shape(-1, height, width, cells, wide))


def make_shape(*sizes: Any) -> Any:
    """What tf.reshape takes, made once for many."""
    return sizes if all(isinstance(size, int) for size in sizes) else tf.stack(sizes)

"""The super-net: every path of the trellis at once (paper, Sec. 4.1.2, and Sec. 5.1).

A forward pass is a loop over the layers that keeps two layers of tensors. Its formulas are in the
layers: Eq. 6 in `trellis.TrellisNode`, Eqs. 1, 2 and 5 in `mixed_cell`. Batch statistics are
returned, not applied: the weight step applies them, the architecture step must not.
"""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab.search import mixed_cell
from auto_deeplab.search.execution import Execution, as_function
from auto_deeplab.search.trellis import SearchHead, SearchStem, TrellisNode, default_stem_filters
from auto_deeplab.space import search_space
from official.normalization import Statistics
from official.preprocessing import network_input
from official.resizing import resize_bilinear, sides


class SuperNet(keras.Model):
    """All nodes of the trellis and the four search heads.

    Args:
        num_classes: of the logits.
        num_layers: L.
        num_blocks: B.
        operations: names, the columns of alpha.
        filter_multiplier: F; a cell at level k has F * 2^k channels, a node's output B times as
            many.
        stem_filters: channels of the stem's two or three convolutions; None for those of
            trellis.default_stem_filters.
        alpha_sharing: which cells share an alpha, one of search_space.ALPHA_SHARING.
        partial_channels: K: the operations of a cell's edges see C_k / K channels.
        recompute: what the backward pass computes again, one of execution.RECOMPUTE.
        sync_batch_norm: whether BN normalises by the global batch's statistics, or by those of each
            replica's part.
        jit_compile: whether it is to be compiled with XLA.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_layers: int,
        num_blocks: int,
        operations: tuple[str, ...],
        filter_multiplier: int,
        stem_filters: Sequence[int] | None = None,
        alpha_sharing: str = "global",
        partial_channels: int = 1,
        recompute: str = "cell",
        sync_batch_norm: bool = True,
        jit_compile: bool = False,
    ) -> None:
        # alpha and beta must stay float32 whatever the precision of the convolutions.
        super().__init__(name="supernet", autocast=False)
        self.num_layers, self.num_blocks, self.operations = num_layers, num_blocks, operations
        self.filter_multiplier, self.alpha_sharing = filter_multiplier, alpha_sharing
        self.partial_channels = partial_channels
        several_replicas = tf.distribute.get_strategy().num_replicas_in_sync > 1
        self.execution = Execution(
            recompute=recompute,
            inline=jit_compile or (sync_batch_norm and several_replicas),
            sync_batch_norm=sync_batch_norm,
        )

        stem_filters = stem_filters or default_stem_filters(num_blocks, filter_multiplier)

        def output_channels(layer: int, level: int) -> int:
            stem = {(-1, -1): stem_filters[-2], (0, 0): stem_filters[-1]}
            return stem.get((layer, level), num_blocks * self.cell_channels(level))

        self.stem = SearchStem(stem_filters, self.execution)
        self.nodes = [
            TrellisNode(
                layer,
                level,
                first_channels=[
                    output_channels(layer - 1, j) for j in search_space.predecessors(layer, level)
                ],
                second_channels=output_channels(*search_space.second_source(layer, level)[:2]),
                channels=self.cell_channels(level),
                operations=operations,
                num_blocks=num_blocks,
                partial_channels=partial_channels,
                execution=self.execution,
            )
            for layer, level in search_space.nodes(num_layers)
        ]
        self.heads = [
            SearchHead(
                level,
                channels=output_channels(num_layers, level),
                num_classes=num_classes,
                execution=self.execution,
            )
            for level in search_space.levels_at(num_layers)
        ]
        self.built = True

    def cell_channels(self, level: int) -> int:
        """C_k = F * 2^k."""
        return self.filter_multiplier * 2**level

    def call(
        self,
        images: tf.Tensor,
        alpha: tf.Tensor,
        beta: tf.Tensor,
        training: bool = False,
        fixed_weights: bool = False,
        edge_weights: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, list[Statistics]]:
        """Runs the super-net.

        Args:
            images: [N, H, W, 3], values 0..255, any size.
            alpha: probabilities, float32 [edges of the cell, operations], or several of them; see
                `Architecture`.
            beta: probabilities, float32 [L, 4, 3].
            training: normalise by the batch's statistics instead of the moving ones.
            fixed_weights: the cells' weights get no gradients, which saves their computation.
            edge_weights: of the cell's edges, float32 [edges], or several as of alpha; None: all 1.

        Returns:
            (logits float32 [N, H, W, classes]; the batch's statistics, one pair for the stem, each
            node and each head, for `update_moving_statistics`, or an empty list unless training).
        """
        height, width = sides(images)
        x = network_input(images)
        padded = sides(x)
        x = tf.cast(x, self.compute_dtype)
        scales = self._make_scales(alpha, edge_weights)
        (half, quarter), statistics = self.stem(x, training=training)
        found = [statistics]
        layers = {-1: {-1: half}, 0: {0: quarter}}
        # Their ReLU, once for all who take it.
        active = {-1: {-1: tf.nn.relu(half)}, 0: {0: tf.nn.relu(quarter)}}
        nodes = iter(self.nodes)
        for layer in range(1, self.num_layers + 1):
            layers[layer], active[layer] = {}, {}
            for level in search_space.levels_at(layer):
                node = next(nodes)
                # What comes from a coarser level is resized before its ReLU.
                previous = [
                    (layers if source > level else active)[layer - 1][source]
                    for source in node.sources
                ]
                source_layer, source_level, _ = search_space.second_source(layer, level)
                second = active[source_layer][source_level]
                edges = [(source, search_space.direction(source, level)) for source in node.sources]
                index = search_space.alpha_index(self.alpha_sharing, layer, level)
                h, statistics = self._run(
                    node,
                    *((previous, second), tf.gather_nd(beta[layer - 1], edges)),
                    scales[index, level],
                    training=training,
                    fixed_weights=fixed_weights,
                )
                layers[layer][level], active[layer][level] = h, tf.nn.relu(h)
                found.append(statistics)
            del layers[layer - 2], active[layer - 2]

        logits = []
        for level, head in enumerate(self.heads):
            own, statistics = head(active[self.num_layers][level], training=training)
            logits.append(resize_bilinear(tf.cast(own, tf.float32), padded))
            found.append(statistics)
        return tf.add_n(logits)[:, :height, :width], found if training else []

    def _run(
        self,
        node: TrellisNode,
        maps: Any,
        beta: tf.Tensor,
        scales: Any,
        *,
        training: bool,
        fixed_weights: bool,
    ) -> tuple[tf.Tensor, Statistics | None]:
        """Calls the node by the function that all nodes of its kind share."""
        function = self.execution.share(
            as_function(node, fixed_weights=fixed_weights),
            "node",
            training,
            *(fixed_weights, *node.kind),
        )
        weights = [tf.convert_to_tensor(variable) for variable in node.trainable_variables]
        return function(() if training else node.moving.read(), maps, weights, beta, scales)

    def _make_scales(
        self, alpha: tf.Tensor, edge_weights: tf.Tensor | None
    ) -> dict[tuple[int, int], Any]:
        """mixed_cell.make_scales for every (alpha, level) that some node has, each made once."""
        alphas, weights = [alpha], [edge_weights]
        if alpha.shape.rank == 3:
            alphas = tf.unstack(alpha)
            several = edge_weights is not None
            weights = tf.unstack(edge_weights) if several else [None] * len(alphas)
        pairs = {
            (search_space.alpha_index(self.alpha_sharing, layer, level), level)
            for layer, level in search_space.nodes(self.num_layers)
        }
        return {
            (index, level): mixed_cell.make_scales(
                alphas[index],
                self.operations,
                self.num_blocks,
                self.cell_channels(level) // self.partial_channels,
                weights[index],
                passes=self.partial_channels > 1,
            )
            for index, level in sorted(pairs)
        }

    def update_moving_statistics(self, statistics: list[Statistics]) -> None:
        """Moves every moving average towards the statistics that a training call returned."""
        for part, own in zip(self._parts(), statistics, strict=True):
            part.moving.move(own)

    def moving_statistics(self) -> list[keras.Variable]:
        """The variables of the moving averages, in the order of a call's statistics, flattened."""
        return [v for part in self._parts() for v in (part.moving.mean, part.moving.variance)]

    def _parts(self) -> list[Any]:
        return [self.stem, *self.nodes, *self.heads]

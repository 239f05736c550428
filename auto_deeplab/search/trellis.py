"""The layers of the super-net: its stem, the nodes of the trellis, and a head per level.

A layer returns its output and the batch's statistics, one pair (mean, unbiased variance) for all
that it normalises; the statistics are None unless it is called in training. It changes nothing:
see `SuperNet.update_moving_statistics`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab.search import mixed_cell
from auto_deeplab.search.execution import Execution
from auto_deeplab.search.mixed_cell import MixedCell, SourceTensors
from auto_deeplab.search.packed_weights import PackedStatistics, PackedWeights, Shape, Tensors
from auto_deeplab.space import search_space
from official.convolutions import conv2d
from official.normalization import PackedNorm, Statistics
from official.resizing import resize_bilinear, sides

STEM_STRIDES = {2: (2, 2), 3: (2, 1, 2)}
"""The strides of a stem's convolutions, by their number."""


class SearchStem(keras.layers.Layer):
    """3x3 convolutions from the image to stride 4, each with BN, and ReLU between them.

    Two, of stride 2, are the paper's stem (Sec. 3.2); three are what Sec. 5.2 makes of it for the
    retraining.

    Args:
        filters: channels of each convolution, two or three numbers.
        execution: of the super-net.
    """

    def __init__(self, filters: Sequence[int], execution: Execution) -> None:
        super().__init__(name="stem", autocast=False)
        self.execution, self.strides = execution, STEM_STRIDES[len(filters)]
        inputs = (3, *filters)
        kernels = {f"conv{i}": (3, 3, inputs[i], inputs[i + 1]) for i in range(len(filters))}
        self.packed = PackedWeights(self.name, *conv_bn_shapes(kernels))
        self.moving = PackedStatistics(self.name, sum(filters))
        self.built = True

    def call(
        self, x: tf.Tensor, training: bool = False
    ) -> tuple[tuple[tf.Tensor, tf.Tensor], Statistics | None]:
        """What the last two convolutions give: H^{-1} at stride 2 and H^0 at 4, before their ReLU.

        Args:
            x: the image, [N, H, W, 3], values -1..1.
            training: normalises by the batch, not by moving statistics.
        """
        norm = self.execution.make_norm(() if training else self.moving.read())
        w = self.packed.read()
        maps = [conv_bn(x, "conv0", w, norm, stride=self.strides[0])]
        for number, stride in enumerate(self.strides[1:], 1):
            maps.append(conv_bn(tf.nn.relu(maps[-1]), f"conv{number}", w, norm, stride=stride))
        return (maps[-2], maps[-1]), norm.statistics()


class TrellisNode(keras.layers.Layer):
    """Node (layer, level) of the trellis (Eq. 6): adapters, cells, and their sum.

    Args:
        layer, level: which node; it has C = F * 2^level channels.
        first_channels: of H^{l-1} at each of the levels `search_space.predecessors`.
        second_channels: of H^{l-2}.
        channels: C.
        operations, num_blocks, partial_channels, execution: as those of `MixedCell`.
    """

    def __init__(
        self,
        layer: int,
        level: int,
        *,
        first_channels: Sequence[int],
        second_channels: int,
        channels: int,
        operations: Sequence[str],
        num_blocks: int,
        execution: Execution,
        partial_channels: int = 1,
    ) -> None:
        super().__init__(name=f"layer_{layer}_level_{level}", autocast=False)
        self.layer, self.level, self.execution = layer, level, execution
        self.sources = search_space.predecessors(layer, level)
        self.factor = search_space.second_source(layer, level)[2]
        side = 1 if self.factor == 1 else 3
        adapters: dict[str, Shape] = {"second": (side, side, second_channels, channels)}
        for source, depth in zip(self.sources, first_channels, strict=True):
            side = 3 if source < level else 1
            adapters[f"from_level_{source}"] = (side, side, depth, channels)
        kernels, vectors = conv_bn_shapes(adapters)
        sizes = [
            mixed_cell.statistics_size(operations, n, channels // partial_channels)
            for n in mixed_cell.num_destinations(num_blocks)
        ]
        self.size_of_second = sizes[1]
        of_edge = channels + sum(sizes) - sizes[1]
        # In this order, which is that of the variables in checkpoints and optimizers.
        self.kernels = PackedWeights(self.name, kernels)
        self.cell = MixedCell(
            operations=operations,
            num_blocks=num_blocks,
            channels=channels,
            partial_channels=partial_channels,
            execution=execution,
            name=self.name,
        )
        self.vectors = PackedWeights(self.name, vectors=vectors)
        self.moving = PackedStatistics(self.name, channels + sizes[1] + len(self.sources) * of_edge)
        self.kind = (level, *self.sources, self.factor, *first_channels, second_channels)
        """What `call` depends on beside its arguments and the values of variables."""
        self.built = True

    def call(
        self,
        previous: Sequence[tf.Tensor],
        second: tf.Tensor,
        beta: tf.Tensor,
        scales: Sequence[SourceTensors],
        *,
        training: bool = False,
        fixed_weights: bool = False,
    ) -> tuple[tf.Tensor, Statistics | None]:
        """H^l at this level: the sum over the A edges of the trellis that end here (Eq. 6).

        Args:
            previous: H^{l-1} at each of the levels `sources`, [N, h, w, channels]; after their
                ReLU, but before it where the level is coarser: there the resize comes first.
            second: H^{l-2}, after its ReLU, at `factor` times the height and width.
            beta: the probability of each of these edges, float32 [A].
            scales: alpha, as mixed_cell.make_scales gives it.
            training: normalises by the batch, not by moving statistics.
            fixed_weights: the cells' weights get no gradients.

        Returns:
            ([N, H, W, B * C], statistics).
        """
        norm = self.execution.make_norm(() if training else self.moving.read())
        w = self.kernels.read() | self.vectors.read()
        second = conv_bn(second, "second", w, norm, stride=self.factor)
        norm_of_second = norm.reserve(self.size_of_second)
        pairs = zip(previous, self.sources, strict=True)
        first = tf.stack([self._adapt(h, source, w, norm) for h, source in pairs], 3)
        blocks = self.cell(
            first,
            second,
            scales,
            norm=norm,
            norm_of_second=norm_of_second,
            training=training,
            fixed_weights=fixed_weights,
        )
        # Eq. 6: H^l = sum over the edges of beta * Cell(...), block by block: the backward pass has
        # the blocks of a cell, and would keep their concatenation beside them.
        beta = tf.cast(beta, first.dtype)[:, None]
        h = tf.concat([tf.reduce_sum(beta * block, 3) for block in blocks], -1)
        return h, norm.statistics()

    def _adapt(self, h: tf.Tensor, source: int, w: Tensors, norm: PackedNorm) -> tf.Tensor:
        """Brings H^{l-1} from level `source` to this one's size and channels (Sec. 5.1)."""
        if source > self.level:
            height, width = sides(h)
            h = tf.nn.relu(resize_bilinear(h, ((height - 1) * 2 + 1, (width - 1) * 2 + 1)))
        stride = 2 if source < self.level else 1
        return conv_bn(h, f"from_level_{source}", w, norm, stride=stride)


class SearchHead(keras.layers.Layer):
    """The three-branch ASPP of the search (Sec. 5.1), at one level of the last layer.

    Args:
        level: k.
        channels: of the node, and of each branch.
        num_classes: of the logits.
        execution: of the super-net.
    """

    def __init__(
        self, level: int, *, channels: int, num_classes: int, execution: Execution
    ) -> None:
        super().__init__(name=f"head_level_{level}", autocast=False)
        self.execution, self.rate = execution, 96 // search_space.stride(level)
        kernels, vectors = conv_bn_shapes(
            {"point": (1, 1, channels, channels), "atrous": (3, 3, channels, channels)}
        )
        kernels |= {
            "pool.kernel": (1, 1, channels, channels),
            "classifier.kernel": (1, 1, 3 * channels, num_classes),
        }
        vectors |= {"pool.bias": (0.0, channels), "classifier.bias": (0.0, num_classes)}
        self.packed = PackedWeights(self.name, kernels, vectors)
        self.moving = PackedStatistics(self.name, 2 * channels)
        self.built = True

    def call(self, h: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, Statistics | None]:
        """Logits [N, H, W, classes] of a node's output after its ReLU, [N, H, W, channels].

        The pooled branch has no BN: at batch 1 or 2 its statistics would be degenerate.

        Args:
            h: the node's.
            training: normalises by the batch, not by moving statistics.
        """
        norm = self.execution.make_norm(() if training else self.moving.read())
        w = self.packed.read()
        point = tf.nn.relu(conv_bn(h, "point", w, norm))
        atrous = tf.nn.relu(conv_bn(h, "atrous", w, norm, rate=self.rate))
        mean = tf.reduce_mean(h, [1, 2], keepdims=True)
        pooled = conv2d(mean, w["pool.kernel"])
        pooled = tf.nn.relu(pooled + tf.cast(w["pool.bias"], pooled.dtype))
        branches = tf.concat([point, atrous, tf.broadcast_to(pooled, tf.shape(point))], -1)
        logits = conv2d(branches, w["classifier.kernel"])
        return logits + tf.cast(w["classifier.bias"], logits.dtype), norm.statistics()


def conv_bn(x: tf.Tensor, name: str, w: Tensors, norm: PackedNorm, **conv: Any) -> tf.Tensor:
    """Convolution `name` and its BN; `conv` is what `conv2d` takes beside map and kernel."""
    x = conv2d(x, w[f"{name}.kernel"], **conv)
    return norm(x, w[f"{name}.gamma"], w[f"{name}.beta"])


def conv_bn_shapes(
    kernels: Mapping[str, Shape],
) -> tuple[dict[str, Shape], dict[str, tuple[float, int]]]:
    """The `kernels` and `vectors` of PackedWeights for some `conv_bn`, from name and kernel."""
    vectors: dict[str, tuple[float, int]] = {}
    for name, shape in kernels.items():
        vectors |= {f"{name}.gamma": (1.0, shape[-1]), f"{name}.beta": (0.0, shape[-1])}
    return {f"{name}.kernel": shape for name, shape in kernels.items()}, vectors


def default_stem_filters(num_blocks: int, filter_multiplier: int) -> tuple[int, int]:
    """The channels of the search's two stem convolutions, for which the paper gives no numbers.

    A node's output has B * F channels at stride 4, and half as many at every halving of the stride:
    the stem follows that, with B * F / 2 (rounded down, at least 1) at stride 2, B * F at stride 4.
    """
    channels = num_blocks * filter_multiplier
    return max(1, channels // 2), channels

"""The super-net: every path of the trellis at once (paper, Sec. 4.1.2, Eq. 6, and Sec. 5.1).

    H^{l,k} = sum over j in {k-1, k, k+1} of beta^l_{j->k} Cell(adapt(H^{l-1,j}), second; alpha)

A forward pass is a loop over the layers that keeps two layers of tensors. Each node is recomputed
in the backward pass, so that of a node only its output is stored. Batch statistics are returned,
not applied: the weight step applies them, the architecture step must not.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab import cell, search_space
from official.normalization import PackedNorm, Statistics, moving_average
from official.preprocessing import network_input
from official.resizing import resize_bilinear, sides

MOMENTUM = 0.9

Tensors = dict[str, Any]


class Part(keras.layers.Layer):
    """The variables of one part of the super-net: the stem, a node or a head.

    It computes nothing. The functions below take a part's weights as plain tensors, so that a node
    can be recomputed, and one traced function can serve all cells of a level.

    Args:
        kernels: shape of each kernel, by name.
        vectors: (initial value, length) of each vector, by name.
        normalized_channels: length of the packed moving statistics.
    """

    def __init__(
        self,
        name: str,
        kernels: dict[str, tuple[int, ...]],
        vectors: dict[str, tuple[float, int]],
        normalized_channels: int,
    ) -> None:
        super().__init__(name=name)

        def add(name: str, shape: tuple[int, ...], initializer: Any, **options: Any) -> Any:
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype="float32",
                autocast=False,
                **options,
            )

        self.by_name = {
            key: add(key, shape, _uniform(key, shape)) for key, shape in kernels.items()
        }
        for key, (value, length) in vectors.items():
            self.by_name[key] = add(key, (length,), keras.initializers.Constant(value))
        # Every replica computes the same global statistics, so the first one's value is the value.
        moving = {"trainable": False, "aggregation": "only_first_replica"}
        self.moving_mean = add("moving_mean", (normalized_channels,), "zeros", **moving)
        self.moving_variance = add("moving_variance", (normalized_channels,), "ones", **moving)

    def tensors(self, dtype: str) -> Tensors:
        """The weights by name: kernels in the compute dtype, vectors in float32."""
        return {
            name: tf.cast(tf.convert_to_tensor(v), dtype if "kernel" in name else tf.float32)
            for name, v in self.by_name.items()
        }

    def moving_statistics(self) -> Statistics:
        """The moving mean and variance as tensors."""
        return tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)


def _uniform(name: str, shape: tuple[int, ...]) -> keras.initializers.Initializer:
    """Uniform, variance 1 / (3 fan-in), as in the published network's cells; paper: silent."""
    limit = (shape[0] * shape[1] * (1 if "depthwise" in name else shape[2])) ** -0.5
    return keras.initializers.RandomUniform(-limit, limit)


class SuperNet(keras.Model):
    """All nodes of the trellis and the four search heads.

    Args:
        num_classes: of the logits.
        num_layers: L.
        num_blocks: B.
        operations: names, the columns of alpha.
        filter_multiplier: F; a cell at level k has F * 2^k channels, a node's output B times as
            many.
        stem_filters: channels of the stem's three convolutions.
        alpha_sharing: which cells share an alpha, one of search_space.ALPHA_SHARING.
        recompute: recompute every node in the backward pass: a fraction of the memory for about
            1.3 times the time.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_layers: int,
        num_blocks: int,
        operations: tuple[str, ...],
        filter_multiplier: int,
        stem_filters: tuple[int, int, int] = (64, 64, 128),
        alpha_sharing: str = "global",
        recompute: bool = True,
    ) -> None:
        # alpha and beta must stay float32 whatever the precision of the convolutions.
        super().__init__(name="supernet", autocast=False)
        self.num_layers, self.num_blocks, self.operations = num_layers, num_blocks, operations
        self.filter_multiplier, self.recompute = filter_multiplier, recompute
        self.alpha_sharing = alpha_sharing

        def output_channels(layer: int, level: int) -> int:
            stem = {(-1, -1): stem_filters[1], (0, 0): stem_filters[2]}
            return stem.get((layer, level), num_blocks * self.cell_channels(level))

        self.stem = stem_part(stem_filters)
        self.nodes = [
            node_part(
                layer,
                level,
                [output_channels(layer - 1, j) for j in search_space.predecessors(layer, level)],
                output_channels(*search_space.second_source(layer, level)[:2]),
                self.cell_channels(level),
                operations,
                num_blocks,
            )
            for layer, level in search_space.nodes(num_layers)
        ]
        self.heads = [
            head_part(level, output_channels(num_layers, level), num_classes)
            for level in search_space.levels_at(num_layers)
        ]
        # One trace per level serves all its cells. Synchronised BN cannot run inside a nested
        # function, so with several replicas the same code is inlined.
        self._leave_second, self._mixed_cell = self._cell_functions()
        if tf.distribute.get_strategy().num_replicas_in_sync == 1:
            self._leave_second = tf.function(self._leave_second)
            self._mixed_cell = tf.function(self._mixed_cell)
        self.built = True

    def cell_channels(self, level: int) -> int:
        """C_k = F * 2^k."""
        return self.filter_multiplier * 2**level

    def parts(self) -> list[Part]:
        """Stem, nodes in the trellis' order, heads."""
        return [self.stem, *self.nodes, *self.heads]

    def call(
        self, images: tf.Tensor, alpha: tf.Tensor, beta: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, list[Statistics]]:
        """Runs the super-net.

        Args:
            images: [N, H, W, 3], values 0..255, any size.
            alpha: probabilities, float32 [edges of the cell, operations], or several of them; see
                `Architecture`.
            beta: probabilities, float32 [L, 4, 3].
            training: normalise by the batch's statistics instead of the moving ones.

        Returns:
            (logits float32 [N, H, W, classes]; the batch's statistics, one pair per part, for
            `update_moving_statistics`, or an empty list unless training).
        """
        height, width = sides(images)
        x = network_input(images)
        padded = sides(x)
        x = tf.cast(x, self.compute_dtype)
        found: list[Statistics] = []

        def run(part: Part, function: Callable[..., Any], *inputs: Any) -> Any:
            moving = None if training else part.moving_statistics()

            def pure(weights: Tensors, *inputs: Any) -> tuple[Any, Statistics | None]:
                norm = PackedNorm(cell.EPSILON, moving)
                return function(*inputs, weights, norm), norm.statistics()

            if training and self.recompute and part in self.nodes:
                pure = rematerialized(pure)
            output, statistics = pure(part.tensors(self.compute_dtype), *inputs)
            if statistics is not None:
                found.append(statistics)
            return output

        scales = self._scales(alpha)
        half, quarter = run(self.stem, stem, x)
        layers: dict[int, dict[int, tf.Tensor]] = {-1: {-1: half}, 0: {0: quarter}}
        parts = iter(self.nodes)
        for layer in range(1, self.num_layers + 1):
            layers[layer] = {}
            for level in search_space.levels_at(layer):
                sources = search_space.predecessors(layer, level)
                source_layer, source_level, _ = search_space.second_source(layer, level)
                directions = [(j, search_space.direction(j, level)) for j in sources]
                layers[layer][level] = run(
                    next(parts),
                    self._node_function(layer, level),
                    [layers[layer - 1][j] for j in sources],
                    layers[source_layer][source_level],
                    tf.gather_nd(beta[layer - 1], directions),
                    scales[search_space.alpha_index(self.alpha_sharing, layer, level), level],
                )
            del layers[layer - 2]

        logits = []
        for level, part in enumerate(self.heads):
            own = run(part, head, layers[self.num_layers][level], level)
            logits.append(resize_bilinear(tf.cast(own, tf.float32), padded))
        return tf.add_n(logits)[:, :height, :width], found

    def _scales(self, alpha: tf.Tensor) -> dict[tuple[int, int], Any]:
        """`cell.scales` for every (alpha, level) that some node has, each made once."""
        alphas = tf.unstack(alpha) if alpha.shape.rank == 3 else [alpha]
        pairs = {
            (search_space.alpha_index(self.alpha_sharing, layer, level), level)
            for layer, level in search_space.nodes(self.num_layers)
        }
        return {
            (index, level): cell.scales(
                alphas[index], self.operations, self.num_blocks, self.cell_channels(level)
            )
            for index, level in sorted(pairs)
        }

    def update_moving_statistics(self, statistics: list[Statistics]) -> None:
        """Moves every moving average towards the statistics that a training call returned."""
        for part, (mean, variance) in zip(self.parts(), statistics, strict=True):
            moving_average(part.moving_mean, mean, MOMENTUM)
            moving_average(part.moving_variance, variance, MOMENTUM)

    def _cell_functions(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """The two heavy pieces of a node, as functions of tensors alone."""

        def leave_second(
            h2: tf.Tensor, weights: Any, scale: Any, moving: Statistics | None
        ) -> tuple[tf.Tensor, Statistics | None]:
            norm = PackedNorm(cell.EPSILON, moving)
            y = cell.leave(h2, self.num_blocks, weights, scale, self.operations, norm)
            return y, norm.statistics()

        def mixed_cell(
            h1: tf.Tensor,
            from_second: tf.Tensor,
            weights: Any,
            scale: Any,
            moving: Statistics | None,
        ) -> tuple[tf.Tensor, Statistics | None]:
            norm = PackedNorm(cell.EPSILON, moving)
            y = cell.mixed_cell(h1, from_second, weights, scale, self.operations, norm)
            return y, norm.statistics()

        return leave_second, mixed_cell

    def _node_function(self, layer: int, level: int) -> Callable[..., tf.Tensor]:
        """Eq. 6 for node (layer, level)."""
        sources = search_space.predecessors(layer, level)
        factor = search_space.second_source(layer, level)[2]
        channels = self.cell_channels(level)
        second_size, cell_size = cell_statistics(self.operations, self.num_blocks, channels)

        def node(
            previous: list[tf.Tensor],
            second: tf.Tensor,
            beta: tf.Tensor,
            scale: list[Tensors],
            w: Tensors,
            norm: PackedNorm,
        ) -> tf.Tensor:
            packed = {name: w[name] for name in w if name.startswith(self.operations)}
            weights = cell.split_by_source(packed, self.num_blocks, channels)
            h2 = conv_bn(tf.nn.relu(second), "second", w, norm, stride=factor)
            # H^{l-2}'s edges are the same for all arrows of the node.
            from_second = norm.nested(self._leave_second, second_size, h2, weights[1], scale[1])
            first, first_scale = [weights[0], *weights[2:]], [scale[0], *scale[2:]]
            terms = []
            for index, (source, h) in enumerate(zip(sources, previous, strict=True)):
                h1 = adapt(h, source, level, w, norm)
                y = norm.nested(self._mixed_cell, cell_size, h1, from_second, first, first_scale)
                terms.append(tf.cast(beta[index], y.dtype) * y)
            return tf.add_n(terms)

        return node


def rematerialized(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, computed again in the backward pass instead of kept; arguments may be nested."""

    def wrapper(*inputs: Any) -> Any:
        structure: list[Any] = []

        def flat(*tensors: tf.Tensor) -> list[tf.Tensor]:
            output = function(*tf.nest.pack_sequence_as(inputs, tensors))
            structure[:] = [output]
            return tf.nest.flatten(output)

        outputs = tf.recompute_grad(flat)(*tf.nest.flatten(inputs))
        return tf.nest.pack_sequence_as(structure[0], outputs)

    return wrapper


def conv_bn(x: tf.Tensor, name: str, w: Tensors, norm: PackedNorm, **conv: Any) -> tf.Tensor:
    """Convolution `name`, SAME, and its BN; `conv` may give `stride` or `dilations`."""
    x = tf.nn.conv2d(
        x, w[f"{name}.kernel"], conv.get("stride", 1), "SAME", dilations=conv.get("dilations", 1)
    )
    return norm(x, w[f"{name}.gamma"], w[f"{name}.beta"])


def conv_bn_shapes(
    kernels: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[float, int]]]:
    """The `kernels` and `vectors` of a Part for several `conv_bn`, from name and kernel shape."""
    vectors: dict[str, tuple[float, int]] = {}
    for name, shape in kernels.items():
        vectors |= {f"{name}.gamma": (1.0, shape[-1]), f"{name}.beta": (0.0, shape[-1])}
    return {f"{name}.kernel": shape for name, shape in kernels.items()}, vectors


def stem_part(filters: tuple[int, int, int]) -> Part:
    """The variables of `stem`."""
    inputs = (3, *filters)
    kernels = {f"conv{i}": (3, 3, inputs[i], inputs[i + 1]) for i in range(3)}
    return Part("stem", *conv_bn_shapes(kernels), sum(filters))


def stem(x: tf.Tensor, w: Tensors, norm: PackedNorm) -> tuple[tf.Tensor, tf.Tensor]:
    """The derived network's stem: tensors at stride 2 (layer -1) and 4 (layer 0), before ReLU."""
    x = tf.nn.relu(conv_bn(x, "conv0", w, norm, stride=2))
    half = conv_bn(x, "conv1", w, norm)
    return half, conv_bn(tf.nn.relu(half), "conv2", w, norm, stride=2)


def cell_statistics(operations: tuple[str, ...], num_blocks: int, channels: int) -> tuple[int, int]:
    """Normalised channels of H^{l-2}'s edges, and of all the other edges of a cell."""
    sizes = [
        cell.statistics_size(operations, n, channels) for n in cell.num_destinations(num_blocks)
    ]
    return sizes[1], sum(sizes) - sizes[1]


def node_part(
    layer: int,
    level: int,
    first_channels: list[int],
    second_channels: int,
    channels: int,
    operations: tuple[str, ...],
    num_blocks: int,
) -> Part:
    """The variables of one node: the cell's, and the adapters of its inputs."""
    factor = search_space.second_source(layer, level)[2]
    side = 1 if factor == 1 else 3
    adapters: dict[str, tuple[int, ...]] = {"second": (side, side, second_channels, channels)}
    sources = search_space.predecessors(layer, level)
    for source, depth in zip(sources, first_channels, strict=True):
        side = 3 if source < level else 1
        adapters[f"from_level_{source}"] = (side, side, depth, channels)
    kernels, vectors = conv_bn_shapes(adapters)
    second_size, cell_size = cell_statistics(operations, num_blocks, channels)
    return Part(
        f"layer_{layer}_level_{level}",
        kernels | cell.weight_shapes(operations, num_blocks, channels),
        vectors,
        channels + second_size + len(sources) * (channels + cell_size),
    )


def adapt(h: tf.Tensor, source: int, level: int, w: Tensors, norm: PackedNorm) -> tf.Tensor:
    """Brings H^{l-1} from level `source` to the size and channels of `level` (Sec. 5.1)."""
    if source > level:
        height, width = sides(h)
        h = resize_bilinear(h, ((height - 1) * 2 + 1, (width - 1) * 2 + 1))
    stride = 2 if source < level else 1
    return conv_bn(tf.nn.relu(h), f"from_level_{source}", w, norm, stride=stride)


def head_part(level: int, channels: int, num_classes: int) -> Part:
    """The variables of one search head."""
    kernels, vectors = conv_bn_shapes(
        {"point": (1, 1, channels, channels), "atrous": (3, 3, channels, channels)}
    )
    kernels |= {
        "pool.kernel": (1, 1, channels, channels),
        "classifier.kernel": (1, 1, 3 * channels, num_classes),
    }
    vectors |= {"pool.bias": (0.0, channels), "classifier.bias": (0.0, num_classes)}
    return Part(f"head_level_{level}", kernels, vectors, 2 * channels)


def head(h: tf.Tensor, level: int, w: Tensors, norm: PackedNorm) -> tf.Tensor:
    """The three-branch ASPP of the search (Sec. 5.1), from a node to logits at its own size.

    The pooled branch has no BN: at batch 1 or 2 its statistics would be degenerate.
    """
    h = tf.nn.relu(h)
    rate = 96 // search_space.stride(level)
    point = tf.nn.relu(conv_bn(h, "point", w, norm))
    atrous = tf.nn.relu(conv_bn(h, "atrous", w, norm, dilations=rate))
    mean = tf.reduce_mean(h, [1, 2], keepdims=True)
    pooled = tf.nn.conv2d(mean, w["pool.kernel"], 1, "SAME")
    pooled = tf.nn.relu(pooled + tf.cast(w["pool.bias"], pooled.dtype))
    branches = tf.concat([point, atrous, tf.broadcast_to(pooled, tf.shape(point))], -1)
    logits = tf.nn.conv2d(branches, w["classifier.kernel"], 1, "SAME")
    return logits + tf.cast(w["classifier.bias"], logits.dtype)

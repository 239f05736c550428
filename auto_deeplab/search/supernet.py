"""The super-net: every path of the trellis at once (paper, Sec. 4.1.2, Eq. 6, and Sec. 5.1).

    H^{l,k} = sum over j in {k-1, k, k+1} of beta^l_{j->k} Cell(adapt(H^{l-1,j}), second; alpha)

A forward pass is a loop over the layers that keeps two layers of tensors; what the backward pass
needs is mostly computed again (RECOMPUTE). What many nodes have in common is traced once and then
called: else the graph of twelve layers takes minutes to build. Batch statistics are returned, not
applied: the weight step applies them, the architecture step must not.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab.search import mixed_cell
from auto_deeplab.space import search_space
from official.convolutions import conv2d
from official.normalization import PackedNorm, Statistics, moving_average
from official.preprocessing import network_input
from official.resizing import resize_bilinear, sides
from official.training_step import NO_INLINE

MOMENTUM = 0.9

RECOMPUTE = ("cell", "node", "none")
"""What the backward pass computes again instead of keeping it: what leaves each state of a cell (it
keeps the states), all of a node (it keeps nodes' outputs), or nothing.
"""

Tensors = dict[str, Any]


class Part(keras.layers.Layer):
    """The variables of one part of the super-net: the stem, a node or a head.

    It computes nothing. The functions below take a part's weights as plain tensors, so that a node
    can be recomputed, and one traced function can serve many. Weights of one shape but for the last
    channels are *packed* in one variable: every variable costs time in each step, and each takes
    TensorFlow seconds to place and its optimizer's operations to build.

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
        self.packs: dict[str, dict[str, int]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        initializers: dict[str, keras.initializers.Initializer] = {}
        for key, shape in kernels.items():
            pack = _pack_of_kernel(key, shape)
            self.packs.setdefault(pack, {})[key] = shape[_packed_axis(pack)]
            shapes[pack], initializers[pack] = shape, _uniform(key, shape)
        for key, (value, length) in vectors.items():
            pack = key.rpartition(".")[2]
            self.packs.setdefault(pack, {})[key] = length
            shapes[pack], initializers[pack] = (length,), keras.initializers.Constant(value)

        def add(name: str, shape: Any, initializer: Any, **options: Any) -> Any:
            return self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                dtype="float32",
                autocast=False,
                **options,
            )

        self.packed = {}
        for pack, sizes in self.packs.items():
            sides = list(shapes[pack])
            sides[_packed_axis(pack)] = sum(sizes.values())
            self.packed[pack] = add(pack, tuple(sides), initializers[pack])
        # Replicas whose BN is synchronised have the same; the mean is for those whose is not.
        moving = {"trainable": False, "aggregation": "mean"}
        self.moving_mean = add("moving_mean", (normalized_channels,), "zeros", **moving)
        self.moving_variance = add("moving_variance", (normalized_channels,), "ones", **moving)

    def tensors(self, dtype: str) -> Tensors:
        """The packed weights: kernels in the compute dtype, vectors in float32."""
        return {
            name: tf.cast(tf.convert_to_tensor(v), dtype if "kernel" in name else tf.float32)
            for name, v in self.packed.items()
        }

    def unpack(self, packed: Mapping[str, tf.Tensor]) -> Tensors:
        """Tensors like the packed weights, such as their gradients, by the weights' own names."""
        found: Tensors = {}
        for pack, sizes in self.packs.items():
            pieces = tf.split(packed[pack], list(sizes.values()), axis=_packed_axis(pack))
            found |= dict(zip(sizes, pieces, strict=True))
        return found

    def moving_statistics(self) -> Statistics:
        """The moving mean and variance as tensors."""
        return tf.convert_to_tensor(self.moving_mean), tf.convert_to_tensor(self.moving_variance)


def _pack_of_kernel(name: str, shape: tuple[int, ...]) -> str:
    if "depthwise" in name:
        return f"depthwise_kernel_{shape[0]}x{shape[1]}"
    return "pointwise_kernel" if "pointwise" in name else name


def _packed_axis(pack: str) -> int:
    return 2 if "depthwise" in pack else -1


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
        recompute: one of RECOMPUTE.
        sync_batch_norm: whether BN normalises by the global batch's statistics, or by those of each
            replica's part.
        jit_compile: whether it is to be compiled with XLA. It then has no functions of its own: XLA
            takes what one function's gradient takes from another for constants, images included.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_layers: int,
        num_blocks: int,
        operations: tuple[str, ...],
        filter_multiplier: int,
        stem_filters: tuple[int, ...] = (64, 64, 128),
        alpha_sharing: str = "global",
        recompute: str = "cell",
        sync_batch_norm: bool = True,
        jit_compile: bool = False,
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
        # Synchronised BN cannot run inside a nested function: with several replicas, the same code
        # is inlined.
        several_replicas = tf.distribute.get_strategy().num_replicas_in_sync > 1
        self.inline = jit_compile or (sync_batch_norm and several_replicas)
        self.sync_batch_norm = sync_batch_norm
        self._leave = functools.cache(self._make_leave)
        self._nodes: dict[Any, Callable[..., Any]] = {}
        self.built = True

    def cell_channels(self, level: int) -> int:
        """C_k = F * 2^k."""
        return self.filter_multiplier * 2**level

    def parts(self) -> list[Part]:
        """Stem, nodes in the trellis' order, heads."""
        return [self.stem, *self.nodes, *self.heads]

    def call(
        self,
        images: tf.Tensor,
        alpha: tf.Tensor,
        beta: tf.Tensor,
        training: bool = False,
        fixed_weights: bool = False,
    ) -> tuple[tf.Tensor, list[Statistics]]:
        """Runs the super-net.

        Args:
            images: [N, H, W, 3], values 0..255, any size.
            alpha: probabilities, float32 [edges of the cell, operations], or several of them; see
                `Architecture`.
            beta: probabilities, float32 [L, 4, 3].
            training: normalise by the batch's statistics instead of the moving ones.
            fixed_weights: the nodes' weights get no gradients, which saves their computation.

        Returns:
            (logits float32 [N, H, W, classes]; the batch's statistics, one pair per part, for
            `update_moving_statistics`, or an empty list unless training).
        """
        height, width = sides(images)
        x = network_input(images)
        padded = sides(x)
        x = tf.cast(x, self.compute_dtype)
        found: list[Statistics] = []

        def run(part: Part, function: Callable[..., Any], maps: Any, *others: Any) -> Any:
            moving = None if training else part.moving_statistics()
            packed = part.tensors(self.compute_dtype)
            output, statistics = function(moving, maps, packed, *others)
            if statistics is not None:
                found.append(statistics)
            return output

        scales = self._scales(alpha)
        half, quarter = run(self.stem, self._with_statistics(stem, self.stem), x)
        layers = {-1: {-1: half}, 0: {0: quarter}}
        # Their ReLU, once for all who take it.
        active = {-1: {-1: tf.nn.relu(half)}, 0: {0: tf.nn.relu(quarter)}}
        parts = iter(self.nodes)
        for layer in range(1, self.num_layers + 1):
            layers[layer], active[layer] = {}, {}
            for level in search_space.levels_at(layer):
                part = next(parts)
                sources = search_space.predecessors(layer, level)
                source_layer, source_level, factor = search_space.second_source(layer, level)
                directions = [(j, search_space.direction(j, level)) for j in sources]
                key = (level, tuple(sources), factor, training, fixed_weights)
                if key not in self._nodes:
                    self._nodes[key] = self._make_node(part, *key)
                # What comes from a coarser level is resized before its ReLU.
                previous = [(layers if j > level else active)[layer - 1][j] for j in sources]
                h = run(
                    part,
                    self._nodes[key],
                    (previous, active[source_layer][source_level]),
                    tf.gather_nd(beta[layer - 1], directions),
                    scales[search_space.alpha_index(self.alpha_sharing, layer, level), level],
                )
                layers[layer][level], active[layer][level] = h, tf.nn.relu(h)
            del layers[layer - 2], active[layer - 2]

        logits = []
        for level, part in enumerate(self.heads):
            own = run(
                part, self._with_statistics(head, part), active[self.num_layers][level], level
            )
            logits.append(resize_bilinear(tf.cast(own, tf.float32), padded))
        return tf.add_n(logits)[:, :height, :width], found

    def _scales(self, alpha: tf.Tensor) -> dict[tuple[int, int], Any]:
        """`mixed_cell.scales` for every (alpha, level) that some node has, each made once."""
        alphas = tf.unstack(alpha) if alpha.shape.rank == 3 else [alpha]
        pairs = {
            (search_space.alpha_index(self.alpha_sharing, layer, level), level)
            for layer, level in search_space.nodes(self.num_layers)
        }
        return {
            (index, level): mixed_cell.scales(
                alphas[index], self.operations, self.num_blocks, self.cell_channels(level)
            )
            for index, level in sorted(pairs)
        }

    def update_moving_statistics(self, statistics: list[Statistics]) -> None:
        """Moves every moving average towards the statistics that a training call returned."""
        for part, (mean, variance) in zip(self.parts(), statistics, strict=True):
            moving_average(part.moving_mean, mean, MOMENTUM)
            moving_average(part.moving_variance, variance, MOMENTUM)

    def _with_statistics(
        self, function: Callable[..., Any], part: Part | None = None
    ) -> Callable[..., Any]:
        """A function of (norm, maps, weights, ...) as one of (moving statistics or None, maps,
        weights, ...) with a second result: the batch's statistics, or None. With `part`, it takes
        weights packed as those of that part.
        """

        def wrapper(
            moving: Statistics | None, maps: Any, w: Tensors, *others: Any
        ) -> tuple[Any, Statistics | None]:
            norm = PackedNorm(mixed_cell.EPSILON, moving, self.sync_batch_norm)
            own = part.unpack(w) if part else w
            return function(norm, maps, own, *others), norm.statistics()

        return wrapper

    def _make_leave(self, level: int, training: bool, fixed_weights: bool) -> Callable[..., Any]:
        """Of a cell: (moving statistics or None, h, weights, scale) -> (tensor, statistics).

        One trace serves all states of a level: the tensors' sizes are left open. But not those of
        all levels: TensorFlow's CPU kernel for BN keeps the number of channels in itself, so that
        two calls of one function at the same time, for different numbers, damage memory. States of
        one level wait for each other.
        """

        def leave(norm: PackedNorm, h: tf.Tensor, w: Tensors, scale: Tensors) -> tf.Tensor:
            if fixed_weights:
                w = {name: tf.stop_gradient(weight) for name, weight in w.items()}
            return mixed_cell.leave(h, w, scale, self.operations, norm)

        function = self._with_statistics(leave)
        if self.recompute == "cell" and training:
            function = rematerialized(function)
        if self.inline:
            return function
        state, weights, scale = mixed_cell.any_size(self.operations, self.compute_dtype)
        options = {"autograph": False, "experimental_attributes": NO_INLINE}
        if not training:
            moving = (tf.TensorSpec([None]), tf.TensorSpec([None]))
            return tf.function(function, (moving, state, weights, scale), **options)
        traced = tf.function(
            lambda h, w, scale: function(None, h, w, scale), (state, weights, scale), **options
        )
        return lambda moving, *inputs: traced(*inputs)

    def _make_node(
        self,
        part: Part,
        level: int,
        sources: tuple[int, ...],
        factor: int,
        training: bool,
        fixed_weights: bool,
    ) -> Callable[..., Any]:
        """Eq. 6 for the nodes of a level that have H^{l-1} from the levels `sources`, and H^{l-2}
        from a tensor of `factor` times the size, after its ReLU; `part` is any one of them.
        """
        channels = self.cell_channels(level)
        destinations = mixed_cell.num_destinations(self.num_blocks)

        def node(
            norm: PackedNorm,
            maps: tuple[list[tf.Tensor], tf.Tensor],
            w: Tensors,
            beta: tf.Tensor,
            scale: list[Tensors],
        ) -> tf.Tensor:
            previous, second = maps
            packed = {name: w[name] for name in w if name.startswith(self.operations)}
            weights = mixed_cell.split_by_source(packed, self.num_blocks, channels)

            def leaving(h: tf.Tensor, source: int) -> tf.Tensor:
                n = destinations[source]
                leave = self._leave(level, training, fixed_weights)
                normalized = h.shape[3] * mixed_cell.statistics_size(self.operations, n, channels)
                y = norm.nested(leave, normalized, h, weights[source], scale[source])
                y.set_shape([*h.shape[:-1], n * channels])  # traced for all sizes, it cannot tell
                return y

            h2 = conv_bn(second, "second", w, norm, stride=factor)
            # H^{l-2}'s edges are the same for all arrows of the node.
            from_second = leaving(h2[..., None, :], 1)
            pairs = zip(sources, previous, strict=True)
            h1 = tf.stack([adapt(h, source, level, w, norm) for source, h in pairs], 3)
            if not self.inline:
                # Else these two would not wait for each other: see _make_leave.
                (h1,) = not_before(from_second, [h1])
            blocks = mixed_cell.mixed_cells(h1, from_second, leaving)
            # Each by itself: the backward pass has the blocks, and would keep their concatenation
            # beside them.
            shares = tf.cast(beta, h1.dtype)[:, None]
            return tf.concat([tf.reduce_sum(block * shares, 3) for block in blocks], -1)

        function = self._with_statistics(node, part)
        if self.recompute == "node" and training:
            function = rematerialized(function)
        if self.inline:
            return function
        return tf.function(function, autograph=False, experimental_attributes=NO_INLINE)


def rematerialized(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `SuperNet._with_statistics` made of a function of (norm, maps, ...) with one tensor as
    its result, computed again in the backward pass instead of kept.
    """

    def wrapper(moving: None, maps: Any, *others: Any) -> Any:
        number = len(tf.nest.flatten(maps))

        @tf.custom_gradient
        def run(*tensors: tf.Tensor) -> tuple[Any, Callable[..., Any]]:
            def compute(tensors: Sequence[tf.Tensor]) -> Any:
                return function(None, *tf.nest.pack_sequence_as((maps, *others), tensors))

            def gradient(dy: tf.Tensor, *of_statistics: tf.Tensor) -> list[tf.Tensor]:
                again = [*not_before(dy, tensors[:number]), *tensors[number:]]
                with tf.GradientTape() as tape:
                    tape.watch(again)
                    y = compute(again)[0]
                return tape.gradient(y, again, dy)

            y, (mean, variance) = compute(tensors)
            return (y, mean, variance), gradient

        y, mean, variance = run(*tf.nest.flatten((maps, *others)))
        return y, (mean, variance)

    return wrapper


def not_before(dy: tf.Tensor, maps: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The same maps, once dy is there: what is computed again from them would else be computed at
    once, and kept after all. Their gradients are there before dy's.

    XLA knows no dependencies but those of data, so a zero is made of dy.
    """
    first = tf.reshape(dy, [-1])[0]
    zero = tf.where(tf.math.is_nan(first), first, tf.zeros_like(first))
    return [x + zero for x in maps]


def conv_bn(x: tf.Tensor, name: str, w: Tensors, norm: PackedNorm, **conv: Any) -> tf.Tensor:
    """Convolution `name` and its BN; `conv` is what `conv2d` takes beside map and kernel."""
    x = conv2d(x, w[f"{name}.kernel"], **conv)
    return norm(x, w[f"{name}.gamma"], w[f"{name}.beta"])


def conv_bn_shapes(
    kernels: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[float, int]]]:
    """The `kernels` and `vectors` of a Part for several `conv_bn`, from name and kernel shape."""
    vectors: dict[str, tuple[float, int]] = {}
    for name, shape in kernels.items():
        vectors |= {f"{name}.gamma": (1.0, shape[-1]), f"{name}.beta": (0.0, shape[-1])}
    return {f"{name}.kernel": shape for name, shape in kernels.items()}, vectors


def stem_part(filters: tuple[int, ...]) -> Part:
    """The variables of `stem`."""
    inputs = (3, *filters)
    kernels = {f"conv{i}": (3, 3, inputs[i], inputs[i + 1]) for i in range(3)}
    return Part("stem", *conv_bn_shapes(kernels), sum(filters))


def stem(norm: PackedNorm, x: tf.Tensor, w: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
    """The derived network's stem: tensors at stride 2 (layer -1) and 4 (layer 0), before ReLU."""
    x = tf.nn.relu(conv_bn(x, "conv0", w, norm, stride=2))
    half = conv_bn(x, "conv1", w, norm)
    return half, conv_bn(tf.nn.relu(half), "conv2", w, norm, stride=2)


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
    sizes = [
        mixed_cell.statistics_size(operations, n, channels)
        for n in mixed_cell.num_destinations(num_blocks)
    ]
    of_arrow = channels + sum(sizes) - sizes[1]
    return Part(
        f"layer_{layer}_level_{level}",
        kernels | mixed_cell.weight_shapes(operations, num_blocks, channels),
        vectors,
        channels + sizes[1] + len(sources) * of_arrow,
    )


def adapt(h: tf.Tensor, source: int, level: int, w: Tensors, norm: PackedNorm) -> tf.Tensor:
    """Brings H^{l-1} from level `source` to the size and channels of `level` (Sec. 5.1).

    Args:
        h: after its ReLU; before it if source > level, for there the resize comes first.
    """
    if source > level:
        height, width = sides(h)
        h = tf.nn.relu(resize_bilinear(h, ((height - 1) * 2 + 1, (width - 1) * 2 + 1)))
    stride = 2 if source < level else 1
    return conv_bn(h, f"from_level_{source}", w, norm, stride=stride)


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


def head(norm: PackedNorm, h: tf.Tensor, w: Tensors, level: int) -> tf.Tensor:
    """The three-branch ASPP of the search (Sec. 5.1), from a node's ReLU to logits at its size.

    The pooled branch has no BN: at batch 1 or 2 its statistics would be degenerate.
    """
    rate = 96 // search_space.stride(level)
    point = tf.nn.relu(conv_bn(h, "point", w, norm))
    atrous = tf.nn.relu(conv_bn(h, "atrous", w, norm, rate=rate))
    mean = tf.reduce_mean(h, [1, 2], keepdims=True)
    pooled = conv2d(mean, w["pool.kernel"])
    pooled = tf.nn.relu(pooled + tf.cast(w["pool.bias"], pooled.dtype))
    branches = tf.concat([point, atrous, tf.broadcast_to(pooled, tf.shape(point))], -1)
    logits = conv2d(branches, w["classifier.kernel"])
    return logits + tf.cast(w["classifier.bias"], logits.dtype)

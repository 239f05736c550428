"""The search written plainly and slowly, in float64: what the fused super-net must equal.

One edge and one operation at a time, from sums over shifted maps: no kernel for convolution,
pooling, normalisation or resizing is shared with the code under test, and neither is the trellis.
Only the layout of the packed variables is taken from there (`edge_weights`, `layout`).
"""

import numpy as np
import tensorflow as tf

EPSILON = 1e-3


def taps(x, size, stride=1, rate=1, outside=0.0):
    """[k * k, N, ceil(H / stride), ceil(W / stride), C]: what each tap of a k x k window sees.

    Tap (r, c) of output pixel (i, j) is pixel stride * (i, j) + rate * ((r, c) - k // 2).
    """
    height, width = x.shape[1:3]
    reach = rate * (size // 2)
    x = tf.pad(x, [[0, 0], [reach, reach], [reach, reach], [0, 0]], constant_values=outside)
    starts = [rate * tap for tap in range(size)]
    return tf.stack(
        [x[:, r : r + height : stride, c : c + width : stride] for r in starts for c in starts]
    )


def conv(x, kernel, stride=1, rate=1):
    """Kernel [k, k, C, D]."""
    size, _, inputs, outputs = kernel.shape
    kernel = tf.reshape(kernel, [size * size, inputs, outputs])
    return tf.einsum("tnhwc,tcd->nhwd", taps(x, size, stride, rate), kernel)


def depthwise(x, kernel, rate=1):
    """Kernel [k, k, C, 1]."""
    size, _, channels, _ = kernel.shape
    kernel = tf.reshape(kernel, [size * size, channels])
    return tf.einsum("tnhwc,tc->nhwc", taps(x, size, rate=rate), kernel)


def avg_pool(x):
    """The mean of those of the 3x3 pixels that are inside the map."""
    inside = tf.reduce_sum(taps(tf.ones_like(x), 3), 0)
    return tf.reduce_sum(taps(x, 3), 0) / inside


def max_pool(x):
    return tf.reduce_max(taps(x, 3, outside=-np.inf), 0)


def resize(x, size):
    """Bilinear with aligned corners: first and last pixels of both grids coincide."""

    def weights(old, new):
        places = np.arange(new)[:, None] * ((old - 1) / max(new - 1, 1))
        return np.maximum(0.0, 1.0 - np.abs(places - np.arange(old)))

    height, width = x.shape[1:3]
    return tf.einsum("nhwc,ih,jw->nijc", x, weights(height, size[0]), weights(width, size[1]))


class Norm:
    """Batch normalisation; every use has a key.

    Args:
        moving: {key: (mean, variance)} to normalise by; None for the batch's, which are kept
            in `found` as (mean, unbiased variance).
    """

    def __init__(self, moving=None):
        self.moving, self.found = moving, {}

    def __call__(self, key, x, scale=1.0, offset=0.0):
        if self.moving is None:
            mean = tf.reduce_mean(x, [0, 1, 2])
            variance = tf.reduce_mean((x - mean) ** 2, [0, 1, 2])
            count = np.prod(x.shape[:3])
            self.found[key] = (mean, variance * (count / (count - 1)))
        else:
            mean, variance = self.moving[key]
        return (x - mean) / tf.sqrt(variance + EPSILON) * scale + offset


def cell_edges(num_blocks):
    """(block, input) in the order of alpha's rows: by block, then input."""
    return [(block, source) for block in range(num_blocks) for source in range(2 + block)]


def edge_weights(packed, num_blocks, edge):
    """The weights of one edge: packed variables hold the edges by input, then block."""
    order = sorted(cell_edges(num_blocks), key=lambda edge: (edge[1], edge[0]))
    index = order.index(edge)
    weights = {}
    for name, tensor in packed.items():
        axis = 2 if "depthwise" in name else 3
        channels = tensor.shape[axis] // len(order)
        weights[name] = tf.gather(
            tensor, range(index * channels, (index + 1) * channels), axis=axis
        )
    return weights


def operation(name, x, weights, norm, edge):
    """O(x) in the search: no BN has a learned scale or offset, and each pool has a BN."""

    def separable(x, stage, rate=1):
        x = depthwise(tf.nn.relu(x), weights[f"{name}.depthwise_kernel_{stage}"], rate)
        x = conv(x, weights[f"{name}.pointwise_kernel_{stage}"])
        return norm((edge, name, stage), x)

    if name == "none":
        return tf.zeros_like(x)
    if name == "skip_connect":
        return x
    # The pool of a state is one tensor, whichever block takes it: so are its statistics.
    if name == "avg_pool_3x3":
        return norm((edge[1], name), avg_pool(x))
    if name == "max_pool_3x3":
        return norm((edge[1], name), max_pool(x))
    if name.startswith("sep_conv"):
        return separable(separable(x, 1), 2)
    if name.startswith("dil_conv"):
        return separable(x, 1, rate=2)
    assert name.startswith("atrous_conv"), name
    return norm((edge, name, 1), conv(tf.nn.relu(x), weights[f"{name}.kernel"], rate=2))


def shuffle(x, groups):
    """PC-DARTS: the channels of `groups` groups in turn, the first of each, the second, ..."""
    channels = x.shape[-1]
    order = [
        group * (channels // groups) + c
        for c in range(channels // groups)
        for group in range(groups)
    ]
    return tf.gather(x, order, axis=-1)


def mixed_cell(first, second, packed, alpha, operations, num_blocks, norm, edges=None, parts=1):
    """Eqs. 1, 2 and 5: block i = sum over its inputs j and all k of alpha[j -> i, k] O_k(H_j).

    With `parts` = K, PC-DARTS: the operations see the first C/K channels, the rest passes, all are
    shuffled, and edge j -> i has the weight `edges`[j -> i].
    """
    states = [first, second]
    rows = iter(tf.unstack(alpha))
    if parts > 1:
        of_edge = iter(tf.unstack(edges))
        for block in range(num_blocks):
            terms = []
            for source in range(2 + block):
                edge = (block, source)
                weights = edge_weights(packed, num_blocks, edge)
                seen = states[source].shape[-1] // parts
                x, rest = states[source][..., :seen], states[source][..., seen:]
                shares = zip(operations, tf.unstack(next(rows)), strict=True)
                y = sum(share * operation(name, x, weights, norm, edge) for name, share in shares)
                terms.append(next(of_edge) * shuffle(tf.concat([y, rest], -1), parts))
            states.append(tf.add_n(terms))
        return tf.concat(states[2:], -1)
    for block in range(num_blocks):
        terms = []
        for source in range(2 + block):
            edge = (block, source)
            weights = edge_weights(packed, num_blocks, edge)
            for name, share in zip(operations, tf.unstack(next(rows)), strict=True):
                terms.append(share * operation(name, states[source], weights, norm, edge))
        states.append(tf.add_n(terms))
    return tf.concat(states[2:], -1)


def discrete_cell(first, second, packed, blocks, norm):
    """The cell of a genotype in the search's form: two operations a block, each as above."""
    states = [first, second]
    for block, pair in enumerate(blocks):
        terms = []
        for source, name in pair:
            weights = edge_weights(packed, len(blocks), (block, source))
            terms.append(operation(name, states[source], weights, norm, (block, source)))
        states.append(terms[0] + terms[1])
    return tf.concat(states[2:], -1)


def levels(layer):
    """Node (layer, level) exists iff level <= layer; there are 4 levels. Layer -1 has level -1."""
    return [-1] if layer == -1 else [level for level in range(4) if level <= layer]


def layout(operations, num_blocks, channels, sources):
    """(key, channels) of a node's normalisations in the order of the packed moving statistics.

    Sec. 5.1's adapter of H^{l-2} and its edges, then the adapter of every edge of the
    trellis, then the edges of all other inputs. Within an input by operation, stage, edge of the
    trellis, destination; a pool has one for all destinations.
    """
    keys = []

    def edges_from(source, cells):
        destinations = [edge for edge in cell_edges(num_blocks) if edge[1] == source]
        for name in operations:
            if "pool" in name:
                keys.extend((cell, (source, name)) for cell in cells)
            elif "conv" in name:
                for stage in (1, 2) if name.startswith("sep") else (1,):
                    keys.extend(
                        (cell, (edge, name, stage)) for cell in cells for edge in destinations
                    )

    keys.append("second")
    edges_from(1, ["second"])
    cells = [f"from_level_{source}" for source in sources]  # one for each edge of the trellis
    keys.extend(cells)
    for source in (0, *range(2, num_blocks + 1)):
        edges_from(source, cells)
    return [(key, channels) for key in keys]


def supernet(images, weights, alpha, beta, operations, num_blocks, norm):
    """Eq. 6 over the trellis.

    Args:
        images: float64 [N, H, W, 3], values 0..255.
        weights: {part: {name: float64 tensor}}, parts "stem", "layer_2_level_1", "head_level_0".
        alpha, beta: probabilities, float64 [edges, operations] and [L, 4, 3]; alpha may also be a
            function of (layer, level).
        norm: its keys are (part, name) and in cells (part, (cell, key of the edge)).

    Returns:
        logits [N, H, W, classes].
    """

    def conv_bn(x, part, name, **options):
        w = weights[part]
        x = conv(x, w[f"{name}.kernel"], **options)
        return norm((part, name), x, w[f"{name}.gamma"], w[f"{name}.beta"])

    def relu_conv_bn(x, part, name, **options):
        return conv_bn(tf.nn.relu(x), part, name, **options)

    class Inside:
        """Norm for the edges of one cell."""

        def __init__(self, part, cell):
            self.prefix = part, cell

        def __call__(self, key, x):
            part, cell = self.prefix
            # What leaves H^{l-2} is the same for all cells: its statistics are the node's.
            source = key[0] if isinstance(key[0], int) else key[0][1]
            return norm((part, ("second" if source == 1 else cell, key)), x)

    height, width = images.shape[1:3]
    below, right = -(height - 1) % 32, -(width - 1) % 32
    x = tf.pad(images, [[0, 0], [0, below], [0, right], [0, 0]], constant_values=127.5)
    x = x / 127.5 - 1
    first = conv_bn(x, "stem", "conv0", stride=2)
    if "conv2.kernel" in weights["stem"]:  # the stem of the retraining, Sec. 5.2
        h = {(-1, -1): relu_conv_bn(first, "stem", "conv1")}
        h[0, 0] = relu_conv_bn(h[-1, -1], "stem", "conv2", stride=2)
    else:  # Sec. 3.2
        h = {(-1, -1): first, (0, 0): relu_conv_bn(first, "stem", "conv1", stride=2)}

    alpha_of = alpha if callable(alpha) else lambda layer, level: alpha
    num_layers = beta.shape[0]
    for layer in range(1, num_layers + 1):
        for level in levels(layer):
            part = f"layer_{layer}_level_{level}"
            packed = {name: w for name, w in weights[part].items() if name.startswith(operations)}
            before = level if level in levels(layer - 2) else max(levels(layer - 2))
            second = relu_conv_bn(
                h[layer - 2, before], part, "second", stride=2 ** (level - before)
            )
            total = 0.0
            for source in (level - 1, level, level + 1):
                if source not in levels(layer - 1):
                    continue
                name, first = f"from_level_{source}", h[layer - 1, source]
                if source < level:
                    first = relu_conv_bn(first, part, name, stride=2)
                elif source == level:
                    first = relu_conv_bn(first, part, name)
                else:
                    first = resize(first, [2 * side - 1 for side in first.shape[1:3]])
                    first = relu_conv_bn(first, part, name)
                share = beta[layer - 1, source, level - source + 1]
                own_alpha, inside = alpha_of(layer, level), Inside(part, name)
                total += share * mixed_cell(
                    first, second, packed, own_alpha, operations, num_blocks, inside
                )
            h[layer, level] = total

    logits = 0.0
    for level in levels(num_layers):
        part, x = f"head_level_{level}", tf.nn.relu(h[num_layers, level])
        w = weights[part]
        mean = tf.reduce_mean(x, [1, 2], keepdims=True)
        branches = [
            tf.nn.relu(conv_bn(x, part, "point")),
            tf.nn.relu(conv_bn(x, part, "atrous", rate=96 // (4 * 2**level))),
            tf.nn.relu(conv(mean, w["pool.kernel"]) + w["pool.bias"]) * tf.ones_like(x),
        ]
        own = conv(tf.concat(branches, -1), w["classifier.kernel"]) + w["classifier.bias"]
        logits += resize(own, (height + below, width + right))
    return logits[:, :height, :width]

"""The authors' TF1 graph (DeepLab's `nas_hnasnet`) in NumPy, in its own words and names.

Nothing here comes from the project's networks: it is what theirs is compared with. Slow and plain,
in double precision, for sides of the form 32 n + 1, where every level halves exactly.
"""

import numpy as np
import tensorflow as tf

PATH = (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1)  # level k: stride 4 * 2^k
SEPARABLE, ATROUS = "separable", "atrous"
# Per block: (hidden state, kind, kernel) of left and right; hidden state 0 is the adapted H^{l-1},
# 1 the adapted H^{l-2}, 2 + i block i.
CELL = (
    ((1, ATROUS, 5), (0, SEPARABLE, 3)),
    ((1, SEPARABLE, 3), (0, ATROUS, 3)),
    ((3, SEPARABLE, 3), (1, SEPARABLE, 3)),
    ((4, SEPARABLE, 5), (2, SEPARABLE, 5)),
    ((3, SEPARABLE, 5), (5, ATROUS, 5)),
)
LOW_LEVEL = 48


def shapes(filters, classes, stem=(64, 64, 128), depth=256):
    """Name -> shape of every variable, in the order in which the graph makes them."""
    table = {}

    def norm(scope, channels):
        for name in ("gamma", "beta", "moving_mean", "moving_variance"):
            table[f"{scope}/{name}"] = (channels,)

    def conv(scope, bn, size, inputs, outputs):
        table[f"{scope}/weights"] = (size, size, inputs, outputs)
        norm(bn, outputs)

    def separable(scope, bn, size, channels):
        table[f"{scope}/depthwise_weights"] = (size, size, channels, 1)
        table[f"{scope}/pointwise_weights"] = (1, 1, channels, channels)
        norm(bn, channels)

    channels = 3
    for number, outputs in enumerate(stem):
        conv(f"hnasnet/conv{number}", f"hnasnet/conv{number}_bn", 3, channels, outputs)
        channels = outputs
    before, last = stem[1], stem[2]
    for number, level in enumerate(PATH):
        cell, f = f"hnasnet/cell_{number}", filters * 2**level
        if before != f:
            conv(f"{cell}/prev_1x1", f"{cell}/prev_bn", 1, before, f)
        conv(f"{cell}/1x1", f"{cell}/beginning_bn", 1, last, f)
        for block, branches in enumerate(CELL):
            for side, (_, kind, size) in zip(("left", "right"), branches, strict=True):
                scope, k = f"{cell}/comb_iter_{block}/{side}", f"{size}x{size}"
                if kind == ATROUS:
                    conv(f"{scope}/atrous_{k}", f"{scope}/bn_atr_{k}", size, f, f)
                else:
                    for half in (1, 2):
                        separable(
                            f"{scope}/separable_{k}_{half}", f"{scope}/bn_sep_{k}_{half}", size, f
                        )
        before, last = last, 5 * f

    def head(scope, size, inputs, outputs):
        conv(scope, f"{scope}/BatchNorm", size, inputs, outputs)

    head("image_pooling", 1, last, depth)
    for number in range(4):
        head(f"aspp{number}", 3 if number else 1, last, depth)
    head("concat_projection", 1, 5 * depth, depth)
    head("decoder/feature_projection0", 1, 5 * filters, LOW_LEVEL)
    head("decoder/decoder_conv0/decoder_conv0_1", 3, depth + LOW_LEVEL, depth)
    head("decoder/decoder_conv0/decoder_conv0_2", 3, depth, depth)
    table["logits/semantic/weights"] = (1, 1, depth, classes)
    table["logits/semantic/biases"] = (classes,)
    return table


def random_values(table, seed=0):
    """Float32 values with which logits are of order 1 and the image matters; all BNs are busy."""
    rng = np.random.default_rng(seed)
    values = {}
    for name, shape in table.items():
        if name.endswith("weights"):
            # 2 / inputs would make up for the ReLUs, but blocks are sums: they grow by themselves.
            inputs = np.prod(shape[:2] if "depthwise" in name else shape[:3])
            value = rng.normal(0, np.sqrt(1.4 / inputs), shape)
        elif name.endswith(("gamma", "moving_variance")):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.uniform(-0.5, 0.5, shape)
        values[name] = value.astype(np.float32)
    return values


def save(prefix, values):
    """Writes a checkpoint of TF1's format: names and tensors, nothing else."""
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(values),
        shape_and_slices=[""] * len(values),
        tensors=[tf.constant(value) for value in values.values()],
    )


def logits(variables, images):
    """What the graph answers.

    Args:
        variables: name -> array, as `shapes` has them.
        images: [N, H, W, 3], 0..255; H and W of the form 32 n + 1.

    Returns:
        float64 [N, H, W, classes].
    """
    v = {name: np.asarray(value, np.float64) for name, value in variables.items()}
    size = images.shape[1:3]

    def norm(x, scope, epsilon):
        scale = v[f"{scope}/gamma"] / np.sqrt(v[f"{scope}/moving_variance"] + epsilon)
        return (x - v[f"{scope}/moving_mean"]) * scale + v[f"{scope}/beta"]

    def conv_bn(x, scope, bn, stride=1, rate=1):
        return norm(conv(x, v[f"{scope}/weights"], stride, rate), bn, 1e-3)

    x = (2 / 255) * np.asarray(images, np.float64) - 1
    x = relu(conv_bn(x, "hnasnet/conv0", "hnasnet/conv0_bn", stride=2))
    before = conv_bn(x, "hnasnet/conv1", "hnasnet/conv1_bn")
    last = conv_bn(relu(before), "hnasnet/conv2", "hnasnet/conv2_bn", stride=2)
    third = None
    old = 0
    for number, level in enumerate(PATH):
        cell, stride, f = f"hnasnet/cell_{number}", 1, None
        h1, h2 = last, before
        if level > old:
            stride = 2
        elif level < old:
            h1 = resize(h1, [(d - 1) * 2 + 1 for d in h1.shape[1:3]])
        if h2.shape[1:3] != h1.shape[1:3]:
            h2 = resize(h2, h1.shape[1:3])
        f = v[f"{cell}/beginning_bn/gamma"].shape[0]
        if h2.shape[-1] != f:
            h2 = conv_bn(relu(h2), f"{cell}/prev_1x1", f"{cell}/prev_bn")
        h1 = conv_bn(relu(h1), f"{cell}/1x1", f"{cell}/beginning_bn")
        hidden = [h1, h2]
        for block, branches in enumerate(CELL):
            total = 0
            for side, (state, kind, k) in zip(("left", "right"), branches, strict=True):
                scope, h = f"{cell}/comb_iter_{block}/{side}", hidden[state]
                step = stride if state < 2 else 1
                if kind == SEPARABLE:
                    for half in (1, 2):
                        name = f"{scope}/separable_{k}x{k}_{half}"
                        h = depthwise(relu(h), v[f"{name}/depthwise_weights"], step)
                        h = conv(h, v[f"{name}/pointwise_weights"])
                        h = norm(h, f"{scope}/bn_sep_{k}x{k}_{half}", 1e-3)
                        step = 1
                else:
                    h, rate = relu(h), 2
                    if step == 2:
                        h, rate = resize(h, [(d - 1) // 2 + 1 for d in h.shape[1:3]]), 1
                    h = conv_bn(h, f"{scope}/atrous_{k}x{k}", f"{scope}/bn_atr_{k}x{k}", rate=rate)
                total = total + h
            hidden.append(total)
        before, last, old = last, np.concatenate(hidden[2:], -1), level
        if number == 2:
            third = last

    def head(x, scope, rate=1):
        return relu(norm(conv(x, v[f"{scope}/weights"], 1, rate), f"{scope}/BatchNorm", 1e-5))

    x = relu(last)
    pooled = head(x.mean((1, 2), keepdims=True), "image_pooling")
    branches = [resize(pooled, x.shape[1:3]), head(x, "aspp0")]
    # (6, 12, 18) * 16 / output stride, which is 8.
    branches += [head(x, f"aspp{i}", rate) for i, rate in ((1, 12), (2, 24), (3, 36))]
    x = head(np.concatenate(branches, -1), "concat_projection")
    x = resize(x, [(d - 1) // 4 + 1 for d in size])
    x = np.concatenate([x, head(third, "decoder/feature_projection0")], -1)
    for number in (1, 2):
        x = head(x, f"decoder/decoder_conv0/decoder_conv0_{number}")
    x = conv(x, v["logits/semantic/weights"]) + v["logits/semantic/biases"]
    return resize(x, size)


def relu(x):
    return np.maximum(x, 0)


def taps(x, size, stride, rate):
    """What each weight of a kernel sees: (row, column, [N, h, w, C]); padding is symmetric."""
    margin = rate * (size - 1) // 2
    height, width = ((d - 1) // stride + 1 for d in x.shape[1:3])
    x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    for i in range(size):
        for j in range(size):
            rows = slice(i * rate, i * rate + (height - 1) * stride + 1, stride)
            columns = slice(j * rate, j * rate + (width - 1) * stride + 1, stride)
            yield i, j, x[:, rows, columns]


def conv(x, kernel, stride=1, rate=1):
    """Dense convolution; kernel [k, k, C, D]."""
    return sum(seen @ kernel[i, j] for i, j, seen in taps(x, len(kernel), stride, rate))


def depthwise(x, kernel, stride):
    """Depthwise convolution; kernel [k, k, C, 1]."""
    return sum(seen * kernel[i, j, :, 0] for i, j, seen in taps(x, len(kernel), stride, 1))


def resize(x, size):
    """Bilinear, first and last pixels of both grids on each other."""
    for axis, new in ((1, size[0]), (2, size[1])):
        old = x.shape[axis]
        at = np.arange(new) * ((old - 1) / (new - 1) if new > 1 else 0)
        lower = np.minimum(np.floor(at + 1e-9).astype(int), old - 1)
        upper = np.minimum(lower + 1, old - 1)
        share = np.maximum(at - lower, 0).reshape((-1, 1, 1) if axis == 1 else (-1, 1))
        x = np.take(x, lower, axis) * (1 - share) + np.take(x, upper, axis) * share
    return x

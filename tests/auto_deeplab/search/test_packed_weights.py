"""The super-net's variables: their names and order, what is packed in them, and first values."""

import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search.packed_weights import PackedStatistics, PackedWeights
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import search_space
from tests.auto_deeplab.search.weights import packed, parts, unpacked

CLASSES = 3


def build(num_layers, num_blocks, operations=search_space.OPERATIONS, filter_multiplier=2):
    return SuperNet(
        num_classes=CLASSES,
        num_layers=num_layers,
        num_blocks=num_blocks,
        operations=operations,
        filter_multiplier=filter_multiplier,
        stem_filters=(4, 5, 6),
    )


def test_variables_are_those_of_every_checkpoint_so_far():
    # One layer: nodes at levels 0 and 1, with C = 2 and 4 channels. Two blocks: 5 edges, of which 2
    # leave each of H^{l-1} and H^{l-2} and 1 leaves block 0. Kernels 3x3 and 5x5 are packed: of
    # depthwise ones the two of sep_conv (5 C * 2 channels), of pointwise ones all four. A node
    # normalises `second` (C), its edges (2 destinations: 2 * 2 sep_conv and 2 atrous_conv of 2 C,
    # two pools of C: 14 C), then of its one edge of the trellis the adapter (C) and the edges of
    # H^{l-1} (14 C) and of block 0 (8 C): 38 C.
    def node(level, c, second, first):
        side = 1 if level == 0 else 3
        return [
            ("second.kernel", (3, 3, second, c)),
            ("from_level_0.kernel", (side, side, first, c)),
            ("depthwise_kernel_3x3", (3, 3, 10 * c, 1)),
            ("pointwise_kernel", (1, 1, c, 20 * c)),
            ("depthwise_kernel_5x5", (5, 5, 10 * c, 1)),
            ("atrous_conv_3x3.kernel", (3, 3, c, 5 * c)),
            ("atrous_conv_5x5.kernel", (5, 5, c, 5 * c)),
            ("gamma", (2 * c,)),
            ("beta", (2 * c,)),
            ("moving_mean", (38 * c,)),
            ("moving_variance", (38 * c,)),
        ]

    def head(channels):
        return [
            ("point.kernel", (1, 1, channels, channels)),
            ("atrous.kernel", (3, 3, channels, channels)),
            ("pool.kernel", (1, 1, channels, channels)),
            ("classifier.kernel", (1, 1, 3 * channels, CLASSES)),
            ("gamma", (2 * channels,)),
            ("beta", (2 * channels,)),
            ("bias", (channels + CLASSES,)),
            ("moving_mean", (2 * channels,)),
            ("moving_variance", (2 * channels,)),
        ]

    wanted = {
        "stem": [
            ("conv0.kernel", (3, 3, 3, 4)),
            ("conv1.kernel", (3, 3, 4, 5)),
            ("conv2.kernel", (3, 3, 5, 6)),
            ("gamma", (15,)),
            ("beta", (15,)),
            ("moving_mean", (15,)),
            ("moving_variance", (15,)),
        ],
        "layer_1_level_0": node(0, 2, 5, 6),
        "layer_1_level_1": node(1, 4, 5, 6),
        "head_level_0": head(4),
        "head_level_1": head(8),
    }
    net = build(1, 2)
    flat = [(f"{part}/{name}", shape) for part, own in wanted.items() for name, shape in own]
    assert [(v.path, tuple(v.shape)) for v in net.variables] == flat
    moving = ("moving_mean", "moving_variance")
    trainable = [path for path, _ in flat if not path.endswith(moving)]
    assert [v.path for v in net.trainable_variables] == trainable
    assert [v.path for v in net.non_trainable_variables] == [
        p for p, _ in flat if p not in trainable
    ]


def test_a_seed_gives_the_same_first_weights_as_ever():
    # Each kernel draws a seed from Python's generator, in the order of its creation: the stem's,
    # then of every node the adapters', then the cell's by operation; the heads'. Of those that are
    # packed together, the last one's counts.
    keras.utils.set_random_seed(5)
    net = build(1, 1, ("sep_conv_3x3", "atrous_conv_3x3", "skip_connect"))
    random.seed(5)
    cell = [
        ("depthwise_kernel_3x3", "pointwise_kernel"),
        ("depthwise_kernel_3x3", "pointwise_kernel", "atrous_conv_3x3.kernel"),
    ]
    names = [f"stem/conv{number}.kernel" for number in range(3)]
    for level in (0, 1):
        names += [f"layer_1_level_{level}/{name}.kernel" for name in ("second", "from_level_0")]
        names += [f"layer_1_level_{level}/{name}" for stage in cell for name in stage]
    for level in (0, 1):
        branches = ("point", "atrous", "pool", "classifier")
        names += [f"head_level_{level}/{branch}.kernel" for branch in branches]
    seeds = {name: random.randint(1, 10**9) for name in names}
    kernels = [variable for variable in net.trainable_variables if "kernel" in variable.name]
    assert {variable.path for variable in kernels} == set(seeds)
    for variable in kernels:
        # Uniform values of one seed differ by their limit alone.
        unit = keras.initializers.RandomUniform(-1.0, 1.0, seed=seeds[variable.path])
        unit = np.array(unit(variable.shape))
        limit = np.abs(variable).max() / np.abs(unit).max()
        np.testing.assert_allclose(variable, limit * unit, rtol=1e-4, atol=1e-6)


def test_first_kernels_are_uniform_within_the_root_of_their_fan_in():
    # Fan-in: of how many values of the input a value of the output is the sum. C = 4 * 2^level, a
    # node's output has 2 C channels, the stem's tensors have 4, 5 (stride 2) and 6 (stride 4).
    wanted = {
        "stem": {"conv0": 9 * 3, "conv1": 9 * 4, "conv2": 9 * 5},
        # H^{l-2} of layer 1 is the stem's 5 channels, at stride 2 or 4; of layer 2 its 6. A 3x3
        # kernel where a map gets smaller, else 1x1.
        "layer_1_level_0": {"second": 9 * 5, "from_level_0": 6},
        "layer_1_level_1": {"second": 9 * 5, "from_level_0": 9 * 6},
        "layer_2_level_0": {"second": 6, "from_level_0": 8, "from_level_1": 16},
        "layer_2_level_1": {"second": 9 * 6, "from_level_0": 9 * 8, "from_level_1": 16},
        "layer_2_level_2": {"second": 9 * 6, "from_level_1": 9 * 16},
        # The classifier sees three branches.
        "head_level_0": {"point": 8, "atrous": 9 * 8, "pool": 8, "classifier": 3 * 8},
        "head_level_1": {"point": 16, "atrous": 9 * 16, "pool": 16, "classifier": 3 * 16},
        "head_level_2": {"point": 32, "atrous": 9 * 32, "pool": 32, "classifier": 3 * 32},
    }
    wanted = {
        part: {f"{name}.kernel": fan_in for name, fan_in in own.items()}
        for part, own in wanted.items()
    }
    for part, own in wanted.items():
        if part.startswith("layer"):
            c = 4 * 2 ** int(part[-1])
            for kind, size in (("3x3", 9), ("5x5", 25)):
                # A depthwise filter sees one channel, a pointwise one those of its own edge.
                for stage in (1, 2):
                    own[f"sep_conv_{kind}.depthwise_kernel_{stage}"] = size
                    own[f"sep_conv_{kind}.pointwise_kernel_{stage}"] = c
                own[f"dil_conv_{kind}.depthwise_kernel_1"] = size
                own[f"dil_conv_{kind}.pointwise_kernel_1"] = c
                own[f"atrous_conv_{kind}.kernel"] = size * c
    keras.utils.set_random_seed(0)
    net = build(2, 2, search_space.KNOWN_OPERATIONS, filter_multiplier=4)
    weights = unpacked(parts(net), packed(parts(net)))
    kernels = {part: {name for name in own if "kernel" in name} for part, own in weights.items()}
    assert kernels == {part: own.keys() for part, own in wanted.items()}
    for part, own in wanted.items():
        for name, fan_in in own.items():
            values = weights[part][name].numpy().ravel()
            # Uniform within a = fan_in^-0.5: the variance is a^2 / 3 = 1 / (3 fan_in), and that of
            # n values is off by sqrt(0.8 / n) of it (the fourth moment is 1.8 variances^2).
            n = values.size
            assert np.mean(values**2) * 3 * fan_in == pytest.approx(1, abs=4.5 * (0.8 / n) ** 0.5)
            # The largest of n values is as near to a as 1 - 1 / n on average.
            assert 1 - 12 / n < np.abs(values).max() * fan_in**0.5 <= 1 + 1e-6, (part, name)


def test_what_is_packed_comes_back_by_name():
    kernels = {"a.depthwise_kernel_1": (3, 3, 2, 1), "b.depthwise_kernel_1": (3, 3, 4, 1)}
    kernels |= {"a.pointwise_kernel_1": (1, 1, 2, 6), "b.pointwise_kernel_1": (1, 1, 2, 3)}
    vectors = {"c.bias": (2.0, 3), "d.gamma": (1.0, 2), "e.bias": (2.0, 1)}
    weights = PackedWeights("some", kernels, vectors)
    assert [(v.path, tuple(v.shape)) for v in weights.variables] == [
        ("some/depthwise_kernel_3x3", (3, 3, 6, 1)),
        ("some/pointwise_kernel", (1, 1, 2, 9)),
        ("some/bias", (4,)),
        ("some/gamma", (2,)),
    ]
    tensors = [tf.random.stateless_normal(v.shape, (0, 0)) for v in weights.variables]
    for variable, tensor in zip(weights.variables, tensors, strict=True):
        variable.assign(tensor)
    depthwise, pointwise, bias, gamma = (tensor.numpy() for tensor in tensors)
    wanted = {
        "a.depthwise_kernel_1": depthwise[:, :, :2],
        "b.depthwise_kernel_1": depthwise[:, :, 2:],
        "a.pointwise_kernel_1": pointwise[..., :6],
        "b.pointwise_kernel_1": pointwise[..., 6:],
        **{"c.bias": bias[:3], "e.bias": bias[3:], "d.gamma": gamma},
    }
    found = weights.read()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value)


def test_moving_statistics_keep_nine_tenths():
    moving = PackedStatistics("some", 2)
    moving.move((tf.constant([1.0, 2.0]), tf.constant([3.0, 1.0])))
    mean, variance = moving.read()
    np.testing.assert_allclose(mean, [0.1, 0.2], rtol=1e-6)
    np.testing.assert_allclose(variance, [0.9 + 0.3, 1.0], rtol=1e-6)

"""The stem's two forms and their widths; nodes and heads are compared in test_supernet.py."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search.execution import Execution
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.search.trellis import SearchStem, default_stem_filters
from auto_deeplab.space import search_space
from tests.auto_deeplab import reference


@pytest.mark.parametrize("filters", [(4, 6), (4, 5, 6)])
def test_a_stem_gives_its_last_two_maps_before_their_relu(filters):
    keras.utils.set_random_seed(0)
    stem = SearchStem(filters, Execution())
    image = np.random.default_rng(0).uniform(-1, 1, (2, 33, 65, 3))
    for variable in stem.variables:
        if variable.name in ("gamma", "beta"):
            values = np.random.default_rng(1).uniform(0.5, 1.5, variable.shape)
            variable.assign(values - (variable.name == "beta"))
    (half, quarter), statistics = stem(tf.constant(image, tf.float32), training=True)

    w = {name: tf.cast(value, tf.float64) for name, value in stem.packed.read().items()}
    norm = reference.Norm()

    def conv_bn(x, name, stride):
        x = reference.conv(x, w[f"{name}.kernel"], stride)
        return norm(name, x, w[f"{name}.gamma"], w[f"{name}.beta"])

    wanted = conv_bn(tf.constant(image), "conv0", 2)
    if len(filters) == 3:
        wanted = conv_bn(tf.nn.relu(wanted), "conv1", 1)
    assert half.shape == (2, 17, 33, filters[-2]) and np.min(half) < 0
    np.testing.assert_allclose(half, wanted, rtol=1e-4, atol=1e-5)
    wanted = conv_bn(tf.nn.relu(wanted), f"conv{len(filters) - 1}", 2)
    assert quarter.shape == (2, 9, 17, filters[-1]) and np.min(quarter) < 0
    np.testing.assert_allclose(quarter, wanted, rtol=1e-4, atol=1e-5)
    mean, variance = (np.concatenate(own) for own in zip(*norm.found.values(), strict=True))
    np.testing.assert_allclose(statistics[0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(statistics[1], variance, rtol=1e-4, atol=1e-5)


def test_default_widths_continue_the_levels():
    # A node at stride s has B F s / 4 channels: 40 at stride 4, so 20 at stride 2.
    assert default_stem_filters(num_blocks=5, filter_multiplier=8) == (20, 40)
    assert default_stem_filters(num_blocks=3, filter_multiplier=3) == (4, 9)
    assert default_stem_filters(num_blocks=1, filter_multiplier=1) == (1, 1)


def test_the_paper_has_the_stem_of_two_convolutions():
    def build(**options):
        return SuperNet(
            num_classes=19,
            num_layers=12,
            num_blocks=5,
            operations=search_space.OPERATIONS,
            filter_multiplier=8,
            **options,
        )

    def count_parameters(net):
        return sum(np.prod(variable.shape) for variable in net.trainable_variables)

    net = build()
    assert [tuple(v.shape) for v in net.stem.variables if "kernel" in v.name] == [
        (3, 3, 3, 20),
        (3, 3, 20, 40),
    ]
    # Kernels, gammas and betas of the stem; and smaller adapters of what comes from it. Of 20
    # channels instead of 64: `second` of nodes (1, 0) and (1, 1), 3x3 with 8 and 16 filters. Of 40
    # instead of 128: those of (2, 0), 1x1 with 8, of (2, 1) and (2, 2), 3x3 with 16 and 32; and the
    # first inputs of (1, 0), 1x1 with 8, and (1, 1), 3x3 with 16.
    stem = 9 * (3 * 64 + 64 * 64 + 64 * 128) + 2 * 256 - 9 * (3 * 20 + 20 * 40) - 2 * 60
    adapters = 44 * 9 * (8 + 16) + 88 * (8 + 9 * (16 + 32) + 8 + 9 * 16)
    saved = count_parameters(build(stem_filters=(64, 64, 128))) - count_parameters(net)
    assert saved == stem + adapters == 166572

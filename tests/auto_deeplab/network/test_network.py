"""The derived network: the published one's size, any image size, gradients, what is random."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.network.network import (
    Cell,
    Network,
    draw_uniform,
    make_keep_mask,
    schedule_drop_path,
)
from auto_deeplab.space import genotype, search_space
from auto_deeplab.space.genotype import Genotype
from official import distribution
from official.normalization import BatchNorm
from tests.auto_deeplab.training import skip_without_convolutions

CELL = (
    ((1, "atrous_conv_3x3"), (0, "sep_conv_3x3")),
    ((2, "max_pool_3x3"), (1, "skip_connect")),
)
OTHER_CELL = (
    ((0, "dil_conv_3x3"), (1, "avg_pool_3x3")),
    ((0, "atrous_conv_5x5"), (2, "sep_conv_5x5")),
)
# Stays, goes down, comes up again; two kinds of cells.
SMALL = Genotype((0, 1, 0), (CELL, OTHER_CELL), (0, 0, 1))
CLASSES = 5
BATCH_NORM = partial(BatchNorm, momentum=0.9)


def build(architecture=SMALL, **options):
    options = {"num_classes": CLASSES, "filter_multiplier": 2, "stem_filters": (4, 4, 8)} | options
    options = {"head_filters": 8, "low_level_filters": 4} | options
    network = Network(architecture, **options)
    network.build((None, None, None, 3))
    return network


@pytest.fixture(scope="module")
def small():
    """A small network for evaluation; tests leave its variables alone."""
    return randomize(build())


def randomize(network):
    """Gives BN and logits values as after some training, so that nothing is 0 or 1 by chance."""
    rng = np.random.default_rng(0)
    for variable in network.variables:
        if "kernel" not in variable.path or "logits" in variable.path:
            offset = 1.0 if variable.name in ("gamma", "moving_variance") else 0.0
            variable.assign(offset + rng.uniform(-0.5, 0.5, variable.shape))
    return network


def images(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype("float32")


def seeds(*numbers):
    return np.array([(7, number) for number in numbers], "int32")


@pytest.mark.parametrize(("filters", "parameters"), [(32, 21_622_451), (48, 44_424_691)])
def test_published_networks_of_table_2(filters, parameters):
    # F = 20 is in test_model_cost.py.
    network = Network(genotype.load("published"), num_classes=19, filter_multiplier=filters)
    network.build((None, None, None, 3))
    assert sum(v.shape.num_elements() for v in network.trainable_variables) == parameters


@pytest.mark.parametrize(
    "architecture",
    [
        Genotype((0,), ((((0, "sep_conv_3x3"), (1, "skip_connect")),),)),
        Genotype((1, 2, 3, 3, 2), (CELL,)),
        Genotype((0, 0, 0), ((((0, "skip_connect"), (1, "avg_pool_3x3")),),)),
    ],
)
def test_other_numbers_of_layers_and_blocks(architecture):
    assert build(architecture)(images(1, 33, 65)).shape == (1, 33, 65, CLASSES)


def plain_network(weights, x, path):
    """The released network with the published cell as one plain formula, for sides 32 n + 1."""

    def conv(x, name, *, stride=1, rate=1, epsilon=1e-3):
        y = tf.nn.convolution(x, weights[f"{name}/kernel"], stride, "SAME", dilations=rate)
        return norm(y, name, epsilon)

    def norm(x, name, epsilon):
        gamma, beta, mean, variance = (
            weights[f"{name}/norm/{part}"]
            for part in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta

    def resize(x, sides):
        return tf.compat.v1.image.resize_bilinear(x, sides, align_corners=True)

    def operation(x, kind, name, stride):
        if kind.startswith("atrous"):
            x = tf.nn.relu(x)
            if stride == 1:
                return conv(x, f"{name}/conv", rate=2)
            return conv(resize(x, [(side - 1) // 2 + 1 for side in x.shape[1:3]]), f"{name}/conv")
        for half in ("first", "second"):
            depthwise, pointwise = (
                weights[f"{name}/{half}/{kernel}_kernel"] for kernel in ("depthwise", "pointwise")
            )
            strides = [1, stride, stride, 1]
            x = tf.nn.separable_conv2d(tf.nn.relu(x), depthwise, pointwise, strides, "SAME")
            x = norm(x, f"{name}/{half}", 1e-3)
            stride = 1
        return x

    size = x.shape[1:3]
    x = conv(2 / 255 * x - 1, "stem/conv_0", stride=2)
    before, last = None, conv(tf.nn.relu(x), "stem/conv_1")
    before, last = last, conv(tf.nn.relu(last), "stem/conv_2", stride=2)
    cells = []
    for number, (old, level) in enumerate(zip((0, *path), path, strict=False)):
        name, h1 = f"cell_{number}", last
        if level < old:
            h1 = resize(h1, [2 * (side - 1) + 1 for side in h1.shape[1:3]])
        h2 = resize(before, h1.shape[1:3])
        states = [conv(tf.nn.relu(h1), f"{name}/first"), conv(tf.nn.relu(h2), f"{name}/second")]
        for block, pair in enumerate(genotype.PUBLISHED_CELL):
            branches = [
                operation(
                    states[source],
                    kind,
                    f"{name}/blocks/block_{block}_{side}",
                    2 if level > old and source < 2 else 1,
                )
                for side, (source, kind) in zip(("left", "right"), pair, strict=True)
            ]
            states.append(branches[0] + branches[1])
        before, last = last, tf.concat(states[2:], -1)
        cells.append(last)

    def head(x, name, rate=1):
        return tf.nn.relu(conv(x, name, rate=rate, epsilon=1e-5))

    x = tf.nn.relu(last)
    pooled = head(tf.reduce_mean(x, [1, 2], keepdims=True), "aspp/pooled")
    rates = [1, *(rate * 16 // (4 * 2 ** path[-1]) for rate in (6, 12, 18))]
    branches = [head(x, f"aspp/branch_{number}", rate) for number, rate in enumerate(rates)]
    x = head(tf.concat([resize(pooled, x.shape[1:3]), *branches], -1), "aspp/project")
    low_level = head(cells[2], "decoder/low_level")
    x = tf.concat([resize(x, [(side - 1) // 4 + 1 for side in size]), low_level], -1)
    x = head(head(x, "decoder/conv_0"), "decoder/conv_1")
    kernel, bias = (weights[f"decoder/logits/{part}"] for part in ("kernel", "bias"))
    return resize(x @ kernel[0, 0] + bias, size)


def test_equals_the_plain_formula_of_the_released_network():
    # The published cell; a path with every kind of edge and, as the published one, three layers at
    # stride 4 first.
    path = (0, 0, 0, 1, 2, 1, 1)
    keras.utils.set_random_seed(0)
    network = randomize(build(Genotype(path, (genotype.PUBLISHED_CELL,))))
    for variable in network.variables:
        if "kernel" in variable.path:
            variable.assign(2 * variable)
    weights = {v.path.removeprefix("network/"): v.numpy() for v in network.variables}
    batch = images(2, 33, 65)
    expected = plain_network(weights, batch, path)
    tolerance = 1e-5 * np.abs(expected).max()
    # A deep random network nearly forgets its image: what is left must be far above the tolerance.
    assert np.abs(network(255 - batch) - expected).max() > 10 * tolerance
    np.testing.assert_allclose(network(batch), expected, rtol=0, atol=tolerance)


def test_variables_have_orderly_unique_names():
    first, second = build(), build()
    paths = [v.path for v in first.variables]
    assert len(set(paths)) == len(paths)
    # A second network in the same process has the same names: checkpoints go by them.
    assert paths == [v.path for v in second.variables]
    parts = list(dict.fromkeys(path.split("/")[1] for path in paths))
    assert parts == ["stem", "cell_0", "cell_1", "cell_2", "aspp", "decoder"]
    assert "network/cell_0/blocks/block_0_right/second/depthwise_kernel" in paths
    # L2 goes by "kernel" in the name: exactly the weights of convolutions have it.
    for variable in first.trainable_variables:
        assert ("kernel" in variable.name) == (len(variable.shape) == 4)


def test_h_before_last_is_projected_only_where_its_channels_differ():
    # One block and one level: from cell 2 on H^{l-2} has the F channels of the cell already.
    block = ((0, "sep_conv_3x3"), (1, "sep_conv_3x3"))
    network = build(Genotype((0, 0, 0), ((block,),)))
    projected = [any("/second/kernel" in v.path for v in cell.variables) for cell in network.cells]
    assert projected == [True, True, False]


@pytest.mark.parametrize(
    ("path", "layer", "channels"),
    [
        (genotype.PRESET_PATHS["published"], 3, 4),  # the third cell, as in the published network
        ((0, 1, 0), 1, 4),  # B * F = 2 * 2 channels
        ((1, 0, 0), 0, 8),  # leaves at once: the stem
        ((0, 0), 2, 4),  # never leaves: the last cell
    ],
)
def test_the_decoder_takes_the_last_stride_4_output_before_the_path_leaves(path, layer, channels):
    network = build(Genotype(path, (CELL,)))
    assert network.low_level_layer == layer
    assert network.decoder.low_level.kernel.shape == (1, 1, channels, 4)


@pytest.mark.parametrize(
    ("path", "rates"),
    [((0,), (24, 48, 72)), ((1,), (12, 24, 36)), ((1, 2), (6, 12, 18)), ((1, 2, 3), (3, 6, 9))],
)
def test_aspp_rates_span_the_same_pixels_at_every_stride(path, rates):
    branches = build(Genotype(path, (CELL,))).aspp.branches
    assert [branch.rate for branch in branches] == [1, *rates]


def test_every_size_gives_logits_of_its_own_size(small):
    signature = tf.TensorSpec([None, None, None, 3])
    dynamic = tf.function(lambda x: small(x), input_signature=[signature])
    for height, width in [(65, 65), (96, 96), (97, 97), (129, 129), (161, 161), (65, 129), (1, 40)]:
        batch = images(1, height, width)
        logits = dynamic(batch)
        assert logits.shape == (1, height, width, CLASSES)
        assert logits.dtype == tf.float32
        np.testing.assert_allclose(logits, small(batch), atol=1e-4)
    assert dynamic(images(3, 33, 33)).shape == (3, 33, 33, CLASSES)


def test_padding_is_mean_pixels_at_the_bottom_and_right(small):
    batch = images(1, 50, 70)
    padded = np.full((1, 65, 97, 3), 127.5, "float32")  # the next sizes of the form 32 n + 1
    padded[:, :50, :70] = batch
    np.testing.assert_array_equal(small(batch), small(padded)[:, :50, :70])


def test_uint8_images_are_the_same_images(small):
    batch = images(2, 33, 33)
    np.testing.assert_array_equal(small(batch.astype("uint8")), small(batch))


def test_every_variable_gets_a_gradient():
    # Every operation occurs, at stride 1 and 2. Four images, as BN of ASPP's image means has
    # nothing to learn from one or two values per channel.
    network = build(Genotype((0, 1, 0, 1), (CELL, OTHER_CELL), (0, 0, 1, 1)))
    labels = np.random.default_rng(1).integers(0, CLASSES, (4, 33, 33))
    with tf.GradientTape() as tape:
        logits = network(images(4, 33, 33), training=True, seeds=seeds(0, 1, 2, 3))
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        norm = np.linalg.norm(variable.numpy()) or 1.0
        assert np.linalg.norm(gradient) > 1e-6 * norm, variable.path


@pytest.mark.parametrize("fine_tune", [True, False])
def test_training_moves_every_statistic_or_none(fine_tune):
    network = build(fine_tune_batch_norm=fine_tune)
    before = [v.numpy() for v in network.non_trainable_variables]
    network(images(2, 33, 33))
    for old, variable in zip(before, network.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(old, variable)
    network(images(2, 33, 33), training=True, seeds=seeds(0, 1))
    for old, variable in zip(before, network.non_trainable_variables, strict=True):
        assert np.any(old != variable.numpy()) == fine_tune, variable.path


def test_what_is_dropped_depends_on_the_example_alone():
    # BN takes its moving statistics here, or the examples would meet in those of the batch.
    network = randomize(build(fine_tune_batch_norm=False, drop_path_keep_prob=0.5))
    batch = images(3, 33, 33)

    def train(order, numbers):
        return network(batch[order], training=True, seeds=seeds(*numbers), progress=1.0).numpy()

    together = train([0, 1, 2], [10, 11, 12])
    np.testing.assert_allclose(train([2, 0], [12, 10]), together[[2, 0]], atol=1e-5)
    np.testing.assert_allclose(train([1], [11]), together[[1]], atol=1e-5)
    assert np.abs(train([1], [99]) - together[[1]]).max() > 0.01


def test_drop_path_keeps_at_the_scheduled_rate():
    # Cell n of N keeps 1 - (n + 1) / N * (1 - p) at the end, and all at the start.
    np.testing.assert_allclose(schedule_drop_path(4, 0.8, 0.0), [1.0] * 4)
    np.testing.assert_allclose(
        schedule_drop_path(4, 0.8, 0.5), [0.975, 0.95, 0.925, 0.9], rtol=1e-6
    )
    np.testing.assert_allclose(schedule_drop_path(4, 0.8, 1.0), [0.95, 0.9, 0.85, 0.8], rtol=1e-6)
    np.testing.assert_allclose(schedule_drop_path(4, 0.8, 3.0), [0.95, 0.9, 0.85, 0.8], rtol=1e-6)

    keep = schedule_drop_path(4, 0.2, 1.0)  # 0.8, 0.6, 0.4, 0.2
    noise = tf.function(lambda: draw_uniform(seeds(*range(400)), 0, (4, 10)))()
    masks = make_keep_mask(noise, keep[:, None]).numpy()
    for cell, share in enumerate((0.8, 0.6, 0.4, 0.2)):
        mask = masks[:, cell]
        np.testing.assert_allclose(mask[mask > 0], 1 / share, rtol=1e-5)
        # 4000 draws: the standard deviation of the kept share is at most sqrt(0.25 / 4000) = 0.008.
        assert abs((mask > 0).mean() - share) < 0.04
    # Operations, cells and examples are drawn separately; compiled by XLA, they are the same.
    assert len(np.unique(noise)) > 0.99 * noise.shape.num_elements()
    compiled = tf.function(lambda: draw_uniform(seeds(0, 1, 2), 0, (4, 10)), jit_compile=True)()
    np.testing.assert_array_equal(compiled, noise[:3])


def test_drop_path_scales_operations_but_not_skip_connect():
    cell = Cell([((0, "avg_pool_3x3"), (1, "skip_connect"))], 3, batch_norm=BATCH_NORM)
    first, second = images(2, 5, 5), images(2, 5, 5, seed=1)
    pooled = cell(first, tf.zeros_like(second))
    mask = np.array([[0.0, 9.0], [1.25, 9.0]], "float32")
    expected = pooled * np.array([0.0, 1.25], "float32")[:, None, None, None] + second
    np.testing.assert_allclose(cell(first, second, drop_path=mask), expected, rtol=1e-5)


def test_drop_path_acts_by_progress():
    # At keep probability 0.02 nearly everything in the last cell is dropped at the end of training,
    # and nothing at its start.
    network = randomize(build(fine_tune_batch_norm=False, drop_path_keep_prob=0.02))
    without = build(fine_tune_batch_norm=False)
    without.set_weights(network.get_weights())
    batch, ours = images(1, 33, 33), {"training": True, "seeds": seeds(3)}
    start = network(batch, progress=0.0, **ours)
    np.testing.assert_allclose(start, without(batch, **ours), atol=1e-5)
    assert np.abs(network(batch, progress=1.0, **ours) - start).max() > 0.01


def test_arguments_that_are_impossible():
    for keep_prob in (0.0, 1.1):
        with pytest.raises(ValueError, match="drop_path_keep_prob"):
            build(drop_path_keep_prob=keep_prob)
    with pytest.raises(ValueError, match="class_names has 4 entries for 5 classes"):
        build(class_names=["a"] * 4)
    with pytest.raises(ValueError, match="palette has 6 entries for 5 classes"):
        build(palette=[(0, 0, 0)] * 6)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(small, precision):
    skip_without_convolutions(precision)
    distribution.set_precision(precision)
    try:
        network = build()
    finally:
        distribution.set_precision("float32")
    network.set_weights(small.get_weights())
    assert {v.dtype for v in network.variables} == {"float32"}
    batch = images(2, 33, 33)
    logits, exact = network(batch), small(batch)
    assert logits.dtype == tf.float32
    # bfloat16 keeps 8 bits, an error of 0.4 % at each of some twenty roundings in a row.
    assert np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()


def test_a_keras_that_puts_channels_first_changes_nothing(small):
    # auto_deeplab.load may be called where keras.json says so.
    batch = images(1, 33, 49)
    keras.config.set_image_data_format("channels_first")
    try:
        network = build()
        network.set_weights(small.get_weights())
        logits = network(batch)
    finally:
        keras.config.set_image_data_format("channels_last")
    np.testing.assert_array_equal(logits, small(batch))


def test_a_cell_joins_all_blocks_and_halves_at_stride_2():
    cell = Cell(CELL, 3, stride=2, batch_norm=BATCH_NORM)
    first = images(1, 9, 9)
    assert cell(first, first).shape == (1, 5, 5, len(CELL) * 3)


def test_levels_of_the_path_are_the_strides_of_the_cells(small):
    # 65 pixels: 17 features a side at stride 4, 9 at stride 8.
    sides = []
    outputs = list(small.stem(images(1, 65, 65)))
    for cell in small.cells:
        outputs.append(cell(outputs[-1], outputs[-2]))
        sides.append(outputs[-1].shape[1])
    assert sides == [64 // search_space.stride(level) + 1 for level in SMALL.path]

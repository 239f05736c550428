"""The fused mixed cell equals the plain one in `reference.py`, and derived cells."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.network import network
from auto_deeplab.search import mixed_cell
from auto_deeplab.search.execution import EPSILON, Execution
from auto_deeplab.search.mixed_cell import MixedCell
from auto_deeplab.space import search_space
from official.normalization import BatchNorm, PackedNorm
from tests.auto_deeplab import reference

ALL = search_space.KNOWN_OPERATIONS  # the eight and both dil_conv
C = 3
CELLS = 2


def random_inputs(operations, num_blocks, size):
    """H^{l-1} of each cell, H^{l-2}, packed weights and alpha, float64."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, *size, CELLS, C)), rng.normal(size=(2, *size, C))
    weights = {
        name: rng.normal(size=shape) / np.sqrt(np.prod(shape[:2]))
        for name, shape in mixed_cell.weight_shapes(operations, num_blocks, C).items()
    }
    edges = search_space.num_cell_edges(num_blocks)
    return first, second, weights, rng.dirichlet(np.ones(len(operations)), edges)


def fused(first, second, weights, alpha, operations, num_blocks, norm=None):
    """The layer, with these weights; [N, H, W, A, B * C]. H^{l-2}'s statistics come first."""
    norm = PackedNorm(EPSILON) if norm is None else norm
    cell = MixedCell(
        operations=operations,
        num_blocks=num_blocks,
        channels=C,
        execution=Execution(inline=True),
        name="cell",
    )
    values = [
        tf.concat([weights[name] for name in names], 2 if "depthwise" in pack else 3)
        for pack, names in cell.kernels.sizes.items()
    ]
    with keras.StatelessScope(zip(cell.variables, values, strict=True)):
        blocks = cell(
            first,
            second,
            mixed_cell.make_scales(alpha, operations, num_blocks, C),
            norm=norm,
            norm_of_second=norm.reserve(mixed_cell.statistics_size(operations, num_blocks, C)),
            training=True,
        )
    return tf.concat(blocks, -1)


def plain(first, second, weights, alpha, operations, num_blocks, norms):
    """The plain cells, each with its own statistics."""
    cells = [
        reference.mixed_cell(h, second, weights, alpha, operations, num_blocks, norm)
        for h, norm in zip(tf.unstack(first, axis=3), norms, strict=True)
    ]
    return tf.stack(cells, 3)


def new_norms():
    return [reference.Norm() for _ in range(CELLS)]


def with_gradients(function, inputs, dtype):
    """The output, and the gradients by all inputs of its product with a random tensor."""
    inputs = tf.nest.map_structure(lambda x: tf.constant(x, dtype), inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
        # A random direction: the mean over a batch that was normalised is constant.
        loss = tf.reduce_sum(y * np.random.default_rng(1).normal(size=y.shape).astype(dtype))
    gradients = tape.gradient(loss, inputs)
    return y.numpy(), tf.nest.map_structure(lambda g: tf.convert_to_tensor(g).numpy(), gradients)


def float32(*inputs):
    return tf.nest.map_structure(lambda x: tf.constant(x, tf.float32), inputs)


def assert_close(actual, wanted, tolerance=1e-5):
    """Largest error relative to the largest value."""
    assert np.abs(actual - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("operations", "num_blocks", "size"),
    [
        (ALL, 2, (9, 12)),
        (search_space.OPERATIONS, 5, (7, 7)),
        (search_space.DIL_OPERATIONS, 5, (6, 8)),
        (("max_pool_3x3", "dil_conv_5x5"), 1, (4, 5)),  # no none, no skip
        (("skip_connect", "none"), 3, (2, 2)),  # nothing to normalise
    ],
)
@pytest.mark.every_machine
def test_output_and_gradients_equal_the_plain_cell(operations, num_blocks, size):
    inputs = random_inputs(operations, num_blocks, size)
    y, gradients = with_gradients(
        lambda *inputs: fused(*inputs, operations, num_blocks), inputs, "float32"
    )
    wanted, wanted_gradients = with_gradients(
        lambda *inputs: plain(*inputs, operations, num_blocks, new_norms()),
        inputs,
        "float64",
    )
    assert_close(y, wanted)
    for block in range(num_blocks):
        assert_close(y[..., C * block : C * (block + 1)], wanted[..., C * block : C * (block + 1)])
    first, second, weights, alpha = gradients
    wanted_first, wanted_second, wanted_weights, wanted_alpha = wanted_gradients
    assert_close(first, wanted_first)
    assert_close(second, wanted_second)
    assert_close(alpha, wanted_alpha)
    for edge in reference.cell_edges(num_blocks):
        actual = reference.edge_weights(weights, num_blocks, edge)
        for name, value in reference.edge_weights(wanted_weights, num_blocks, edge).items():
            assert_close(actual[name], value.numpy(), 1e-4)


def test_packed_statistics_are_those_of_the_plain_cell():
    operations, num_blocks = ALL, 3
    inputs = random_inputs(operations, num_blocks, (5, 6))
    norms = new_norms()
    plain(*inputs, operations, num_blocks, norms)
    norm = PackedNorm(EPSILON)
    fused(*float32(*inputs), operations, num_blocks, norm)
    mean, variance = norm.statistics()
    sizes = [
        mixed_cell.statistics_size(operations, n, C)
        for n in mixed_cell.num_destinations(num_blocks)
    ]
    # Per destination 2 * 2 normalisations in sep_conv, 2 in atrous_conv, 2 in dil_conv; 2 pools.
    assert sizes == [C * (8 * n + 2) for n in (3, 3, 2, 1)]
    # The order: H^{l-2}, which all cells share, then H^{l-1} and the blocks, by cell.
    keys = reference.layout(operations, num_blocks, C, range(CELLS))
    keys = [key for key, _ in keys if not isinstance(key, str)]
    assert len(keys) * C == sizes[1] + CELLS * (sum(sizes) - sizes[1]) == mean.shape[0]
    for index, (owner, key) in enumerate(keys):
        found = norms[0 if owner == "second" else int(owner[-1])].found[key]
        mine = slice(index * C, (index + 1) * C)
        np.testing.assert_allclose(mean[mine], found[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(variance[mine], found[1], rtol=1e-5)


def one_hot_alpha(blocks, operations):
    """Alpha that chooses the blocks' pairs (input, operation), and none on all other edges."""
    alpha = np.zeros((search_space.num_cell_edges(len(blocks)), len(operations)))
    for row, (block, source) in enumerate(reference.cell_edges(len(blocks))):
        alpha[row, operations.index(dict(blocks[block]).get(source, "none"))] = 1.0
    return alpha


DISCRETE = (
    ((0, "sep_conv_3x3"), (1, "atrous_conv_5x5")),
    ((2, "max_pool_3x3"), (0, "avg_pool_3x3")),
    ((3, "dil_conv_3x3"), (1, "skip_connect")),
    ((0, "skip_connect"), (4, "sep_conv_5x5")),
    ((5, "dil_conv_5x5"), (2, "atrous_conv_3x3")),
)


def test_one_hot_alpha_is_the_discrete_cell_in_the_searchs_form():
    first, second, weights, _ = random_inputs(ALL, 5, (7, 8))
    inputs = float32(first, second, weights, one_hot_alpha(DISCRETE, ALL))
    cells = fused(*inputs, ALL, 5).numpy()
    for number in range(CELLS):
        h = first[..., number, :]
        wanted = reference.discrete_cell(h, second, weights, DISCRETE, reference.Norm())
        assert_close(cells[..., number, :], wanted.numpy())


def test_one_hot_alpha_is_the_derived_networks_cell():
    # Without pools, which have a BN in the search only. A new BN has scale 1 and offset 0.
    blocks = tuple(
        tuple((s, "skip_connect" if "pool" in name else name) for s, name in pair)
        for pair in DISCRETE
    )
    first, second, weights, _ = random_inputs(ALL, 5, (7, 8))
    derived = network.Cell(blocks, C, batch_norm=partial(BatchNorm, momentum=0.9))
    derived.build((None, None, None, C))
    for index, operation in enumerate(derived.operations):
        edge = (index // 2, derived.sources[index])
        own = reference.edge_weights(weights, 5, edge)
        for path, name in {
            "conv/kernel": ".kernel",
            "conv/depthwise_kernel": ".depthwise_kernel_1",
            "conv/pointwise_kernel": ".pointwise_kernel_1",
            "first/depthwise_kernel": ".depthwise_kernel_1",
            "first/pointwise_kernel": ".pointwise_kernel_1",
            "second/depthwise_kernel": ".depthwise_kernel_2",
            "second/pointwise_kernel": ".pointwise_kernel_2",
        }.items():
            for variable in operation.trainable_variables:
                if variable.path.endswith(path):
                    variable.assign(own[derived.names[index] + name])
    inputs = float32(first, second, weights, one_hot_alpha(blocks, ALL))
    cells = fused(*inputs, ALL, 5).numpy()
    for number in range(CELLS):
        wanted = derived(inputs[0][..., number, :], inputs[1], training=True).numpy()
        assert_close(cells[..., number, :], wanted)

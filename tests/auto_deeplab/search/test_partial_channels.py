"""--partial_channels: cells equal the plain ones, edges have weights, decoding knows them."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search import mixed_cell
from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.execution import EPSILON, Execution
from auto_deeplab.search.mixed_cell import MixedCell
from auto_deeplab.search.ranking import Candidate
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import decoding, search_space
from auto_deeplab.space.encoding import encode
from auto_deeplab.space.genotype import Genotype
from official.normalization import PackedNorm
from tests.auto_deeplab import reference

OPERATIONS = search_space.KNOWN_OPERATIONS
C, CELLS, BLOCKS = 8, 2, 3


def differentiate(function, inputs, dtype):
    """The output, and the gradients by all inputs of its product with a random tensor."""
    inputs = tf.nest.map_structure(lambda x: tf.constant(x, dtype), inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        y = function(*inputs)
        direction = np.random.default_rng(1).normal(size=y.shape)
        loss = tf.reduce_sum(y * direction.astype(dtype))
    return [y, *tf.nest.flatten(tape.gradient(loss, inputs))]


@pytest.mark.every_machine
@pytest.mark.parametrize("parts", [2, 4])
def test_the_cell_equals_the_plain_one(parts):
    rng = np.random.default_rng(0)
    size = (5, 6)
    weights = {
        name: rng.normal(size=shape) / np.sqrt(np.prod(shape[:2]))
        for name, shape in mixed_cell.weight_shapes(OPERATIONS, BLOCKS, C // parts).items()
    }
    count = search_space.num_cell_edges(BLOCKS)
    inputs = (
        rng.normal(size=(2, *size, CELLS, C)),
        rng.normal(size=(2, *size, C)),
        weights,
        rng.dirichlet(np.ones(len(OPERATIONS)), count),
        rng.uniform(0.1, 1, count),
    )

    def fused(first, second, weights, alpha, edges):
        norm = PackedNorm(EPSILON)
        cell = MixedCell(
            operations=OPERATIONS,
            num_blocks=BLOCKS,
            channels=C,
            partial_channels=parts,
            execution=Execution(inline=True),
            name="cell",
        )
        values = [
            tf.concat([weights[name] for name in names], 2 if "depthwise" in pack else 3)
            for pack, names in cell.kernels.sizes.items()
        ]
        seen = C // parts
        scales = mixed_cell.make_scales(alpha, OPERATIONS, BLOCKS, seen, edges, passes=True)
        of_second = mixed_cell.statistics_size(OPERATIONS, BLOCKS, seen)
        with keras.StatelessScope(zip(cell.variables, values, strict=True)):
            blocks = cell(
                *(first, second, scales),
                norm=norm,
                norm_of_second=norm.reserve(of_second),
                training=True,
            )
        return tf.concat(blocks, -1)

    def plain(first, second, weights, alpha, edges):
        cells = [
            reference.mixed_cell(
                *(h, second, weights, alpha, OPERATIONS, BLOCKS, reference.Norm()),
                edges=edges,
                parts=parts,
            )
            for h in tf.unstack(first, axis=3)
        ]
        return tf.stack(cells, 3)

    actual, wanted = (
        differentiate(fused, inputs, "float32"),
        differentiate(plain, inputs, "float64"),
    )
    assert len(actual) == 5 + len(weights)
    for one, other in zip(actual, wanted, strict=True):
        one, other = tf.convert_to_tensor(one).numpy(), tf.convert_to_tensor(other).numpy()
        assert np.abs(one - other).max() <= 1e-4 * np.abs(other).max()


@pytest.mark.parametrize("sharing", search_space.ALPHA_SHARING)
def test_every_variable_gets_a_gradient(sharing):
    options = {"num_layers": 3, "num_blocks": 2, "operations": search_space.OPERATIONS}
    architecture = Architecture(**options, seed=0, alpha_sharing=sharing, partial_channels=2)
    net = SuperNet(
        **options, num_classes=3, filter_multiplier=4, alpha_sharing=sharing, partial_channels=2
    )
    weights = architecture.edge_weights()
    # Two blocks, of two and of three inputs: each sums to 1.
    np.testing.assert_allclose(tf.reduce_sum(weights[..., :2], -1), 1, rtol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(weights[..., 2:], -1), 1, rtol=1e-6)
    images = tf.random.stateless_uniform([2, 33, 33, 3], (0, 1), 0, 255)
    with tf.GradientTape() as tape:
        edge_weights = architecture.edge_weights()
        logits, _ = net(images, *architecture(None), training=True, edge_weights=edge_weights)
        loss = tf.reduce_mean(tf.nn.log_softmax(logits)[..., 0] * logits[..., 1])
    variables = [*net.trainable_variables, *architecture.trainable_variables]
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        assert gradient is not None and np.any(gradient), variable.path


def test_decoding_is_by_weight_and_alpha():
    """The best pair of every block by brute force over edge weight times best operation."""
    rng = np.random.default_rng(0)
    names = ("sep_conv_3x3", "skip_connect", "none")
    beta = np.zeros((1, 4, 3))
    beta[0, 0, 1:] = 0.5
    for _ in range(30):
        alpha = rng.dirichlet(np.ones(3), search_space.num_cell_edges(3))
        weights = np.concatenate([rng.dirichlet(np.ones(2 + block)) for block in range(3)])
        found = decoding.decode(alpha, beta, names, 3, edge_weights=weights)
        strength = weights * alpha[:, :2].max(1)
        start = 0
        for block, branches in enumerate(found.cells[0]):
            inputs = range(2 + block)
            pairs = itertools.combinations(inputs, 2)
            best = max(pairs, key=lambda pair: sum(strength[start + i] for i in pair))
            assert {source for source, _ in branches} == set(best)
            for source, operation in branches:
                assert operation == names[int(alpha[start + source, :2].argmax())]
            start += 2 + block
        np.testing.assert_allclose(found.meta["edge_weights"], weights)
    # Edges that weigh alike change nothing within a block.
    alike = np.concatenate([np.full(2 + block, 1 / (2 + block)) for block in range(3)])
    plain = decoding.decode(alpha, beta, names, 3)
    assert decoding.decode(alpha, beta, names, 3, edge_weights=alike).cells == plain.cells
    # ln 2, ln 3 and ln 4 are the entropies of the blocks.
    assert decoding.edge_entropy(alike) == pytest.approx(np.mean(np.log([2, 3, 4])))


def test_a_candidate_passes_what_it_has_alone():
    """Of a candidate's cells, the channels that no operation sees come from its edges too."""
    names = ("sep_conv_3x3", "atrous_conv_3x3", "skip_connect", "none")
    cell = (((0, "skip_connect"), (1, "skip_connect")), ((2, "skip_connect"), (0, "skip_connect")))
    code = encode(Genotype((0,), (cell,)), names, 1, 2)
    net = SuperNet(
        num_classes=3,
        num_layers=1,
        num_blocks=2,
        operations=names,
        filter_multiplier=4,
        partial_channels=2,
    )
    candidate = Candidate(net, *(part.shape for part in code), tf.distribute.get_strategy())
    image = tf.random.stateless_uniform([2, 33, 33, 3], (0, 1), 0, 255)
    candidate.become(*code, [{"image": image}])
    before = candidate.logits(image)
    for variable in net.trainable_variables:
        if "depthwise" in variable.path or "atrous_conv" in variable.path:
            variable.assign(variable * 3 + 1)
    candidate.become(*code, [{"image": image}])
    np.testing.assert_array_equal(candidate.logits(image), before)

"""Untied alpha: every node uses its own one, and what is decoded has the cell of each layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search import bilevel
from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import decoding, search_space
from auto_deeplab.space.genotype import Genotype
from tests.auto_deeplab import reference
from tests.auto_deeplab.search.weights import packed, parts, unpacked

LAYERS, BLOCKS, CLASSES = 3, 2, 2
OPERATIONS = ("sep_conv_3x3", "max_pool_3x3", "skip_connect", "none")
EDGES = 5  # 2 + 3
# Nodes (layer, level) -> the alpha that they have, typed for three layers.
EXPECTED = {
    "level": {(1, 0): 0, (1, 1): 1, (2, 0): 0, (2, 1): 1, (2, 2): 2}
    | {(3, level): level for level in range(4)},
    "layer": {(1, 0): 0, (1, 1): 0, (2, 0): 1, (2, 1): 1, (2, 2): 1}
    | {(3, level): 2 for level in range(4)},
}
COUNTS = {"level": 4, "layer": 3}


def build(sharing):
    keras.utils.set_random_seed(0)
    return SuperNet(
        num_classes=CLASSES,
        num_layers=LAYERS,
        num_blocks=BLOCKS,
        operations=OPERATIONS,
        filter_multiplier=2,
        stem_filters=(4, 4, 6),
        alpha_sharing=sharing,
    )


def inputs(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 65, 65, 3)).astype("float32")
    alphas = rng.dirichlet(np.ones(len(OPERATIONS)), (count, EDGES)).astype("float32")
    return images, alphas, rng.uniform(0.2, 1.0, (LAYERS, 4, 3)).astype("float32")


@pytest.mark.parametrize("sharing", ["level", "layer"])
def test_every_node_has_its_alpha(sharing):
    net, (images, alphas, beta) = build(sharing), inputs(COUNTS[sharing])
    weight = np.random.default_rng(1).normal(size=(2, 65, 65, CLASSES))
    alpha = tf.constant(alphas)
    with tf.GradientTape() as tape:
        tape.watch(alpha)
        logits, _ = net(images, alpha, tf.constant(beta), training=True)
        loss = tf.reduce_sum(logits * weight.astype("float32"))
    gradient = tape.gradient(loss, alpha).numpy()

    weights = unpacked(parts(net), packed(parts(net)))
    weights = tf.nest.map_structure(lambda weight: tf.cast(weight, tf.float64), weights)
    plain = tf.constant(alphas, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(plain)
        wanted = reference.supernet(
            tf.constant(images, tf.float64),
            weights,
            lambda layer, level: plain[EXPECTED[sharing][layer, level]],
            tf.constant(beta, tf.float64),
            OPERATIONS,
            BLOCKS,
            reference.Norm(),
        )
        loss = tf.reduce_sum(wanted * weight)
    wanted_gradient = tape.gradient(loss, plain).numpy()
    logits, wanted = logits.numpy(), wanted.numpy()
    assert np.linalg.norm(logits - wanted) <= 2e-5 * np.linalg.norm(wanted)
    for own, other in zip(gradient, wanted_gradient, strict=True):
        assert np.linalg.norm(own - other) <= 1e-4 * np.linalg.norm(other)
        assert np.linalg.norm(other) > 0


def test_equal_alphas_are_one_alpha():
    images, alphas, beta = inputs(1)
    wanted = build("global")(images, tf.constant(alphas[0]), tf.constant(beta))[0].numpy()
    for sharing, count in COUNTS.items():
        several = tf.constant(alphas.repeat(count, 0))
        logits = build(sharing)(images, several, tf.constant(beta))[0]
        np.testing.assert_array_equal(logits, wanted)


def make(sharing, num_layers=LAYERS):
    return Architecture(
        num_layers=num_layers,
        num_blocks=BLOCKS,
        operations=OPERATIONS,
        seed=0,
        alpha_sharing=sharing,
    )


@pytest.mark.parametrize("sharing", ["level", "layer"])
def test_the_architecture_gives_each_node_its_alpha(sharing):
    architecture = make(sharing)
    assert architecture.alpha.shape == (COUNTS[sharing], EDGES, len(OPERATIONS))
    alpha, _ = architecture()
    np.testing.assert_allclose(tf.reduce_sum(alpha, -1), 1.0, rtol=1e-6)
    for (layer, level), index in EXPECTED[sharing].items():
        np.testing.assert_array_equal(architecture.alpha_of(alpha, layer, level), alpha[index])
    tied = make("global")
    alpha, _ = tied()
    assert alpha.shape == (EDGES, len(OPERATIONS))
    np.testing.assert_array_equal(tied.alpha_of(alpha, 2, 1), alpha)


def force(architecture, path, choices):
    """The path, and for each alpha one operation on every edge."""
    beta = np.zeros((len(path), 4, 3), "float32")
    for layer, (source, level) in enumerate(zip((0, *path), path, strict=False)):
        beta[layer, source, level - source + 1] = 9.0
    architecture.beta.assign(beta)
    alpha = np.zeros((len(choices), EDGES, len(OPERATIONS)), "float32")
    for index, choice in enumerate(choices):
        alpha[index, :, choice] = 5.0
    architecture.alpha.assign(alpha)


def operations_of(cell):
    return {name for block in cell for _, name in block}


def test_decoding_gives_every_level_its_cell(tmp_path):
    architecture = make("level")
    force(architecture, (1, 2, 1), [0, 1, 2, 0])
    genotype, _ = bilevel.decode(architecture, {})
    # The path sees levels 1 and 2 alone.
    assert genotype.path == (1, 2, 1) and genotype.cell_of_layer == (0, 1, 0)
    assert [operations_of(cell) for cell in genotype.cells] == [{"max_pool_3x3"}, {"skip_connect"}]
    genotype.save(tmp_path / "genotype.json")
    again = Genotype.from_json((tmp_path / "genotype.json").read_text())
    assert again == genotype and again.meta["alpha_sharing"] == "level"
    assert np.shape(again.meta["alpha"]) == (4, EDGES, len(OPERATIONS))
    row = bilevel.report(architecture)
    assert row["cells"] == genotype.cells and row["cell_of_layer"] == (0, 1, 0)
    assert row["skip_connects"] == 2 * BLOCKS and row["none_edges"] == 0


def test_decoding_gives_every_layer_its_cell():
    architecture = make("layer")
    force(architecture, (0, 1, 1), [2, 0, 1])
    genotype, _ = bilevel.decode(architecture, {})
    assert genotype.path == (0, 1, 1) and genotype.cell_of_layer == (0, 1, 2)
    names = [operations_of(genotype.cell(layer)) for layer in (1, 2, 3)]
    assert names == [{"skip_connect"}, {"sep_conv_3x3"}, {"max_pool_3x3"}]


def test_a_wrong_number_of_alphas_is_refused():
    alpha = np.full((3, EDGES, len(OPERATIONS)), 0.25)
    beta = make("level")()[1].numpy()
    with pytest.raises(ValueError, match=r"3 alphas, but level sharing has 4"):
        decoding.decode(alpha, beta, OPERATIONS, BLOCKS, alpha_sharing="level")


def test_how_many_alphas_there_are():
    counts = [search_space.num_alphas(name, 12) for name in search_space.ALPHA_SHARING]
    assert counts == [1, 4, 12]

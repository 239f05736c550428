"""Alpha and beta: what is normalised over what; nothing illegal or infinite comes of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search.architecture import Architecture, make_legal_mask, masked_softmax
from auto_deeplab.space import search_space


def make(num_layers=12, num_blocks=5, seed=0):
    return Architecture(
        num_layers=num_layers,
        num_blocks=num_blocks,
        operations=search_space.OPERATIONS,
        seed=seed,
    )


def legal_by_definition(num_layers):
    """[L, 4, 3]: the source exists at layer l - 1, the target at l, both within 0..3."""
    legal = np.zeros((num_layers, 4, 3), bool)
    for layer in range(1, num_layers + 1):
        for source in range(4):
            for direction in range(3):
                target = source + direction - 1
                legal[layer - 1, source, direction] = (
                    source <= layer - 1 and target <= layer and 0 <= target < 4
                )
    return legal


@pytest.mark.parametrize("num_layers", [1, 2, 4, 12])
def test_legal_directions_are_the_edges_of_the_trellis(num_layers):
    legal = make_legal_mask(num_layers)
    np.testing.assert_array_equal(legal, legal_by_definition(num_layers))
    # 2, 5 and 8 edges into layers 1 to 3, then 10 each.
    assert legal.sum() == sum([2, 5, 8, *[10] * 9][:num_layers])


def test_shapes_and_initial_values():
    architecture = make()
    assert architecture.alpha.shape == (20, 8) and architecture.beta.shape == (12, 4, 3)
    assert [v.path for v in architecture.trainable_variables] == [
        "architecture/alpha",
        "architecture/beta",
    ]
    for logits in (architecture.alpha.numpy(), architecture.beta.numpy()):
        # N(0, 1) * 1e-3: 160 and 144 values estimate the deviation to 6 %, the mean to 8e-5.
        assert 0.75e-3 < logits.std() < 1.25e-3
        assert abs(logits.mean()) < 3e-4


def test_the_seed_decides():
    def values(seed):
        return [v.numpy() for v in make(seed=seed).variables]

    one, same, other = values(3), values(3), values(4)
    np.testing.assert_array_equal(one[0], same[0])
    np.testing.assert_array_equal(one[1], same[1])
    flat = [np.ravel(v)[:100] for v in (*one, *other)]
    assert not any(np.array_equal(a, b) for i, a in enumerate(flat) for b in flat[:i])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_what_leaves_every_node_sums_to_1(scale):
    architecture = make()
    rng = np.random.default_rng(0)
    for variable in architecture.variables:
        variable.assign(rng.choice([-scale, 0.3 * scale, scale], variable.shape))
    with tf.GradientTape() as tape:
        alpha, beta = architecture()
        loss = tf.reduce_sum(beta * rng.normal(size=beta.shape).astype("float32"))
        loss += tf.reduce_sum(alpha * rng.normal(size=alpha.shape).astype("float32"))
    gradients = tape.gradient(loss, [architecture.alpha.value, architecture.beta.value])
    legal = legal_by_definition(12)
    np.testing.assert_allclose(tf.reduce_sum(alpha, -1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(tf.reduce_sum(beta, -1), legal.any(-1), rtol=1e-6)
    # 1 + 2 + 3 source nodes in the first three layers, four each after that.
    assert legal.any(-1).sum() == 1 + 2 + 3 + 9 * 4
    np.testing.assert_array_equal(beta.numpy()[~legal], 0.0)
    np.testing.assert_array_equal(gradients[1].numpy()[~legal], 0.0)
    for tensor in (alpha, beta, *gradients):
        assert np.isfinite(tensor).all()
    if scale <= 1.0:
        assert np.all(beta.numpy()[legal] > 0) and np.all(gradients[1].numpy()[legal] != 0)


def test_probabilities_are_the_softmax_over_legal_directions():
    architecture = make(num_layers=3, num_blocks=1)
    logits = np.random.default_rng(0).normal(size=(3, 4, 3))
    architecture.beta.assign(logits)
    beta = architecture()[1].numpy()
    exponential = np.exp(logits) * legal_by_definition(3)
    with np.errstate(invalid="ignore"):
        wanted = np.nan_to_num(exponential / exponential.sum(-1, keepdims=True))
    np.testing.assert_allclose(beta, wanted, rtol=1e-5)
    # By hand: the stem's node has the directions same and down alone.
    e = np.exp(logits[0, 0])
    np.testing.assert_allclose(beta[0, 0], [0, e[1] / (e[1] + e[2]), e[2] / (e[1] + e[2])], 1e-5)
    np.testing.assert_array_equal(beta[0, 1:], 0.0)


def test_a_constant_added_to_a_row_changes_nothing():
    architecture = make()
    rng = np.random.default_rng(0)
    for variable in architecture.variables:
        variable.assign(rng.normal(size=variable.shape))
    before = [p.numpy() for p in architecture()]
    for variable in architecture.variables:
        # Another constant for every row: each is a group of its own.
        variable.assign(variable + rng.normal(size=(*variable.shape[:-1], 1)).astype("float32"))
    for old, new in zip(before, architecture(), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5)


def test_illegal_logits_have_no_influence():
    architecture = make()
    logits = np.random.default_rng(0).normal(size=(12, 4, 3)).astype("float32")
    architecture.beta.assign(logits)
    before = architecture()[1].numpy()
    for value in (1e30, -1e30, np.inf, np.nan):
        architecture.beta.assign(np.where(legal_by_definition(12), logits, value))
        np.testing.assert_array_equal(architecture()[1], before)


def test_gradient_of_the_masked_softmax():
    # d p_i / d x_j = p_i (delta_ij - p_j) within the legal entries.
    logits = tf.constant([[0.3, -1.0, 2.0], [0.5, 0.1, -0.2], [1.0, 2.0, 3.0]])
    legal = np.array([[True, True, True], [True, False, True], [False, False, False]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        p = masked_softmax(logits, legal)
    jacobian = tape.batch_jacobian(p, logits)
    for row, own in zip(p.numpy(), jacobian.numpy(), strict=True):
        np.testing.assert_allclose(own, np.diag(row) - np.outer(row, row), atol=1e-6)


def test_logits_that_are_given_take_alphas_place_in_float32():
    """Whatever layers compute in: 1e-4 more or less is nothing to bfloat16."""
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy("mixed_bfloat16")
        architecture = Architecture(
            num_layers=2, num_blocks=1, operations=("skip_connect", "none"), seed=0
        )
        own = architecture.alpha.numpy()
        moved = own + np.array([[1e-4, 0], [0, 0]], np.float32)
        alpha, beta = architecture(tf.constant(moved))
    finally:
        keras.config.set_dtype_policy(before)
    weights = np.exp(moved)
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(alpha, expected, rtol=1e-6)
    np.testing.assert_array_equal(beta, architecture()[1])
    np.testing.assert_array_equal(architecture.alpha.numpy(), own)

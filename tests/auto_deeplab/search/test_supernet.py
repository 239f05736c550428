"""The super-net equals the plain one in `reference.py`: output, gradients, moving statistics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search.packed_weights import MOMENTUM
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import search_space
from tests.auto_deeplab import reference
from tests.auto_deeplab.search.weights import packed, parts, unpacked

# Four layers: every level, every adapter, and every rule for the second input: strides 2 and 4 from
# the coarsest tensor of layers -1, 0 and 1, stride 2 from that of layer 2, else the same level.
LAYERS, BLOCKS, FILTERS, CLASSES = 4, 2, 2, 3
OPERATIONS = search_space.OPERATIONS
SIZE = (60, 33)  # padded to 65 x 33, so that level 3 has 3 x 2 pixels


def build(num_layers, num_blocks, operations, **options):
    keras.utils.set_random_seed(0)
    return SuperNet(
        num_classes=CLASSES,
        num_layers=num_layers,
        num_blocks=num_blocks,
        operations=operations,
        filter_multiplier=FILTERS,
        stem_filters=(4, 6),
        **options,
    )


@pytest.fixture(scope="module")
def net():
    """Every variable random; tests restore what they change."""
    return with_random_variables(build(LAYERS, BLOCKS, OPERATIONS))


def with_random_variables(net):
    rng = np.random.default_rng(0)
    for variable in net.variables:
        if "kernel" not in variable.path:
            offset = 1.0 if variable.name.endswith(("gamma", "variance")) else 0.0
            variable.assign(offset + rng.uniform(-0.5, 0.5, variable.shape))
    return net


def inputs():
    """Images, alpha and beta; beta is no probability here, so that every entry counts by itself."""
    # Not seed 1: a value there is so near to a ReLU's or a pool's kink that rounding decides on
    # which side it falls, and then gradients differ by 3e-4 in the plain form in float32 too.
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (2, *SIZE, 3)).astype("float32")
    alpha = rng.dirichlet(np.ones(len(OPERATIONS)), search_space.num_cell_edges(BLOCKS))
    beta = rng.uniform(0.2, 1.0, (LAYERS, 4, 3))
    return images, alpha.astype("float32"), beta.astype("float32")


def direction():
    return np.random.default_rng(2).normal(size=(2, *SIZE, CLASSES))


def fused_pass(net):
    """Logits, statistics, and the gradients of a random projection by weights, alpha, beta."""
    images, alpha, beta = (tf.constant(x) for x in inputs())
    with tf.GradientTape() as tape:
        tape.watch([alpha, beta])
        logits, statistics = net(images, alpha, beta, training=True)
        loss = tf.reduce_sum(logits * direction().astype("float32"))
    weights, alpha, beta = tape.gradient(loss, (packed(parts(net)), alpha, beta))
    return logits.numpy(), statistics, dense((unpacked(parts(net), weights), alpha, beta))


def plain_weights(net):
    weights = unpacked(parts(net), packed(parts(net)))
    return tf.nest.map_structure(lambda weight: tf.cast(weight, tf.float64), weights)


@pytest.fixture(scope="module")
def fused(net):
    return fused_pass(net)


@pytest.fixture(scope="module")
def plain(net):
    """The same from the reference; the statistics by key."""
    images, alpha, beta = (tf.constant(x, tf.float64) for x in inputs())
    weights, norm = plain_weights(net), reference.Norm()
    with tf.GradientTape() as tape:
        tape.watch((weights, alpha, beta))
        logits = reference.supernet(images, weights, alpha, beta, OPERATIONS, BLOCKS, norm)
        loss = tf.reduce_sum(logits * direction())
    return logits.numpy(), norm.found, dense(tape.gradient(loss, (weights, alpha, beta)))


def dense(gradients):
    return tf.nest.map_structure(lambda g: tf.convert_to_tensor(g).numpy(), gradients)


def assert_close(actual, wanted, tolerance, name=None):
    """Error relative to the norm."""
    assert np.linalg.norm(wanted) > 0, name
    assert np.linalg.norm(actual - wanted) <= tolerance * np.linalg.norm(wanted), name


def layout(part):
    """(key, channels) of a part's normalisations, in the order of its packed statistics."""
    if part == "stem":
        return [("conv0", 4), ("conv1", 6)]
    kind, *numbers = (int(word) if word.isdigit() else word for word in part.split("_"))
    channels = FILTERS * 2 ** numbers[-1]
    if kind == "head":
        return [("point", BLOCKS * channels), ("atrous", BLOCKS * channels)]
    layer, level = numbers[0], numbers[2]
    sources = [k for k in (level - 1, level, level + 1) if k in reference.levels(layer - 1)]
    return reference.layout(OPERATIONS, BLOCKS, channels, sources)


def moving_statistics(net, dtype="float32"):
    return [tuple(t.numpy().astype(dtype) for t in p.moving.read()) for p in parts(net)]


def by_key(net, statistics):
    """{(part, key): statistics} from one packed pair (mean, variance) per part."""
    found = {}
    for part, (mean, variance) in zip(parts(net), statistics, strict=True):
        start = 0
        for key, channels in layout(part.name):
            mine = slice(start, start + channels)
            found[part.name, key] = (mean[mine], variance[mine])
            start += channels
        assert start == mean.shape[0] == variance.shape[0] == part.moving.mean.shape[0]
    return found


def test_the_reference_has_the_trellis_of_the_search_space():
    nodes = [(layer, level) for layer in range(1, 5) for level in reference.levels(layer)]
    edges = [
        (layer, source, level)
        for layer, level in nodes
        for source in reference.levels(layer - 1)
        if abs(source - level) <= 1
    ]
    # 2 + 3 + 4 + 4 nodes, 2 + 5 + 8 + 10 edges.
    assert len(nodes) == 13 and nodes == search_space.nodes(LAYERS)
    assert len(edges) == 25 and edges == search_space.edges(LAYERS)


def test_logits_equal_the_plain_super_net(fused, plain):
    assert fused[0].shape == (2, *SIZE, CLASSES) and fused[0].dtype == "float32"
    assert_close(fused[0], plain[0], 2e-5)


def test_gradients_equal_the_plain_super_net(fused, plain):
    (weights, alpha, _), (wanted_weights, wanted_alpha, _) = fused[2], plain[2]
    for part, wanted in wanted_weights.items():
        for name, gradient in wanted.items():
            actual = weights[part][name]
            if not name.startswith(OPERATIONS):
                assert_close(actual, gradient, 1e-4, (part, name))
                continue
            for edge in reference.cell_edges(BLOCKS):
                own, wanted_own = (
                    reference.edge_weights({name: packed}, BLOCKS, edge)[name].numpy()
                    for packed in (actual, gradient)
                )
                assert_close(own, wanted_own, 1e-4, (part, edge, name))
    # `none` is the last column: nothing comes from it.
    np.testing.assert_array_equal(alpha[:, -1], 0.0)
    assert_close(alpha, wanted_alpha, 1e-5)


def test_every_entry_of_beta_weighs_its_own_edge(fused, plain):
    beta, wanted = fused[2][2].copy(), plain[2][2]
    # 25 edges, each with a gradient of its own; no other entry is ever looked at.
    edges = [
        (layer - 1, source, level - source + 1) for layer, source, level in search_space.edges(4)
    ]
    assert len({round(float(wanted[edge]), 9) for edge in edges}) == 25
    for edge in edges:
        np.testing.assert_allclose(beta[edge], wanted[edge], rtol=1e-3)
        beta[edge] = 0.0
    np.testing.assert_array_equal(beta, 0.0)


def test_batch_statistics_equal_the_plain_super_net(net, fused, plain):
    found = by_key(net, fused[1])
    assert found.keys() == plain[1].keys()
    for key, (mean, variance) in plain[1].items():
        np.testing.assert_allclose(found[key][0], mean, rtol=1e-4, atol=1e-4, err_msg=str(key))
        np.testing.assert_allclose(found[key][1], variance, rtol=1e-4, atol=1e-6, err_msg=str(key))


def test_evaluation_takes_every_moving_statistic_from_its_place(net):
    # They are random: one taken from another place changes the logits.
    images, alpha, beta = inputs()
    logits, statistics = net(images, alpha, beta, training=False)
    assert statistics == []
    norm = reference.Norm(by_key(net, moving_statistics(net, "float64")))
    arguments = (tf.constant(x, tf.float64) for x in (alpha, beta))
    images = tf.constant(images, tf.float64)
    wanted = reference.supernet(
        images, plain_weights(net), *arguments, OPERATIONS, BLOCKS, norm
    ).numpy()
    assert_close(logits.numpy(), wanted, 2e-5)


@pytest.fixture(scope="module", params=["node", "none", "inline"])
def other(request):
    """The same super-net, which recomputes something else, or has no functions of its own."""
    if request.param != "inline":
        return with_random_variables(build(LAYERS, BLOCKS, OPERATIONS, recompute=request.param))
    net = with_random_variables(build(LAYERS, BLOCKS, OPERATIONS))
    net.execution.inline = True  # as with several replicas
    return net


def test_neither_recomputation_nor_tracing_changes_anything(other, fused):
    logits, statistics, gradients = fused
    other_logits, other_statistics, other_gradients = fused_pass(other)
    np.testing.assert_allclose(other_logits, logits, rtol=1e-5, atol=1e-5)
    for pair, other_pair in zip(statistics, other_statistics, strict=True):
        np.testing.assert_allclose(other_pair[0], pair[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(other_pair[1], pair[1], rtol=1e-5, atol=1e-7)
    for gradient, kept in zip(
        tf.nest.flatten(gradients), tf.nest.flatten(other_gradients), strict=True
    ):
        assert_close(kept, gradient, 1e-5)


def test_fixed_weights_change_no_other_gradient(net, fused):
    images, alpha, beta = (tf.constant(x) for x in inputs())
    (kernel,) = (v.value for v in net.nodes[-1].cell.variables if v.name == "pointwise_kernel")
    with tf.GradientTape() as tape:
        tape.watch([alpha, beta])
        logits, _ = net(images, alpha, beta, training=True, fixed_weights=True)
        loss = tf.reduce_sum(logits * direction().astype("float32"))
    by_alpha, by_beta, by_kernel = dense(
        tape.gradient(loss, [alpha, beta, kernel], unconnected_gradients="zero")
    )
    _, wanted_alpha, wanted_beta = fused[2]
    assert_close(by_alpha, wanted_alpha, 1e-5)
    assert_close(by_beta, wanted_beta, 1e-5)
    assert not np.any(by_kernel)


def test_moving_statistics_move_once_a_step(net, plain):
    images, alpha, beta = inputs()
    before = moving_statistics(net)
    try:
        with tf.GradientTape() as tape:
            logits, statistics = net(images, alpha, beta, training=True)
        # The backward pass computes cells again; it must not count.
        kernels = [v.value for v in net.trainable_variables if v.name == "second.kernel"]
        tape.gradient(logits, kernels)
        net.update_moving_statistics(statistics)
        after = moving_statistics(net)
    finally:
        for part, (mean, variance) in zip(parts(net), before, strict=True):
            part.moving.mean.assign(mean)
            part.moving.variance.assign(variance)
    old, new = by_key(net, before), by_key(net, after)
    assert MOMENTUM == 0.9
    for key, batch in plain[1].items():
        for part in (0, 1):
            wanted = 0.9 * old[key][part] + 0.1 * batch[part].numpy()
            np.testing.assert_allclose(new[key][part], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("path", [(0, 1, 2, 1), (1, 2, 3, 3), (1, 0, 0, 0)])
def test_one_hot_beta_is_the_path(net, path):
    images, alpha, _ = inputs()
    beta = np.zeros((LAYERS, 4, 3), "float32")
    for layer, (source, level) in enumerate(zip((0, *path), path, strict=False)):
        beta[layer, source, level - source + 1] = 1.0
    with tf.GradientTape() as tape:
        logits, _ = net(images, alpha, beta, training=True)
        loss = tf.reduce_sum(logits * direction().astype("float32"))
    gradients = tape.gradient(loss, packed(net.nodes))
    gradients = dense(unpacked(net.nodes, dense(gradients)))
    for layer, level in search_space.nodes(LAYERS):
        own = gradients[f"layer_{layer}_level_{level}"]
        influence = {name for name, gradient in own.items() if np.any(gradient)}
        if path[layer - 1] != level:
            assert influence == set()
            continue
        # Of the adapters only those of tensors on the path matter. What is not on it is 0, so that
        # its BN gives the offset, whatever the kernel.
        wanted = {name for name in own if name.startswith(OPERATIONS)} | {"second.beta"}
        adapter = f"from_level_{path[layer - 2] if layer > 1 else 0}"
        wanted |= {f"{adapter}.kernel", f"{adapter}.gamma", f"{adapter}.beta"}
        source_layer, source_level, _ = search_space.second_source(layer, level)
        if source_layer < 1 or path[source_layer - 1] == source_level:
            wanted |= {"second.kernel", "second.gamma"}
        assert influence == wanted


@pytest.fixture(scope="module")
def any_size():
    """A smaller super-net as one traced function of images of any size, and its traces."""
    net = build(3, 1, ("sep_conv_3x3", "atrous_conv_3x3", "avg_pool_3x3", "skip_connect", "none"))
    alpha = tf.nn.softmax(tf.zeros([2, 5]))
    beta = tf.fill([3, 4, 3], 0.5)
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3])])
    def logits(images):
        traces.append(images.shape)
        return net(images, alpha, beta)[0]

    def static(images):
        return net(images, alpha, beta)[0]

    return logits, static, traces


@pytest.mark.parametrize("size", [(65, 65), (96, 96), (97, 97), (129, 129), (161, 161), (65, 129)])
def test_any_size_in_one_trace(any_size, size):
    logits, static, traces = any_size
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype("float32")
    y = logits(images).numpy()
    assert y.shape == (1, *size, CLASSES) and np.isfinite(y).all()
    assert len(traces) == 1
    if size == (96, 96):
        np.testing.assert_allclose(y, static(images), rtol=1e-4, atol=1e-5)
        # The padding is the grey that normalises to 0: painting it changes nothing.
        padded = np.pad(images, [(0, 0), (0, 1), (0, 1), (0, 0)], constant_values=127.5)
        np.testing.assert_allclose(logits(padded)[:, :96, :96], y, rtol=1e-4, atol=1e-5)

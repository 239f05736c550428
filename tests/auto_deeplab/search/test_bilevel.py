"""The bilevel step: two groups of variables, neither of whose steps touches the other's."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.bilevel import Search, decode, pair_batches, report
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import search_space
from official import distribution, optimizers
from tests.auto_deeplab import reference
from tests.auto_deeplab.training import (
    CLASSES,
    VOID,
    assert_same,
    assert_same_change,
    compiled_calls,
    loss_of,
    of_both_replicas,
    of_replica,
    per_replica,
    random_batch,
    values,
)

FEW = ("sep_conv_3x3", "atrous_conv_3x3", "max_pool_3x3", "skip_connect", "none")


def make(
    strategy,
    num_layers,
    num_blocks,
    operations,
    *,
    weight_optimizer=lambda: optimizers.sgd(0.025, l2=3e-4),
    # Not Adam, which would hide a wrong factor of the gradient.
    architecture_optimizer=lambda: optimizers.sgd(1.0, l2=1e-3),
    sync_batch_norm=True,
    jit_compile=False,
    partial_channels=1,
    **options,
):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        net = SuperNet(
            num_classes=CLASSES,
            num_layers=num_layers,
            num_blocks=num_blocks,
            operations=operations,
            filter_multiplier=2,
            stem_filters=(4, 4, 6),
            sync_batch_norm=sync_batch_norm,
            jit_compile=jit_compile,
            partial_channels=partial_channels,
        )
        architecture = Architecture(
            num_layers=num_layers,
            num_blocks=num_blocks,
            operations=operations,
            seed=0,
            partial_channels=partial_channels,
        )
        return Search(
            net,
            architecture,
            weight_optimizer=weight_optimizer(),
            architecture_optimizer=architecture_optimizer(),
            ignore_label=VOID,
            strategy=strategy,
            jit_compile=jit_compile,
            **options,
        )


def one_device(*args, **options):
    return make(distribution.make_strategy("one_device"), *args, **options)


def moving(search):
    return values(search.supernet.non_trainable_variables)


def weights(search):
    return values(search.supernet.trainable_variables)


def architecture(search):
    return values(search.architecture.variables)


def optimizer_state(optimizer):
    return values(optimizers.rule_variables(optimizer))


def everything(search):
    return [
        *search.supernet.variables,
        *search.architecture.variables,
        *search.weight_optimizer.variables,
        *search.architecture_optimizer.variables,
    ]


@pytest.fixture(scope="module")
def untouched():
    """All eight operations and all four levels; its steps are run eagerly, which is quicker."""
    search = one_device(3, 2, search_space.OPERATIONS)
    search.supernet.execution.inline = True
    return search, [v.numpy() for v in everything(search)]


@pytest.fixture
def search(untouched):
    """The same in its first state."""
    search, state = untouched
    for variable, value in zip(everything(search), state, strict=True):
        variable.assign(value)
    return search


@pytest.fixture(scope="module")
def traced():
    """A smaller one, whose steps are quick once they are traced."""
    return one_device(2, 1, FEW)


def weight_step(search, batch):
    return search.weight_step.python_function(batch)


def eager_step(search, batch_a, batch_b):
    """The two losses of a whole step."""
    loss_w = weight_step(search, batch_a)
    return loss_w, search.architecture_step.python_function(batch_b, batch_a)


def architecture_step(search, batch):
    # Alone: a search step moves weights first.
    return search._strategy.run(search._update_architecture, (batch, None))


def logits(search, batch):
    """In training form: at the start, moving statistics say nothing about the data."""
    probabilities = search.architecture()
    return search.supernet(batch["image"], *probabilities, training=True)[0]


def loss(search, batch):
    return loss_of(batch["label"], logits(search, batch))


def unpack_one(weights, variable, value):
    """{name: tensor} of the weights that are packed in one variable."""
    packed = [value if v is variable else tf.zeros(v.shape) for v in weights.variables]
    return {name: weights.unpack(packed)[name] for name in weights.sizes[variable.name]}


def packed_edge(name, packed, edge):
    """One edge's slice of a packed variable of a cell with two blocks."""
    return reference.edge_weights({name: packed}, 2, edge)[name].numpy()


def test_the_groups_are_disjoint_and_complete(search):
    with tf.GradientTape() as tape:
        loss(search, random_batch(0))
    w, a = search.supernet.trainable_variables, search.architecture.trainable_variables
    groups = [id(v.value) for v in (*w, *a)]
    assert len(set(groups)) == len(w) + len(a)
    # What a forward pass reads and could be trained is what the two groups hold.
    assert {id(v) for v in tape.watched_variables()} == set(groups)
    assert [v.path for v in a] == ["architecture/alpha", "architecture/beta"]
    rest = {v.name for v in search.supernet.variables} - {v.name for v in w}
    assert rest == {"moving_mean", "moving_variance"}
    # SGD has one momentum per variable of its own group, the step count and the rate.
    assert len(search.weight_optimizer.variables) == len(w) + 2
    assert len(search.architecture_optimizer.variables) == len(a) + 2


@pytest.mark.every_machine
def test_every_variable_and_every_slice_gets_a_gradient(search):
    w, a = search.supernet.trainable_variables, search.architecture.trainable_variables
    with tf.GradientTape() as tape:
        value = loss(search, random_batch(0))
    gradients = tape.gradient(value, [v.value for v in (*w, *a)])
    kernels = {
        id(variable): node.cell.kernels
        for node in search.supernet.nodes
        for variable in node.cell.variables
    }
    assert len(kernels) == 9 * 5  # nodes; depthwise 3x3 and 5x5, pointwise, atrous 3x3 and 5x5
    for variable, gradient in zip((*w, *a), gradients, strict=True):
        value, gradient = variable.numpy(), tf.convert_to_tensor(gradient).numpy()
        slices = [(value, gradient)]
        if id(variable) in kernels:  # packed
            both = [unpack_one(kernels[id(variable)], variable, x) for x in slices[0]]
            slices = [
                [packed_edge(name, packed[name], edge) for packed in both]
                for name in both[0]
                for edge in reference.cell_edges(2)
            ]
        if variable.path == "architecture/alpha":
            slices = list(zip(value.flat, gradient.flat, strict=True))
        if variable.path == "architecture/beta":
            legal = search.architecture.legal
            slices = list(zip(value[legal], gradient[legal], strict=True))
            assert not np.any(gradient[~legal])
        for own, own_gradient in slices:
            assert np.linalg.norm(own_gradient) > 1e-6 * np.linalg.norm(own), variable.path


def test_a_weight_step_leaves_the_architecture(search):
    before = architecture(search), optimizer_state(search.architecture_optimizer)
    old_weights, old_moving = weights(search), moving(search)
    weight_step(search, random_batch(0))
    assert_same(architecture(search), before[0])
    assert_same(optimizer_state(search.architecture_optimizer), before[1])
    for old, new in ((old_weights, weights(search)), (old_moving, moving(search))):
        assert all(np.any(old[path] != new[path]) for path in old)
    assert search.weight_optimizer.iterations.numpy() == 1


def test_an_architecture_step_leaves_weights_and_moving_statistics(search):
    weight_step(search, random_batch(0))
    before = weights(search), moving(search), optimizer_state(search.weight_optimizer)
    old = architecture(search)
    architecture_step(search, random_batch(1))
    assert_same(weights(search), before[0])
    assert_same(moving(search), before[1])
    assert_same(optimizer_state(search.weight_optimizer), before[2])
    assert all(np.any(old[path] != new) for path, new in architecture(search).items())
    assert search.architecture_optimizer.iterations.numpy() == 1


@pytest.mark.every_machine
def test_the_updates_are_coupled_sgd_on_each_half(search):
    # First step, momentum still 0: v - rate * (g + l2 * v), g by the mean over valid pixels.
    before = values([*search.supernet.trainable_variables, *search.architecture.variables])
    w, a = search.supernet.trainable_variables, search.architecture.trainable_variables
    for batch, group, rate, l2, step in (
        (random_batch(0), w, 0.025, 3e-4, weight_step),
        (random_batch(1), a, 1.0, 1e-3, architecture_step),
    ):
        with tf.GradientTape() as tape:
            value = loss(search, batch)
        gradients = tape.gradient(value, [v.value for v in group])
        wanted = {
            v.path: v.numpy() - rate * (tf.convert_to_tensor(g).numpy() + l2 * v.numpy())
            for v, g in zip(group, gradients, strict=True)
        }
        np.testing.assert_allclose(step(search, batch), value, rtol=1e-5)
        assert_same_change(values(group), wanted, {p: before[p] for p in wanted}, 1e-4)


def test_forward_depends_on_probabilities_alone(search):
    rng = np.random.default_rng(0)
    batch = random_batch(0)
    for variable in search.architecture.variables:
        variable.assign(rng.normal(size=variable.shape))
    before = logits(search, batch).numpy()
    for variable in search.architecture.variables:
        constants = rng.normal(size=(*variable.shape[:-1], 1)).astype("float32")
        variable.assign(variable + constants)
    after = logits(search, batch).numpy()
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()
    # And it does depend on them.
    for variable in search.architecture.variables:
        variable.assign(rng.normal(size=variable.shape))
        after = logits(search, batch).numpy()
        assert np.abs(after - before).max() > 0.01 * np.abs(before).max()
        before = after


def test_traced_steps_equal_the_eager_ones(traced):
    start = [v.numpy() for v in everything(traced)]
    before = values(traced.supernet.variables) | architecture(traced)
    one, two = random_batch(0), random_batch(1)
    results = []
    for eager in (True, False):
        for variable, value in zip(everything(traced), start, strict=True):
            variable.assign(value)
        if eager:
            losses = [weight_step(traced, one), weight_step(traced, two)]
            losses.append(architecture_step(traced, one))
        else:
            first, second = traced.steps((one,), (two, one))
            losses = [*first.values(), *second.values()]
        # The architecture's loss is that of the weights just updated.
        results.append((losses, values(traced.supernet.variables) | architecture(traced)))
    (losses, wanted), (traced_losses, actual) = results
    np.testing.assert_allclose(traced_losses, losses, rtol=1e-5)
    assert_same_change(actual, wanted, before, 1e-4)


def fake_cost_term(alpha_of, beta):
    """A penalty that is easy to differentiate, and an expected cost that is something else."""
    penalty = tf.reduce_sum(alpha_of(1, 0)[0] * [0.0, 1.0, 2.0, 3.0, 4.0]) * beta[0, 0, 1]
    return penalty, 100.0 * penalty


def test_nothing_is_traced_again(traced):
    batches = [(random_batch(number), random_batch(number + 1)) for number in range(4)]
    for pattern in ([batches[0][:1]], batches[:1], batches[:2]):
        traced.steps(*pattern)
    functions = {
        "steps": traced.steps,
        "weight_step": traced.weight_step,
        "architecture_step": traced.architecture_step,
    }
    counts = {
        name: function.experimental_get_tracing_count() for name, function in functions.items()
    }
    # The weights alone, both, two of both at once: each group's update only once for all of them.
    assert (counts["weight_step"], counts["architecture_step"]) == (1, 1)
    for pattern in ([batches[1][:1]], batches[1:2], batches[2:4]):
        traced.steps(*pattern)
    assert counts == {
        name: function.experimental_get_tracing_count() for name, function in functions.items()
    }


def waits_for(nodes, later, earlier):
    """Whether a node of a function's body comes after another; nodes: {name: its inputs' names}."""
    seen, todo = set(), [later]
    while todo:
        name = todo.pop()
        if name == earlier:
            return True
        if name not in seen:
            seen.add(name)
            todo += nodes.get(name, [])
    return False


@pytest.mark.parametrize("which", ["weight_step", "architecture_step"])
def test_no_function_of_the_super_net_is_called_twice_at_the_same_time(traced, which):
    # TensorFlow's CPU kernel for BN would damage memory; see MixedCell.
    batches = [random_batch(0)] * (1 if which == "weight_step" else 2)
    graph = getattr(traced, which).get_concrete_function(*batches).graph.as_graph_def()
    bodies = [graph.node, *(function.node_def for function in graph.library.function)]
    pairs = 0
    for body in bodies:
        nodes = {n.name: [i.lstrip("^").partition(":")[0] for i in n.input] for n in body}
        calls = [n for n in body if n.op.endswith("PartitionedCall")]
        for one, other in itertools.combinations(calls, 2):
            if one.attr["f"].func.name == other.attr["f"].func.name:
                pairs += 1
                names = one.name, other.name
                assert waits_for(nodes, *names) or waits_for(nodes, *reversed(names)), names
    assert pairs


def test_the_cost_term_joins_the_architectures_loss_alone(two_replicas):
    plain, costly = (one_device(1, 1, FEW, cost_term=term) for term in (None, fake_cost_term))
    with tf.GradientTape() as tape:
        penalty, cost = costly.expected_cost()
    gradient = tape.gradient(penalty, [v.value for v in costly.architecture.variables])
    before = values(costly.architecture.variables)
    wanted_losses = [float(weight_step(plain, random_batch(0)))]
    wanted_losses.append(float(architecture_step(plain, random_batch(1))))
    losses = [float(weight_step(costly, random_batch(0)))]
    losses.append(float(architecture_step(costly, random_batch(1))))
    # The losses are reported without it; the rate of the architecture's SGD is 1.
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-6)
    assert_same(weights(costly), weights(plain))
    changed = architecture(costly)
    for (path, value), slope in zip(architecture(plain).items(), gradient, strict=True):
        np.testing.assert_allclose(changed[path], value - slope, rtol=1e-4, atol=1e-6)
        assert np.any(slope)
    assert report(costly.architecture, (penalty, cost))["expected_cost"] == float(cost)
    assert "expected_cost" not in report(plain.architecture, plain.expected_cost())

    double = make(two_replicas, 1, 1, FEW, cost_term=fake_cost_term)
    assert_same(architecture(double), before)
    one_search_step(double, two_replicas, eager=True)
    for path, value in architecture(double).items():
        np.testing.assert_allclose(value, changed[path], rtol=1e-3, atol=1e-4)


def test_the_loss_falls_in_both_phases(traced):
    batch = random_batch(0)
    first = [float(traced.steps((batch,))[0]["loss_w"]) for _ in range(30)]
    second = [traced.steps((batch, batch))[0] for _ in range(30)]
    # Guessing is ln 3 = 1.1.
    assert first[-1] < 0.75 * first[0]
    assert float(second[-1]["loss_w"]) < first[-1]
    losses = [float(architecture_step(traced, batch)) for _ in range(10)]
    assert losses[-1] < losses[0]
    assert float(second[-1]["loss_arch"]) < float(second[0]["loss_arch"])


def test_a_batch_without_valid_pixels_is_no_gradient(traced):
    before = architecture(traced)
    batch = random_batch(0) | {"label": np.full((4, 33, 33), VOID, "int32")}
    (losses,) = traced.steps((batch, batch))
    assert losses["loss_w"].numpy() == losses["loss_arch"].numpy() == 0.0
    assert all(np.isfinite(v.numpy()).all() for v in everything(traced))
    for path, value in before.items():
        np.testing.assert_allclose(architecture(traced)[path], value, atol=0.1)


def one_search_step(search, strategy, eager):
    batches = per_replica(strategy, random_batch(0)), per_replica(strategy, random_batch(1))
    losses = eager_step(search, *batches) if eager else list(search.steps(batches)[0].values())
    return losses, values([*search.supernet.variables, *search.architecture.variables])


@pytest.mark.parametrize(
    ("eager", "size", "operations", "partial_channels"),
    [
        (True, (2, 2), ("dil_conv_3x3", *FEW), 1),
        (True, (1, 2), FEW, 2),
        (False, (1, 1), ("dil_conv_3x3", "skip_connect"), 1),  # small, as it is slow to trace
    ],
)
def test_two_replicas_equal_one_device(two_replicas, eager, size, operations, partial_channels):
    # Replica 0 has 1089 + 726 valid pixels of each batch, replica 1 has 66.
    strategy = distribution.make_strategy("one_device")
    single, double = (
        make(where, *size, operations, partial_channels=partial_channels)
        for where in (strategy, two_replicas)
    )
    before = values([*single.supernet.variables, *single.architecture.variables])
    assert_same(values([*double.supernet.variables, *double.architecture.variables]), before)
    losses, wanted = one_search_step(single, strategy, eager)
    double_losses, actual = one_search_step(double, two_replicas, eager)
    np.testing.assert_allclose(double_losses, losses, rtol=1e-5)
    for path in moving(single):
        np.testing.assert_allclose(actual[path], wanted[path], rtol=1e-5, atol=1e-6)
    # Rounding switches a ReLU here and there, which shows in the smallest gradients.
    assert_same_change(actual, wanted, before, 2e-3)
    for variable in (*double.supernet.variables, *double.architecture.variables):
        left, right = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_replicas_whose_bn_is_not_synchronised(two_replicas, jit_compile):
    size, operations = (1, 1), ("atrous_conv_3x3", "skip_connect")
    options = {"sync_batch_norm": False, "jit_compile": jit_compile}
    double, single = make(two_replicas, *size, operations, **options), one_device(*size, operations)
    start = [v.numpy() for v in everything(single)]
    before = weights(single) | architecture(single) | moving(single)

    def steps(search, batch):
        """Losses of both kinds of steps, each from the start, and what they change."""
        loss_w = search.weight_step(batch)
        changed = weights(search) | moving(search)
        for variable, value in zip(everything(search), start, strict=True):
            variable.assign(value)
        loss_arch = search.architecture_step(batch, batch)
        changed |= architecture(search)
        for variable, value in zip(everything(search), start, strict=True):
            variable.assign(value)
        return np.array([loss_w, loss_arch]), changed

    batch = random_batch(0)
    alone = [steps(single, of_replica(batch, own, 2)) for own in range(2)]
    batches = per_replica(two_replicas, batch)
    losses, actual = steps(double, batches)
    # Forward and backward pass of each replica.
    compiled = 2 if jit_compile else 0
    assert compiled_calls(double.weight_step, batches) == compiled
    assert compiled_calls(double.architecture_step, batches, batches) == compiled
    wanted, shares = of_both_replicas(batch, *(changed for _, changed in alone))
    # Of 33 x 33 pixels all and two thirds; two rows and none.
    np.testing.assert_allclose(shares, np.array([1089 + 726, 66]) / 1881)
    np.testing.assert_allclose(losses, shares @ [own for own, _ in alone], rtol=1e-5)
    assert_same_change(actual, wanted, before, 2e-3)
    for variable in (*double.supernet.variables, *double.architecture.variables):
        left, right = two_replicas.experimental_local_results(variable.value)
        np.testing.assert_array_equal(left, right)


def search_step_in(precision, wrap=lambda optimizer: optimizer):
    """Losses and changes of all trainable variables in one search step."""
    try:
        distribution.set_precision(precision)
        search = one_device(
            1,
            1,
            FEW,
            weight_optimizer=lambda: wrap(optimizers.sgd(0.025, l2=3e-4)),
            architecture_optimizer=lambda: wrap(optimizers.sgd(1.0, l2=1e-3)),
        )
        before = weights(search) | architecture(search)
        losses = eager_step(search, random_batch(0), random_batch(1))
        assert search.logits(random_batch(0)["image"]).dtype == tf.float32
    finally:
        distribution.set_precision("float32")
    after = weights(search) | architecture(search)
    assert all(value.dtype == "float32" for value in after.values())
    return losses, {path: after[path] - before[path] for path in before}


@pytest.fixture(scope="module")
def in_float32():
    return search_step_in("float32")


def cosine(one, other):
    return np.sum(one * other) / (np.linalg.norm(one) * np.linalg.norm(other))


@pytest.mark.parametrize(
    "precision",
    [
        "bfloat16",
        pytest.param(
            "float16",
            marks=pytest.mark.skipif(
                not tf.config.list_physical_devices("GPU"),
                reason="no atrous convolution in float16 on CPUs",
            ),
        ),
    ],
)
def test_half_precision(in_float32, precision):
    losses, wanted = in_float32
    wrap = optimizers.with_loss_scale if precision == "float16" else lambda optimizer: optimizer
    half_losses, actual = search_step_in(precision, wrap)
    # Eight bits of mantissa, or eleven: about 1 % of the loss.
    np.testing.assert_allclose(half_losses, losses, rtol=0.02)
    assert all(np.isfinite(change).all() for change in actual.values())
    assert np.median([cosine(actual[path], wanted[path]) for path in wanted]) > 0.95


def test_loss_scaling_changes_nothing_in_float32(in_float32):
    losses, wanted = in_float32
    scaled_losses, actual = search_step_in("float32", optimizers.with_loss_scale)
    np.testing.assert_allclose(scaled_losses, losses, rtol=1e-6)
    for path, change in wanted.items():
        assert np.linalg.norm(actual[path] - change) <= 1e-3 * np.linalg.norm(change), path


def test_xla_equals_the_plain_step():
    results = []
    for jit_compile in (False, True):
        search = one_device(1, 1, ("atrous_conv_3x3", "skip_connect"), jit_compile=jit_compile)
        before = values([*search.supernet.variables, *search.architecture.variables])
        losses = list(search.steps((random_batch(0), random_batch(1)))[0].values())
        results.append(
            (losses, values([*search.supernet.variables, *search.architecture.variables]))
        )
    (losses, wanted), (jit_losses, actual) = results
    np.testing.assert_allclose(jit_losses, losses, rtol=1e-5)
    assert_same_change(actual, wanted, before, 1e-3)


def test_batches_start_to_come_in_pairs():
    def taken(start_step, first_search_step):
        streams = itertools.count(100), itertools.count(200)
        return list(itertools.islice(pair_batches(*streams, start_step, first_search_step), 4))

    assert taken(0, 2) == [(100,), (101,), (102, 200), (103, 201)]
    assert taken(1, 2) == [(100,), (101, 200), (102, 201), (103, 202)]
    assert taken(5, 2) == taken(0, 0) == [(100 + i, 200 + i) for i in range(4)]


def test_report_and_decoding(search):
    found = report(search.architecture)
    # Almost uniform at the start: ln 8 per edge; ln of the legal directions, 2 or 3, per node.
    assert abs(found["alpha_entropy"] - np.log(8)) < 1e-4
    assert np.log(2) < found["beta_entropy"] < np.log(3)
    # Edge 0 -> block 0 prefers none, which decoding never takes.
    search.architecture.alpha.assign(np.eye(8, dtype="float32")[[7, 0, 6, 1, 1]] * 5)
    search.architecture.beta.assign(np.zeros((3, 4, 3), "float32"))
    search.architecture.beta[:, :, 2].assign(np.full((3, 4), 5.0, "float32"))
    found = report(search.architecture)
    assert found["none_edges"] == 1 and found["path"] == (1, 2, 3)
    genotype, beta = decode(search.architecture, {"seed": 1})
    assert (genotype.path, genotype.cells[0]) == (found["path"], found["cell"])
    assert genotype.meta["seed"] == 1
    np.testing.assert_array_equal(beta, search.architecture()[1])

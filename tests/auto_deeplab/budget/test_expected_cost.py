"""The cost term: its table against whole networks, its mean against all networks one by one."""

import itertools
import json
import math
from functools import partial

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.budget import cost_table, expected_cost
from auto_deeplab.budget.cost_table import CostTable
from auto_deeplab.network.network import Network
from auto_deeplab.search.architecture import Architecture, make_legal_mask, masked_softmax
from auto_deeplab.space import genotype, search_space
from auto_deeplab.space.genotype import Genotype
from official import model_cost
from tests.command import train_here

PATHS = ((0,), (1,), (0, 0), (1, 2, 3), (0, 1, 2), (1, 0, 1, 1, 2, 2), (0, 1, 2, 3, 3, 2, 1, 0))
"""Leaving stride 4 at once and later, going up and down, ending at each level."""

FEW = ("sep_conv_3x3", "skip_connect", "none")


def settings(operations=search_space.OPERATIONS, num_blocks=2):
    return {
        "filter_multiplier": 2,
        "num_blocks": num_blocks,
        "operations": list(operations),
        "crop_size": [40, 64],
        # With B F = 4 channels at stride 4, some second inputs need no projection.
        "stem_filters": [4, 6, 8],
        "head_filters": 8,
        "num_classes": 3,
    }


@pytest.fixture(scope="module")
def table():
    return cost_table.measure(settings(), "multiply_adds")


def invented(operations, num_blocks):
    """A table in which every piece has a cost of its own."""
    rng = np.random.default_rng(0)
    keys = cost_table.list_pieces(operations)
    pieces = {" ".join(map(str, key)): rng.uniform(1, 2) for key in keys}
    return CostTable("latency", settings(operations, num_blocks), pieces)


def counted(genotype, filter_multiplier, stem_filters, head_filters, num_classes, crop_size, **_):
    """The network's multiply-adds as --mode=profile counts them, in billions."""
    network = Network(
        genotype,
        num_classes=num_classes,
        filter_multiplier=filter_multiplier,
        stem_filters=stem_filters,
        head_filters=head_filters,
    )
    network.build((None, None, None, 3))
    return sum(part.multiply_adds for part in model_cost.count(network, tuple(crop_size))) / 1e9


def random_probabilities(num_layers, num_blocks, operations, seed=0):
    """Another alpha for every node, and beta; float64."""
    rng = np.random.default_rng(seed)
    shape = (search_space.num_cell_edges(num_blocks), len(operations))
    nodes = search_space.nodes(num_layers)
    alpha = {node: tf.nn.softmax(tf.constant(rng.normal(size=shape))) for node in nodes}
    logits = tf.constant(rng.normal(size=(num_layers, 4, 3)))
    return alpha, masked_softmax(logits, make_legal_mask(num_layers))


def decided(path, operation, operations, num_blocks):
    """One-hot alpha and beta."""
    alpha = np.zeros([search_space.num_cell_edges(num_blocks), len(operations)], "float32")
    alpha[:, operations.index(operation)] = 1.0
    beta = np.zeros([len(path), 4, 3], "float32")
    for layer, (source, level) in enumerate(itertools.pairwise((0, *path))):
        beta[layer, source, search_space.direction(source, level)] = 1.0
    return lambda layer, level: tf.constant(alpha), tf.constant(beta)


def paths(num_layers):
    levels = itertools.product(range(4), repeat=num_layers)
    return [path for path in levels if np.all(np.abs(np.diff((0, *path))) <= 1)]


@pytest.mark.parametrize("path", PATHS)
def test_the_pieces_of_a_network_add_up_to_it(table, path):
    rng = np.random.default_rng(len(path))
    names = [name for name in search_space.OPERATIONS if name != "none"]
    cell = tuple(
        tuple((int(rng.integers(2 + block)), str(rng.choice(names))) for _ in range(2))
        for block in range(2)
    )
    network = Genotype(path, (cell,))
    wanted = counted(network, **table.settings)
    assert expected_cost.cost_of(table, network) == pytest.approx(wanted, rel=1e-12)


def test_the_published_network_from_its_pieces():
    published = {
        "filter_multiplier": 20,
        "num_blocks": 5,
        "operations": ["sep_conv_3x3", "sep_conv_5x5", "atrous_conv_3x3", "atrous_conv_5x5"],
        "crop_size": [1025, 2049],
        "stem_filters": [64, 64, 128],
        "head_filters": 256,
        "num_classes": 19,
    }
    pieces = cost_table.measure(published, "multiply_adds")
    total = expected_cost.cost_of(pieces, genotype.load("published"))
    assert round(total, 2) == 320.45  # as test_model_cost.py has it


@pytest.mark.parametrize(
    ("path", "operation"),
    zip(PATHS, itertools.cycle(["sep_conv_5x5", "atrous_conv_3x3"]), strict=False),
)
def test_a_decided_architecture_costs_what_its_network_does(table, path, operation):
    # The inputs that are kept make no difference: a convolution costs the same at both strides.
    alpha_of, beta = decided(path, operation, search_space.OPERATIONS, 2)
    value = expected_cost.compute(table, search_space.OPERATIONS, alpha_of, beta)
    network = Genotype(path, ((((0, operation), (1, operation)),) * 2,))
    assert value.dtype == tf.float32 and value.shape == ()
    assert float(value) == pytest.approx(counted(network, **table.settings), rel=1e-6)


@pytest.mark.parametrize(("num_layers", "num_blocks"), [(3, 1), (2, 2)])
def test_expected_is_the_mean_over_all_networks(num_layers, num_blocks):
    table = invented(FEW, num_blocks)
    alpha, beta = random_probabilities(num_layers, num_blocks, FEW)
    edges = search_space.cell_edges(num_blocks)

    def cells(node):
        """Every cell of a node with its chance."""
        chosen = alpha[node].numpy()[:, :2]
        chosen /= chosen.sum(axis=1, keepdims=True)  # given that it is not none
        blocks = []
        for block in range(num_blocks):
            pairs = list(itertools.combinations(range(2 + block), 2))
            blocks.append(
                [
                    (
                        tuple((source, FEW[op]) for source, op in zip(pair, ops, strict=True)),
                        math.prod(
                            chosen[edges.index((block, source)), op]
                            for source, op in zip(pair, ops, strict=True)
                        )
                        / len(pairs),
                    )
                    for pair in pairs
                    for ops in itertools.product(range(2), repeat=2)
                ]
            )
        for cell in itertools.product(*blocks):
            yield tuple(block for block, _ in cell), math.prod(chance for _, chance in cell)

    all_cells = {node: list(cells(node)) for node in alpha}
    mean = total = 0.0
    for path in paths(num_layers):
        steps = enumerate(itertools.pairwise((0, *path)))
        of_path = math.prod(float(beta[i, j, k - j + 1]) for i, (j, k) in steps)
        nodes = enumerate(path, start=1)
        for chosen in itertools.product(*(all_cells[node] for node in nodes)):
            chance = of_path * math.prod(chance for _, chance in chosen)
            cell_list = tuple(cell for cell, _ in chosen)
            network = Genotype(path, cell_list, tuple(range(num_layers)))
            mean += chance * expected_cost.cost_of(table, network)
            total += chance
    assert total == pytest.approx(1.0, rel=1e-12)

    value = expected_cost.compute(table, FEW, lambda *node: alpha[node], beta)
    assert float(value) == pytest.approx(mean, rel=1e-12)


def test_columns_may_be_some_of_the_tables_in_another_order():
    table = invented(search_space.OPERATIONS, 2)
    few = ("none", "max_pool_3x3", "sep_conv_5x5")
    alpha, beta = random_probabilities(3, 2, few)
    order = [search_space.OPERATIONS.index(name) for name in few]

    def widened(*node):
        wide = np.zeros([5, 8])
        wide[:, order] = alpha[node]
        return tf.constant(wide)

    values = [
        expected_cost.compute(table, few, lambda *node: alpha[node], beta),
        expected_cost.compute(table, search_space.OPERATIONS, widened, beta),
    ]
    assert float(values[0]) == pytest.approx(float(values[1]), rel=1e-12)


def test_gradients_are_those_of_finite_differences():
    table = invented(FEW, 2)
    rng = np.random.default_rng(0)
    logits = [tf.constant(rng.normal(size=shape)) for shape in ((4, 5, 3), (4, 4, 3))]
    legal = make_legal_mask(4)

    def value(alpha, beta):  # a different alpha for every level
        alpha = tf.nn.softmax(alpha)
        beta = masked_softmax(beta, legal)
        return expected_cost.compute(table, FEW, lambda _, level: alpha[level], beta)

    with tf.GradientTape() as tape:
        tape.watch(logits)
        result = value(*logits)
    gradients = [tf.convert_to_tensor(g).numpy() for g in tape.gradient(result, logits)]
    assert all(np.abs(g).max() > 1e-2 for g in gradients)
    for number, index in [(0, (1, 3, 0)), (0, (0, 0, 1)), (0, (3, 4, 2)), (1, (0, 0, 1))] + [
        (1, tuple(index)) for index in np.argwhere(legal)[-3:]
    ]:
        ends = []
        for step in (1e-5, -1e-5):
            moved = [tensor.numpy() for tensor in logits]
            moved[number][index] += step
            ends.append(float(value(*map(tf.constant, moved))))
        slope = (ends[0] - ends[1]) / 2e-5
        assert gradients[number][index] == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_less_of_what_is_dear_costs_less(table):
    architecture = Architecture(
        num_layers=3, num_blocks=2, operations=search_space.OPERATIONS, seed=0
    )
    term = expected_cost.make_budget_term(table, search_space.OPERATIONS, budget=1e-9, weight=1.0)

    def value():
        alpha, beta = architecture()
        return float(term(partial(architecture.alpha_of, alpha), beta)[1])

    before = value()
    alpha = architecture.alpha.numpy()
    alpha[:, search_space.OPERATIONS.index("atrous_conv_5x5")] -= 1.0
    architecture.alpha.assign(alpha)
    without_dear = value()
    assert without_dear < 0.999 * before
    alpha[:, search_space.OPERATIONS.index("skip_connect")] -= 1.0
    architecture.alpha.assign(alpha)
    assert value() > 1.001 * without_dear
    # `none` is never decoded: its probability changes nothing.
    before = value()
    alpha[:, search_space.OPERATIONS.index("none")] += 3.0
    architecture.alpha.assign(alpha)
    assert value() == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("sharing", search_space.ALPHA_SHARING)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_saturated_logits_are_numbers(table, sharing, scale):
    architecture = Architecture(
        num_layers=3,
        num_blocks=2,
        operations=search_space.OPERATIONS,
        seed=0,
        alpha_sharing=sharing,
    )
    rng = np.random.default_rng(0)
    for variable in architecture.variables:
        variable.assign(scale * rng.normal(size=variable.shape))
    alpha = architecture.alpha.numpy()
    alpha[..., 0, 7] = scale * 10.0  # one edge is nothing but none
    architecture.alpha.assign(alpha)

    @tf.function
    def cost_and_gradients():
        with tf.GradientTape() as tape:
            alpha, beta = architecture()
            of_node = partial(architecture.alpha_of, alpha)
            value = expected_cost.compute(table, search_space.OPERATIONS, of_node, beta)
        return value, tape.gradient(value, architecture.trainable_variables)

    value, gradients = cost_and_gradients()
    low, high = expected_cost.compute_bounds(table, search_space.OPERATIONS, 3)
    assert low < float(value) < high
    gradients = [tf.convert_to_tensor(gradient).numpy() for gradient in gradients]
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert np.abs(gradients[0]).max() > 0 or scale > 1


def test_an_edge_of_none_alone_is_any_other_operation(table):
    alpha_of, beta = decided((0, 1), "none", search_space.OPERATIONS, 2)
    value = expected_cost.compute(table, search_space.OPERATIONS, alpha_of, beta)
    uniform = tf.fill([5, 8], 1 / 8)
    wanted = expected_cost.compute(table, search_space.OPERATIONS, lambda *_: uniform, beta)
    assert float(value) == pytest.approx(float(wanted), rel=1e-6)


def test_bounds_are_reached_and_never_left():
    table = invented(FEW, 2)
    low, high = expected_cost.compute_bounds(table, FEW, 3)

    @tf.function
    def value(alpha, beta):  # alpha by layer
        return expected_cost.compute(table, FEW, lambda layer, _: alpha[layer - 1], beta)

    # All paths, and in each layer one operation on the cell's inputs (edges 0 to 3 of 5) and one
    # on block 0 (edge 4).
    cells = [np.eye(3)[[first] * 4 + [last]] for first in range(2) for last in range(2)]
    values = [
        float(value(tf.stack(chosen), tf.cast(decided(path, "none", FEW, 2)[1], tf.float64)))
        for path in paths(3)
        for chosen in itertools.product(cells, repeat=3)
    ]
    assert len(values) == 13 * 4**3
    assert (min(values), max(values)) == pytest.approx((low, high), rel=1e-12)
    for seed in range(3):
        alpha, beta = random_probabilities(3, 2, FEW, seed)
        alpha = [alpha[layer, 0] for layer in (1, 2, 3)]
        assert low < float(value(tf.stack(alpha), beta)) < high


def test_the_penalty_begins_at_the_budget(table):
    alpha_of, beta = decided((0, 1), "sep_conv_3x3", search_space.OPERATIONS, 2)
    value = float(expected_cost.compute(table, search_space.OPERATIONS, alpha_of, beta))
    for share, penalty in ((0.5, 3.0), (0.8, 0.75), (1.25, 0.0)):  # 3 (1 / share - 1)
        term = expected_cost.make_budget_term(
            table, search_space.OPERATIONS, budget=share * value, weight=3.0
        )
        found = term(alpha_of, beta)
        assert float(found[0]) == pytest.approx(penalty, rel=1e-5)
        assert float(found[1]) == value


def test_a_table_in_a_file(table, tmp_path):
    file = tmp_path / "new" / "costs.json"
    table.save(file)
    again = cost_table.load(file)
    assert again == table and again.digest() == table.digest() and len(table.digest()) == 12
    assert cost_table.load(file).to_json() == file.read_text()
    assert [path.name for path in file.parent.iterdir()] == ["costs.json"]
    content = json.loads(file.read_text())
    assert (content["format"], content["metric"], content["unit"]) == (
        *(1, "multiply_adds", "billions"),
    )
    content["pieces"]["stem"] += 1e-9
    assert CostTable.from_json(json.dumps(content)).digest() != table.digest()

    for change in (
        lambda c: c.pop("unit"),
        lambda c: c.update(format=2),
        lambda c: c.update(metric="latency"),  # in billions
        lambda c: c.update(settings=[]),
        lambda c: c["settings"].pop("num_blocks"),
        lambda c: c["settings"].update(operations=["sep_conv_3x3"]),
        lambda c: c["settings"].update(operations=7),
        lambda c: c["pieces"].pop("aspp 2"),
        lambda c: c["pieces"].update(stem="dear"),
        lambda c: c["pieces"].update(stem=-1.0),
        lambda c: c["pieces"].update(stem=math.nan),
    ):
        content = json.loads(file.read_text())
        change(content)
        with pytest.raises(ValueError, match="not a whole cost table"):
            CostTable.from_json(json.dumps(content))
    for spoilt in (file.read_bytes()[:-5], b"", b"[]", b"\xff\xfe"):
        (tmp_path / "spoilt.json").write_bytes(spoilt)
        with pytest.raises(ValueError, match=r"spoilt.json is no cost table \(not a whole"):
            cost_table.load(tmp_path / "spoilt.json")
    for missing in (tmp_path / "none.json", tmp_path):
        with pytest.raises(ValueError, match="cannot be read"):
            cost_table.load(missing)


def profile(file, *more):
    return train_here(
        *("--mode=profile", f"--cost_table={file}", "--filter_multiplier=2", "--crop_size=33"),
        *("--operations=sep_conv_3x3,skip_connect,none", "--stem_filters=4,4,4"),
        *("--head_filters=8", "--num_blocks=2", "--num_layers=2", *more),
    )


@pytest.mark.parametrize("metric", ["multiply_adds", "latency"])
def test_profile_writes_the_table(tmp_path, metric):
    done = profile(tmp_path / "costs.json", f"--cost_metric={metric}")
    assert done.code == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    table = cost_table.load(tmp_path / "costs.json")
    assert (summary["metric"], summary["pieces"]) == (table.metric, len(table.pieces))
    low, high = expected_cost.compute_bounds(table, FEW, 2)
    assert (summary["cheapest"], summary["dearest"]) == (low, high) and 0 < low < high
    assert table.settings["operations"] == list(FEW)
    assert (table.settings["crop_size"], table.settings["num_classes"]) == ([33, 33], 19)
    free = [name for name, value in table.pieces.items() if value == 0]
    if metric == "multiply_adds":
        identities = [f"skip_connect {level} 1" for level in range(4)]
        assert free == [f"operation {name}" for name in identities] + [
            f"blocks {level}" for level in range(4)
        ]
    else:
        assert {"device", "precision"} <= table.settings.keys()
        assert table("stem") > 0 and table("decoder", "cell") > 0


def test_profile_refuses_what_it_cannot_do(tmp_path):
    for flag, file in (("--genotype=published", "costs.json"), ("--model_dir=run", "costs.json")):
        done = profile(tmp_path / file, flag)
        assert done.code == 2 and flag in done.error and "--cost_table" in done.error
    done = profile(tmp_path)
    assert done.code == 2 and "is a directory" in done.error
    assert not list(tmp_path.iterdir())
    (tmp_path / "genotype.json").write_text("mine")
    done = profile(tmp_path / "genotype.json")
    assert done.code == 2 and "is there already and is another kind of file" in done.error
    assert (tmp_path / "genotype.json").read_text() == "mine"


def test_profile_replaces_an_older_table(tmp_path):
    file = tmp_path / "costs.json"
    file.write_text('{"format": 1, "pieces": {}}')
    assert profile(file).code == 0
    cost_table.load(file)

import itertools
import math
import warnings

import numpy as np
import pytest

from auto_deeplab.space import decoding, search_space

OPERATIONS = search_space.OPERATIONS


def random_beta(rng, num_layers, sharpness=1.0):
    """Normalised over the legal directions, by a definition of its own."""
    beta = np.zeros([num_layers, 4, 3])
    for layer, source in itertools.product(range(1, num_layers + 1), range(min(num_layers, 4))):
        if source <= layer - 1:
            weights = np.exp(sharpness * rng.normal(size=3))
            weights[[source == 0, False, source == 3]] = 0
            beta[layer - 1, source] = weights / weights.sum()
    return beta


def all_paths(num_layers):
    """Every path, in lexicographic order."""
    for path in itertools.product(range(4), repeat=num_layers):
        if all(abs(a - b) <= 1 for a, b in itertools.pairwise((0, *path))):
            yield path


def probability(beta, path):
    edges = enumerate(itertools.pairwise((0, *path)))
    return math.prod(beta[layer, a, b - a + 1] for layer, (a, b) in edges)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 5, 6, 7])
def test_viterbi_is_brute_force(num_layers):
    rng = np.random.default_rng(num_layers)
    paths = list(all_paths(num_layers))
    assert len(paths) == search_space.count_paths(num_layers)
    found = set()
    for trial in range(25):
        beta = random_beta(rng, num_layers, sharpness=0.1 if trial % 2 else 3.0)
        best = max(paths, key=lambda path: probability(beta, path))
        assert decoding.decode_path(beta) == best
        found.add(best)
    assert len(found) > min(num_layers, 4) / 2  # the trials were not all alike


def test_viterbi_ties_go_to_the_finer_level_first():
    rng = np.random.default_rng(0)
    paths = list(all_paths(5))
    ties = 0
    for _ in range(60):
        # Powers of two only, so that equal products are equal in floating point too.
        beta = 2.0 ** -rng.integers(0, 3, size=[5, 4, 3])
        best = max(probability(beta, path) for path in paths)
        winners = [path for path in paths if probability(beta, path) == best]
        assert decoding.decode_path(beta) == winners[0]  # first in lexicographic order
        ties += len(winners) > 1
    assert ties > 20


def test_one_hot_beta_is_the_path():
    rng = np.random.default_rng(1)
    paths = list(all_paths(8))
    for path in (paths[index] for index in rng.integers(len(paths), size=50)):
        beta = np.zeros([8, 4, 3])
        for layer, (source, level) in enumerate(itertools.pairwise((0, *path))):
            beta[layer, source, level - source + 1] = 1
        assert decoding.decode_path(beta) == path


def test_the_best_path_is_not_the_greedy_one():
    # The stem leaves for level 1 with 0.6, where the next edge splits into thirds: 0.6 / 3 = 0.2.
    # Staying has 0.4 x 0.9 = 0.36.
    beta = np.zeros([2, 4, 3])
    beta[0, 0] = [0, 0.4, 0.6]
    beta[1, 0] = [0, 0.9, 0.1]
    beta[1, 1] = 1 / 3
    assert decoding.decode_path(beta) == (0, 0)


def test_long_paths_of_tiny_probabilities_do_not_underflow():
    beta = random_beta(np.random.default_rng(2), 12)
    path = decoding.decode_path(beta)
    assert decoding.decode_path(beta * 1e-200) == path  # (1e-200)^12 is 0 in float64


def test_illegal_directions_are_never_taken():
    # Weights outside the legal entries, and rows without any weight at all, lead nowhere else.
    illegal = np.ones([6, 4, 3])
    for layer, source, level in search_space.edges(6):
        illegal[layer - 1, source, search_space.direction(source, level)] = 1e-3
    for beta in (illegal, np.zeros([6, 4, 3])):
        assert decoding.decode_path(beta) == (0,) * 6


def test_zeros_make_no_warnings():
    with warnings.catch_warnings(action="error"):
        decoding.decode_path(np.zeros([3, 4, 3]))
        decoding.beta_entropy(np.zeros([3, 4, 3]))
        decoding.alpha_entropy(np.zeros([2, 8]))


def one_hot_alpha(cell, num_blocks):
    alpha = np.zeros([search_space.num_cell_edges(num_blocks), 8])
    for row, (block, source) in enumerate(search_space.cell_edges(num_blocks)):
        name = dict(cell[block]).get(source, "none")
        alpha[row, OPERATIONS.index(name)] = 1
    return alpha


def test_one_hot_alpha_is_the_cell():
    rng = np.random.default_rng(3)
    for _ in range(20):
        cell = tuple(
            tuple(
                (int(source), OPERATIONS[rng.integers(7)])
                for source in sorted(rng.choice(2 + block, 2, replace=False))
            )
            for block in range(5)
        )
        assert decoding.decode_cell(one_hot_alpha(cell, 5), OPERATIONS, 5) == cell


@pytest.mark.parametrize("operations", [OPERATIONS, ("none", *OPERATIONS[:7]), OPERATIONS[:7]])
def test_decoding_keeps_the_two_strongest_and_never_none(operations):
    rng = np.random.default_rng(4)
    for trial in range(30):
        logits = rng.normal(size=[20, len(operations)])
        if trial % 2 and "none" in operations:
            logits[:, operations.index("none")] += 10  # none wins every edge
        alpha = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        cell = decoding.decode_cell(alpha, operations, 5)
        start = 0
        for block, branches in enumerate(cell):
            weights = {
                source: {
                    name: alpha[start + source, column]
                    for column, name in enumerate(operations)
                    if name != "none"
                }
                for source in range(2 + block)
            }
            strongest = sorted(weights, key=lambda s: max(weights[s].values()))[-2:]
            assert [source for source, _ in branches] == sorted(strongest)
            for source, name in branches:
                assert name == max(weights[source], key=weights[source].get)
            start += 2 + block


def test_cell_ties_go_to_the_lowest_index():
    uniform = np.full([20, 8], 1 / 8)
    first = ((0, "sep_conv_3x3"), (1, "sep_conv_3x3"))
    assert decoding.decode_cell(uniform, OPERATIONS, 5) == (first,) * 5
    # Nothing but none: its rivals all have probability 0, and the first of them is taken.
    only_none = np.zeros([20, 8])
    only_none[:, 7] = 1
    assert decoding.decode_cell(only_none, OPERATIONS, 5) == (first,) * 5
    with_none_first = np.roll(only_none, 1, axis=1)
    names = ("none", *OPERATIONS[:7])
    assert decoding.decode_cell(with_none_first, names, 5) == (first,) * 5


def test_decode_makes_a_genotype_with_its_origin():
    alpha = np.full([5, 8], 1 / 8, np.float32)
    beta = random_beta(np.random.default_rng(5), 4)
    made = decoding.decode(alpha, beta, OPERATIONS, 2, {"seed": 7})
    assert (made.num_layers, made.num_blocks) == (4, 2)
    assert made.meta["seed"] == 7
    assert made.meta["operations"] == list(OPERATIONS)
    np.testing.assert_array_equal(made.meta["alpha"], alpha)
    np.testing.assert_array_equal(made.meta["beta"], beta)


def test_entropies():
    assert decoding.alpha_entropy(np.full([20, 8], 1 / 8)) == pytest.approx(math.log(8))
    certain = np.zeros([20, 8])
    certain[:, 3] = 1
    assert decoding.alpha_entropy(certain) == 0
    half = certain.copy()
    half[:10] = 1 / 8  # one half of the rows uniform, the other certain
    assert decoding.alpha_entropy(half) == pytest.approx(math.log(8) / 2)
    beta = np.zeros([2, 4, 3])
    beta[0, 0] = [0, 0.5, 0.5]
    beta[1, 0] = [0, 0.5, 0.5]
    beta[1, 1] = 1 / 3
    # Three source nodes in two layers; the five rows of nodes that do not exist do not count.
    assert decoding.beta_entropy(beta) == pytest.approx((2 * math.log(2) + math.log(3)) / 3)


def test_counts():
    alpha = np.zeros([5, 8])
    alpha[:, 6] = 0.4  # skip_connect
    alpha[[0, 3], 7] = 0.6  # none
    cell = decoding.decode_cell(alpha, OPERATIONS, 2)
    assert decoding.count_skip_connects(cell) == 4  # every branch of two blocks
    assert decoding.count_none_edges(alpha, OPERATIONS) == 2
    assert decoding.count_none_edges(alpha[:, :7], OPERATIONS[:7]) == 0


def test_strongest_edges():
    beta = np.zeros([2, 4, 3])
    beta[0, 0] = [0, 0.3, 0.7]
    beta[1, 0] = [0, 0.5, 0.5]  # a tie: the lower index
    beta[1, 1] = [0.2, 0.3, 0.5]
    assert decoding.find_strongest_edges(beta) == [(1, 0, 1), (2, 0, 0), (2, 1, 2)]
    # One edge for every node that has successors: the stem and the 45 - 4 nodes of layers 1..11.
    assert len(decoding.find_strongest_edges(random_beta(np.random.default_rng(6), 12))) == 1 + 41


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decoding.decode_path(np.ones([3, 4])), r"beta has shape \(3, 4\)"),
        (lambda: decoding.decode_path(np.ones([0, 4, 3])), "beta has shape"),
        (lambda: decoding.decode_path(np.full([3, 4, 3], np.nan)), "beta holds values"),
        (lambda: decoding.decode_path(-np.ones([3, 4, 3])), "beta holds values"),
        (lambda: decoding.decode_cell(np.ones([20, 7]), OPERATIONS, 5), "not .edges, 8., a column"),
        (lambda: decoding.decode_cell(np.ones([20, 8]), OPERATIONS, 4), "4 blocks have 14 edges"),
        (lambda: decoding.decode_cell(np.full([5, 8], np.inf), OPERATIONS, 2), "alpha holds"),
        (lambda: decoding.decode_cell(np.ones([5, 1]), ["none"], 2), "at least one besides none"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()

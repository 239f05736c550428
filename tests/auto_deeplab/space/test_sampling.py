"""Drawing and ranking architectures: exact probabilities, counts of draws, brute force."""

import collections
import itertools
import math

import numpy as np
import pytest

from auto_deeplab.space import decoding, sampling, search_space

OPERATIONS = ("sep_conv_3x3", "skip_connect", "none")
SHARING = {"global": (), "level": (4,), "layer": (3,)}


def random_alpha(rng, blocks, lead=(), operations=OPERATIONS):
    shape = (*lead, search_space.num_cell_edges(blocks), len(operations))
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def random_beta(rng, layers):
    beta = np.zeros([layers, 4, 3])
    for layer in range(1, layers + 1):
        for source in search_space.levels_at(layer - 1):
            legal = list(search_space.legal_directions(layer, source))
            beta[layer - 1, source, legal] = rng.dirichlet(np.ones(len(legal)))
    return beta


def all_paths(layers):
    """Every path, by trying all tuples of levels."""
    for path in itertools.product(range(4), repeat=layers):
        whole = (0, *path)
        steps = itertools.pairwise(whole)
        if all(abs(a - b) <= 1 for a, b in steps) and all(
            level <= layer for layer, level in enumerate(whole)
        ):
            yield path


def path_probability(beta, path):
    edges = itertools.pairwise((0, *path))
    return math.prod(beta[layer, a, b - a + 1] for layer, (a, b) in enumerate(edges))


def all_cells(blocks, names):
    kinds = [
        [
            ((i, a), (j, b))
            for i, j in itertools.combinations(range(2 + block), 2)
            for a, b in itertools.product(names, repeat=2)
        ]
        for block in range(blocks)
    ]
    return list(itertools.product(*kinds))


def cell_probability(alpha, cell, operations=OPERATIONS):
    row_of = {edge: row for row, edge in enumerate(search_space.cell_edges(len(cell)))}
    return math.prod(
        alpha[row_of[number, source], operations.index(name)]
        for number, block in enumerate(cell)
        for source, name in block
    )


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 7])
def test_by_the_uniform_beta_every_path_has_the_same_probability(layers):
    _, beta = sampling.make_uniform(layers, 1, OPERATIONS)
    paths = list(all_paths(layers))
    assert len(paths) == search_space.count_paths(layers)
    for path in paths:
        assert path_probability(beta, path) == pytest.approx(1 / len(paths), rel=1e-12)
    decoding.check_beta(beta)
    for layer in range(layers):
        for source in search_space.levels_at(layer):
            assert beta[layer, source].sum() == pytest.approx(1, rel=1e-12)


def chi_square(counts, probabilities, draws):
    return sum((counts[key] - draws * p) ** 2 / (draws * p) for key, p in probabilities.items())


def test_uniform_draws_are_uniform():
    layers, blocks, draws = 3, 2, 20_000
    alpha, beta = sampling.make_uniform(layers, blocks, OPERATIONS)
    rng = np.random.default_rng(0)
    drawn = [sampling.draw(alpha, beta, OPERATIONS, blocks, rng) for _ in range(draws)]
    cells = all_cells(blocks, OPERATIONS[:2])
    assert len(cells) == sampling.count_cells(blocks, OPERATIONS) == 1 * 4 * 3 * 4
    paths = list(all_paths(layers))
    for found, space in (
        (collections.Counter(one.path for one in drawn), paths),
        (collections.Counter(one.cells[0] for one in drawn), cells),
    ):
        assert found.keys() == set(space)
        # With n - 1 degrees of freedom, mean n - 1 and variance 2 (n - 1): six deviations.
        freedom = len(space) - 1
        expected = dict.fromkeys(space, 1 / len(space))
        assert chi_square(found, expected, draws) < freedom + 6 * math.sqrt(2 * freedom)


def test_draws_follow_alpha_and_beta():
    rng, draws, blocks = np.random.default_rng(1), 20_000, 2
    alpha, beta = random_alpha(rng, blocks), random_beta(rng, 3)
    drawn = [sampling.draw(alpha, beta, OPERATIONS, blocks, rng) for _ in range(draws)]
    paths = {path: path_probability(beta, path) for path in all_paths(3)}
    assert sum(paths.values()) == pytest.approx(1)
    found = collections.Counter(one.path for one in drawn)
    assert chi_square(found, paths, draws) < len(paths) - 1 + 6 * math.sqrt(2 * len(paths))

    # Block 1, by its definition: two of three inputs, one after the other by their strengths.
    allowed = alpha[2:5, :2]
    strength = allowed.max(1)
    operations = allowed / allowed.sum(1, keepdims=True)
    cells = {}
    for i, j in itertools.combinations(range(3), 2):
        pair = sum(
            strength[a] / strength.sum() * strength[b] / (strength.sum() - strength[a])
            for a, b in ((i, j), (j, i))
        )
        for a, b in itertools.product(range(2), repeat=2):
            block = ((i, OPERATIONS[a]), (j, OPERATIONS[b]))
            cells[block] = pair * operations[i, a] * operations[j, b]
    assert sum(cells.values()) == pytest.approx(1)
    found = collections.Counter(one.cells[0][1] for one in drawn)
    assert chi_square(found, cells, draws) < 11 + 6 * math.sqrt(22)


@pytest.mark.parametrize("sharing", SHARING)
def test_what_is_certain_is_drawn_and_is_what_decoding_finds(sharing):
    rng = np.random.default_rng(2)
    # Of each block two inputs have an operation for certain, and the others none.
    alpha = np.zeros((*SHARING[sharing], search_space.num_cell_edges(3), len(OPERATIONS)))
    alpha[..., OPERATIONS.index("none")] = 1.0
    for rows in alpha.reshape([-1, *alpha.shape[-2:]]):
        for first, inputs in ((0, 2), (2, 3), (5, 4)):
            for edge in rng.choice(inputs, 2, replace=False):
                rows[first + edge] = np.eye(len(OPERATIONS))[rng.integers(2)]
    beta = random_beta(rng, 3)
    beta = np.where((beta == beta.max(-1, keepdims=True)) & (beta > 0), 1.0, 0.0)
    decoded = decoding.decode(alpha, beta, OPERATIONS, 3, alpha_sharing=sharing)
    for _ in range(5):
        one = sampling.draw(alpha, beta, OPERATIONS, 3, rng, alpha_sharing=sharing)
        assert one == decoded


def test_the_same_seed_draws_the_same():
    alpha, beta = sampling.make_uniform(12, 5, search_space.OPERATIONS)
    one, same, other = (
        sampling.draw(alpha, beta, search_space.OPERATIONS, 5, np.random.default_rng(seed))
        for seed in (0, 0, 1)
    )
    assert one == same != other


@pytest.mark.parametrize("seed", range(4))
def test_the_best_are_those_of_brute_force(seed):
    rng, blocks, layers = np.random.default_rng(seed), 2, 3
    alpha, beta = random_alpha(rng, blocks), random_beta(rng, layers)
    worth = {
        (path, cell): path_probability(beta, path) * cell_probability(alpha, cell)
        for path in all_paths(layers)
        for cell in all_cells(blocks, OPERATIONS[:2])
    }
    best = sorted(worth, key=lambda key: -worth[key])
    for count in (1, 7, 40, len(worth), len(worth) + 5):
        found = sampling.find_best(alpha, beta, OPERATIONS, blocks, count)
        assert [(one.path, one.cells[0]) for one in found] == best[:count]


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("seed", [None, *range(4)])
def test_the_best_of_all_is_what_decoding_finds(sharing, seed):
    lead = SHARING[sharing]
    if seed is None:  # every choice is a tie
        alpha, beta = sampling.make_uniform(3, 3, OPERATIONS)
        alpha, beta = np.broadcast_to(alpha, (*lead, *alpha.shape)), (beta > 0) / 2
    else:
        rng = np.random.default_rng(seed)
        alpha, beta = random_alpha(rng, 3, lead), random_beta(rng, 3)
    (best,) = sampling.find_best(alpha, beta, OPERATIONS, 3, 1, alpha_sharing=sharing)
    assert best == decoding.decode(alpha, beta, OPERATIONS, 3, alpha_sharing=sharing)


def test_cells_of_several_alphas_are_ranked_together():
    rng, layers = np.random.default_rng(5), 3
    alpha, beta = random_alpha(rng, 1, (layers,)), random_beta(rng, layers)
    cells = all_cells(1, OPERATIONS[:2])
    worth = {
        (path, chosen): path_probability(beta, path)
        * math.prod(cell_probability(one, cell) for one, cell in zip(alpha, chosen, strict=True))
        for path in all_paths(layers)
        for chosen in itertools.product(cells, repeat=layers)
    }
    best = sorted(worth, key=lambda key: -worth[key])[:50]
    found = sampling.find_best(alpha, beta, OPERATIONS, 1, 50, alpha_sharing="layer")
    assert [(one.path, one.cells) for one in found] == best
    assert all(one.cell_of_layer == (0, 1, 2) for one in found)


def test_what_has_no_probability_comes_last_but_comes():
    alpha = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    beta = np.zeros([1, 4, 3])
    beta[0, 0, 1] = 1.0
    found = sampling.find_best(alpha, beta, OPERATIONS, 1, 100)
    assert len(found) == 2 * 4 and found[0].path == (0,)
    assert found[0].cells[0] == (((0, "sep_conv_3x3"), (1, "sep_conv_3x3")),)


def test_wrong_shapes_are_refused():
    alpha, beta = sampling.make_uniform(2, 2, OPERATIONS)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="alpha has 5 rows, but 3 blocks have 9 edges"):
        sampling.draw(alpha, beta, OPERATIONS, 3, rng)
    with pytest.raises(ValueError, match="beta has shape"):
        sampling.draw(alpha, beta[0], OPERATIONS, 2, rng)
    with pytest.raises(ValueError, match="there are 1 alphas, but layer sharing has 2"):
        sampling.draw(alpha, beta, OPERATIONS, 2, rng, alpha_sharing="layer")

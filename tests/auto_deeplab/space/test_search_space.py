import itertools

import pytest

from auto_deeplab.space import search_space


def brute_force_edges(num_layers):
    """Every pair of points of a grid that meets the definition of Sec. 3.2."""
    grid = range(4)
    return {
        (layer, source, level)
        for layer in range(1, num_layers + 1)
        for source, level in itertools.product(grid, grid)
        if source <= layer - 1 and level <= layer and abs(source - level) <= 1
    }


def brute_force_paths(num_layers):
    """The walks over four levels, from level 0, of steps -1, 0, +1; there are 3^n candidates."""
    count = 0
    for steps in itertools.product((-1, 0, 1), repeat=num_layers):
        levels = list(itertools.accumulate(steps))
        count += all(0 <= level <= 3 for level in levels)
    return count


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 5, 12, 13])
def test_edges_are_those_of_the_definition(num_layers):
    edges = search_space.edges(num_layers)
    assert len(edges) == len(set(edges))
    assert set(edges) == brute_force_edges(num_layers)


def test_sizes_of_the_trellis():
    # Layers 1, 2 have 2 and 3 nodes, the other ten have 4: 2 + 3 + 40.
    assert len(search_space.nodes(12)) == 45
    # Out of layers 0, 1, 2: 2, 2 + 3, 2 + 3 + 3; out of the nine layers 3..11: 2 + 3 + 3 + 2.
    assert len(search_space.edges(12)) == 2 + 5 + 8 + 90 == 105


def test_number_of_paths():
    for num_layers in range(1, 9):
        assert search_space.count_paths(num_layers) == brute_force_paths(num_layers)
    # On a path graph of 4 vertices with loops the walks from an end are Fibonacci numbers F(2n+1).
    assert search_space.count_paths(12) == 75025
    assert search_space.count_paths(11) == 28657  # the paper's 2.9 x 10^4


def test_number_of_cells():
    assert search_space.count_cells(5, 8) == (2 * 3 * 4 * 5 * 6) ** 2 * 8**10
    assert f"{search_space.count_cells(5, 8):.2e}" == "5.57e+14"  # the paper's 5.6 x 10^14


def test_nodes_exist_from_the_diagonal_on():
    assert [list(search_space.levels_at(layer)) for layer in range(5)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3],
    ]
    assert not search_space.exists(2, 3)
    assert not search_space.exists(7, 4)
    assert not search_space.exists(7, -1)


def test_predecessors_and_successors_are_the_same_edges():
    forward = {
        (layer + 1, source, level)
        for layer, source in [(0, 0), *search_space.nodes(11)]
        for level in search_space.successors(layer, source)
    }
    assert forward == set(search_space.edges(12))
    assert search_space.predecessors(5, 1) == [0, 1, 2]
    assert search_space.predecessors(3, 3) == [2]
    assert search_space.predecessors(1, 2) == []


def test_legal_directions_cover_every_edge_once():
    listed = [
        (layer, source, source + direction - search_space.SAME)
        for layer in range(1, 13)
        for source in range(4)
        for direction in search_space.legal_directions(layer, source)
    ]
    assert len(listed) == 105
    assert set(listed) == set(search_space.edges(12))


def test_legal_directions_at_the_borders():
    up, same, down = search_space.UP, search_space.SAME, search_space.DOWN
    assert search_space.legal_directions(1, 0) == (same, down)
    assert search_space.legal_directions(1, 1) == ()  # the stem has level 0 only
    assert search_space.legal_directions(2, 1) == (up, same, down)
    assert search_space.legal_directions(12, 3) == (up, same)


def test_direction_refuses_jumps():
    assert search_space.direction(2, 1) == search_space.UP
    with pytest.raises(ValueError, match="no edge goes from level 0 to level 2"):
        search_space.direction(0, 2)


def test_strides():
    assert [search_space.stride(level) for level in range(-1, 4)] == [2, 4, 8, 16, 32]


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ((1, 0), (-1, -1, 2)),  # layer -1 is the stride-2 stem tensor: 2 -> 4
        ((1, 1), (-1, -1, 4)),  # the author's own example: 2 -> 8
        ((2, 0), (0, 0, 1)),
        ((2, 1), (0, 0, 2)),
        ((2, 2), (0, 0, 4)),
        ((3, 1), (1, 1, 1)),
        ((3, 2), (1, 1, 2)),
        ((3, 3), (1, 1, 4)),
        ((4, 2), (2, 2, 1)),
        ((4, 3), (2, 2, 2)),
        ((5, 3), (3, 3, 1)),
    ],
)
def test_second_source(node, expected):
    assert search_space.second_source(*node) == expected


def test_second_source_has_the_stride_it_promises():
    for layer, level in search_space.nodes(12):
        source_layer, source_level, factor = search_space.second_source(layer, level)
        assert source_layer == layer - 2
        assert search_space.stride(source_level) * factor == search_space.stride(level)
        assert factor in (1, 2, 4)


def test_cell_edges():
    assert search_space.cell_edges(2) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    for num_blocks in range(1, 8):
        edges = search_space.cell_edges(num_blocks)
        assert len(edges) == search_space.num_cell_edges(num_blocks)
        assert edges == sorted(edges)
    assert search_space.num_cell_edges(5) == 2 + 3 + 4 + 5 + 6 == 20


def test_operations():
    assert len(search_space.OPERATIONS) == 8
    assert search_space.DIL_OPERATIONS[2:4] == ("dil_conv_3x3", "dil_conv_5x5")
    for names in (search_space.OPERATIONS, search_space.DIL_OPERATIONS, ("skip_connect",)):
        assert search_space.validate_operations(list(names)) == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sep_conv_3x3", "sep_conv3x3"], "unknown operation 'sep_conv3x3': did you mean 'sep_"),
        (["conv"], "unknown operation 'conv'.*known are sep_conv_3x3, "),
        (["none", "skip_connect", "none"], "'none' is listed twice"),
        (["none"], "at least one besides none"),
        ([], "at least one besides none"),
    ],
)
def test_bad_operations(names, message):
    with pytest.raises(ValueError, match=message):
        search_space.validate_operations(names)

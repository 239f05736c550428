"""An architecture as alpha and beta: decoding gives it back, and nothing else is in them."""

import numpy as np
import pytest

from auto_deeplab.space import decoding, sampling, search_space
from auto_deeplab.space.encoding import encode
from auto_deeplab.space.genotype import Genotype

OPERATIONS = ("sep_conv_3x3", "max_pool_3x3", "skip_connect", "none")


@pytest.mark.parametrize("sharing", search_space.ALPHA_SHARING)
def test_decoding_gives_it_back(sharing):
    rng = np.random.default_rng(0)
    alpha, beta = sampling.make_uniform(5, 3, OPERATIONS)
    count = search_space.num_alphas(sharing, 5)
    if count > 1:
        alpha = np.stack([alpha] * count)
    for _ in range(20):
        drawn = sampling.draw(alpha, beta, OPERATIONS, 3, rng, alpha_sharing=sharing)
        codes = encode(drawn, OPERATIONS, 5, 3, alpha_sharing=sharing)
        found = decoding.decode(*codes, OPERATIONS, 3, alpha_sharing=sharing)
        assert found.path == drawn.path
        assert [set(map(frozenset, cell)) for cell in found.cells] == [
            set(map(frozenset, cell)) for cell in drawn.cells
        ]
        # Two edges a block in every cell of the path, and one edge a layer: else zeros.
        assert codes[1].sum() == 5 and set(np.unique(codes[1])) == {0, 1}
        assert codes[0].sum() == 2 * 3 * count
        assert set(np.unique(codes[0])) == {0, 1}


def test_an_edge_that_is_there_twice_counts_twice():
    twice = ((0, "skip_connect"), (0, "skip_connect"))
    alpha, _ = encode(Genotype((0,), ((twice,),)), OPERATIONS, 1, 1)
    np.testing.assert_array_equal(alpha, [[0, 0, 2, 0], [0, 0, 0, 0]])


def test_what_the_super_net_does_not_hold_is_refused():
    block = ((0, "skip_connect"), (1, "sep_conv_5x5"))
    with pytest.raises(ValueError, match="sep_conv_5x5"):
        encode(Genotype((0,), ((block,),)), OPERATIONS, 1, 1)
    with pytest.raises(ValueError, match=r"1 layers .* 2"):
        encode(Genotype((0,), ((block,),)), OPERATIONS, 2, 1)
    cells = (
        (((0, "skip_connect"), (1, "max_pool_3x3")),),
        (((0, "sep_conv_3x3"), (1, "max_pool_3x3")),),
    )
    two = Genotype((0, 1), cells, (0, 1))
    with pytest.raises(ValueError, match="two cells"):
        encode(two, OPERATIONS, 2, 1)
    encode(two, OPERATIONS, 2, 1, alpha_sharing="level")

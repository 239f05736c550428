"""What a search asks of its cost table."""

import pytest

from auto_deeplab.budget import cost_table, expected_cost
from auto_deeplab.modes.search import CostLimit, SearchSpace
from auto_deeplab.space import search_space
from official.errors import UsageError
from tests.auto_deeplab.budget.test_expected_cost import decided


def test_what_a_search_asks_of_its_table(tmp_path, capsys):
    file = tmp_path / "costs.json"
    # Small widths, all operations, cells of two blocks.
    settings = {"filter_multiplier": 2, "num_blocks": 2, "operations": [*search_space.OPERATIONS]}
    settings |= {"crop_size": [33, 65], "stem_filters": [4, 4, 6], "head_filters": 4}
    table = cost_table.measure(settings | {"num_classes": 3}, "multiply_adds")
    table.save(file)
    low, high = expected_cost.compute_bounds(table, search_space.OPERATIONS, 3)

    def checked(**given):
        limit = {"cost_table": str(file), "cost_budget": (low + high) / 2, "cost_weight": 0.5}
        space = SearchSpace(
            num_layers=3,
            num_blocks=given.pop("num_blocks", 2),
            operations=given.pop("operations", search_space.OPERATIONS),
        )
        cost_limit = CostLimit(**(limit | given))
        capsys.readouterr()
        found = cost_limit.load(space)
        return found, cost_limit.make_term(found, space), capsys.readouterr().err

    found, term, said = checked()
    assert found == table and not said
    alpha_of, beta = decided((1, 2, 3), "atrous_conv_5x5", search_space.OPERATIONS, 2)
    penalty, value = (float(x) for x in term(alpha_of, beta))
    assert penalty == pytest.approx(max(0.0, 0.5 * (value / ((low + high) / 2) - 1)), rel=1e-5)

    assert checked(cost_weight=0.0, cost_table=None, cost_budget=None) == (None, None, "")
    found, term, said = checked(cost_weight=0.0)
    assert (found, term) == (None, None) and "--cost_weight=0" in said
    assert "can never be kept" in checked(cost_budget=low / 2)[2]
    assert "changes nothing" in checked(cost_budget=high * 2)[2]
    for given, words in (
        ({"cost_table": None}, ["--cost_table", "--cost_weight=0.5"]),
        ({"cost_budget": None}, ["--cost_budget", "--cost_weight=0.5"]),
        ({"cost_table": "missing.json"}, ["--cost_table", "missing.json"]),
        ({"num_blocks": 3}, ["--cost_table", "--num_blocks", "2 blocks, not 3"]),
        ({"operations": ["dil_conv_3x3", "none"]}, ["--cost_table", "dil_conv_3x3"]),
    ):
        with pytest.raises(UsageError) as error:
            checked(**given)
        assert all(word in str(error.value) for word in words), error.value

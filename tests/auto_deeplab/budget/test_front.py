"""The Pareto front, by hand."""

from auto_deeplab.budget.front import find_front


def test_the_front():
    # (worth, cost): the third is worse and dearer than the first, the fourth as good and dearer.
    points = [(0.5, 2.0), (0.7, 3.0), (0.4, 2.5), (0.5, 2.2), (0.1, 1.0), (0.1, 1.0)]
    assert find_front(points) == [True, True, False, False, True, True]
    assert find_front([(0.2, 1.0)]) == [True]

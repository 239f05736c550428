"""The Pareto front: of which architectures no other is both better and no dearer."""

from collections.abc import Iterable


def find_front(points: Iterable[tuple[float, float]]) -> list[bool]:
    """Which (worth, cost) are on the Pareto front: nothing that costs no more is worth more.

    Of two alike both are on it.
    """
    points = list(points)
    return [
        not any(
            (other[0] > worth and other[1] <= cost) or (other[0] >= worth and other[1] < cost)
            for other in points
        )
        for worth, cost in points
    ]

import math

import pytest

from official import schedules


def values(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_cosine_at_exact_steps():
    # 0.001 + 0.024 * (1 + cos(pi t / 8)) / 2: cos is 1, cos(pi/8), 0, cos(7 pi/8), -1 and stays.
    cos_1 = math.sqrt(2 + math.sqrt(2)) / 2  # cos(pi / 8), by the half-angle formula
    expected = [
        0.025,
        0.001 + 0.012 * (1 + cos_1),
        0.013,
        0.001 + 0.012 * (1 - cos_1),
        0.001,
        0.001,
    ]
    schedule = schedules.cosine(0.025, 0.001, 8)
    assert values(schedule, [0, 1, 4, 7, 8, 1000]) == pytest.approx(expected, rel=1e-5)


def test_polynomial_at_exact_steps():
    # 0.05 * (1 - t / 10) ** 0.9 at t = 0, 1, 5, 9, 10 and after the end: 0.9^0.9 = 0.9095326,
    # 0.5^0.9 = 0.5358867, 0.1^0.9 = 0.1258925.
    expected = [0.05, 0.05 * 0.9095326, 0.05 * 0.5358867, 0.05 * 0.1258925, 0.0, 0.0]
    schedule = schedules.polynomial(0.05, 10)
    assert values(schedule, [0, 1, 5, 9, 10, 1000]) == pytest.approx(expected, rel=1e-5)
    assert float(schedule(10)) == 0.0


def test_polynomial_with_an_end_value():
    # Power 1 is a straight line: half way between 0.1 and 0.02 is 0.06.
    schedule = schedules.polynomial(0.1, 4, power=1.0, end=0.02)
    assert values(schedule, [0, 2, 4, 5]) == pytest.approx([0.1, 0.06, 0.02, 0.02], rel=1e-6)


def test_the_last_of_millions_of_steps():
    # float32 represents step 1,499,999 of 1,500,000; what is left of the way is 1 / 1,500,000,
    # known to float32's 2^-24 = 6e-8, so to about 10 percent.
    rate = float(schedules.polynomial(0.05, 1_500_000)(1_499_999))
    assert rate == pytest.approx(0.05 * (1 / 1_500_000) ** 0.9, rel=0.1)

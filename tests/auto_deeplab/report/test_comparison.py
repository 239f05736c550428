"""Statistics of comparisons: by hand, and against scipy's."""

import itertools

import numpy as np
import pytest
import scipy.stats

from auto_deeplab.report import comparison
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype


def test_three_against_three_by_hand():
    # All found above all random: of C(6, 3) = 20 divisions this one and its mirror image.
    test = comparison.permutation_test([0.5, 0.6, 0.7], [0.1, 0.2, 0.3])
    assert test["p_value"] == test["smallest_p_value"] == 2 / 20
    assert test["difference"] == pytest.approx(0.4)
    assert test["sentence"] == (
        "3 found, 3 random: no difference can be told (found +0.400, p = 0.10; 3 against 3 can at "
        "best reach 0.10)"
    )


def test_sizes_that_can_tell():
    # C(8, 4) = 70, so 2 / 70 = 0.029; C(4, 1) = 4, and one alone has no mirror image.
    test = comparison.permutation_test([0.5, 0.6, 0.7, 0.8], [0.1, 0.2, 0.3, 0.4])
    assert test["p_value"] == pytest.approx(2 / 70)
    assert (
        test["sentence"]
        == "4 found, 4 random: found is better than random (found +0.400, p = 0.03)"
    )
    worse = comparison.permutation_test([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], "found, big")
    assert "4 found, big, 4 random: found, big is worse than random" in worse["sentence"]
    one = comparison.permutation_test([0.9], [0.1, 0.2, 0.3])
    assert one["p_value"] == one["smallest_p_value"] == 1 / 4


@pytest.mark.parametrize("seed", range(6))
def test_permutation_test_is_scipys(seed):
    rng = np.random.default_rng(seed)
    found, random = rng.integers(0, 6, 2 + seed % 3) / 10, rng.integers(0, 6, 3 + seed // 2) / 10
    wanted = scipy.stats.permutation_test(
        (found, random),
        lambda a, b: abs(np.mean(a) - np.mean(b)),
        alternative="greater",
        n_resamples=10**6,
        vectorized=False,
    )
    test = comparison.permutation_test(list(found), list(random))
    assert test["p_value"] == pytest.approx(wanted.pvalue)
    assert test["p_value"] >= test["smallest_p_value"]


def test_of_too_many_divisions_some_are_drawn(monkeypatch):
    rng = np.random.default_rng(0)
    found, random = list(rng.normal(0.53, 0.05, 6)), list(rng.normal(0.5, 0.05, 6))
    exact = comparison.permutation_test(found, random)
    monkeypatch.setattr(comparison, "MOST_EXACT", 900)  # C(12, 6) = 924
    monkeypatch.setattr(comparison, "DRAWS", 4000)
    drawn = comparison.permutation_test(found, random)
    # Four standard deviations of a share of 4000 are 0.03.
    assert drawn["p_value"] == pytest.approx(exact["p_value"], abs=0.03)
    assert drawn["p_value"] * 4001 == pytest.approx(round(drawn["p_value"] * 4001))
    assert drawn == comparison.permutation_test(found, random)
    assert "by 4000 random divisions" in drawn["sentence"]
    assert "random divisions" not in exact["sentence"]
    assert drawn["smallest_p_value"] == 1 / 4001


def test_too_few_and_equal_values():
    assert comparison.permutation_test([], [0.1]) is comparison.permutation_test([0.1], []) is None
    one = comparison.permutation_test([0.2], [0.1])
    assert one["p_value"] == 1 and "1 against 1 can at best reach 1.00" in one["sentence"]
    # Sums of equal values in another order, which may differ in the last bit.
    same = comparison.permutation_test([0.1] * 3, [0.1] * 4)
    assert same["p_value"] == 1 and same["difference"] == pytest.approx(0)


@pytest.mark.parametrize("seed", range(5))
def test_tau_is_scipys(seed):
    rng = np.random.default_rng(seed)
    n = 3 + seed
    one, other = rng.permutation(n), rng.permutation(n)
    wanted = scipy.stats.kendalltau(one, other, method="exact")
    found = comparison.kendall([*zip(one, other, strict=True)])
    assert found["count"] == n and found["tau"] == pytest.approx(wanted.statistic)
    assert found["p_value"] == pytest.approx(wanted.pvalue)


def test_tau_with_ties():
    one, other = [1, 2, 2, 3, 5], [1, 3, 2, 2, 4]
    found = comparison.kendall([*zip(one, other, strict=True)])
    assert found["tau"] == pytest.approx(scipy.stats.kendalltau(one, other).statistic)
    taus = [abs(scipy.stats.kendalltau(one, y).statistic) for y in itertools.permutations(other)]
    assert found["p_value"] == pytest.approx(np.mean(np.array(taus) >= found["tau"] - 1e-9))


def test_sentences_of_ranks():
    ranks = [(n / 10, n / 5) for n in range(6)]
    wanted = (
        "6 networks: the super-net ranks them as retraining does (Kendall's tau = +1.00, p = 0.003)"
    )
    assert comparison.kendall(ranks)["sentence"] == wanted  # 2 / 6! = 0.0028
    against = comparison.kendall([(one, -other) for one, other in ranks])
    assert "ranks them against what retraining does" in against["sentence"]
    three = comparison.kendall(ranks[:3])
    assert three["p_value"] == 2 / 6 and "3 can at best reach 0.33" in three["sentence"]
    for none in ([], [(0.1, 0.2)], [(0.1, 0.2), (0.1, 0.3)], [(0.1, 0.2), (0.3, 0.2)]):
        assert comparison.kendall(none) is None


def row(name, group, miou, super_net=None, path=(0,), search=None, seed=0):
    """A run, made up."""
    own = {"name": name, "group": group, "miou": miou, "super_net_miou": super_net, "seed": seed}
    own |= {"path": list(path), "cells": [], "cell_of_layer": None, "search": search}
    return own | {"params_millions": 2.0, "multi_adds_billions": miou, "latency_ms": None,
                  "train_seconds": 90.0}  # fmt: skip


def test_a_network_that_is_trained_twice_is_one():
    rows = [
        *(row(f"found_{n}", "found", 0.5 + n / 10, search=0) for n in range(2)),
        row("found_2", "found", 0.8, search=1),  # the same, found by another search
        row("random", "random", 0.4, path=(1,)),
    ]
    made = comparison.compare_rows(rows)
    assert [group["count"] for group in made["groups"]] == [3, 1]
    test = made["permutation_test"]
    assert (test["found"], test["random"]) == (2, 1)
    assert test["difference"] == pytest.approx((0.55 + 0.8) / 2 - 0.4)


def test_groups_table_and_sentences():
    rows = [
        row("p", "published", 0.3),
        row("r", "random", 0.2, 0.1, path=(1,)),
        row("b", "found", 0.5, 0.3, path=(2,), search=1, seed=4),
        row("a", "found", 0.4, 0.2, path=(3,), search=0),
        row("g", "found, partial_channels=4", 0.6, path=(3,)),
    ]
    made = comparison.compare_rows(rows, ["not equals: x"])
    assert [one["name"] for one in made["runs"]] == ["a", "b", "g", "r", "p"]
    found = made["groups"][0]
    assert (found["miou_mean"], found["seeds"]) == (pytest.approx(0.45), [0, 4])
    assert found["miou_std"] == pytest.approx(0.1 / 2**0.5)  # of a sample
    assert made["groups"][2]["miou_std"] is None and found["latency_ms"] is None
    assert found["multi_adds_billions"] == pytest.approx(0.45)
    assert [test["group"] for test in made["further_tests"]] == ["found, partial_channels=4"]
    assert made["kendall"]["count"] == 3 and made["kendall"]["tau"] == 1
    assert made["sentences"][0].startswith("2 found, 1 random: no difference")
    assert made["sentences"][-1].startswith("the runs are not equals")
    lines = comparison.format_table(made).splitlines()
    assert lines[1].split() == ["found", "2", "0,4", "0.450", "±", "0.071", "2.00", "0.45", "1.5"]
    assert lines[2].split() == ["a", "0", "0.400", "2.00", "0.40", "1.5", "0.200"]
    assert "latency" not in lines[0] and len(lines) == 1 + 4 + 5


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([row("a", "own", 0.1), row("b", "random", 0.1)], "0 found, 1 random: nothing to compare"),
        ([row("a", "own", 0.1)], "0 ranked in the super-net: no ranks to compare"),
        ([row("a", "own", 0.1, 0.2)], "1 ranked in the super-net: no ranks to compare"),
        (
            [row("a", "own", 0.1, 0.2), row("b", "own", 0.1, 0.3, path=(1,))],
            "2 ranked in the super-net: the mIoU of all is the same",
        ),
    ],
)
def test_what_cannot_be_tested_is_said(rows, wanted):
    assert wanted in comparison.compare_rows(rows)["sentences"]


@pytest.mark.parametrize(
    ("meta", "wanted"),
    [
        ({"drawn": "uniformly", "seed": 0}, "random"),
        ({"drawn": "by its probability", "search_seed": 0, "step": 4}, "sampled"),
        ({"alpha": [], "step": 4}, "found"),
        ({"alpha": [], "step": 4, "partial_channels": 1}, "found"),
        ({"alpha": [], "step": 4, "partial_channels": 4}, "found, partial_channels=4"),
        ({}, "own"),
    ],
)
def test_groups_by_origin(meta, wanted):
    assert comparison.name_group(Genotype((0,), (genotypes.PUBLISHED_CELL,), None, meta)) == wanted


def test_presets_are_known_by_content():
    for name, path in genotypes.PRESET_PATHS.items():
        meta = {"drawn": "uniformly"}
        copied = Genotype(path, (genotypes.PUBLISHED_CELL,), None, meta)
        assert comparison.name_group(copied) == name

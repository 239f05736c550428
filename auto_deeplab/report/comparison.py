"""Which trained networks are better, and whether chance alone could have made the difference.

Statistics of a few runs, from plain data: no TensorFlow. Tests are by permutation, which assumes
nothing of how mIoU is distributed (Fisher 1935; Ernst 2004, doi:10.1214/088342304000000396).
"""

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype

MOST_EXACT = 10**6
"""Up to so many divisions, or orders, all are looked at; of more, DRAWS at random, by seed 0."""

DRAWS = 10**5

CLEAR = 0.05
"""A difference is told where chance alone makes one as large less often than this."""

FOUND, RANDOM, SAMPLED, OWN = "found", "random", "sampled", "own"

AVERAGED = ("params_millions", "multi_adds_billions", "latency_ms", "train_seconds")
"""What a group has the mean of, beside mIoU."""

Row = Mapping[str, Any]


def name_group(genotype: Genotype) -> str:
    """Which group a network belongs to, by its architecture and where that comes from."""
    for name in genotypes.PRESET_PATHS:
        if genotype == genotypes.load(name):
            return name
    meta = genotype.meta
    if "drawn" in meta:
        return RANDOM if meta["drawn"] == "uniformly" else SAMPLED
    if "alpha" in meta and "step" in meta:
        channels = meta.get("partial_channels")
        return FOUND + (f", partial_channels={channels}" if channels not in (None, 1) else "")
    return OWN


def summarize_groups(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Means of the runs of each group; the standard deviation is that of a sample (n - 1).

    What a run does not know does not count in a mean, which is null where no run knows it.
    """
    groups = []
    for name in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == name]
        miou = [row["miou"] for row in own]
        group = {
            "group": name,
            "count": len(own),
            "seeds": [row["seed"] for row in own],
            "miou_mean": statistics.fmean(miou),
            "miou_std": statistics.stdev(miou) if len(miou) > 1 else None,
        }
        for key in AVERAGED:
            known = [row[key] for row in own if row[key] is not None]
            group[key] = statistics.fmean(known) if known else None
        groups.append(group)
    return groups


def order(row: Row) -> tuple[Any, ...]:
    """The key by which runs are sorted: found, random, sampled, presets, own; then by name."""
    group = row["group"]
    known = (FOUND, RANDOM, SAMPLED, *genotypes.PRESET_PATHS, OWN)
    return known.index(group.partition(",")[0]), group, row["name"]


def average_architectures(rows: Sequence[Row], *keys: str) -> list[list[float]]:
    """The means of some values over the trainings of each architecture that one search found.

    A network that is trained again is no second network: it says nothing of the others that a
    search might find.
    """
    means: dict[str, list[Row]] = {}
    for row in rows:
        of = [row[key] for key in ("path", "cells", "cell_of_layer", "search")]
        means.setdefault(json.dumps(of), []).append(row)
    return [[statistics.fmean(row[key] for row in own) for key in keys] for own in means.values()]


def permutation_test(
    found: Sequence[float], other: Sequence[float], name: str = FOUND
) -> dict[str, Any] | None:
    """Whether the means of two groups lie further apart than chance puts them (two-sided).

    The p-value is the share of all divisions of the values into groups of these sizes whose means
    lie at least as far apart.

    Args:
        found, other: mIoU of each network.
        name: of the first group; the other is called random.

    Returns:
        the sizes, difference of the means, p-value, the smallest p-value that these sizes can have,
        and a sentence; None if a group is empty.
    """
    n, m = len(found), len(other)
    if not n or not m:
        return None
    values, total = [*found, *other], math.fsum([*found, *other])

    def differ(chosen: Iterable[int]) -> float:
        own = math.fsum(values[i] for i in chosen)
        return abs(own / n - (total - own) / m)

    number = math.comb(n + m, n)
    p = _share(
        lambda rng: rng.permutation(n + m)[:n],
        lambda: itertools.combinations(range(n + m), n),
        number,
        differ,
        range(n),
    )
    difference = statistics.fmean(found) - statistics.fmean(other)
    # With equal sizes each division has a mirror image, which is as far apart.
    smallest = (2 if n == m else 1) / number if number <= MOST_EXACT else 1 / (DRAWS + 1)
    facts = f"{name} {difference:+.3f}, p = {_format_p(p)}{_tell_of_draws(number, 'divisions')}"
    if p <= CLEAR:
        verdict = f"{name} is {'better' if difference > 0 else 'worse'} than random ({facts})"
    else:
        at_best = f"; {n} against {m} can at best reach {_format_p(smallest)}"
        verdict = f"no difference can be told ({facts}{at_best if smallest > CLEAR / 5 else ''})"
    return {
        "group": name,
        FOUND: n,
        RANDOM: m,
        "difference": difference,
        "p_value": p,
        "smallest_p_value": smallest,
        "sentence": f"{n} {name}, {m} random: {verdict}",
    }


def kendall(pairs: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Whether the super-net ranks networks as retraining does: Kendall's tau-b (1945).

    The p-value is the share of all orders whose tau lies at least as far from 0 (two-sided). The
    ties that there are stay in each order.

    Args:
        pairs: of each network its mIoU in the super-net, and after retraining.

    Returns:
        the number of networks, tau, p-value and a sentence; None where there is no tau: of fewer
        than two networks, or where either mIoU is the same for all.
    """
    n = len(pairs)
    signs = [np.sign(np.subtract.outer(side, side)) for side in np.array(pairs).reshape(n, 2).T]
    norm = math.sqrt(np.abs(signs[0]).sum() * np.abs(signs[1]).sum())
    if not norm:
        return None

    def tau_of(ranks: Any) -> float:
        return float((signs[0] * signs[1][np.ix_(ranks, ranks)]).sum() / norm)

    number = math.factorial(n)
    p = _share(
        lambda rng: rng.permutation(n),
        lambda: itertools.permutations(range(n)),
        number,
        lambda ranks: abs(tau_of(ranks)),
        range(n),
    )
    tau = tau_of(range(n))
    facts = f"Kendall's tau = {tau:+.2f}, p = {_format_p(p)}{_tell_of_draws(number, 'orders')}"
    if p <= CLEAR:
        verdict = f"the super-net ranks them {'as' if tau > 0 else 'against what'} retraining does"
    else:
        verdict = "no relation of the ranks in the super-net and after retraining can be told"
        if n < 5:  # 2/4! is 0.083
            facts += f"; {n} can at best reach {_format_p(2 / number)}"
    sentence = f"{n} networks: {verdict} ({facts})"
    return {"count": n, "tau": tau, "p_value": p, "sentence": sentence}


def _share(
    draw: Callable[[np.random.Generator], Any],
    list_all: Callable[[], Iterable[Any]],
    number: int,
    statistic: Callable[[Any], float],
    observed: Any,
) -> float:
    """The share of arrangements whose statistic is at least the observed one's.

    All `number` of them, or the observed one and DRAWS at random, so that the share is never 0.
    """
    if number <= MOST_EXACT:
        arrangements = list_all()
    else:
        rng = np.random.default_rng(0)
        arrangements = itertools.chain([observed], (draw(rng) for _ in range(DRAWS)))
        number = DRAWS + 1
    least = statistic(observed) - 1e-12  # equal sums may differ in their last bits
    return sum(statistic(one) >= least for one in arrangements) / number


def _format_p(p: float) -> str:
    return f"{p:.2f}" if p >= 0.01 else f"{p:.1g}"


def _tell_of_draws(number: int, what: str) -> str:
    return f" by {DRAWS} random {what}" if number > MOST_EXACT else ""


def compare_rows(rows: Sequence[Row], warnings: Sequence[str] = ()) -> dict[str, Any]:
    """The comparison of runs as plain data: runs, groups, tests, and what they say in sentences.

    Args:
        rows: of each run what --mode=compare reads of it.
        warnings: why the runs are not equals, if they are not.

    Returns:
        runs, groups, permutation_test (found against random) and further_tests (other groups of
        found networks against random), kendall, sentences, warnings. A test is None where there is
        too little for it, which a sentence says.
    """
    rows = sorted(rows, key=order)
    groups = summarize_groups(rows)

    def list_miou(group: str) -> list[float]:
        own = [row for row in rows if row["group"] == group]
        return [miou for (miou,) in average_architectures(own, "miou")]

    random = list_miou(RANDOM)
    test = permutation_test(list_miou(FOUND), random)
    searched = (group["group"] for group in groups if group["group"].startswith(f"{FOUND},"))
    others = [permutation_test(list_miou(name), random, name) for name in searched]
    further = [one for one in others if one]
    ranked = [row for row in rows if row["super_net_miou"] is not None]
    pairs = average_architectures(ranked, "super_net_miou", "miou")
    ranks = kendall(pairs)
    nothing = f"{len(list_miou(FOUND))} {FOUND}, {len(random)} random: nothing to compare"
    if pairs:
        unranked = f"{len(pairs)} ranked in the super-net: " + (
            "the mIoU of all is the same" if len(pairs) > 1 else "no ranks to compare"
        )
    else:
        unranked = "0 ranked in the super-net: no ranks to compare"
    sentences = [test["sentence"] if test else nothing, *(one["sentence"] for one in further)]
    sentences.append(ranks["sentence"] if ranks else unranked)
    if warnings:
        sentences.append("the runs are not equals: these are no tests of architectures alone")
    return {
        "runs": rows,
        "groups": groups,
        "permutation_test": test,
        "further_tests": further,
        "kendall": ranks,
        "sentences": sentences,
        "warnings": list(warnings),
    }


def format_table(comparison: Mapping[str, Any]) -> str:
    """A table for people: each group, then its runs; a column that nobody knows is left out."""
    columns = {
        "params (M)": ("params_millions", "{:.2f}"),
        "multi-adds (B)": ("multi_adds_billions", "{:.2f}"),
        "latency (ms)": ("latency_ms", "{:.1f}"),
        "training (min)": ("train_seconds", "{:.1f}"),
        "super-net mIoU": ("super_net_miou", "{:.3f}"),
    }
    rows = comparison["runs"]
    shown = {
        title: column
        for title, column in columns.items()
        if any(row[column[0]] is not None for row in rows)
    }

    def format_values(row: Row) -> list[str]:
        factor = {"train_seconds": 1 / 60}
        return [
            "" if row.get(key) is None else form.format(row[key] * factor.get(key, 1))
            for key, form in shown.values()
        ]

    lines = [["", "runs", "seed", "mIoU", *shown]]
    for group in comparison["groups"]:
        std = "" if group["miou_std"] is None else f" ± {group['miou_std']:.3f}"
        seeds = ",".join(map(str, dict.fromkeys(group["seeds"])))
        miou = f"{group['miou_mean']:.3f}{std}"
        lines.append([group["group"], str(group["count"]), seeds, miou, *format_values(group)])
        lines += [
            [f"  {row['name']}", "", str(row["seed"]), f"{row['miou']:.3f}", *format_values(row)]
            for row in rows
            if row["group"] == group["group"]
        ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not number else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )

"""Benchmarks run, in a tiny form, and end with a line of JSON. What they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(name, *flags):
    """The lines of the table, and the JSON."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", *flags],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    return table, json.loads(last)


@pytest.mark.parametrize(
    ("name", "flags", "shapes"),
    [
        ("convert", ["--images=1"], {"PNG 1024 x 2048", "JPEG 375 x 500"}),
        (
            "input_pipeline",
            ["--images=1", "--seconds=0.01"],
            {
                *("PNG 1024 x 2048, crop 769", "PNG 512 x 1024, crop 321"),
                *("JPEG 375 x 500, crop 513", "JPEG 1024 x 2048, crop 321"),
            },
        ),
    ],
)
def test_rates(name, flags, shapes):
    table, results = run(name, *flags)
    assert set(results) == shapes
    for line, (name, rates) in zip(table[2:], results.items(), strict=True):
        assert line.startswith(name)
        assert min(rates.values()) > 0


def test_search_step():
    tiny = ("--crop_size=33", "--num_layers=1", "--num_blocks=1", "--filter_multiplier=1")
    table, results = run("search_step", "--space=dil", "--steps=1", *tiny)
    assert set(results) == {
        *("weight_step_s", "search_step_s", "first_step_s", "peak_rss_gb"),
        *("matmul_gflops", "conv_gflops", "weight_step_gflop", "search_step_gflop"),
        *("weight_fraction_of_limit", "search_fraction_of_limit"),
    }
    assert min(results.values()) > 0 and "crop 33, batch 2, F = 1, L = 1, B = 1" in table[0]
    # One more forward pass and one more by the inputs, to three.
    ratio = results["search_step_gflop"] / results["weight_step_gflop"]
    assert ratio == pytest.approx(5 / 3)

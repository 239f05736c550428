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

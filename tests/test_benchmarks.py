"""Benchmarks run, in a tiny form, and end with a line of JSON. What they measure is not tested."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import all as everything
from benchmarks import machine
from official import convolutions
from official.errors import RunError, UsageError

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
                *("JPEG 300 x 400, crop 513", "JPEG 300 x 400 to 513, crop 513"),
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


TINY = (
    "--space=dil",
    "--crop_size=33",
    "--num_layers=1",
    "--num_blocks=1",
    "--filter_multiplier=1",
)


def test_search_step():
    table, results = run("search_step", "--steps=1", *TINY)
    assert set(results) == {
        *("weight_step_s", "search_step_s", "first_step_s", "peak_rss_gb", "parameters"),
        *("matmul_gflops", "conv_gflops", "weight_step_gflop", "search_step_gflop"),
        *("weight_fraction_of_limit", "search_fraction_of_limit"),
    }
    assert min(results.values()) > 0 and "crop 33, batch 2, F = 1, L = 1, B = 1" in table[0]
    # One more forward pass and one more by the inputs, to three.
    ratio = results["search_step_gflop"] / results["weight_step_gflop"]
    assert ratio == pytest.approx(5 / 3)


def test_scaling():
    table, results = run("scaling", "--steps=1", "--vary=batch_size:2,4", *TINY)
    small, large = (results["batch_size"][size] for size in ("2", "4"))
    assert large["gflop"] == pytest.approx(2 * small["gflop"])
    assert min(*small.values(), *large.values()) > 0
    assert table[2].startswith("batch_size 2") and " 1.00" in table[2]


def test_export_stablehlo(tmp_path):
    program = tmp_path / "step.mlir"
    _, results = run("export_stablehlo", f"--output={program}", *TINY)
    content = program.read_bytes()
    assert content.startswith(b"ML\xefR") and len(content) == results["megabytes"] * 1e6
    # Results are the loss, then variables; parameters the images, the labels, alpha and beta, then
    # variables. Images that XLA took for constants would not be among them.
    carry = [tuple(map(int, pair.split(":"))) for pair in results["carry"].split(",")]
    assert [result for result, _ in carry] == list(range(1, 1 + results["variables_written"]))
    assert carry[0] == (1, 4) and len({parameter for _, parameter in carry}) == len(carry)
    # Nor are there weights in it: some 700 kB of text, of which the stem's would be 1.2 MB.
    assert results["megabytes"] < 0.6


def test_network(tmp_path):
    block = [[[0, "sep_conv_3x3"], [1, "skip_connect"]]]
    genotype = tmp_path / "tiny.json"
    genotype.write_text(json.dumps({"format": 1, "path": [0], "cells": [block]}))
    table, results = run(
        "network",
        *(f"--genotype={genotype}", "--nobaseline", "--steps=1"),
        *("--crop_size=33", "--height=32", "--width=64"),
    )
    assert "crop 33, batch 2; inference: 32 x 64" in table[0]
    for line, (kind, row) in zip(table[2:], results.items(), strict=True):
        assert line.split()[:3] == ["tiny", "S", kind]
        assert set(row) == {
            *("params_millions", "seconds", "images_per_s", "gflop", "conv_gflops"),
            *("fraction_of_limit", "first_s", "peak_rss_gb"),
        }
        assert min(row.values()) > 0
    assert list(results) == ["train", "inference"]
    # Two images of 9 x 9 features, three passes, to one of 9 x 17; what works on single image
    # means is next to nothing.
    ratio = results["train"]["gflop"] / results["inference"]["gflop"]
    assert ratio == pytest.approx(6 * 9 * 9 / (9 * 17), rel=0.1)


def test_what_would_be_computed_in_float32_is_not_measured_as_bfloat16(monkeypatch):
    monkeypatch.setattr(convolutions, "computes_well", lambda dtype: False)
    with pytest.raises(UsageError, match="--precision=bfloat16 brings nothing"):
        machine.set_precision("bfloat16")
    machine.set_precision("float32")


def test_crash_test():
    _, found = run("crash_test", "--kills=4", "--jobs=2")
    seconds = found.pop("seconds")
    # Two runs at a time, one of each mode, and the last of each is not killed any more.
    assert found.pop("torn") <= 4 and found.pop("runs") >= 2 and seconds > 0
    assert found == {"kills": 4, "lost": 0, "changed": 0, "blocked": 0}


def test_memory_growth():
    table, found = run("memory_growth", "--steps=40")
    assert len(table) == 2 * 20 and set(found) == {"search", "train"}
    for row in found.values():
        assert row["last_mb"] / row["first_mb"] == pytest.approx(
            1 + row["growth_percent"] / 100, abs=1e-4
        )
        assert row["first_mb"] > 100  # Python with TensorFlow


def test_all_and_its_comparison(tmp_path):
    first = tmp_path / "first.json"
    _, found = run("all", "--quick", "--only=machine", f"--output={first}")
    assert found == json.loads(first.read_text()) and found["quick"] is True
    assert found["machine"]["cores"] >= 1 and found["machine"]["tensorflow"].startswith("2.")
    del found["results"]["machine"]["found"]["conv_gflops"]
    first.write_text(json.dumps(found))
    table, found = run("all", "--quick", "--only=machine", f"--compare={first}")
    here = found["results"]["machine"]["found"]
    there = json.loads(first.read_text())["results"]["machine"]["found"]
    rows = {line.split()[0]: line.split()[1:] for line in table if line.startswith("  ")}
    both = here["matmul_gflops"], there["matmul_gflops"]
    assert rows["matmul_gflops"] == [*(f"{x:.4g}" for x in both), f"{both[0] / both[1]:.2f}"]
    assert rows["conv_gflops"] == [f"{here['conv_gflops']:.4g}"]  # it was not measured there


def test_all_goes_on_when_one_fails(monkeypatch, capsys):
    def fake_run(name, quick):
        if name == "convert":
            raise RunError("no space")
        return {"command": name, "taken_s": 1.0, "found": {"a_s": 2.0}}

    monkeypatch.setattr(everything, "run", fake_run)
    monkeypatch.setattr(
        everything.flags, "FLAGS",
        SimpleNamespace(only=["convert", "scaling"], quick=True, output=None, compare=None),
    )  # fmt: skip
    with pytest.raises(RunError, match="convert failed"):
        everything.main()
    printed = capsys.readouterr()
    assert "convert: failed: no space" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["results"].keys() == {"scaling"}
    # Each command is of a script that is there, with flags that it has.
    for script, common, small in everything.BENCHMARKS.values():
        text = (ROOT / "benchmarks" / f"{script}.py").read_text()
        text += (ROOT / "benchmarks" / "search_step.py").read_text() * (script == "scaling")
        assert all(f'"{flag[2:].split("=")[0]}"' in text for flag in (*common, *small))

"""--mode=compare: what it reads of runs, what it refuses, and two real trainings."""

import json
import math
import shutil

import pytest

from auto_deeplab.modes.compare import compare, sum_seconds
from auto_deeplab.modes.flag_definitions import USED
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype
from tests.command import TINY_GENOTYPE, TINY_NETWORK, train_here
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

CELL = Genotype.from_json(TINY_GENOTYPE).cells
IDENTITY = {
    **{"batch_size": 2, "train_steps": 4, "filter_multiplier": 2, "stem_filters": [4, 4, 4]},
    **{"head_filters": 8, "batch_norm_decay": 0.9, "fine_tune_batch_norm": True},
    **{"drop_path_keep_prob": 1.0, "learning_rate": 0.05, "data_dir": "toy 1234"},
}
METRICS = {"split": "val", "num_images": 2, "scales": [1.0], "flip": False, "step": 4}


def write_fake_run(directory, genotype, miou, seed=0, classes=3, identity=(), **metrics):
    """The files of a training that never was, as far as they are read."""
    directory.mkdir(parents=True)
    genotype.save(directory / "genotype.json")
    record = {
        "mode": "train",
        "identity": IDENTITY | {"seed": seed} | dict(identity),
        "class_names": [f"class {n}" for n in range(classes)],
        "image_size": [40, 72],
    }
    (directory / "run.json").write_text(json.dumps(record))
    if miou is not None:
        text = json.dumps(METRICS | {"miou": miou, "miou_present": miou} | metrics)
        (directory / "metrics.json").write_text(text)
    rows = [{"step": n, "images_per_s": 0.5, "val_miou": n / 10} for n in (2, 4)]
    (directory / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def genotype(path, **meta):
    return Genotype(path, CELL, None, meta)


@pytest.fixture
def fake_study(tmp_path):
    """Two found networks, two random ones, a preset's path with another cell, and more."""
    study = tmp_path / "study"
    runs = {
        "train_found_0": (genotype((0, 0), alpha=[], step=9, seed=5), 0.4),
        "train_found_1": (genotype((0, 1), alpha=[], step=9, seed=6), 0.5),
        "train_random_0": (genotype((1, 1), drawn="uniformly", seed=0), 0.1),
        "train_random_1": (genotype((1, 2), drawn="uniformly", seed=0), 0.2),
    }
    for name, (one, miou) in runs.items():
        write_fake_run(study / name, one, miou, seed=3)
    (study / "search_0").mkdir()
    search = {"operations": ["skip_connect", "none"], "num_layers": 2, "num_blocks": 2, "seed": 0}
    record = {"mode": "search", "identity": search, "dataset": "toy"}
    (study / "search_0" / "run.json").write_text(json.dumps(record))
    (study / "ranking").mkdir()
    samples = [
        {"name": name, "miou": miou / 2, **json.loads(one.to_json())}
        for name, (one, miou) in runs.items()
        if name != "train_random_1"
    ]
    front = {"super_net": "search_0", "samples": samples}
    (study / "ranking" / "front.json").write_text(json.dumps(front))
    return study


def test_a_fake_study(fake_study, tmp_path):
    output = tmp_path / "out" / "comparison.json"
    done = train_here("--mode=compare", f"--runs={fake_study}/*", f"--output={output}")
    assert done.code == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made == json.loads(output.read_text())
    assert "passed over, as no trainings: ranking, search_0" in done.stderr
    runs = {row["name"]: row for row in made["runs"]}
    assert [*runs] == ["train_found_0", "train_found_1", "train_random_0", "train_random_1"]
    first = runs["train_found_0"]
    wanted = {
        **{"model_dir": str(fake_study / "train_found_0"), "group": "found", "search": 5},
        **{"seed": 3, "miou": 0.4, "miou_present": 0.4, "latency_ms": None, "train_steps": 4},
        **{"train_seconds": 16.0, "super_net_miou": 0.2, "path": [0, 0], "cell_of_layer": None},
        "curve": [[2, 0.2], [4, 0.4]],
    }
    assert {key: first[key] for key in wanted} == wanted
    assert first["cells"] == json.loads(TINY_GENOTYPE)["cells"]
    assert {runs["train_random_1"][key] for key in ("search", "super_net_miou")} == {None}
    test, ranks = made["permutation_test"], made["kendall"]
    assert (test["found"], test["random"], test["p_value"]) == (2, 2, pytest.approx(2 / 6))
    assert (ranks["count"], ranks["tau"]) == (3, 1.0) and made["warnings"] == []
    for sentence in made["sentences"]:
        assert sentence in done.stdout
    # What the networks cost is what profile says.
    run = f"--model_dir={fake_study / 'train_found_0'}"
    profiled = json.loads(train_here("--mode=profile", run).stdout.splitlines()[-1])
    for key in ("params_millions", "multi_adds_billions"):
        assert first[key] == profiled[key] > 0
    # The older comparison is replaced; nothing else is.
    assert train_here("--mode=compare", f"--runs={fake_study}/*", f"--output={output}").code == 0
    other = fake_study / "train_found_0" / "run.json"
    done = train_here("--mode=compare", f"--runs={fake_study}/*", f"--output={other}")
    assert done.code == 2 and "another kind of file" in done.error


def test_a_ranking_that_is_given_counts_alone(fake_study, tmp_path):
    samples = [{"miou": 0.7, "path": [1, 2], "cells": json.loads(TINY_GENOTYPE)["cells"]}]
    ranking = tmp_path / "front.json"
    ranking.write_text(json.dumps({"samples": samples}))
    made = compare([f"{fake_study}/*"], ranking=ranking)
    assert [row["super_net_miou"] for row in made["runs"]] == [None, None, None, 0.7]
    for text in ("", "[]", '{"samples": [{"path": [7]}]}', '{"samples": 3}'):
        ranking.write_text(text)
        done = train_here("--mode=compare", f"--runs={fake_study}/*", f"--ranking={ranking}")
        assert done.code == 1 and "no front.json of --mode=sample" in done.error


def test_runs_that_are_no_equals_are_shown_with_a_warning(fake_study):
    published = genotypes.load("published")
    one = Genotype(published.path, published.cells)
    more = {"train_steps": 8, "filter_multiplier": 3}
    write_fake_run(fake_study / "train_published", one, 0.3, identity=more, num_images=1)
    made = compare([f"{fake_study}/train_random_0", f"{fake_study}/train_p*"])
    assert [row["group"] for row in made["runs"]] == ["random", "published"]
    for wanted in (
        "not equals: trained with --train_steps, 4 in ",
        "not equals: trained with --filter_multiplier, 2 in ",
        "not equals: evaluated with num_images, 2 in ",
    ):
        assert sum(line.startswith(wanted) for line in made["warnings"]) == 1
    assert len(made["warnings"]) == 3
    assert made["sentences"][-1].startswith("the runs are not equals")
    assert made["permutation_test"] is None


def test_an_older_run_has_the_defaults(fake_study):
    """That a flag is newer than a run makes no difference."""
    run = fake_study / "train_found_0" / "run.json"
    run.write_text(run.read_text().replace('"batch_size"', '"ema_decay": 0.0, "batch_size"'))
    assert compare([f"{fake_study}/*"])["warnings"] == []


@pytest.mark.parametrize(
    ("runs", "code", "said"),
    [
        ("nothing*", 2, "stands for no training's model_dir"),
        ("search_0", 2, "is no training's model_dir"),
        ("train_found_0", 2, "alone is nothing to compare: give two or more"),
        ("train_found_0,ROOT/./train_found_0", 2, "alone is nothing to compare"),
        ("train_*", 1, "has no metrics.json: evaluate it first (--mode=eval --model_dir="),
        ("train_found_*,ROOT/classes", 2, "has 3 classes and "),
        ("train_found_*,ROOT/damaged", 1, "metrics.json is damaged: --mode=eval"),
    ],
)
def test_bad_input(fake_study, runs, code, said):
    write_fake_run(fake_study / "train_new", genotype((0, 0)), None)
    write_fake_run(fake_study / "classes", genotype((0, 0)), 0.5, classes=4)
    write_fake_run(fake_study / "damaged", genotype((0, 0)), "high")
    runs = f"{fake_study}/{runs.replace('ROOT', str(fake_study))}"
    done = train_here("--mode=compare", f"--runs={runs}")
    assert done.code == code and said in done.error


def test_nothing_is_named():
    done = train_here("--mode=compare", "--runs=,")
    assert done.code == 2 and "--runs=,: give names of directories, or patterns" in done.error


def test_numbers_that_are_none_are_left_out(fake_study):
    run = fake_study / "train_found_0"
    (run / "history.jsonl").write_text('{"step": 2, "val_miou": NaN}\n')
    (run / "metrics.json").write_text(json.dumps(METRICS | {"miou": 0.4, "miou_present": math.nan}))
    first = compare([f"{fake_study}/*"])["runs"][0]
    assert (first["curve"], first["miou_present"]) == ([], None)


def test_time_of_steps_without_a_rate():
    # 2 steps of 4 images at 1 image/s, 2 steps of an unknown rate, which are taken to last as long.
    rows = [{"step": 2, "images_per_s": 1.0}, {"step": 4}]
    assert sum_seconds(rows, 4) == 16.0
    assert sum_seconds([], 4) is sum_seconds([{"step": 4}], 4) is None
    assert sum_seconds(rows, None) is None


def test_two_real_trainings(tmp_path):
    data = tmp_path / "data"
    convert("cityscapes", str(write_cityscapes(tmp_path / "source", train=2, val=1)), str(data))
    for name, path in (("found", (0, 1)), ("random", (1, 1))):
        meta = {"drawn": "uniformly"} if name == "random" else {"alpha": [], "step": 1, "seed": 2}
        one = tmp_path / f"{name}.json"
        genotype(path, **meta).save(one)
        places = (f"--data_dir={data}", f"--model_dir={tmp_path / 'runs' / name}")
        for flags in (
            ("--mode=train", *TINY_NETWORK, f"--genotype={one}", "--train_steps=2", "--seed=1"),
            ("--mode=eval",),
        ):
            done = train_here(*flags, *places)
            assert done.code == 0, done.stderr
    shutil.copytree(tmp_path / "runs" / "random", tmp_path / "runs" / "random_again")
    flags = {
        "mode": "compare",
        "runs": f"{tmp_path}/runs/found,{tmp_path}/runs/random*",
        "output": tmp_path / "comparison.json",
        "latency": "true",
        "ranking": tmp_path / "front.json",
    }
    assert flags.keys() == {name for name, modes in USED.items() if "compare" in modes}
    flags["ranking"].write_text('{"samples": []}')
    done = train_here(*(f"--{name}={value}" for name, value in flags.items()))
    assert done.code == 0, done.stderr
    made = json.loads(done.stdout.splitlines()[-1])
    assert made["warnings"] == []
    found, random, again = made["runs"]
    metrics = json.loads((tmp_path / "runs" / "found" / "metrics.json").read_text())
    assert found["miou"] == metrics["miou"] and (found["group"], found["search"]) == ("found", 2)
    assert (random["group"], random["search"], random["seed"]) == ("random", None, 1)
    assert found["latency_ms"] > 0 and found["train_seconds"] > 0 and len(found["curve"]) == 2
    assert again["latency_ms"] == random["latency_ms"]  # measured once
    assert (made["permutation_test"]["found"], made["permutation_test"]["random"]) == (1, 1)
    assert "1 found, 1 random: no difference can be told" in done.stdout
    assert "latency (ms)" in done.stdout

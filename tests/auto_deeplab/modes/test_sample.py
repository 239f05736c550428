"""--mode=sample: architectures at random and from a search, within a budget, each one once."""

import json

import numpy as np
import pytest
import tensorflow as tf

from auto_deeplab.budget import cost_table, expected_cost
from auto_deeplab.modes import ranking
from auto_deeplab.modes.flag_definitions import USED
from auto_deeplab.space import genotype
from tests.command import TINY_SEARCH, train_here
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

OPERATIONS = "sep_conv_3x3,skip_connect,none"
SMALL = (f"--operations={OPERATIONS}", "--num_layers=3", "--num_blocks=2")


def sample(output_dir, *flags):
    """What the command prints last, and the architectures that it wrote."""
    done = train_here("--mode=sample", f"--output_dir={output_dir}", *flags)
    assert done.code == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    assert json.loads((output_dir / "samples.json").read_text())["samples"] == rows
    assert sorted(path.name for path in output_dir.iterdir()) == [
        *(f"{number:03d}" for number in range(len(rows))),
        "samples.json",
    ]
    found = [genotype.load(output_dir / row["name"] / "genotype.json") for row in rows]
    assert [list(one.path) for one in found] == [row["path"] for row in rows]
    return rows, found


@pytest.fixture(scope="module")
def search(tmp_path_factory):
    root = tmp_path_factory.mktemp("sample")
    convert("cityscapes", str(write_cityscapes(root / "source")), str(root / "data"))
    done = train_here(
        *("--mode=search", f"--data_dir={root / 'data'}", f"--model_dir={root / 'search'}"),
        *(*TINY_SEARCH, f"--operations={OPERATIONS}", "--epochs=2", "--alpha_start_epoch=1"),
        *("--arch_learning_rate=1", "--max_eval_images=1", "--seed=3"),
    )
    assert done.code == 0, done.stderr
    return root / "search"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table whose convolutions cost something, and nothing else does."""
    names = OPERATIONS.split(",")
    settings = dict.fromkeys(cost_table.SETTINGS, 0) | {"operations": names, "num_blocks": 2}
    pieces = {
        " ".join(map(str, key)): float("sep_conv_3x3" in key)
        for key in cost_table.list_pieces(names)
    }
    path = tmp_path_factory.mktemp("table") / "costs.json"
    cost_table.CostTable("multiply_adds", settings, pieces).save(path)
    return path


def test_of_the_whole_space(tmp_path):
    rows, found = sample(tmp_path / "a", "--num_samples=20", *SMALL)
    assert len(rows) == 20 and len({(one.path, one.cells) for one in found}) == 20
    assert {(one.num_layers, one.num_blocks) for one in found} == {(3, 2)}
    assert found[4].meta == {"drawn": "uniformly", "seed": 0, "number": 4}
    assert sample(tmp_path / "same", "--num_samples=20", *SMALL)[1] == found
    # The first ones do not depend on how many there are.
    assert sample(tmp_path / "few", "--num_samples=5", *SMALL)[1] == found[:5]
    assert sample(tmp_path / "other", "--num_samples=5", "--seed=1", *SMALL)[1] != found[:5]


def test_the_papers_space_without_flags(tmp_path):
    _, found = sample(tmp_path / "a")
    assert len(found) == 10 and {(one.num_layers, one.num_blocks) for one in found} == {(12, 5)}


def test_of_a_search(search, tmp_path):
    rows, best = sample(tmp_path / "best", f"--model_dir={search}", "--sample_best")
    assert len(rows) == 10 and best[0] == genotype.load(search / "genotype.json")
    assert best[0].meta == {
        **{"dataset": "cityscapes", "search_seed": 3, "step": 2, "number": 0},
        "drawn": "as one of the most probable",
    }
    _, drawn = sample(tmp_path / "drawn", f"--model_dir={search}", "--seed=5")
    assert drawn[0].meta["drawn"] == "by its probability" and drawn[0].meta["seed"] == 5
    assert drawn != best
    # Of an earlier checkpoint, before alpha and beta moved.
    at_one = f"--checkpoint={search / 'checkpoints' / 'ckpt-1'}"
    _, earlier = sample(tmp_path / "2", f"--model_dir={search}", "--sample_best", at_one)
    assert earlier[0].meta["step"] == 1 and earlier != best


def test_within_a_budget(search, table, tmp_path):
    within = (f"--cost_table={table}", "--cost_budget=7")
    rows, found = sample(tmp_path / "a", "--num_samples=20", *SMALL, *within)
    read = cost_table.load(table)
    assert [row["cost"] for row in rows] == [expected_cost.cost_of(read, one) for one in found]
    # Three cells of two blocks: twelve operations, of which at most seven are convolutions.
    assert all(row["cost"] <= 7 for row in rows) and {row["unit"] for row in rows} == {"billions"}
    costs = [row["cost"] for row in sample(tmp_path / "b", *SMALL, f"--cost_table={table}")[0]]
    assert max(costs) > 7

    # A search of two layers: what is dear is left out of its best, which keep their order.
    of_search = (f"--model_dir={search}", "--sample_best", f"--cost_table={table}")
    all_rows, all_found = sample(tmp_path / "all", "--num_samples=200", *of_search)
    kept = [one for row, one in zip(all_rows, all_found, strict=True) if row["cost"] <= 4]
    assert 5 < len(kept) < 200
    few = sample(tmp_path / "few", "--num_samples=5", *of_search, "--cost_budget=4")[1]
    assert few == kept[:5]


@pytest.mark.parametrize(
    ("flags", "code", "saying"),
    [
        (["--sample_best"], 2, "--sample_best takes the best of a search"),
        (["--cost_budget=3"], 2, "--cost_table is needed by --cost_budget"),
        (["--operations=conv_9x9"], 2, "--operations"),
        (["--model_dir={search}", "--num_layers=2"], 2, "are those of the search in --model_dir"),
        (["--model_dir={search}", "--num_layers=12"], 2, "are those of the search in --model_dir"),
        (["--model_dir=nowhere"], 2, "nowhere"),
        (["--cost_table={table}"], 2, "--cost_table={table}: it has no"),
        (["--cost_table={table}", *SMALL, "--num_blocks=3"], 2, "for cells of 2 blocks"),
        # One layer is at one of two levels, and of one block and operation there is one cell.
        (
            ["--operations=skip_connect", "--num_layers=1", "--num_blocks=1", "--num_samples=3"],
            *(1, "only 2 different architectures were found: give a smaller --num_samples"),
        ),
        (
            ["--cost_table={table}", "--cost_budget=1e-3", *SMALL, "--num_samples=200"],
            *(1, "different architectures within --cost_budget=0.001 were found"),
        ),
    ],
)
def test_what_is_refused_leaves_nothing(search, table, tmp_path, flags, code, saying):
    names = {"search": search, "table": table}
    flags = [flag.format(**names) for flag in flags]
    done = train_here("--mode=sample", f"--output_dir={tmp_path / 'out'}", *flags)
    assert done.code == code and saying.format(**names) in done.error
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_is_there_is_replaced(tmp_path):
    (tmp_path / "mine").write_text("1")
    done = train_here("--mode=sample", f"--output_dir={tmp_path}")
    assert done.code == 1 and "is not an empty directory" in done.error
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_all_its_flags_are_tried_here():
    assert {name for name, modes in USED.items() if "sample" in modes} == {
        *("mode", "output_dir", "num_samples", "seed", "operations", "num_layers", "num_blocks"),
        *("model_dir", "checkpoint", "sample_best", "cost_table", "cost_budget"),
        *(
            "candidates",
            "data_dir",
            "num_classes",
            "ignore_label",
            "eval_split",
            "max_eval_images",
            "batch_norm_batches",
            "ranking_steps",
        ),
    }


def read_history(directory):
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def rank(search, output_dir, *flags):
    return train_here(
        *("--mode=sample", f"--model_dir={search}", f"--data_dir={search.parent / 'data'}"),
        *(f"--output_dir={output_dir}", "--batch_norm_batches=1", "--max_eval_images=1", *flags),
        "--eval_split=val",
    )


def test_ranked_in_the_super_net(search, tmp_path):
    flags = ("--num_samples=2", f"--candidates={search}/genotype.json")
    done = rank(search, tmp_path / "out", *flags)
    assert done.code == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    front = json.loads((tmp_path / "out" / "front.json").read_text())
    assert front["samples"] == rows
    assert sorted(row["name"] for row in rows) == ["000", "001", "search"]
    assert [row["miou"] for row in rows] == sorted((row["miou"] for row in rows), reverse=True)
    assert rows[0]["on_front"] and all(row["cost"] > 0 for row in rows)
    for row in rows:
        found = genotype.load(tmp_path / "out" / row["genotype"])
        assert list(found.path) == row["path"]
    assert (tmp_path / "out" / "front.png").stat().st_size > 1000

    # As if it had been killed after one: that one is not ranked again, the rest come out alike.
    ranked = tmp_path / "out" / "ranked.json"
    content = json.loads(ranked.read_text())
    content["miou"] = {"search": 0.123}
    ranked.write_text(json.dumps(content))
    again = rank(search, tmp_path / "out", *flags)
    assert again.code == 0, again.stderr
    resumed = {row["name"]: row["miou"] for row in json.loads(again.stdout.splitlines()[-1])}
    assert resumed == {row["name"]: row["miou"] for row in rows} | {"search": 0.123}
    # Another ranking does not mix with it.
    other = rank(search, tmp_path / "out", *flags, "--ranking_steps=2")
    assert other.code == 1 and "ranking_steps 0, not 2" in other.stderr
    other = rank(search, tmp_path / "out", *flags, "--batch_norm_batches=2")
    assert other.code == 1 and "batch_norm_batches 1, not 2" in other.stderr


def test_what_cannot_be_ranked(search, tmp_path):
    data = search.parent / "data"
    for flags, words in (
        ((f"--data_dir={data}",), "--model_dir"),
        (("--num_samples=0",), "--candidates"),
        ((f"--model_dir={search}", "--candidates=nowhere/*.json"), "no such file"),
        (
            (f"--data_dir={data}", f"--model_dir={search}", "--candidates=published"),
            "published is not in the super-net",
        ),
    ):
        done = train_here("--mode=sample", f"--output_dir={tmp_path / 'no'}", *flags)
        assert done.code == 2 and words in done.stderr, (flags, done.stderr)
        assert not (tmp_path / "no").exists()


def test_ranked_by_weights_of_single_paths(search, tmp_path, monkeypatch):
    """Other weights, another ranking; the search stays as it is; a kill changes nothing."""
    monkeypatch.setattr(ranking, "SAVE_EVERY", 1)
    kept = {path: path.read_bytes() for path in search.rglob("*") if path.is_file()}
    flags = ("--num_samples=2", f"--candidates={search}/genotype.json")
    out = tmp_path / "out"
    done = rank(search, out, *flags, "--ranking_steps=3")
    assert done.code == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    steps = read_history(out / "supernet")
    assert [row["step"] for row in steps] == [1, 2, 3]
    # Guessing among the 19 classes costs ln 19 = 2.9; rates fall along the search's cosine.
    assert all(0 < row["loss_w"] < 10 for row in steps)
    assert steps[0]["learning_rate"] > steps[1]["learning_rate"] > steps[2]["learning_rate"]
    weights = tf.train.load_checkpoint(str(out / "supernet" / "checkpoints" / "ckpt-3"))
    before = tf.train.load_checkpoint(str(next((search / "checkpoints").glob("*.index")))[:-6])
    names = [name for name in before.get_variable_to_shape_map() if name.startswith("weights/")]
    assert any(np.any(weights.get_tensor(n) != before.get_tensor(n)) for n in names)
    assert {path: path.read_bytes() for path in kept} == kept

    # As if it had been killed after two steps.
    for path in (out / "supernet" / "checkpoints").glob("ckpt-3.*"):
        path.unlink()
    ranked = out / "ranked.json"
    ranked.write_text(json.dumps(json.loads(ranked.read_text()) | {"miou": {}}))
    again = rank(search, out, *flags, "--ranking_steps=3")
    assert again.code == 0 and "goes on at step 2 of 3" in again.stderr, again.stderr
    assert json.loads(again.stdout.splitlines()[-1]) == rows
    resumed = read_history(out / "supernet")
    assert [row["loss_w"] for row in resumed] == [row["loss_w"] for row in steps]

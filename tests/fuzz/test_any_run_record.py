"""Whatever stands in a run.json or a cost table, there is an answer or one short line."""

import json

from hypothesis import given

from auto_deeplab.budget import cost_table
from auto_deeplab.modes.decode import make_architecture
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import read_scale
from tests.fuzz.promise import answer
from tests.fuzz.values import JSON, damaged, mutated

RECORD = {
    "mode": "train",
    "identity": {
        **{"seed": 0, "learning_rate": 0.1, "genotype": "[]", "class_weights": None},
        **{"filter_multiplier": 2, "stem_filters": [4, 4, 4], "head_filters": 4},
        **{"batch_norm_decay": 0.9, "fine_tune_batch_norm": True, "drop_path_keep_prob": 1.0},
    },
    "dataset": "toy",
    "class_names": ["sky", "road"],
    "palette": [[0, 0, 0], [255, 255, 255]],
    "scale": {"resize_factor": 0.5},
    "branches": [{"checkpoint": "best", "step": 2, "changed": {}}],
}
TABLE = {
    "format": 1,
    "metric": "multiply_adds",
    "unit": "B",
    "settings": {"operations": ["sep_conv_3x3", "none"]},
    "pieces": {"stem": 1.0},
}


def read(folder, content):
    (folder / "run.json").write_bytes(content)
    record, message = answer(run_record.read_if_there, str(folder))
    if record is None:
        assert "run.json is damaged" in message
        return
    answer(run_record.check, str(folder), "train", RECORD["identity"], {"seed": 0})
    if record["mode"] == "train":  # what eval, predict, export and profile make of it
        one = {name: record["identity"][name] for name in run_record.NETWORK}
        assert all(isinstance(one[name], int) for name in ("filter_multiplier", "head_filters"))
        assert record["class_names"]
        answer(read_scale, record, str(folder))
    else:
        assert make_architecture(record["identity"]).operations
    assert all(isinstance(name, str) for name in record.get("class_names") or [])
    assert all(len(colour) == 3 for colour in record.get("palette") or [])


@given(content=JSON | mutated(RECORD))
def test_run_record_of_any_form(folder, content):
    read(folder, json.dumps(content).encode())


SEARCH = {
    "mode": "search",
    "identity": {
        **{"num_layers": 2, "num_blocks": 2, "operations": ["sep_conv_3x3", "none"], "seed": 0},
        "alpha_sharing": "global",
    },
}


@given(content=mutated(SEARCH))
def test_the_record_of_a_search_of_any_form(folder, content):
    read(folder, json.dumps(content).encode())


@given(content=damaged(json.dumps(RECORD).encode()))
def test_a_damaged_run_record(folder, content):
    read(folder, content)


def test_nested_a_hundred_thousand_deep(folder):
    read(folder, b"[" * 100_000)
    _, message = answer(cost_table.CostTable.from_json, "[" * 100_000, errors=ValueError)
    assert "not a whole cost table" in message


@given(content=JSON | mutated(TABLE))
def test_cost_table_of_any_form(content):
    answer(cost_table.CostTable.from_json, json.dumps(content), errors=ValueError)

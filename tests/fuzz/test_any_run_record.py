"""Whatever stands in a run.json or a cost table, there is an answer or one short line."""

import json

from hypothesis import given

from auto_deeplab.budget import cost_table
from auto_deeplab.runs import run_record
from tests.fuzz.promise import answer
from tests.fuzz.values import JSON, damaged, mutated

RECORD = {
    "mode": "train",
    "identity": {"seed": 0, "learning_rate": 0.1, "genotype": "[]", "class_weights": None},
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
    assert all(isinstance(name, str) for name in record.get("class_names") or [])
    assert all(len(colour) == 3 for colour in record.get("palette") or [])


@given(content=JSON | mutated(RECORD))
def test_run_record_of_any_form(folder, content):
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

"""Whatever stands in a run.json or a cost table, there is an answer or one short line."""

import json

from hypothesis import given
from hypothesis import strategies as st

from auto_deeplab.budget import cost_table
from auto_deeplab.modes.decode import make_architecture
from auto_deeplab.network.network import Network
from auto_deeplab.runs import run_record
from auto_deeplab.space import genotype
from official.errors import UsageError
from official.sizes import Sizes
from tests.fuzz.promise import LONGEST, answer
from tests.fuzz.values import JSON, damaged, mutated

WIDTHS = {"filter_multiplier": 2, "stem_filters": [4, 4, 4], "head_filters": 8}
BEHAVIOUR = {"batch_norm_decay": 0.9, "fine_tune_batch_norm": True, "drop_path_keep_prob": 1.0}
SEARCH = {
    "mode": "search",
    "identity": {
        **{"num_layers": 2, "num_blocks": 2, "operations": ["sep_conv_3x3", "none"], "seed": 0},
        **{"epochs": 4, "alpha_sharing": "level", "stem_filters": [4, 8]},
    },
    "dataset": "toy",
}
RECORD = {
    "mode": "train",
    "identity": {
        **{"seed": 0, "learning_rate": 0.1, "genotype": "[]", "class_weights": None},
        **{"train_steps": 9, "ema_decay": 0.0, **WIDTHS, **BEHAVIOUR},
    },
    "network": {
        "genotype": json.loads(genotype.load("published").to_json()),
        **{"num_classes": 2, "low_level_filters": 48, "seed": None, **WIDTHS, **BEHAVIOUR},
        **{"class_names": ["sky", "road"], "palette": None, "sizes": {"resize_factor": 1.0}},
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
    # What the modes take from it.
    try:
        run_record.check(str(folder), record["mode"], SEARCH["identity"] | RECORD["identity"], {})
    except run_record.OtherRunError as error:
        longer = error.flag not in ("epochs", "train_steps") or error.value > error.recorded
        assert len(str(error)) <= LONGEST and longer in (True, False)
    except UsageError as error:
        assert len(str(error)) <= LONGEST
    if record["mode"] == "search":
        make_architecture(record["identity"])
        return
    assert all(isinstance(name, str) for name in record["class_names"])
    assert all(len(colour) == 3 for colour in record.get("palette") or [])
    assert Sizes.from_options(record.get("scale", {})).compute_size((40, 72)) >= (1, 1)
    assert set(WIDTHS) <= set(record["identity"])
    if record.get("network") is not None:
        errors = (ValueError, KeyError, TypeError, AttributeError)
        answer(lambda: Network.from_config(record["network"]), errors=errors)


@given(content=JSON | mutated(RECORD) | mutated(SEARCH))
def test_run_record_of_any_form(folder, content):
    read(folder, json.dumps(content).encode())


@given(content=st.sampled_from([RECORD, SEARCH]).flatmap(lambda x: damaged(json.dumps(x).encode())))
def test_a_damaged_run_record(folder, content):
    read(folder, content)


def test_nested_a_hundred_thousand_deep(folder):
    read(folder, b"[" * 100_000)
    _, message = answer(cost_table.CostTable.from_json, "[" * 100_000, errors=ValueError)
    assert "not a whole cost table" in message


@given(content=JSON | mutated(TABLE))
def test_cost_table_of_any_form(content):
    answer(cost_table.CostTable.from_json, json.dumps(content), errors=ValueError)

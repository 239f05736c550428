"""What report.html holds, from histories that are known."""

import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from auto_deeplab.report import charts, pages
from auto_deeplab.space import decoding, search_space
from official.errors import RunError

ONLY_WARNED_OF = pages.only_warned_of  # tests/conftest.py takes it away
HOSTILE = "<script>alert('&\"')</script>"
OPERATIONS = ["sep_conv_3x3", "skip_connect", "none"]
NAMES, PALETTE = ["road", "tree"], [(128, 64, 128), (0, 128, 0)]
RECORD = {
    **{"mode": "search", "dataset": "toy", "class_names": NAMES, "palette": PALETTE},
    "identity": {"seed": 7, "operations": OPERATIONS, "num_layers": 2, "num_blocks": 1},
}


def make_row(step, chosen, level):
    """A report whose cell takes operation `chosen` on both edges, and whose path ends at level."""
    alpha = np.full([2, 3], 0.1)
    alpha[:, chosen] = 0.8
    beta = np.zeros([2, 4, 3])
    for layer in (1, 2):
        for source in search_space.levels_at(layer - 1):
            legal = list(search_space.legal_directions(layer, source))
            beta[layer - 1, source, legal] = 1 / len(legal)
    # From (1, 0) the network stays, or goes down.
    step_to = search_space.direction(0, level)
    beta[:, 0] = 0.0
    beta[0, 0, [search_space.SAME, search_space.DOWN]] = 0.9, 0.1
    beta[1, 0, [search_space.SAME, search_space.DOWN]] = 0.2
    beta[1, 0, step_to] = 0.8
    found = decoding.decode(alpha, beta, OPERATIONS, 1)
    return {
        **{"step": step, "epoch": step / 10, "loss_w": 1.5, "val_miou": 0.25 + step / 1000},
        **{"alpha_entropy": np.log(3) / 2, "beta_entropy": 0.3, "skip_connects": 2 * chosen},
        **{"val_per_class_iou": [0.5, None], "path": list(found.path)},
        "cell": json.loads(json.dumps(found.cells[0])),
        **{"alpha": alpha.tolist(), "beta": beta.tolist()},
    }


ROWS = [make_row(10, 1, 0), make_row(20, 0, 1)]


class Reader(HTMLParser):
    """Collects the tags of a page, and what is in its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self._inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)


def read(path):
    """A page's text, and the reports of each of its drawings; it must need no other file."""
    text = path.read_text(encoding="utf-8")
    reader = Reader(text)
    for tag, attributes in reader.tags:
        assert tag not in ("link", "iframe", "object")
        for name in {"src", "href", "data"} & attributes.keys():
            assert attributes[name].startswith("data:image/")
    assert not re.search(r"url\(|@import|https?://", text)
    assert text.count("alert(") == text.count("alert(&#39;") + text.count(r"alert(\u0027")
    for tag, attributes in reader.tags:
        if tag == "svg":
            assert "aria-label" in attributes or attributes["aria-hidden"] == "true"
    return text, [json.loads(script) for script in reader.scripts[:-1]]


def write(folder, rows=ROWS, **changes):
    pages.write_run(folder, RECORD | changes, rows)
    return read(folder / "report.html")


def test_a_search_shows_each_report(tmp_path):
    (tmp_path / "flags.cfg").write_text("--epochs=4\n")
    text, ((first, last),) = write(tmp_path)
    # Two rows of three operations: places 0..5. First the skip-connections, then the convolutions.
    assert (first["kept"], last["kept"]) == (
        [{"places": [1, 4], "rows": [0, 1]}],
        [{"places": [0, 3], "rows": [0, 1]}],
    )
    assert first["branches"] == [["skip of H l-1", "skip of H l-2"]]
    # The nodes are (0, 0), (1, 0), (1, 1), (2, 0), ...: the second path goes down at its end.
    assert (first["nodes"], last["nodes"]) == ([0, 1, 3], [0, 1, 4])
    assert first["alpha"] == [[0.1, 0.8, 0.1] * 2]
    # The edges out of (0, 0), then those to (2, 0): from (1, 0) and (1, 1).
    assert first["beta"][:3] == [0.9, 0.1, 0.8]
    # A half of uniform; the row's sentence is the slider's.
    assert "entropy of alpha 50.0% of uniform" in last["said"]
    for said in ("seed 7", "step 20", "0.270", "--epochs=4", "--flagfile=", "road", ">50.0%<"):
        assert said in text
    assert "tree</td>" not in text  # it was never seen


def test_edges_are_as_wide_as_their_weights(tmp_path):
    # One block of two inputs, whose uniform entropy is ln 2.
    rows = [row | {"edge_weights": [0.75, 0.25], "edge_entropy": np.log(2) / 4} for row in ROWS]
    text, ((first, _),) = write(tmp_path, rows)
    assert first["edge_weights"] == [[0.75, 0.25]]
    assert "entropy of the edge weights 25.0% of uniform" in first["said"]
    assert "as wide as the weight of the edge" in text
    # One that has another number of edges is left out, as all rows by another hand are.
    odd = [rows[0], rows[1] | {"edge_weights": [0.75, 0.25, 0.0]}]
    assert "as wide as the weight" not in write(tmp_path, ROWS)[0]
    text, _ = write(tmp_path, odd)
    assert "0.270" in text


def test_text_stays_text(tmp_path):
    sample = SimpleNamespace(
        name=HOSTILE,
        image=np.zeros([4, 6, 3], np.uint8),
        truth=np.array([[0, 1, 255]] * 4, np.uint8),
        prediction=np.array([[0, 0, 1]] * 4),
    )
    pages.keep_samples(tmp_path, PALETTE, [sample])
    (tmp_path / "flags.cfg").write_text(HOSTILE)
    rows = [{**ROWS[0], "cell": [[[0, HOSTILE], [1, HOSTILE]]]}, ROWS[1]]
    text, _ = write(tmp_path, rows, dataset=HOSTILE, class_names=[HOSTILE, "tree"])
    assert text.count("&lt;script&gt;") >= 4
    assert "prediction: 50% of the labelled pixels are right" in text


@pytest.mark.parametrize("missing", ["alpha", "beta", "path", "epoch", "val_miou"])
def test_what_older_rows_lack_is_left_out(missing, tmp_path):
    rows = [{key: value for key, value in row.items() if key != missing} for row in ROWS]
    text, drawn = write(tmp_path, rows)
    assert len(drawn) == (missing != "path")
    assert ('class="heat"' in text) == (missing not in ("alpha", "path"))
    assert "validation mIoU" in text or missing == "val_miou"


def test_a_run_without_reports_has_a_page(tmp_path):
    text, drawn = write(tmp_path, [])
    assert "Nothing is reported yet" in text and not drawn


def test_cells_of_their_own_are_drawn_apart(tmp_path):
    identity = {**RECORD["identity"], "alpha_sharing": "layer"}
    cell = ROWS[0]["cell"]
    rows = [
        {**ROWS[0], "cells": [cell, ROWS[1]["cell"]], "cell_of_layer": [0, 1]}
        | {"alpha": [ROWS[0]["alpha"], ROWS[1]["alpha"]]}
    ]
    text, ((report,),) = write(tmp_path, rows, identity=identity)
    assert [kept["places"] for kept in report["kept"]] == [[1, 4], [0, 3]]
    assert "The cell of layer 2" in text


def test_a_training_shows_its_network(tmp_path):
    found = decoding.decode(ROWS[0]["alpha"], ROWS[0]["beta"], OPERATIONS, 1)
    found.save(tmp_path / "genotype.json")
    text, ((report,),) = write(tmp_path, ROWS, mode="train", identity={"seed": 3})
    assert report["nodes"] == [0, 1, 3] and "Training: " in text
    assert "<input" not in text  # there is nothing to slide


def make_comparison(study):
    """Two trainings and the search that one of them comes from."""
    runs = []
    for number, (name, group) in enumerate([("train_found_0", "found"), (HOSTILE, "random")]):
        folder = study / f"run_{number}"
        folder.mkdir()
        image = np.zeros([2, 2, 3], np.uint8)
        truth = np.zeros([2, 2], np.uint8)
        sample = SimpleNamespace(name="a.png", image=image, truth=truth, prediction=truth + number)
        pages.keep_samples(folder, PALETTE, [sample])
        runs.append(
            {
                **{"model_dir": str(folder), "name": name, "group": group, "seed": number},
                **{"search": None if number else 0, "miou": 0.5 - number / 10},
                **{"miou_present": 0.6, "params_millions": 1.5, "multi_adds_billions": 2.5},
                **{"latency_ms": None, "train_seconds": 60.5, "train_steps": 1000},
                **{"super_net_miou": None, "path": [0, 1], "cells": [ROWS[0]["cell"]]},
                **{"cell_of_layer": None, "curve": [[10, 0.1], [20, 0.5 - number / 10]]},
            }
        )
    (study / "search_0").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (study / "search_0" / "history.jsonl").write_text(lines)
    groups = [
        {"group": run["group"], "count": 1, "seeds": [run["seed"]], "miou_mean": run["miou"]}
        | {"miou_std": None, "params_millions": 1.5, "multi_adds_billions": 2.5}
        for run in runs
    ]
    sentence = "1 found, 1 random: no difference can be told"
    return {"runs": runs, "groups": groups} | {
        "permutation_test": {"sentence": sentence},
        "kendall": None,
    }


def test_a_comparison_shows_all_runs(tmp_path):
    pages.write_comparison(tmp_path / "report.html", make_comparison(tmp_path))
    text, drawn = read(tmp_path / "report.html")
    assert "1 found, 1 random: no difference can be told" in text
    assert [report["nodes"] for (report,) in drawn] == [[0, 1, 4]] * 2
    for said in ("search_0", "train_found_0: 100% right", "0% right", "Fig. 4", "1,000", "60.5"):
        assert said in text
    # At the same cost, the better one alone is the front.
    assert "1 of 2 on the front" in text


def test_the_front_is_what_none_beats_in_both():
    groups = {"a": [(1.0, 0.3, "x"), (2.0, 0.2, "y")], "b": [(3.0, 0.4, "z")]}
    chart = charts.lay_out_scatter(groups, x_label="cost", y_label="mIoU")
    places = [(p["x"], p["y"]) for group in chart["groups"] for p in group["points"]]
    assert chart["front"] == [places[0], places[2]]


def test_a_failure_is_said_and_ends_nothing(tmp_path, capsys):
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError):
        write(tmp_path)
    with ONLY_WARNED_OF("report.html"):
        write(tmp_path)
    assert "warning: report.html is not written: RunError" in capsys.readouterr().err

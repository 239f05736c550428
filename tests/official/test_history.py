import json

import pytest

from official import history
from official.history import History

ROWS = [{"step": step, "epoch": step / 4, "loss_w": 1.0 / step} for step in (4, 8, 12)]


def write(model_dir, lines):
    (model_dir / "history.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))


def lines(rows=ROWS):
    return [json.dumps(row).encode() for row in rows]


def test_there_is_none(tmp_path):
    assert history.read(str(tmp_path)) == []


ODD = [
    b"12",
    b"null",
    b"[]",
    b'{"step": 8, "loss_w":',
    b"\xff\xfe",
    b"",
    b"{}",
    b'{"step": "8"}',
    b'{"step": true}',
    b'{"step": -1}',
    b'{"step": 8, "val_miou": "high"}',
    b'{"step": 8, "loss_w": [1]}',
    b"[" * 100_000,
    b" " * 2**20 + b'{"step": 8}',
    b'{"step": %d}' % 10**20,
    b'{"step": 8, "loss_w": %d}' % 10**400,
]


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("place", [0, 1, 3])
def test_an_odd_line_costs_itself_alone(tmp_path, capsys, odd, place):
    whole = lines()
    write(tmp_path, [*whole[:place], odd, *whole[place:]])
    assert history.read(str(tmp_path)) == ROWS
    path = tmp_path / "history.jsonl"
    assert f"warning: {path}: line {place + 1} is no report: left out" in capsys.readouterr().err
    History(str(tmp_path), 12, writes=True)
    assert path.read_bytes().splitlines() == whole


def test_of_many_odd_lines_the_first_ones_are_named(tmp_path, capsys):
    write(tmp_path, [*lines(ROWS[:2]), *[b""] * 1000, *lines(ROWS[2:])])
    assert history.read(str(tmp_path)) == ROWS
    *first, last = capsys.readouterr().err.splitlines()
    assert len(first) == 5 and last.endswith("so are 995 more lines")


def test_a_last_line_that_a_kill_cut_off(tmp_path):
    write(tmp_path, lines())
    path = tmp_path / "history.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    assert history.read(str(tmp_path)) == ROWS[:2]


def test_of_two_reports_of_a_step_the_later_one_counts(tmp_path):
    write(tmp_path, lines([*ROWS, {"step": 8, "loss_w": 7.0}]))
    rows = history.read(str(tmp_path))
    assert [(row["step"], row["loss_w"]) for row in rows] == [(4, 0.25), (8, 7.0), (12, 1 / 12)]

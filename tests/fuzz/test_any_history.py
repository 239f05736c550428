"""Whatever stands in history.jsonl, every report in it that is whole is read, in order."""

import json

from hypothesis import given
from hypothesis import strategies as st

from official import history
from tests.fuzz.values import JSON, damaged, mutated

ROWS = [
    {"step": step, "epoch": step / 4, "loss_w": 1 / step, "val_miou": 0.5, "saved": step}
    for step in (4, 8, 12)
]
ODD = JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20)
ODD |= mutated(ROWS[0]).map(lambda row: json.dumps(row).encode())
ODD |= damaged(json.dumps(ROWS[1]).encode())


@given(odd=ODD, place=st.integers(0, 3))
def test_an_odd_line_costs_itself_alone(folder, odd, place):
    lines = [json.dumps(row).encode() for row in ROWS]
    lines.insert(place, odd.replace(b"\n", b" "))
    (folder / "history.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    found = history.read(str(folder))
    # A run that goes on takes them up, and TensorBoard too.
    assert history.History(str(folder), 2**63, writes=True).rows == found
    assert history.read(str(folder)) == found
    assert [row["step"] for row in found] == sorted({row["step"] for row in found})
    # A line that is itself a report of one of these steps may stand in the place of it.
    others = [row for row in found if row not in ROWS]
    assert len(others) <= 1
    assert all(row in found for row in ROWS if row["step"] not in [x["step"] for x in others])


@given(content=damaged(b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)))
def test_damaged_bytes(folder, content):
    (folder / "history.jsonl").write_bytes(content)
    whole = [
        line for line in content.split(b"\n") if line in [json.dumps(r).encode() for r in ROWS]
    ]
    found = history.read(str(folder))
    assert len(found) >= len(whole)

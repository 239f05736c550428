import json
import os
import shlex
import signal
import subprocess
import sys
import time
import types

import pytest

from auto_deeplab import quickstart
from tests.command import ROOT


@pytest.fixture
def road(monkeypatch):
    """A road of two stages; `end` notes with what the page would be made."""

    road = types.SimpleNamespace(stages=[], ended=[])
    monkeypatch.setattr(quickstart, "stages", lambda out: list(road.stages))
    monkeypatch.setattr(
        quickstart, "finish", lambda out, stages, seconds, answer: road.ended.append(seconds)
    )
    return road


def python(code):
    return [sys.executable, "-c", code]


def test_all_stages_have_a_time_and_commands_that_can_be_typed(tmp_path):
    road = quickstart.stages(tmp_path / "it's here")
    assert [stage.name for stage in road] == list(quickstart.SECONDS) and len(road) == 10
    for stage in road[:-1]:
        assert shlex.split(stage.shown) == ["python", *stage.command[1:]]


def test_says_what_it_will_do_and_numbers_the_stages(road, tmp_path, capsys):
    road.stages = [
        quickstart.Stage("convert", python("pass"), tmp_path / "there"),
        quickstart.Stage("check", python("pass")),
    ]
    (tmp_path / "there").mkdir()
    quickstart.run(tmp_path)
    said = capsys.readouterr().out
    minutes = round(sum(quickstart.SECONDS.values()) / 60)
    assert f"2 stages, about {minutes} minutes" in said and "index.html" in said
    assert "\n== 1 of 2: convert: done before" in said
    assert "\n== 2 of 2: check: python -c pass" in said
    assert list(road.ended[0]) == ["check"]


def test_a_stage_that_fails_ends_it_and_its_time_is_kept(road, tmp_path):
    road.stages = [quickstart.Stage("check", python("import os; os._exit(3)"))]
    with pytest.raises(SystemExit) as stop:
        quickstart.run(tmp_path)
    assert stop.value.code == "error: the stage 'check' failed; its message stands above"
    assert json.loads((tmp_path / "times.json").read_text())["check"]["done"] is False
    assert not road.ended


def test_times_are_those_until_a_stage_was_first_done(tmp_path):
    for seconds, done in ((5, False), (7, True), (100, True)):
        quickstart.Times(tmp_path / "times.json").add("train", seconds, done)
    assert quickstart.Times(tmp_path / "times.json").seconds() == {"train": 12}


def test_ctrl_c_waits_for_the_stage_to_save(tmp_path):
    # As at a terminal, both processes hear it.
    code = f"""
import sys
from pathlib import Path
from auto_deeplab import quickstart
slow = '''
import signal, sys, time
from pathlib import Path
def save(*_):
    time.sleep(1.5)
    Path({str(tmp_path / "saved")!r}).touch()
    sys.exit(130)
signal.signal(signal.SIGINT, save)
Path({str(tmp_path / "started")!r}).touch()
time.sleep(60)
'''
quickstart.stages = lambda out: [quickstart.Stage("search", [sys.executable, "-c", slow])]
quickstart.run(Path({str(tmp_path / "out")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert (tmp_path / "saved").exists()

"""--mode=study: the parts, their order, what is run again, and one real study from end to end."""

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from auto_deeplab.modes.study import Plan, make_parts, study
from auto_deeplab.space import genotype
from official.errors import RunError, UsageError
from tests.command import ROOT, TINY_NETWORK, TINY_SEARCH, train_here
from tests.miniature import write_cityscapes
from tfrecords_tools.convert import convert

# Notes its arguments and makes --model_dir; fails where a file called "fail" lies.
FAKE_TRAIN = """
import os, sys, time
values = dict(a.lstrip("-").partition("=")[::2] for a in sys.argv[1:])
with open("log", "a") as log:
    print(values["mode"], os.path.basename(values.get("model_dir", "")), file=log)
if os.path.exists("slow"):
    time.sleep(60)
sys.exit(3 if os.path.exists("fail") and "found_1" in values.get("model_dir", "") else 0)
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fake_train.py").write_text(FAKE_TRAIN)
    (tmp_path / "search.cfg").write_text("--num_layers=3\n--num_blocks=2\n")
    (tmp_path / "train.cfg").write_text("--train_steps=1\n")
    return Plan("data", "search.cfg", "train.cfg", 2, 1, ("published",), front=1)


def read_log():
    with open("log") as log:
        return log.read().split("\n")[:-1]


def test_the_parts(plan):
    parts = {part.name: part for part in make_parts("S", plan)}
    assert list(parts) == [
        *("search_0", "search_1", "random", "ranking", "family"),
        *("train_found_0", "eval_found_0", "train_found_1", "eval_found_1"),
        *("train_random_0", "eval_random_0", "train_published", "eval_published"),
        *("train_front_0", "eval_front_0", "compare"),
    ]
    assert not any("ranking_steps" in flag for part in parts.values() for flag in part.arguments)
    longer = make_parts("S", dataclasses.replace(plan, ranking_steps=7))
    with_steps = {part.name for part in longer if "--ranking_steps=7" in part.arguments}
    assert with_steps == {"ranking", "family"}
    seen = set()
    for name, part in parts.items():
        assert set(part.needs) <= seen, name
        seen.add(name)
    assert "--seed=1" in parts["search_1"].arguments
    assert {"--num_layers=3", "--num_blocks=2"} <= set(parts["random"].arguments)
    # All trainings differ in --genotype and --model_dir alone.
    trainings = [part.arguments for name, part in parts.items() if name.startswith("train_")]
    for arguments in trainings:
        assert len(set(arguments) - set(trainings[0])) in (0, 2)
    # The published architecture has twelve layers, the super-net three.
    (candidates,) = [a for a in parts["ranking"].arguments if a.startswith("--candidates")]
    assert "published" not in candidates and candidates.count("genotype.json") == 3
    # Nothing that a training needs is missing from what it waits for.
    for name, part in parts.items():
        for argument in part.arguments:
            if argument.startswith("--genotype=S/"):
                folder = argument.split("/")[1]
                assert part.needs == (folder,), name


def test_the_commands_are_printed(plan, capsys):
    study("S", plan, print_commands=True, command=("python", "train.py"))
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    parts = make_parts("S", plan)
    stages = {}
    for (stage, name, needs, command), part in zip(lines, parts, strict=True):
        stages[name] = int(stage)
        assert needs.split(",") == list(part.needs or "-")
        assert shlex.split(command) == ["python", "train.py", *part.arguments]
        assert all(stages[other] < int(stage) for other in part.needs)
    assert stages["search_0"] == 0 and stages["compare"] == max(stages.values())
    assert not os.path.exists("S")


def test_what_is_finished_is_not_run_again(plan):
    command = (sys.executable, "fake_train.py")
    open("fail", "w").close()
    with pytest.raises(RunError, match="train_found_1 has failed"):
        study("S", plan, command=command)
    before = read_log()
    assert before[-1] == "train train_found_1" and len(before) == 8
    os.remove("fail")
    study("S", plan, command=command)
    # It begins with the one that failed; the front was short.
    assert read_log()[8:] == [
        *("train train_found_1", "eval train_found_1", "train train_random_0"),
        *("eval train_random_0", "train train_published", "eval train_published", "compare "),
    ]
    study("S", plan, command=command)
    assert read_log()[15:] == ["compare "]


def test_a_signal_is_passed_on(plan):
    open("slow", "w").close()
    code = (
        "from auto_deeplab.modes.study import *\n"
        "study('S', Plan('data', 'search.cfg', 'train.cfg'), command=(sys.executable, "
        "'fake_train.py'))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    while not os.path.exists("log"):
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert read_log() == ["search search_0"] and not os.path.exists("S/finished.json")


def test_mistakes(plan):
    for wrong, words in (
        (Plan("d", "search.cfg", "train.cfg", presets=("nothing",)), "nothing is no preset"),
        (Plan("d", "search.cfg", "train.cfg", 0, 0), "--num_searches=0"),
        (Plan("d", "search.cfg", "train.cfg", 0, 2, front=1), "--front=1"),
    ):
        with pytest.raises(UsageError, match=words):
            make_parts("S", wrong)
    os.mkdir("S")
    with open("S/finished.json", "w") as file:
        file.write("[")
    with pytest.raises(RunError, match=r"finished\.json is damaged"):
        study("S", plan)


def test_a_real_one(tmp_path):
    """Two searches, two random architectures: found, ranked, trained, evaluated and compared."""
    convert("cityscapes", str(write_cityscapes(tmp_path / "source")), str(tmp_path / "data"))
    common = ("--max_eval_images=1", "--eval_every=2")
    operations = "--operations=sep_conv_3x3,skip_connect,none"
    search = (*TINY_SEARCH, *common, operations, "--epochs=2", "--alpha_start_epoch=1")
    training = (*TINY_NETWORK, *common, "--train_steps=2", "--batch_norm_decay=0.1")
    (tmp_path / "search.cfg").write_text("\n".join(search))
    (tmp_path / "train.cfg").write_text("\n".join(training))
    arguments = (
        *("--mode=study", f"--model_dir={tmp_path / 'S'}", f"--data_dir={tmp_path / 'data'}"),
        f"--search_flagfile={tmp_path / 'search.cfg'}",
        *(f"--train_flagfile={tmp_path / 'train.cfg'}", "--num_searches=1", "--num_random=1"),
        *("--presets=", "--front=1"),
    )
    command = [sys.executable, str(ROOT / "auto_deeplab" / "train.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "S" / "comparison.json").read_text())["runs"]
    assert json.loads(done.stdout.splitlines()[-1])["runs"] == rows
    groups = {row["name"]: row["group"] for row in rows}
    assert groups["train_found_0"] == "found" and groups["train_random_0"] == "random"
    by_name = {row["name"]: row for row in rows}
    front = json.loads((tmp_path / "S" / "ranking" / "front.json").read_text())
    ranked = {sample["name"]: sample["miou"] for sample in front["samples"]}
    assert by_name["train_found_0"]["super_net_miou"] == ranked["search_0"]
    assert by_name["train_random_0"]["super_net_miou"] == ranked["random_000"]
    assert genotype.load(tmp_path / "S" / "family" / "front" / "000" / "genotype.json")
    assert (tmp_path / "S" / "report.html").stat().st_size > 1000


def test_the_command_names_what_it_needs():
    done = train_here("--mode=study", "--data_dir=d", "--model_dir=m")
    assert done.code == 2 and "--search_flagfile is needed" in done.error

"""Every command with paths as people have them, or one line before anything starts."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from official.paths import PATTERN_CHARACTERS
from tests.command import ROOT, TINY_GENOTYPE, TINY_NETWORK, train_here
from tests.miniature import write_cityscapes

STRANGE = """-a b, c=#d'e"f%s;g&h$i@2(j){k}!~l]é日"""
PATTERN = "".join(PATTERN_CHARACTERS)
NO_PATHS = {"dataset", "split", "train_split", "eval_split", "vary", "stem_filters"}
TRAIN_PATHS = {
    *("data_dir", "model_dir", "output_dir", "input", "checkpoint", "init_checkpoint"),
    *("genotype", "cost_table", "export_dir"),
}
PLAIN = {"model_dir", "checkpoint", "init_checkpoint", "export_dir"}


def tool(name, *arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", name, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def succeed(*arguments):
    done = train_here(*arguments)
    assert done.code == 0, done.stderr
    return done


def test_the_whole_road_among_strange_names(tmp_path, monkeypatch):
    # What TensorFlow takes for a pattern is in all names but those of checkpoints and SavedModels.
    any_name, plain = STRANGE + PATTERN, STRANGE
    monkeypatch.chdir(tmp_path)
    write_cityscapes(tmp_path / any_name / "source")
    os.mkdir(plain)
    with open(f"{any_name}/genotype", "w") as file:
        file.write(TINY_GENOTYPE)
    paths = {
        "data_dir": f"{any_name}/data",
        "source_dir": f"{any_name}/source",
        "figure": f"{any_name}/figure.png",
        "output": f"{any_name}/sheet.png",
        "genotype": f"{any_name}/genotype",
        "cost_table": f"{any_name}/table",
        "model_dir": f"{plain}/run",
        "export_dir": f"{plain}/export",
        "output_dir": f"{any_name}/out",
    }
    flag = {name: f"--{name}={path}" for name, path in paths.items()}
    for name, *arguments in (
        (
            "convert",
            "--dataset=cityscapes",
            flag["source_dir"],
            f"--output_dir={paths['data_dir']}",
        ),
        ("check", flag["data_dir"], flag["figure"]),
        ("browse", flag["data_dir"], flag["output"], "--images=1"),
    ):
        done = tool(f"tfrecords_tools.{name}", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert os.path.isfile(paths["figure"]) and os.path.isfile(paths["output"])
    training = (
        *("--mode=train", *TINY_NETWORK, flag["data_dir"], "--batch_norm_decay=0.1"),
        *("--save_every=1", "--eval_every=4"),
    )
    succeed(*training, "--train_steps=4", flag["genotype"], flag["model_dir"])
    # The older ones were found and removed.
    assert len(list((tmp_path / plain / "run" / "checkpoints").glob("ckpt-*.index"))) == 3
    monkeypatch.chdir("/")  # flags.cfg names all with their folders; nothing is left to do
    succeed(f"--flagfile={tmp_path}/{plain}/run/flags.cfg")
    monkeypatch.chdir(tmp_path)
    own = f"{paths['model_dir']}/checkpoints/ckpt-3"
    succeed(
        *(*training, "--train_steps=1", flag["genotype"], f"--init_checkpoint={own}"),
        f"--model_dir={plain}/second",
    )
    images = f"{any_name}/source/leftImg8bit/val"
    common = (flag["model_dir"], f"--checkpoint={own}")
    succeed("--mode=predict", *common, f"--input={images}", flag["output_dir"])
    assert len(os.listdir(f"{paths['output_dir']}/town")) == 4
    succeed("--mode=export", flag["model_dir"], flag["export_dir"])
    served = tf.saved_model.load(f"{paths['export_dir']}/1").signatures["serving_default"]
    assert served(images=np.zeros((1, 5, 5, 3), np.uint8))["labels"].shape == (1, 5, 5)
    succeed(
        *("--mode=profile", flag["cost_table"], "--filter_multiplier=2", "--num_layers=1"),
        *("--num_blocks=1", "--operations=skip_connect", "--crop_size=33", "--stem_filters=4,4,4"),
    )
    assert set(os.listdir(tmp_path)) == {any_name, plain}


@pytest.mark.parametrize("name", sorted(TRAIN_PATHS))
def test_other_machines_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    done = train_here("--mode=train", f"--{name}=gs://bucket/x")
    assert done.code == 2
    assert f"--{name}=gs://bucket/x: only paths on this machine" in done.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("character", PATTERN_CHARACTERS)
@pytest.mark.parametrize("name", sorted(PLAIN))
def test_patterns_are_refused_where_checkpoints_are(tmp_path, monkeypatch, name, character):
    monkeypatch.chdir(tmp_path)
    done = train_here("--mode=train", f"--{name}=run{character}1]")
    assert done.code == 2
    assert f"it has {character} in its name" in done.error and "rename it" in done.error
    assert list(tmp_path.iterdir()) == []


def test_no_command_has_a_path_flag_of_its_own_kind():
    found = set()
    for folder in ("auto_deeplab", "official", "tfrecords_tools", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            found |= set(re.findall(r'DEFINE_\w*string\(\s*"(\w+)"', file.read_text()))
    assert found == NO_PATHS


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = tool(
        "tfrecords_tools.toy_scenes", "--output_dir=~/scenes", "--num_train=1", cwd=elsewhere
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scenes").is_dir() and list(elsewhere.iterdir()) == []
    done = tool(
        "auto_deeplab.import_tf1", "--checkpoint=~/none", "--output_dir=~/run", cwd=elsewhere
    )
    assert done.returncode == 1 and str(tmp_path / "none") in done.stderr
    done = tool("tfrecords_tools.check", "--data_dir=s3://bucket/data", cwd=elsewhere)
    assert done.returncode == 2
    assert done.stderr.startswith("error: flag --data_dir=s3://bucket/data: only paths on this")
    assert len(done.stderr.splitlines()) == 1 and list(elsewhere.iterdir()) == []


@pytest.mark.parametrize(
    ("path", "saying"), [("gs://bucket/x", "only paths on this machine"), ("q[1]", "a pattern")]
)
def test_the_quickstart_refuses_alike(tmp_path, path, saying):
    done = tool("auto_deeplab.quickstart", f"--output_dir={path}", cwd=tmp_path)
    assert done.returncode == 2 and saying in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []

"""A run's directory gives back the network that evaluation uses."""

import json
import shutil

import numpy as np
import pytest

import auto_deeplab
from auto_deeplab.modes import evaluate
from auto_deeplab.runs.saved_network import trained_network
from official.checkpoints import Checkpoints
from official.errors import RunError, UsageError
from tests.command import TINY_GENOTYPE, TINY_NETWORK, train_here
from tests.miniature import SIZE, write_cityscapes
from tfrecords_tools.convert import convert

IMAGES = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data: a miniature; run: a network trained on it for 2 steps, saved after each."""
    root = tmp_path_factory.mktemp("trained")
    convert("cityscapes", str(write_cityscapes(root / "source")), str(root / "data"))
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    done = train_here(
        *("--mode=train", f"--genotype={root / 'genotype.json'}", *TINY_NETWORK),
        *(f"--data_dir={root / 'data'}", f"--model_dir={root / 'run'}", "--train_steps=2"),
        *("--save_every=1", "--eval_every=2", "--batch_norm_decay=0.1"),
    )
    assert done.code == 0, done.stderr
    return root


def test_load_gives_what_eval_uses(root, monkeypatch):
    used = []

    def evaluator(model, *arguments, **options):
        used.append(model(IMAGES))
        return make(model, *arguments, **options)

    make = evaluate.make_split_evaluator
    monkeypatch.setattr(evaluate, "make_split_evaluator", evaluator)
    common = ("--mode=eval", f"--data_dir={root / 'data'}", f"--model_dir={root / 'run'}")
    for more in ((), (f"--checkpoint={root / 'run/checkpoints/ckpt-1'}",)):
        done = train_here(*common, "--max_eval_images=1", *more)
        assert done.code == 0, done.stderr
    newest, older = used
    np.testing.assert_array_equal(auto_deeplab.load(root / "run")(IMAGES), newest)
    first = root / "run" / "checkpoints" / "ckpt-1"
    np.testing.assert_array_equal(auto_deeplab.load(str(root / "run"), first)(IMAGES), older)
    assert np.abs(newest - older).max() > 1e-3
    # The image matters.
    assert np.abs(auto_deeplab.load(root / "run")(255 - IMAGES) - newest).max() > 1e-3


def test_averaged_weights_are_taken_if_the_run_averaged(root, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "run")
    network, step, path = trained_network(str(run))
    assert (step, path) == (2, str(run / "checkpoints" / "ckpt-2"))
    other, _, _ = trained_network(str(run), str(run / "checkpoints" / "ckpt-1"))
    for variable in other.variables:
        variable.assign(variable + 1.0)
    both = {"weights": network.variables, "average": other.variables}
    Checkpoints(str(run / "checkpoints"), both).save(3)
    record = json.loads((run / "run.json").read_text())
    for decay, expected in ((0.0, network), (0.99, other)):
        record["identity"]["ema_decay"] = decay
        (run / "run.json").write_text(json.dumps(record))
        for found, wanted in zip(
            trained_network(str(run))[0].variables, expected.variables, strict=True
        ):
            np.testing.assert_array_equal(found, wanted, err_msg=found.path)


def test_what_cannot_be_loaded(root, tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        auto_deeplab.load(tmp_path)
    with pytest.raises(RunError, match=r"no checkpoint .*ckpt-7"):
        auto_deeplab.load(root / "run", root / "run" / "checkpoints" / "ckpt-7")
    run = shutil.copytree(root / "run", tmp_path / "run")
    (run / "genotype.json").unlink()
    with pytest.raises(RunError, match=r"genotype\.json"):
        auto_deeplab.load(run)


def test_flags_that_contradict_the_run_are_errors(root):
    run = f"--model_dir={root / 'run'}"
    done = train_here("--mode=profile", run, "--num_classes=7")
    assert done.code == 2
    assert f"--num_classes=7, but the network {run.replace('--', 'in --')} has 19" in done.error


def test_a_checkpoint_of_another_wiring_is_refused(root, tmp_path):
    # Two inputs of the cell swapped: all variables have the same names and shapes.
    other = shutil.copytree(root / "run", tmp_path / "other")
    content = (other / "genotype.json").read_text()
    swapped = content.replace('[1, "atrous_conv_3x3"]', '[0, "atrous_conv_3x3"]')
    assert swapped != content
    (other / "genotype.json").write_text(swapped)
    before = sorted((path, path.stat().st_mtime_ns) for path in (root / "run").rglob("*"))
    done = train_here(
        *("--mode=eval", f"--data_dir={root / 'data'}", f"--model_dir={root / 'run'}"),
        f"--checkpoint={other / 'checkpoints'}",
    )
    assert done.code == 1 and "another genotype: its cells" in done.error
    assert sorted((path, path.stat().st_mtime_ns) for path in (root / "run").rglob("*")) == before

"""A run's directory gives back the network that evaluation uses."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import auto_deeplab
from auto_deeplab.modes import evaluate
from auto_deeplab.network.network import Network
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import initialize, load_network
from auto_deeplab.space.genotype import Genotype
from official.checkpoints import Checkpoints
from official.datasets import CITYSCAPES_NAMES
from official.errors import RunError, UsageError
from official.sizes import OWN_SIZE
from tests.auto_deeplab.training import assert_same, values
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


def test_a_loaded_network_is_the_one_that_was_trained(root):
    record = run_record.read(str(root / "run"), "train")
    loaded = auto_deeplab.load(root / "run")
    # Names and colours of the data that it was trained on, and every option of the command line.
    assert loaded.get_config() == record[run_record.CONFIG]
    assert list(loaded.class_names) == record["class_names"] == list(CITYSCAPES_NAMES)
    assert [list(color) for color in loaded.palette] == record["palette"]
    assert loaded.get_config()["batch_norm_decay"] == 0.1
    assert loaded.get_config()["head_filters"] == 8


def test_the_record_of_an_older_run_is_read_too(root, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    del record[run_record.CONFIG]
    record[run_record.SCALE] = {"resize_factor": 0.5}
    (run / "run.json").write_text(json.dumps(record))
    old, new = auto_deeplab.load(run), auto_deeplab.load(root / "run")
    np.testing.assert_array_equal(old(IMAGES), new(IMAGES))
    assert old.get_config() == new.get_config() | {"sizes": {"resize_factor": 0.5}}
    # The oldest knew neither the scale nor the colours.
    del record[run_record.SCALE], record["palette"]
    (run / "run.json").write_text(json.dumps(record))
    oldest = auto_deeplab.load(run)
    assert oldest.palette is None and oldest.sizes == OWN_SIZE


def test_a_scale_that_makes_no_sense_is_damage(root, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record[run_record.SCALE] = {"resize_factor": 1e308}
    (run / "run.json").write_text(json.dumps(record))
    for mode in ("export", "eval"):
        data = (f"--data_dir={root / 'data'}",) if mode == "eval" else ()
        done = train_here(f"--mode={mode}", f"--model_dir={run}", *data)
        assert done.code == 1 and "run.json is damaged" in done.error


def test_a_run_becomes_a_keras_file(root, tmp_path):
    loaded = auto_deeplab.load(root / "run")
    loaded.save(tmp_path / "street.keras")
    again = keras.saving.load_model(tmp_path / "street.keras")
    np.testing.assert_array_equal(again(IMAGES), loaded(IMAGES))
    assert again.get_config() == loaded.get_config()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda config: config.pop("genotype"),
        lambda config: config.update(genotype={"format": 1}),
        lambda config: config.update(num_classes=7),  # and 19 names
        lambda config: config.update(unheard_of=1),
        lambda config: config.update(sizes=None),
    ],
)
def test_a_damaged_description_of_the_network(root, tmp_path, spoil):
    run = shutil.copytree(root / "run", tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    spoil(record[run_record.CONFIG])
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"run/run\.json is damaged"):
        auto_deeplab.load(run)


def test_averaged_weights_are_taken_if_the_run_averaged(root, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "run")
    network, step, path = load_network(str(run))
    assert (step, path) == (2, str(run / "checkpoints" / "ckpt-2"))
    other, _, _ = load_network(str(run), str(run / "checkpoints" / "ckpt-1"))
    for variable in other.variables:
        variable.assign(variable + 1.0)
    both = {"weights": network.variables, "average": other.variables}
    Checkpoints(str(run / "checkpoints"), both).save(3)
    record = json.loads((run / "run.json").read_text())
    for decay, expected in ((0.0, network), (0.99, other)):
        record["identity"]["ema_decay"] = decay
        (run / "run.json").write_text(json.dumps(record))
        for found, wanted in zip(
            load_network(str(run))[0].variables, expected.variables, strict=True
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


CELL = (
    ((1, "atrous_conv_3x3"), (0, "sep_conv_3x3")),
    ((2, "max_pool_3x3"), (1, "dil_conv_3x3")),
)
NAMES = ["a", "b", "c"]
GENOTYPE = Genotype((0, 1, 0), (CELL,))


def make_tiny(genotype=GENOTYPE, num_classes=3, filter_multiplier=2):
    network = Network(
        genotype,
        num_classes=num_classes,
        filter_multiplier=filter_multiplier,
        stem_filters=(4, 4, 6),
        head_filters=6,
        low_level_filters=4,
    )
    network.build((None, None, None, 3))
    return network


def save(model_dir, network, group="weights", **more):
    """Saves a network as a training does."""
    groups = {group: network.variables, **more}
    Checkpoints(str(model_dir / "checkpoints"), groups).save(5)
    network.genotype.save(str(model_dir / run_record.GENOTYPE))
    return str(model_dir)


@pytest.mark.parametrize("place", ["", "checkpoints", "checkpoints/ckpt-5"])
def test_initialize_from_each_kind_of_place(tmp_path, place):
    there, network = make_tiny(), make_tiny()
    save(tmp_path, there)
    assert initialize(network, str(tmp_path / place), NAMES) is None
    assert_same(values(network.variables), values(there.variables))


def test_initialize_prefers_averages(tmp_path):
    weights, average, network = make_tiny(), make_tiny(), make_tiny()
    save(tmp_path, weights, average=average.variables)
    assert initialize(network, str(tmp_path), NAMES) is None
    assert_same(values(network.variables), values(average.variables))


@pytest.mark.parametrize("group", ["weights", "average"])
def test_initialize_with_another_number_of_classes(tmp_path, group):
    there, network = make_tiny(num_classes=5), make_tiny()
    before = values(network.variables)
    wanted = "5 classes there, 3 here"
    assert initialize(network, save(tmp_path, there, group), NAMES) == wanted
    last = {"network/decoder/logits/kernel", "network/decoder/logits/bias"}
    after, wanted = values(network.variables), values(there.variables)
    assert last < after.keys()
    assert_same({p: after[p] for p in last}, {p: before[p] for p in last})
    others = after.keys() - last
    assert_same({p: after[p] for p in others}, {p: wanted[p] for p in others})
    assert any(np.any(before[p] != wanted[p]) for p in others)


@pytest.mark.parametrize("guessed", [False, True])
def test_initialize_with_other_classes_of_the_same_number(tmp_path, guessed):
    there, network = make_tiny(), make_tiny()
    before = values(network.variables)
    facts = {"class_names": ["a", "x", "c"], run_record.GUESSED: guessed}
    identity = {
        **{"filter_multiplier": 2, "stem_filters": [4, 4, 4], "head_filters": 8},
        **{"batch_norm_decay": 0.9, "fine_tune_batch_norm": True, "drop_path_keep_prob": 1.0},
    }
    run_record.write(save(tmp_path, there), "train", identity, facts)
    found = initialize(network, str(tmp_path), NAMES)
    # Guessed names say nothing.
    assert found == (None if guessed else "other classes there (x, here b)")
    kernel = "network/decoder/logits/kernel"
    wanted = values(there.variables)[kernel] if guessed else before[kernel]
    np.testing.assert_array_equal(values(network.variables)[kernel], wanted)


def test_initialize_from_another_network_changes_nothing(tmp_path):
    network = make_tiny()
    before = values(network.variables)
    # dil_conv takes other inputs' place: same names and shapes, another network.
    swapped = ((CELL[0], (CELL[1][0], (0, "dil_conv_3x3"))),)
    path = save(tmp_path / "cell", make_tiny(Genotype((0, 1, 0), swapped)))
    with pytest.raises(RunError, match=r"another genotype: its cells .* not .*dil_conv_3x3"):
        initialize(network, path, NAMES)
    path = save(tmp_path / "path", make_tiny(Genotype((0, 1, 1), (CELL,))))
    with pytest.raises(RunError, match=r"its path is \[0, 1, 1\], not \[0, 1, 0\]"):
        initialize(network, path, NAMES)
    wider = make_tiny(filter_multiplier=4)
    with pytest.raises(RunError, match=r"belongs to another network: .* of another shape"):
        initialize(network, save(tmp_path / "wide", wider), NAMES)
    tf1 = tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(tmp_path / "model.ckpt"))
    with pytest.raises(RunError, match=r"model.ckpt .*python -m auto_deeplab.import_tf1"):
        initialize(network, tf1, NAMES)
    assert_same(values(network.variables), before)

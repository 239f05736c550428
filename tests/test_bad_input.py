"""A user's mistake: one clear line, the right exit code, no traceback, nothing damaged.

What is wrong with a dataset's source files is the converter's: tests/tfrecords_tools.
"""

import json
import os
import shlex
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf
from absl import flags
from PIL import Image

from auto_deeplab.network import retrain
from official import evaluation
from official.records import read_description
from tests.command import (
    TINY_GENOTYPE,
    TINY_NETWORK,
    finish,
    start_train,
    train_here,
    train_there,
)
from tests.miniature import SIZE, change_records, set_label, write_cityscapes
from tfrecords_tools.convert import convert

USAGE, FAILED = 2, 1


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data: 4 training and 2 validation images; run: a network trained on it for 2 steps."""
    root = tmp_path_factory.mktemp("bad")
    convert("cityscapes", str(write_cityscapes(root / "source")), str(root / "data"))
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    done = train_here(*training(root), f"--model_dir={root / 'run'}")
    assert done.code == 0, done.stderr
    return root


@pytest.fixture
def data(root, tmp_path):
    """A copy of the data, to be spoilt."""
    return shutil.copytree(root / "data", tmp_path / "data")


@pytest.fixture
def run(root, tmp_path):
    """A copy of the run, to be spoilt."""
    return shutil.copytree(root / "run", tmp_path / "run")


def training(root, data="data"):
    return (
        *("--mode=train", f"--genotype={root / 'genotype.json'}", *TINY_NETWORK),
        *(f"--data_dir={root / data}", "--train_steps=2", "--save_every=1", "--eval_every=2"),
        "--batch_norm_decay=0.1",
    )


def files(*places):
    """Everything below some directories: what is there, and its content."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for place in places
        for path in place.rglob("*")
    }


def refused(code, *arguments, saying):
    """Runs train.py and checks how it fails."""
    done = train_here(*arguments)
    assert done.code == code, done.stderr
    for words in saying:
        assert words in done.error, done.error
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        ([], ["--mode is needed: one of search, decode, train"]),
        (["--mode=tarin"], ["--mode=tarin", "search|decode|train"]),
        (["--mode=train", "--batch_siez=3"], ["'batch_siez'", "Did you mean: batch_size"]),
        (["--mode=train", "genotype.json"], ["'genotype.json'", "--name=value"]),
        (["--mode=train", "--flagfile=nowhere.cfg"], ["--flagfile=nowhere.cfg", "No such file"]),
        (["--mode=train", "--model_dir=x"], ["--data_dir is needed by --mode=train"]),
        (["--mode=eval", "--data_dir=x"], ["--model_dir is needed by --mode=eval"]),
        (["--mode=predict", "--model_dir=x", "--input=y"], ["--output_dir is needed"]),
        (["--mode=profile"], ["--genotype is needed by --mode=profile"]),
        (["--mode=train", "--crop_size=0"], ["--crop_size=0", "height,width"]),
        (["--mode=train", "--crop_size=33,x"], ["--crop_size=33,x", "height,width"]),
        (["--mode=train", "--crop_size=1,2,3"], ["--crop_size=1,2,3", "height,width"]),
        (["--mode=train", "--stem_filters=4,4"], ["--stem_filters=4,4", "three numbers"]),
        (["--mode=search", "--stem_filters=4"], ["--stem_filters=4", "two or three positive"]),
        (["--mode=search", "--operations=conv"], ["--operations=conv", "sep_conv_3x3"]),
        (["--mode=search", "--operations=none"], ["--operations=none"]),
        (["--mode=eval", "--eval_scales=1,0"], ["--eval_scales=1,0", "positive"]),
        (["--mode=eval", "--eval_scales=nan"], ["--eval_scales=nan", "positive"]),
        (["--mode=train", "--learning_rate=0"], ["--learning_rate=0", "above 0"]),
        (["--mode=train", "--learning_rate=nan"], ["--learning_rate=nan", "finite"]),
        (["--mode=train", f"--train_steps={10**19}"], [f"--train_steps={10**19}"]),
        (["--mode=train", "--num_classes=0"], ["--num_classes=0"]),
        (["--mode=train", f"--hard_mining_steps={10**19}"], [f"--hard_mining_steps={10**19}"]),
        (["--mode=train", "--filter_multiplier=70000"], ["--filter_multiplier=70000", "65535"]),
        (["--mode=search", "--num_layers=1001"], ["--num_layers=1001", "[1, 1000]"]),
        (["--mode=predict", "--predict_scale=1e6"], ["--predict_scale=1e6", "65535"]),
        (["--mode=train", "--class_weights=1,1e31"], ["--class_weights=1,1e31", "the largest"]),
        (["--mode=predict", "--input="], ["--input=", "it is empty"]),
        (["--flagfile=~nosuchuser/x"], ["--flagfile=~nosuchuser/x", "cannot be read"]),
        (["--mode=train", "--drop_path_keep_prob=0"], ["--drop_path_keep_prob=0", "above 0"]),
        (["--mode=train", "--batch_norm_decay=1.5"], ["--batch_norm_decay=1.5", "[0.0, 1.0]"]),
        (["--mode=train", "--top_k_pixels=0"], ["--top_k_pixels=0", "above 0"]),
        (["--mode=train", "--ema_decay=1"], ["--ema_decay=1", "below 1"]),
        (["--mode=search", "--arch_betas=0.9,1"], ["--arch_betas=0.9,1", "two numbers", "below 1"]),
        (["--mode=search", "--arch_betas=0.9"], ["--arch_betas=0.9", "two numbers"]),
        (["--mode=search", "--arch_betas=nan,0"], ["--arch_betas=nan,0", "two numbers"]),
        (["--mode=train", "--gradient_clip_norm=0"], ["--gradient_clip_norm=0", "above 0"]),
        (["--mode=train", "--class_weights=1,x"], ["--class_weights=1,x", "one per class"]),
        (["--mode=train", "--class_weights=1,-1"], ["--class_weights=1,-1", "from 0 on"]),
        (["--mode=train", "--class_weights=1,inf"], ["--class_weights=1,inf", "finite"]),
        (["--mode=train", "--class_weights=1e-320,0"], ["--class_weights=1e-320,0", "smallest"]),
        (["--mode=train", "--top_k_pixels=1e-320"], ["--top_k_pixels=1e-320", "1e-30 at least"]),
        (["--mode=train", f"--crop_size={10**9}"], [f"--crop_size={10**9}", "65535 at most"]),
        (["--mode=profile", "--crop_size=11586"], ["--crop_size=11586", "134217728 pixels"]),
        (["--mode=eval", "--eval_scales=1e308"], ["--eval_scales=1e308", "65535 at most"]),
        (["--mode=train", "--norandom_flip=false"], ["--norandom_flip=false", "--noNAME alone"]),
        (["--mode=train", "--class_weights=0,0"], ["--class_weights=0,0", "not all 0"]),
        (["--mode=train", "--batch_size=0"], ["--batch_size=0", "range [1, "]),
        (["--mode=train", "--batch_size=two"], ["--batch_size=two"]),
        (["--mode=train", f"--seed={2**31}"], [f"--seed={2**31}"]),
        (["--mode=train", "--precision=int8"], ["--precision=int8", "bfloat16"]),
        (["--mode=train", "--distribution_strategy=all"], ["--distribution_strategy=all"]),
    ],
)
def test_a_wrong_command_line(arguments, saying):
    refused(USAGE, *arguments, saying=saying)


def test_no_flag_takes_a_number_that_is_none():
    from auto_deeplab.modes import flag_definitions

    of_modes = flags.FLAGS.get_key_flags_for_module(flag_definitions)
    numbers = [flag for flag in of_modes if flag.flag_type() == "float"]
    assert len(numbers) > 12
    for flag in numbers:
        for value in ("nan", "inf", "-inf", "1e31", "1e308", str(10**400)):
            with pytest.raises(flags.IllegalFlagValueError, match=f"--{flag.name}={value}: .*"):
                flag.parse(value)


def test_no_path_flag_takes_nothing():
    from auto_deeplab.modes import flag_definitions

    of_modes = flags.FLAGS.get_key_flags_for_module(flag_definitions)
    paths = [flag for flag in of_modes if flag.parser.syntactic_help == "a path"]
    assert {"data_dir", "model_dir", "input", "output", "checkpoint"} <= {f.name for f in paths}
    for flag in paths:
        with pytest.raises(flags.IllegalFlagValueError, match=f"--{flag.name}=: it is empty"):
            flag.parse("")


def test_a_wrong_flagfile(tmp_path):
    flagfile = tmp_path / "mine.cfg"
    flagfile.write_text("# comment\n--mode=train\nbatch_size=3\n")
    refused(USAGE, f"--flagfile={flagfile}", saying=["'batch_size=3'", "--name=value"])
    flagfile.write_text("--mode=train\n--batch_size=3 # comment\n")
    refused(USAGE, f"--flagfile={flagfile}", saying=["--batch_size=3 # comment"])


def test_the_real_command_line_says_one_line_and_nothing_else(tmp_path):
    done = train_there("--mode=eval", "--model_dri=run", cwd=tmp_path)
    assert done.code == 2 and done.stdout == ""
    assert done.stderr == (
        "error: Unknown command line flag 'model_dri'. Did you mean: model_dir ?\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        # At the largest scale, 2, the images of 40 x 72 are 80 x 144.
        (["--crop_size=81"], ["--crop_size=81,81", "80 x 144", "smaller crop"]),
        (["--crop_size=41,72", "--norandom_scale"], ["--crop_size=41,72", "40 x 72"]),
        (["--batch_size=5"], ["--batch_size=5", "4 images"]),
        (["--num_classes=20"], ["--num_classes=20", "has 19", "leave the flag away"]),
        (["--ignore_label=0"], ["--ignore_label=0", "has 255"]),
        (["--class_weights=1,2"], ["--class_weights has 2 numbers", "has 19 classes"]),
    ],
)
def test_flags_that_do_not_fit_the_data(root, tmp_path, arguments, saying):
    model_dir = tmp_path / "new"
    refused(USAGE, *training(root), f"--model_dir={model_dir}", *arguments, saying=saying)
    assert not model_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        # Halves of two images each.
        (["--batch_size=3"], ["--batch_size=3", "2 images"]),
        (["--crop_size=97"], ["--crop_size=97"]),
        (["--class_weights=1,2"], ["--class_weights has 2 numbers", "has 19 classes"]),
    ],
)
def test_search_flags_that_do_not_fit_the_data(root, tmp_path, arguments, saying):
    common = ("--mode=search", f"--data_dir={root / 'data'}", f"--model_dir={tmp_path / 'new'}")
    refused(USAGE, *common, "--crop_size=33", *arguments, saying=saying)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (
            ["--mode=train", "--genotype=nowhere.json"],
            ["--genotype", "'nowhere.json'", "published"],
        ),
        (["--mode=train"], ["--genotype is needed by --mode=train"]),
        (
            ["--mode=train", "--genotype=published", "--hard_mining_steps=5"],
            ["--hard_mining_steps=5", "--top_k_pixels"],
        ),
        (
            ["--mode=train", "--genotype=published", "--batch_size=1"],
            ["--batch_size=1", "--fine_tune_batch_norm=false"],
        ),
        (
            ["--mode=search", "--epochs=2", "--alpha_start_epoch=2"],
            ["--alpha_start_epoch=2", "--epochs=2"],
        ),
        (["--mode=search", "--learning_rate=0.0001"], ["--min_learning_rate=0.001 is above"]),
        (["--mode=search", "--cost_weight=1"], ["--cost_table is needed by --cost_weight"]),
    ],
)
def test_what_the_command_line_alone_shows_is_said_before_data_are_looked_at(
    tmp_path, arguments, saying
):
    places = (f"--data_dir={tmp_path / 'no data'}", f"--model_dir={tmp_path / 'new'}")
    refused(USAGE, *arguments, *places, saying=saying)
    assert list(tmp_path.iterdir()) == []


def test_synchronised_bn_cannot_be_compiled(root, tmp_path):
    # The process of the tests has two logical CPUs.
    arguments = (*training(root), f"--model_dir={tmp_path / 'run'}", "--jit_compile")
    saying = ["--jit_compile=true", "--sync_batch_norm=false", "2 replicas", "one_device"]
    refused(USAGE, *arguments, "--distribution_strategy=mirrored", saying=saying)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="for machines without")
def test_float16_without_a_gpu(root, tmp_path):
    arguments = (*training(root), f"--model_dir={tmp_path / 'new'}", "--precision=float16")
    refused(USAGE, *arguments, saying=["--precision=float16", "needs a GPU", "bfloat16"])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("content", "saying"),
    [
        (b"", "not JSON"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not text"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"format": 1, "path": [0, 1]}', "'cells' is missing"),
        (TINY_GENOTYPE.replace("[0, 1]", "[0, 2]").encode(), "it can change by 1 at most"),
        (TINY_GENOTYPE.replace("max_pool", "min_pool").encode(), "min_pool_3x3"),
    ],
)
def test_a_genotype_file_that_is_not_one(root, tmp_path, content, saying):
    file = tmp_path / "wrong.json"
    file.write_bytes(content)
    common = (*training(root), f"--model_dir={tmp_path / 'new'}", f"--genotype={file}")
    refused(USAGE, *common, saying=["--genotype", str(file), saying])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["--seed=1"], ["--seed is 1, but 0 in the run", "another directory"]),
        (["--learning_rate=0.1"], ["--learning_rate is 0.1, but 0.05"]),
        (["--train_steps=1"], ["--train_steps is 1, but 2", "give the same value"]),
        (
            ["--train_steps=3", "--learning_rate=0.1"],
            ["--train_steps is 3, but 2", "begin another run: python "],
        ),
        (["--crop_size=33"], ["--crop_size is [33, 33], but [33, 65]"]),
        (["--resize_longer_side=99"], ["--resize_longer_side is 99, but null in the run"]),
        (["--norandom_flip"], ["--random_flip is false, but true"]),
        (["--weight_decay=0"], ["--weight_decay is 0.0, but 4e-05"]),
        (["--filter_multiplier=4"], ["--filter_multiplier is 4, but 2"]),
        (["--genotype=conv_deconv"], ["--genotype is "]),
        (["--init_checkpoint=other"], ["--init_checkpoint is "]),
        (["--ema_decay=0.9"], ["--ema_decay is 0.9, but 0.0"]),
        (["--top_k_pixels=0.5"], ["--top_k_pixels is 0.5, but 1.0"]),
    ],
)
def test_a_model_dir_that_holds_another_run(root, arguments, saying):
    before = files(root)
    model_dir = f"--model_dir={root / 'run'}"
    refused(USAGE, *training(root), model_dir, *arguments, saying=[*saying, str(root / "run")])
    assert files(root) == before


def test_a_longer_training_is_another_run_whose_command_is_told(root, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "my run")
    arguments = training(root)[:1] + training(root)[2:]  # without --genotype: the run has its own
    done = train_here(*arguments, f"--model_dir={run}", "--train_steps=3")
    assert done.code == USAGE and "--train_steps is 3, but 2 in the run" in done.error
    python, script, *command = shlex.split(done.error.partition("begin another run: ")[2])
    assert (python, script) == ("python", "auto_deeplab/train.py")
    older = f"checkpoint={run / 'checkpoints' / 'ckpt-1'}"
    done = train_here(*arguments, f"--model_dir={run}", "--train_steps=3", f"--{older}")
    assert [word for word in shlex.split(done.error) if "ckpt" in word] == [f"--init_{older}"]
    done = train_here(*command)
    assert done.code == 0 and "train starts at step 0 of 3" in done.stderr
    record = json.loads((tmp_path / "my run_3" / "run.json").read_text())
    assert record["identity"]["init_checkpoint"] == str(run)


def test_a_model_dir_that_holds_a_run_of_another_mode(root):
    arguments = ("--mode=search", f"--data_dir={root / 'data'}", f"--model_dir={root / 'run'}")
    refused(USAGE, *arguments, saying=["--mode=train, not search", "another directory"])


def test_a_model_dir_that_holds_a_run_on_other_data(root, tmp_path):
    convert("cityscapes", str(root / "source"), str(tmp_path / "half"), 0.5)
    before = files(root)
    saying = ["--data_dir is cityscapes ", "but cityscapes ", str(root / "run")]
    arguments = (*training(root, tmp_path / "half"), f"--model_dir={root / 'run'}")
    refused(USAGE, *arguments, saying=saying)
    assert files(root) == before


def test_the_same_data_elsewhere_is_the_same_run(root, data, run):
    done = train_here(*training(root), f"--data_dir={data}", f"--model_dir={run}")
    assert done.code == 0 and "goes on at step 2 of 2" in done.stderr


def test_a_run_without_a_checkpoint_may_be_removed(root, run):
    shutil.rmtree(run / "checkpoints")
    saying = ["--batch_size is 4, but 2", "remove this one: it holds no checkpoint yet"]
    refused(USAGE, *training(root), f"--model_dir={run}", "--batch_size=4", saying=saying)


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (
            ["--mode=profile", "--genotype=published"],
            ["--genotype=published", "leave the flag away"],
        ),
        (["--mode=profile", "--filter_multiplier=4"], ["--filter_multiplier is 4, but 2"]),
        (["--mode=decode"], ["--mode=train", "needs one of --mode=search"]),
    ],
)
def test_later_modes_with_flags_of_another_run(root, arguments, saying):
    before = files(root)
    refused(USAGE, f"--model_dir={root / 'run'}", *arguments, saying=saying)
    assert files(root) == before


def test_no_run_and_no_checkpoint(root, run, tmp_path):
    empty = f"--model_dir={tmp_path / 'empty'}"
    refused(USAGE, "--mode=export", empty, saying=["holds no run", "--mode=train wrote"])
    refused(USAGE, "--mode=decode", empty, saying=["holds no run", "--mode=search wrote"])
    shutil.rmtree(run / "checkpoints")
    refused(FAILED, "--mode=export", f"--model_dir={run}", saying=["there is no checkpoint"])
    refused(
        *(FAILED, "--mode=export", f"--model_dir={root / 'run'}", "--checkpoint=nowhere/ckpt-7"),
        saying=["there is no checkpoint nowhere/ckpt-7", "up to the step"],
    )
    own = root / "run" / "checkpoints" / "ckpt-2"
    refused(
        *(USAGE, *training(root), f"--model_dir={tmp_path / 'new'}", f"--checkpoint={own}"),
        saying=[f"--checkpoint={own}", "--init_checkpoint"],
    )
    assert not (tmp_path / "empty").exists() and not (tmp_path / "new").exists()


def test_classes_that_do_not_match_the_checkpoint(root, data):
    metadata = data / "metadata.json"
    metadata.write_text(metadata.read_text().replace('"person"', '"people"'))
    before = files(root)
    refused(
        *(USAGE, "--mode=eval", f"--data_dir={data}", f"--model_dir={root / 'run'}"),
        saying=[f"--data_dir={data}", "people", "same classes"],
    )
    assert files(root) == before


def test_an_init_checkpoint_that_does_not_fit(root, run, tmp_path):
    before = files(root)
    common = (*training(root), f"--model_dir={tmp_path / 'new'}", "--data_dir=not_looked_at")
    weights = root / "run" / "checkpoints" / "ckpt-2"
    for init in (weights, root / "run"):
        refused(
            *(USAGE, *common, f"--init_checkpoint={init}"),
            *("--head_filters=4", "--stem_filters=4,6,4"),
            saying=[f"--init_checkpoint={init} ", "give --stem_filters=4,4,4 --head_filters=8"],
        )
    refused(
        *(USAGE, *common, f"--init_checkpoint={root / 'run'}", "--genotype=conv_deconv"),
        saying=[
            f"--init_checkpoint={root / 'run'}",
            "another genotype: its path is [0, 1], not [0, 1, 1, 2",
            f"give --genotype={root / 'run' / 'genotype.json'}",
        ],
    )
    # Where nothing says what the widths were.
    (run / "run.json").unlink()
    common = (*training(root), f"--model_dir={tmp_path / 'new'}")
    refused(
        *(FAILED, *common, f"--init_checkpoint={run}", "--head_filters=4"),
        saying=["of another shape", "--filter_multiplier --stem_filters --head_filters"],
    )
    tf1 = tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(tmp_path / "model.ckpt"))
    refused(
        *(FAILED, *common, f"--init_checkpoint={tf1}"),
        saying=[f"--init_checkpoint={tf1}", "python -m auto_deeplab.import_tf1"],
    )
    refused(
        *(FAILED, *common, "--init_checkpoint=nowhere"),
        saying=["--init_checkpoint=nowhere", "there is no checkpoint nowhere"],
    )
    assert files(root) == before and not (tmp_path / "new").exists()


def test_a_run_from_before_some_flags_goes_on_with_their_defaults(root, run):
    record = json.loads((run / "run.json").read_text())
    newer = ("class_weights", "top_k_pixels", "hard_mining_steps", "ema_decay")
    for flag in (*newer, "gradient_clip_norm"):
        del record["identity"][flag]
    (run / "run.json").write_text(json.dumps(record))
    common = (*training(root), f"--model_dir={run}")
    refused(USAGE, *common, "--ema_decay=0.5", saying=["--ema_decay is 0.5, but 0.0 in the run"])
    assert train_here(*common).code == 0
    assert train_here("--mode=export", f"--model_dir={run}").code == 0


def test_missing_directories_and_splits(root, tmp_path):
    common = (*training(root), f"--model_dir={tmp_path / 'new'}")
    nowhere = tmp_path / "nowhere"
    refused(FAILED, *common, f"--data_dir={nowhere}", saying=[str(nowhere), "tfrecords_tools"])
    refused(
        *(FAILED, *common, f"--data_dir={root / 'source'}"),
        saying=[str(root / "source"), "holds no dataset", "--data_dir"],
    )
    for flag in ("--train_split=trian", "--eval_split=trian"):
        refused(FAILED, *common, flag, saying=["no split 'trian'", "train, val"])
    assert not (tmp_path / "new").exists()


def spoil(data, split, change):
    change_records(read_description(str(data)).split(split).files[0], change)


BAD_RECORDS = {
    "a label that is no class": (
        lambda i, features: set_label(features, np.full(SIZE, 42, np.uint8)),
        "town_000000_000019_leftImg8bit: label 42 is neither 0..18 nor 255 (void) (",
    ),
    "a label map of another size": (
        lambda i, features: set_label(features, np.zeros((40, 71), np.uint8)),
        "town_000000_000019_leftImg8bit: the label map has another size than the image (",
    ),
    "a truncated PNG": (
        lambda i, features: features["image/encoded"].bytes_list.value.__setitem__(
            0, features["image/encoded"].bytes_list.value[0][:200]
        ),
        "data: Invalid PNG data",
    ),
}


@pytest.mark.parametrize("kind", BAD_RECORDS)
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_records_that_cannot_be_used(root, data, run, mode, kind):
    change, words = BAD_RECORDS[kind]
    spoil(data, "train", change)
    if mode == "train":
        arguments = (*training(root), f"--model_dir={data.parent / 'new'}")
    else:
        arguments = ("--mode=eval", f"--model_dir={run}", "--eval_split=train")
    before = files(run)
    saying = [f"error: {data}: ", words, "tfrecords_tools.check"]
    refused(FAILED, *arguments, f"--data_dir={data}", saying=saying)
    assert files(run) == before
    if mode == "train":  # Put right, the same command does it.
        shutil.rmtree(data)
        shutil.copytree(root / "data", data)
        assert train_here(*arguments, f"--data_dir={data}").code == 0


def test_a_truncated_file_of_records(root, data, tmp_path):
    file = data / os.path.basename(read_description(str(data)).split("train").files[0])
    file.write_bytes(file.read_bytes()[:-100])
    refused(
        *(FAILED, *training(root), f"--data_dir={data}", f"--model_dir={tmp_path / 'new'}"),
        saying=[str(file), "cut off", "convert the dataset again"],
    )


def test_a_loss_that_is_not_finite_keeps_what_led_there_apart(root, tmp_path):
    new = tmp_path / "new"
    arguments = (*training(root), f"--model_dir={new}", "--learning_rate=1e20", "--train_steps=20")
    done = train_here(*arguments)
    assert done.code == FAILED
    # The first step was saved before the second's loss showed what it had led to.
    assert "--learning_rate" in done.error and "kept as set_aside/ckpt-1" in done.error
    assert not list((new / "checkpoints").glob("*.index"))
    reader = tf.train.load_checkpoint(str(new / "checkpoints" / "set_aside" / "ckpt-1"))
    for name in reader.get_variable_to_shape_map():
        if reader.get_variable_to_dtype_map()[name].is_floating:
            assert np.all(np.isfinite(reader.get_tensor(name))), name


def test_damaged_files_of_a_run(root, run):
    (run / "genotype.json").write_text("{")
    refused(FAILED, "--mode=export", f"--model_dir={run}", saying=["genotype.json", "restore it"])
    (run / "run.json").write_text("{")
    for arguments in (("--mode=export",), training(root)):
        saying = [str(run / "run.json"), "is damaged"]
        refused(FAILED, *arguments, f"--model_dir={run}", saying=saying)


@pytest.mark.parametrize("name", ["run.json", "genotype.json", "history.jsonl", "metadata.json"])
def test_a_pipe_or_a_folder_where_a_file_should_be(root, run, data, name):
    path = (data if name == "metadata.json" else run) / name
    mode = ["--mode=export"] if name == "genotype.json" else [*training(root), f"--data_dir={data}"]
    path.unlink()
    for make in (os.mkfifo, os.mkdir):
        make(path)
        refused(FAILED, *mode, f"--model_dir={run}", saying=[str(path.parent)])
        path.rename(path.with_name(make.__name__))


def test_a_damaged_checkpoint(root, run):
    newest = run / "checkpoints" / "ckpt-2.index"
    newest.write_bytes(newest.read_bytes()[:50])
    refused(
        *(FAILED, "--mode=export", f"--model_dir={run}", f"--checkpoint={newest}"),
        saying=[str(newest.with_suffix("")), "damaged", "another one"],
    )
    assert not (run / "export").exists()
    # Where it is not asked for, the one before is taken.
    done = train_here("--mode=export", f"--model_dir={run}")
    assert done.code == 0 and "ckpt-2 is damaged" in done.stderr
    # The training goes on from the one before, and replaces it.
    one = f"--checkpoint={run / 'checkpoints' / 'ckpt-1'}"
    done = train_here(*training(root), f"--model_dir={run}", one)
    assert done.code == 0 and "goes on at step 1 of 2" in done.stderr
    assert train_here("--mode=export", f"--model_dir={run}").code == 0


def test_pictures_to_predict(root, tmp_path):
    common = ("--mode=predict", f"--model_dir={root / 'run'}", f"--output_dir={tmp_path / 'out'}")
    for pattern in ("nowhere", "nowhere/*.png", "source/leftImg8bit/val/*/*.jpg"):
        refused(FAILED, *common, f"--input={root / pattern}", saying=["--input=", "matches no"])
    assert not (tmp_path / "out").exists()
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(pictures / name)
    cut = pictures / "b.png"
    cut.write_bytes(cut.read_bytes()[:60])
    refused(FAILED, *common, f"--input={pictures}", saying=[f"cannot read the image {cut}"])
    assert (tmp_path / "out" / "a_labels.png").exists()  # what was done before is kept


def test_places_that_cannot_be_written(root, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    refused(FAILED, *training(root), f"--model_dir={file}", saying=[str(file)])
    run = f"--model_dir={root / 'run'}"
    images = f"--input={root / 'source'}"
    predict = ("--mode=predict", run, images, f"--output_dir={file}")
    refused(FAILED, *predict, saying=["cannot make the directory", str(file)])
    refused(FAILED, "--mode=export", run, f"--export_dir={file}", saying=[str(file)])
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("message", "saying"),
    [
        (
            "file in workspace: OOM when allocating tensor with shape[9,9] and type float",
            ["--batch_size", "--crop_size"],
        ),
        ("x.tmp; No space left on device", ["No space left on device"]),
    ],
)
def test_no_memory_and_no_space(root, tmp_path, monkeypatch, message, saying):
    def fail(*arguments):
        raise tf.errors.ResourceExhaustedError(None, None, message)

    monkeypatch.setattr(retrain.Retrain, "step", fail)
    refused(FAILED, *training(root), f"--model_dir={tmp_path / 'new'}", saying=saying)


def test_an_error_of_tensorflow_that_nobody_foresaw(root, tmp_path, monkeypatch):
    def fail(*arguments):
        raise tf.errors.UnimplementedError(None, None, "Graph execution error:\n\nnot for CPUs\nx")

    monkeypatch.setattr(retrain.Retrain, "step", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    saying = ["train.py, --mode=train, train: 0 of 2 steps: UnimplementedError: not for CPUs ("]
    refused(FAILED, *training(root), f"--model_dir={tmp_path / 'new'}", saying=saying)
    (file,) = tmp_path.glob("auto_deeplab-*.log")
    assert "raise tf.errors.UnimplementedError" in file.read_text()


def test_ctrl_c_in_a_mode_without_the_loop(root, monkeypatch):
    # What Python makes of SIGINT; the signal itself is ignored where tests run in the background.
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation.Evaluator, "__call__", interrupted)
    arguments = ("--mode=eval", f"--data_dir={root / 'data'}", f"--model_dir={root / 'run'}")
    refused(130, *arguments, saying=["interrupted"])


def test_ctrl_c_while_tensorflow_is_loaded(tmp_path):
    process = start_train("--mode=profile", "--genotype=published", cwd=tmp_path)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    done = finish(process)
    assert done.code in (130, -signal.SIGINT) and "Traceback" not in done.stderr

"""--distribution_strategy=mirrored as a command, on two logical CPUs, against one device."""

import io
import json
import sys
from contextlib import redirect_stderr

import numpy as np
import pytest
import tensorflow as tf

from tests.command import TINY_GENOTYPE, TINY_NETWORK, TINY_SEARCH
from tests.miniature import write_cityscapes
from tests.replicas import result_of, start_in_new_process
from tfrecords_tools.convert import convert

# Batch statistics of two images at stride 32 are those of 8 values: they amplify rounding.
CLOSE = {"rtol": 2e-3, "atol": 2e-5}


def run_command(*arguments):
    """train.py in this process, which has some logical CPUs: exit code and stderr."""
    from auto_deeplab import train

    sys.argv = ["auto_deeplab/train.py", *arguments]
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            train.start_app()
    except SystemExit as exit:
        return exit.code, said.getvalue()
    return 0, said.getvalue()


def start(mode, strategy, model_dir, *flags):
    return start_in_new_process(
        run_command,
        *(f"--mode={mode}", f"--distribution_strategy={strategy}", f"--model_dir={model_dir}"),
        *("--deterministic", *flags),
        cpus=2,
    )


def variables(model_dir):
    reader = tf.train.load_checkpoint(tf.train.latest_checkpoint(str(model_dir / "checkpoints")))
    found = {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if "OBJECT_GRAPH" not in name
    }
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize("mode", ["search", "train"])
def test_two_devices_give_what_one_gives(tmp_path, mode):
    convert(
        "cityscapes",
        str(write_cityscapes(tmp_path / "source", train=8, val=2)),
        str(tmp_path / "data"),
    )
    (tmp_path / "genotype.json").write_text(TINY_GENOTYPE)
    flags = {
        # Halves of 4 images: two steps an epoch, and alpha and beta move in the second one.
        "search": (
            *TINY_SEARCH,
            "--operations=sep_conv_3x3,atrous_conv_3x3,max_pool_3x3,skip_connect",
            *("--epochs=2", "--alpha_start_epoch=1", "--batch_size=2"),
        ),
        "train": (
            *(f"--genotype={tmp_path / 'genotype.json'}", *TINY_NETWORK, "--train_steps=4"),
            *("--eval_every=2", "--batch_norm_decay=0.5", "--drop_path_keep_prob=0.7"),
        ),
    }[mode]
    runs = {name: tmp_path / name for name in ("one_device", "mirrored")}
    data = f"--data_dir={tmp_path / 'data'}"
    processes = {name: start(mode, name, run, data, *flags) for name, run in runs.items()}
    for name, process in processes.items():
        code, said = result_of(process, timeout=600)
        assert code == 0, said
        devices = {"one_device": "CPU:0", "mirrored": "CPU:0, CPU:1"}[name]
        assert f"{mode} on {devices}\n" in said

    rows = {
        name: [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        for name, run in runs.items()
    }
    assert len(rows["mirrored"]) == 2
    for one, two in zip(*rows.values(), strict=True):
        assert one.keys() == two.keys()
        for name, value in one.items():
            if name in ("images_per_s", "wait_share"):
                continue
            if isinstance(value, float):
                assert two[name] == pytest.approx(value, rel=2e-3, abs=2e-5), name
            else:
                assert two[name] == value, name
    one, two = (variables(run) for run in runs.values())
    assert one.keys() == two.keys() and len(one) > 50
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, **CLOSE, err_msg=name)

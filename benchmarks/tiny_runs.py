"""Searches and trainings as small as they can be with everything in them, on made-up images."""

import contextlib
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.input_pipeline import make_label, make_photo
from tfrecords_tools.convert import convert

MODES = ("search", "train")
SIZE, CLASSES = (40, 72), 19
EPOCH_STEPS = 2
"""Steps in an epoch of a search: halves of 4 of its 8 images, 2 a batch."""
_GENOTYPE = """{"format": 1, "path": [0], "cells": [
  [[[0, "sep_conv_3x3"], [1, "skip_connect"]]]]}"""
_SMALL = ("--data_dir=data", "--batch_size=2", "--filter_multiplier=2", "--stem_filters=4,4,4")
_FLAGS = {
    "search": (
        *("--crop_size=33", "--num_layers=1", "--num_blocks=1", "--max_eval_images=1"),
        "--operations=sep_conv_3x3,skip_connect,none",
    ),
    "train": (
        *("--genotype=genotype.json", "--crop_size=33,65", "--head_filters=8", "--ema_decay=0.9"),
        *("--drop_path_keep_prob=0.7", "--batch_norm_decay=0.9"),
    ),
}


def prepare(root: Path) -> None:
    """Makes the images, their records and a genotype in a folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 1)):
        for kind, make in (("images", make_photo), ("masks", make_label)):
            folder = root / "source" / kind / split
            folder.mkdir(parents=True)
            for number in range(count):
                make(rng, *SIZE).save(folder / f"{number}.png")
    names = "".join(f"class {index}\n" for index in range(CLASSES))
    (root / "source" / "classes.txt").write_text(names)
    with contextlib.redirect_stdout(sys.stderr):
        convert("folder", str(root / "source"), str(root / "data"))
    (root / "genotype.json").write_text(_GENOTYPE)


def arguments(mode: str, model_dir: Path, *, steps: int, report_every: int) -> list[str]:
    """Those of train.py, to be started in the folder of `prepare`.

    Args:
        mode: "search", whose alpha and beta move from the second report on, or "train".
        model_dir: the run's.
        steps: how many; for a search both numbers are multiples of EPOCH_STEPS.
        report_every: steps from one report to the next.
    """
    length = {
        "search": (
            f"--epochs={steps // EPOCH_STEPS}",
            f"--alpha_start_epoch={report_every // EPOCH_STEPS}",
        ),
        "train": (f"--train_steps={steps}",),
    }
    return [
        *(f"--mode={mode}", f"--model_dir={model_dir}", f"--eval_every={report_every}"),
        *(*_SMALL, *_FLAGS[mode], *length[mode]),
    ]


def tensors(prefix: Path) -> dict[str, np.ndarray]:
    """All that a checkpoint holds by name, but for TensorFlow's own bookkeeping."""
    reader = tf.train.load_checkpoint(str(prefix))
    own = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    return {
        name: reader.get_tensor(name)
        for name in reader.get_variable_to_shape_map()
        if name not in own
    }

"""A small network learns four images by heart and shows it through --mode=eval.

One test that fails if anything of the road from the records to the metrics does not fit together:
BN's moving statistics, padding, the alignment of labels, resizing, drop path in evaluation.
"""

import json

import numpy as np
import pytest

from tests.command import train_here
from tests.miniature import write_pair
from tfrecords_tools.convert import convert

# 0 is void; the others are classes.
LABEL_IDS = (0, 7, 8, 11, 21, 23, 26)
SIZE = (70, 118)  # not 32 n + 1: the network has to pad and to cut

GENOTYPE = """{"format": 1, "path": [0, 0, 1, 1], "cells": [[
  [[0, "sep_conv_3x3"], [1, "atrous_conv_3x3"]], [[2, "sep_conv_3x3"], [0, "skip_connect"]]]]}"""


def write_mosaic(root, number):
    """Cells of a random mosaic, each of one class; a class' colour varies from image to image."""
    rng = np.random.default_rng(number)
    centres = rng.uniform(0, 1, (14, 2)) * SIZE
    places = np.stack(np.indices(SIZE), axis=-1)
    nearest = np.argmin(np.linalg.norm(places[..., None, :] - centres, axis=-1), axis=-1)
    classes = rng.integers(0, len(LABEL_IDS), len(centres))[nearest]
    colours = np.random.default_rng(99).uniform(40, 215, (len(LABEL_IDS), 3))
    image = colours[classes] + rng.normal(0, 15, 3) + rng.normal(0, 12, (*SIZE, 3))
    write_pair(
        root,
        "train",
        f"{number:06d}_000019",
        image.clip(0, 255).astype(np.uint8),
        np.array(LABEL_IDS, np.uint8)[classes],
    )


def test_four_images_are_learned_by_heart(tmp_path):
    for number in range(4):
        write_mosaic(tmp_path / "source", number)
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"))
    (tmp_path / "genotype.json").write_text(GENOTYPE)
    common = (f"--data_dir={tmp_path / 'data'}", f"--model_dir={tmp_path / 'run'}")
    done = train_here(
        "--mode=train",
        *common,
        f"--genotype={tmp_path / 'genotype.json'}",
        *("--train_steps=200", "--learning_rate=0.2", "--batch_size=4"),
        *("--batch_norm_decay=0.9", "--drop_path_keep_prob=0.9"),
        *("--filter_multiplier=8", "--stem_filters=16,16,32", "--head_filters=32"),
        f"--crop_size={SIZE[0]},{SIZE[1]}",
        *("--norandom_scale", "--norandom_crop", "--norandom_flip"),
        *("--eval_split=train", "--eval_every=200"),
    )
    assert done.code == 0, done.stderr
    done = train_here("--mode=eval", *common, "--eval_split=train")
    assert done.code == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics["num_images"] == 4
    present = [iou for iou in metrics["per_class_iou"] if iou is not None]
    assert len(present) == 6
    assert metrics["miou"] == pytest.approx(np.mean(present)) and metrics["miou"] > 0.95

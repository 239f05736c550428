import math
import shlex
import sys

import keras
import numpy as np
import pytest

from auto_deeplab.report import summary
from auto_deeplab.space import decoding, search_space
from official import optimizers
from tests.command import CONFIGS

LAYERS, BLOCKS = 3, 2


def probabilities(rng, size):
    """alpha and beta whose logits are Gaussian, with a deviation of `size`."""
    alpha = np.exp(size * rng.normal(size=(search_space.num_cell_edges(BLOCKS), 8)))
    beta = np.zeros([LAYERS, 4, 3])
    for layer, source, level in search_space.edges(LAYERS):
        direction = search_space.direction(source, level)
        beta[layer - 1, source, direction] = np.exp(size * rng.normal())
    sums = beta.sum(-1, keepdims=True)
    return alpha / alpha.sum(-1, keepdims=True), beta / np.where(sums, sums, 1)


def said(size, updates=100, rows=(), **more):
    alpha, beta = probabilities(np.random.default_rng(1), size)
    genotype = decoding.decode(alpha, beta, search_space.OPERATIONS, BLOCKS)
    options = {"model_dir": "runs/a b", "data_dir": "data", "crop_size": [65, 97], **more}
    return summary.summarize_search(
        rows, genotype, seconds=125, learning_rate=0.03, updates=updates, **options
    )


def line(text, start):
    (found,) = [line for line in text.splitlines() if line.startswith(start)]
    return found


def test_chance_is_what_noise_makes_of_logits():
    # 300 rows of 8: the spread is known to 1 / sqrt(2 * 2100), 1.5 %.
    rng = np.random.default_rng(0)
    logits = keras.Variable(np.zeros([300, 8], np.float32))
    adam = optimizers.adam(0.03, l2=0.0)
    adam.build([logits])
    for _ in range(100):
        adam.apply([keras.ops.convert_to_tensor(rng.normal(size=[300, 8]).astype("float32"))])
    rows = np.asarray(keras.ops.softmax(logits))
    # Rows are centred: of 8 values, 7 are free.
    expected = summary.chance_spread(0.03, 100) * math.sqrt(7 / 8)
    assert summary.logit_spread(rows) == pytest.approx(expected, rel=0.1)


def test_spread_is_that_of_the_logits_around_their_row():
    logits = np.array([[0.0, 2.0], [5.0, 5.0]])  # 1, 1, 0, 0 from their means
    rows = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert summary.logit_spread(rows) == pytest.approx(math.sqrt(0.5))


def test_certainty_of_uniform_probabilities():
    text = said(0.0)
    assert line(text, "alpha: entropy 100.0% of uniform;").endswith(
        "0.125 on average, uniform 0.125"
    )
    # Three layers start from 1, 2 and 3 nodes, which have 2; 2 and 3; 2, 3 and 3 outgoing edges.
    share = (3 * 1 / 2 + 3 * 1 / 3) / 6
    assert line(text, "beta: entropy 100.0% of uniform;").endswith(f"{share:.3f}")


@pytest.mark.parametrize(("size", "warned"), [(0.0, True), (0.4, True), (1.0, False)])
def test_warns_of_what_chance_could_have_found(size, warned):
    # 100 updates of 0.03 lead 0.3 away by chance; the line is drawn at 0.45.
    text = said(size)
    assert ("warning: the cell and the path may be close to random ones" in text) == warned
    if warned:
        assert "100 updates of --arch_learning_rate=0.03 by mere chance give 0.3:" in text


def test_best_and_last():
    rows = [{"step": 5, "val_miou": 0.3}, {"step": 10}, {"step": 15, "val_miou": 0.25}]
    text = said(1.0, rows=rows)
    assert "val mIoU of the super-net: last 0.250 at step 15, best 0.300 at step 5" in text
    assert text.startswith("search: done in 2 min 5 s\n")
    assert "val mIoU" not in said(1.0)


def test_the_next_commands_can_be_copied(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["auto_deeplab/train.py"])
    command = shlex.split(line(said(1.0), "next, train").partition(": ")[2])
    assert command[:3] == ["python", "auto_deeplab/train.py", "--mode=train"]
    assert {"--genotype=runs/a b/genotype.json", "--data_dir=data"} <= set(command)
    assert {"--model_dir=runs/a b_train", "--crop_size=65,97"} <= set(command)
    (flagfile,) = [word.partition("=")[2] for word in command if word.startswith("--flagfile=")]
    assert (CONFIGS / flagfile).is_file()  # where short names are found
    text = summary.summarize_training([], seconds=1, model_dir="it's", data_dir="data")
    command = shlex.split(line(text, "next, all").partition(": ")[2])
    assert command[2:] == ["--mode=eval", "--data_dir=data", "--model_dir=it's"]


def test_a_search_on_small_images_reminds_of_the_large_ones():
    hint = "(data has its images at 0.5 of their size: better train on full ones"
    assert hint in said(1.0, resize_factor=0.5)
    assert "of their size" not in said(1.0)

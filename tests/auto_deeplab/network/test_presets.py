"""Every architecture goes all the way: it is built, trained for a step, exported, asked, drawn."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab.network.network import Network
from auto_deeplab.network.retrain import Retrain
from auto_deeplab.report import figures
from auto_deeplab.space import genotype, search_space
from auto_deeplab.space.genotype import Genotype
from official import distribution, optimizers
from official.export import export
from tests.auto_deeplab.training import CLASSES, VOID, random_batch, values

# Another L and B, operations that the paper's space lacks, and a cell of its own for some layers.
OTHER = Genotype(
    path=(1, 2, 3, 3, 2),
    cells=(
        [[[0, "dil_conv_5x5"], [1, "dil_conv_3x3"]], [[2, "skip_connect"], [1, "avg_pool_3x3"]]],
        [[[1, "sep_conv_5x5"], [1, "sep_conv_5x5"]], [[0, "max_pool_3x3"], [2, "skip_connect"]]],
    ),
    cell_of_layer=(0, 0, 1, 0, 1),
)
ALL = {name: genotype.load(name) for name in genotype.PRESET_PATHS} | {"other": OTHER}


@pytest.mark.parametrize("name", ALL)
def test_build_train_export_draw(name, tmp_path):
    keras.utils.set_random_seed(0)
    network = Network(
        ALL[name],
        num_classes=CLASSES,
        filter_multiplier=2,
        stem_filters=(4, 4, 4),
        batch_norm_decay=0.5,
        head_filters=4,
        low_level_filters=2,
    )
    network.build((None, None, None, 3))
    training = Retrain(
        network,
        optimizer=optimizers.sgd(0.1, l2=1e-4, decays=optimizers.is_kernel),
        ignore_label=VOID,
        seed=0,
        total_steps=10,
        strategy=distribution.make_strategy("one_device"),
    )
    before = values(network.variables)
    loss = training.train_step.python_function(random_batch(0))
    assert np.isfinite(loss)
    after = values(network.variables)
    for path, value in before.items():
        assert np.isfinite(after[path]).all()
        # 33 pixels are 2 at stride 32: enough for every variable to have a say.
        assert np.any(after[path] != value), path

    names, palette = ["a", "b", "c"], [(0, 0, 0), (255, 0, 0), (0, 255, 0)]
    exported = export(network, tmp_path, class_names=names, palette=palette)
    assert (exported / "saved_model.pb").exists()
    if name == "other":  # loading takes longer than all the rest
        served = tf.saved_model.load(str(exported)).signatures["serving_default"]
        images = random_batch(1)["image"].astype("uint8")
        wanted = tf.argmax(network(images.astype("float32"), training=False), -1)
        np.testing.assert_array_equal(served(images=tf.constant(images))["labels"], wanted)

    figures.draw_network(ALL[name], tmp_path / "network.png")
    with Image.open(tmp_path / "network.png") as picture:
        assert len(set(picture.convert("L").getdata())) > 10


def test_fig_2_holds_the_designs_that_it_names():
    # DeepLabv3: down to stride 16 at once, then stays. Conv-deconv: down to 32 and back to 4.
    # Stacked hourglass: twice down to 32 and up again.
    strides = {
        name: [search_space.stride(level) for level in ALL[name].path]
        for name in ("deeplabv3", "conv_deconv", "stacked_hourglass")
    }
    assert strides["deeplabv3"] == [4, 8, *[16] * 10]
    assert strides["conv_deconv"] == [4, 8, 8, 16, 16, 32, 32, 16, 16, 8, 8, 4]
    assert strides["stacked_hourglass"] == [8, 16, 32, 16, 8, 4] * 2

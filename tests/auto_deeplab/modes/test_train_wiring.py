"""Every flag of a training reaches what it is for: see wiring.py."""

import numpy as np

from auto_deeplab.modes import train
from auto_deeplab.modes.flag_definitions import USED
from auto_deeplab.network.network import Network
from official.checkpoints import Checkpoints
from official.normalization import BatchNorm
from tests.auto_deeplab.modes.test_search_wiring import LOOKS_AT_SEARCH
from tests.auto_deeplab.modes.wiring import (
    CLASSES,
    GENOTYPE,
    NUM_MINE,
    batches_of,
    build,
    check_loop,
    check_option,
    check_resumed,
    check_sgd,
    each,
    red,
)
from tests.auto_deeplab.training import values


def rate_of_training(step):
    """The polynomial from 0.5 to 0 over all steps."""
    return 0.5 * (1 - step / 10) ** 0.9


def check_training_updates(built):
    """Kernels alone decay, and the last layer's rate is four times the others'."""
    check_sgd(
        *(built.learner.optimizer, built.learner.network.trainable_variables, rate_of_training),
        lambda variable: 0.25 if "kernel" in variable.name else 0.0,
        lambda variable: 4.0 if "decoder/logits" in variable.path else 1.0,
    )


def check_network(built):
    """It is the network of exactly these options."""
    network = built.learner.network
    assert network.genotype == GENOTYPE
    again = Network(
        GENOTYPE, num_classes=CLASSES, filter_multiplier=3, stem_filters=(4, 6, 8), head_filters=7
    )
    again.build((None, None, None, 3))
    shapes = [{v.path: tuple(v.shape) for v in net.variables} for net in (network, again)]
    assert shapes[0] == shapes[1]
    assert network.fine_tune_batch_norm is True and network.drop_path_keep_prob == 0.7
    momenta = {
        layer.momentum for layer in network._flatten_layers() if isinstance(layer, BatchNorm)
    }
    assert momenta == {0.8}


def check_sync_of_network(built):
    layers = built.learner.network._flatten_layers()
    assert {layer.synchronized for layer in layers if isinstance(layer, BatchNorm)} == {False}


def check_start(built):
    """The first weights are those of the other training; those of the averages too."""
    other = Network(
        GENOTYPE, num_classes=CLASSES, filter_multiplier=3, stem_filters=(4, 6, 8), head_filters=7
    )
    other.build((None, None, None, 3))
    Checkpoints(str(built.root / "trained" / "checkpoints"), {"weights": other.variables}).restore()
    for path, value in values(other.variables).items():
        np.testing.assert_array_equal(built.initial[path], value, err_msg=path)
    assert values(other.variables).keys() == built.initial.keys()
    averaged = built.learner.averaged.cells[0].first.kernel
    np.testing.assert_array_equal(averaged, other.cells[0].first.kernel)


def check_stream_of_training(built):
    (stream,) = built.streams
    assert built.learner.options["seed"] == 3  # of dropout and drop path
    assert (stream["seed"], stream.get("stream", 0), stream.get("records")) == (3, 0, None)
    seen = {number for (batch,) in batches_of(built, 6) for number in red(batch)}
    assert seen < set(range(NUM_MINE)) and len(seen) == 12  # no example comes twice in an epoch


def check_loop_of_training(built):
    check_loop(built)
    assert (built.loop["total_steps"], built.loop["epoch_steps"]) == (10, NUM_MINE // 2)


def check_evaluation_of_training(built):
    assert built.evaluated["split"] == "theirs" and built.evaluated["max_images"] == 2
    # The averages are what is evaluated.
    image = np.zeros((1, 33, 33, 3), np.float32)
    averaged = built.learner.averaged
    averaged.decoder.logits.bias.assign([1.0, 2.0, 3.0, 4.0, 5.0])
    answer = built.evaluated["model"](image)
    np.testing.assert_array_equal(answer, averaged(image, training=False))
    assert np.abs(answer - built.learner.network(image, training=False)).max() > 0.5


LOOKS_AT_TRAIN = {name: look for name, look in LOOKS_AT_SEARCH.items() if "train" in USED[name]} | {
    "mode": check_loop_of_training,
    "model_dir": check_loop_of_training,
    "seed": check_stream_of_training,
    "learning_rate": check_training_updates,
    "weight_decay": check_training_updates,
    "gradient_clip_norm": check_training_updates,
    "filter_multiplier": check_network,
    "stem_filters": check_network,
    "eval_split": check_evaluation_of_training,
    "max_eval_images": check_evaluation_of_training,
    "sync_batch_norm": check_sync_of_network,
    "jit_compile": check_option("jit_compile", True),
    "genotype": check_network,
    "train_steps": check_option("total_steps", 10),
    "init_checkpoint": check_start,
    "drop_path_keep_prob": check_network,
    "batch_norm_decay": check_network,
    "fine_tune_batch_norm": check_network,
    "head_filters": check_network,
    "top_k_pixels": check_option("top_k_pixels", 0.6),
    "hard_mining_steps": check_option("hard_mining_steps", 12),
    "ema_decay": check_option("ema_decay", 0.75),
    "last_layer_learning_rate_multiplier": check_training_updates,
}


@each(LOOKS_AT_TRAIN)
def test_train(training, look):
    look(training)


def test_a_training_goes_on_from_the_checkpoint_it_is_told(root, training):
    again = check_resumed(root, training, "train", train, "Retrain", training.flags)
    assert [stream["start_step"] for stream in again.streams] == [4]


def test_batch_norm_can_be_left_alone(root, trained, training):
    flags = [*training.flags, "--fine_tune_batch_norm=false", f"--model_dir={root / 'frozen'}"]
    assert (
        build(root, "train", train, "Retrain", flags).learner.network.fine_tune_batch_norm is False
    )

"""How fast a finished network trains and answers, beside what its arithmetic alone would take.

    python benchmarks/network.py [--size=S|M|L] [--crop_size=769] [--batch_size=2]
        [--height=1024] [--width=2048] [--steps=5] [--genotype=published] [--nobaseline]

Sizes are the paper's (Table 2): F = 20, 32, 48. `train` is a step of --mode=train on random crops,
`inference` the labels of one uint8 image from the SavedModel that --mode=export writes. The same is
measured of keras-hub's DeepLabv3+ (ResNet-50, random weights), if keras-hub is installed; it takes
multiples of 32 pixels only, so its images are cut to such a size (a crop of 769 to 768).

Every line of the table is measured in a process of its own, so that its peak memory is its own, and
so is the rate of one large float32 convolution there: the limit is the arithmetic of the graph at
that rate. A multiply-add is two operations, and a training step is three forward passes: itself,
the gradients by the inputs and those by the weights. The last line is JSON.
"""

import functools
import importlib.util
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

if __name__ in ("__main__", "__mp_main__"):  # the latter in the processes that measure
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    if __name__ == "__mp_main__":  # inherited; it would be taken for the user's wish to see all
        os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)

    import_tensorflow()

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from auto_deeplab.network.network import Network
from auto_deeplab.network.retrain import Retrain
from auto_deeplab.space import genotype
from benchmarks import machine
from benchmarks.machine import seconds
from official import distribution, model_cost, optimizers
from official.command_line import run_app
from official.errors import UsageError
from official.export import export
from official.paths import define_path
from official.training_step import mean_loss, minimize, pixels_of_all_replicas

FILTER_MULTIPLIERS = {"S": 20, "M": 32, "L": 48}
CLASSES, VOID = 19, 255
NAMES = [f"class {index}" for index in range(CLASSES)]
KERAS_HUB = "keras-hub DeepLabv3+"

Row = dict[str, float]


def new_network(architecture: str, size: str) -> Network:
    """Auto-DeepLab with the drop path of the recipes."""
    network = Network(
        genotype.load(architecture),
        num_classes=CLASSES,
        filter_multiplier=FILTER_MULTIPLIERS[size],
        drop_path_keep_prob=0.8,
    )
    network.build((None, None, None, 3))
    return network


def keras_hub_model() -> keras.Model:
    """What keras-hub's preset deeplab_v3_plus_resnet50_pascalvoc is, with random weights."""
    import keras_hub

    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[3, 4, 6, 3],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="bottleneck_block",
    )
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        upsampling_size=8,
        dilation_rates=[6, 12, 18],
    )
    return keras_hub.models.DeepLabV3ImageSegmenter(backbone, num_classes=CLASSES)


def random_images(size: int, height: int, width: int) -> tf.Tensor:
    """Uint8 [size, height, width, 3]."""
    rng = np.random.default_rng(0)
    return tf.constant(rng.integers(0, 256, (size, height, width, 3), "uint8"))


def random_batch(size: int, crop: int) -> dict[str, tf.Tensor]:
    """Random images and labels as the input pipeline gives them."""
    labels = np.random.default_rng(1).integers(0, CLASSES, (size, crop, crop))
    return {
        "image": tf.cast(random_images(size, crop, crop), tf.float32),
        "label": tf.constant(labels, tf.int32),
        "number": tf.range(size, dtype=tf.int64),
    }


def measured(
    run: Callable[[], tf.Tensor],
    steps: int,
    model: keras.Model,
    image_shape: tuple[int, ...],
    passes: int,
) -> Row:
    """Times a function that passes `passes` times through the model, and weighs the process."""
    start = time.perf_counter()
    run().numpy()
    first = time.perf_counter() - start
    taken = seconds(lambda: run().numpy(), steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # kB on Linux
    images = tf.TensorSpec(image_shape, tf.float32)
    forward = functools.partial(model, training=False)
    gflop = passes * 2 * model_cost.count_multiply_adds(forward, [images]) / 1e9
    conv = machine.rates()["conv_gflops"]
    return {
        "params_millions": sum(np.prod(v.shape) for v in model.trainable_variables) / 1e6,
        "seconds": taken,
        "images_per_s": image_shape[0] / taken,
        "gflop": gflop,
        "conv_gflops": conv,
        "fraction_of_limit": gflop / conv / taken,
        "first_s": first,
        "peak_rss_gb": peak,
    }


def train(values: dict[str, Any]) -> Row:
    """A step as --mode=train makes it."""
    strategy = distribution.make_strategy("one_device")
    machine.set_precision(values["precision"])
    with strategy.scope():
        training = Retrain(
            new_network(values["genotype"], values["size"]),
            optimizer=optimizers.sgd(0.05, l2=4e-5, decays=optimizers.is_kernel),
            ignore_label=VOID,
            seed=0,
            total_steps=1000,
            strategy=strategy,
        )
    batch = random_batch(values["batch_size"], values["crop_size"])
    run = functools.partial(training.train_step, batch)
    return measured(run, values["steps"], training.network, batch["image"].shape, 3)


def inference(values: dict[str, Any]) -> Row:
    """Labels out of the SavedModel."""
    machine.set_precision(values["precision"])
    network = new_network(values["genotype"], values["size"])
    images = random_images(1, values["height"], values["width"])
    with tempfile.TemporaryDirectory() as folder:
        directory = export(network, folder, class_names=NAMES, palette=[(0, 0, 0)] * CLASSES)
        served = tf.saved_model.load(directory)
        serve = served.signatures["serving_default"]
        return measured(
            lambda: serve(images=images)["labels"], values["steps"], network, images.shape, 1
        )


def keras_hub_train(values: dict[str, Any]) -> Row:
    """The same loss and optimizer around keras-hub's model."""
    strategy = distribution.make_strategy("one_device")
    machine.set_precision(values["precision"])
    with strategy.scope():
        model = keras_hub_model()
        optimizer = optimizers.sgd(0.05, l2=4e-5, decays=optimizers.is_kernel)
        optimizer.build(model.trainable_variables)
    batch = random_batch(values["batch_size"], multiple_of_32(values["crop_size"]))

    def update() -> tf.Tensor:
        pixels = pixels_of_all_replicas(batch["label"], VOID)

        def forward() -> tuple[tf.Tensor, None]:
            logits = tf.cast(model(batch["image"] / 127.5 - 1.0, training=True), tf.float32)
            return mean_loss(batch["label"], logits, VOID, pixels), None

        return minimize(forward, model.trainable_variables, optimizer)[0]

    run = tf.function(lambda: strategy.run(update))
    return measured(run, values["steps"], model, batch["image"].shape, 3)


def keras_hub_inference(values: dict[str, Any]) -> Row:
    """Labels out of a graph around keras-hub's model."""
    machine.set_precision(values["precision"])
    model = keras_hub_model()
    images = random_images(1, multiple_of_32(values["height"]), multiple_of_32(values["width"]))

    @tf.function
    def answer(images: tf.Tensor) -> tf.Tensor:
        logits = model(tf.cast(images, tf.float32) / 127.5 - 1.0, training=False)
        return tf.cast(tf.argmax(logits, -1, output_type=tf.int32), tf.uint8)

    return measured(lambda: answer(images), values["steps"], model, images.shape, 1)


def multiple_of_32(side: int) -> int:
    """The largest multiple that fits, or 32."""
    return max(side // 32, 1) * 32


def main() -> None:
    """Measures and prints a table and JSON."""
    values = {
        name: flags.FLAGS[name].value
        for name in (
            *("size", "genotype", "crop_size", "batch_size"),
            *("height", "width", "steps", "precision"),
        )
    }
    try:
        genotype.load(values["genotype"])
    except ValueError as error:
        raise UsageError(f"--genotype: {error}") from None
    name = f"{Path(values['genotype']).stem} {values['size']}"
    rows: dict[str, tuple[str, Callable[[dict[str, Any]], Row]]] = {
        "train": (name, train),
        "inference": (name, inference),
    }
    if flags.FLAGS.baseline and importlib.util.find_spec("keras_hub") is None:
        print("keras-hub is not installed: no baseline (pip install -e .[baselines])")
    elif flags.FLAGS.baseline:
        rows["keras_hub_train"] = (KERAS_HUB, keras_hub_train)
        rows["keras_hub_inference"] = (KERAS_HUB, keras_hub_inference)
    print(
        f"train: crop {values['crop_size']}, batch {values['batch_size']}; inference: "
        f"{values['height']} x {values['width']}; {values['precision']}, {os.cpu_count()} cores"
    )
    print(
        f"{'network':<22}{'':<11}{'M params':>9}{'seconds':>9}{'images/s':>10}{'GFLOP':>9}"
        f"{'conv GFLOP/s':>14}{'of limit':>10}{'peak GB':>9}"
    )
    results = {}
    for key, (network, measure) in rows.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            row = results[key] = process.submit(measure, values).result()
        print(
            f"{network:<22}{key.split('_')[-1]:<11}{row['params_millions']:>9.2f}"
            f"{row['seconds']:>9.3f}{row['images_per_s']:>10.3f}{row['gflop']:>9.0f}"
            f"{row['conv_gflops']:>14.0f}{row['fraction_of_limit']:>10.2f}"
            f"{row['peak_rss_gb']:>9.2f}",
            flush=True,
        )
    print(json.dumps(results))


if __name__ == "__main__":
    flags.DEFINE_enum("size", "S", list(FILTER_MULTIPLIERS), "of Table 2")
    define_path("genotype", "published", "a preset's name or a genotype.json")
    flags.DEFINE_integer("crop_size", 769, "side of the crops in training", lower_bound=1)
    flags.DEFINE_integer("batch_size", 2, "crops of a training step", lower_bound=2)
    flags.DEFINE_integer("height", 1024, "of the image to label", lower_bound=1)
    flags.DEFINE_integer("width", 2048, "of the image to label", lower_bound=1)
    flags.DEFINE_integer("steps", 5, "steps, and images, that are measured", lower_bound=1)
    flags.DEFINE_enum("precision", "float32", distribution.PRECISIONS, "what layers compute in")
    flags.DEFINE_bool("baseline", True, "measure keras-hub's DeepLabv3+ too")
    run_app(main)

"""The whole method on one page: search a network for your data, retrain it, evaluate it.

    python examples/search_in_one_page.py DATA

DATA is what `python -m tfrecords_tools.convert` wrote. train.py does the same with everything
around it (several devices, saving and resuming, reports, flags); this page shows what it is made
of. Its numbers are for a try of some minutes on small images, such as the 200 that
tfrecords_tools.toy_scenes paints. For your own data change SIZE, the crops (as large as the images,
or as memory allows) and the numbers of steps; the paper's are in auto_deeplab/configs.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from official.quiet import import_tensorflow

    import_tensorflow()

import keras
import tensorflow as tf

import auto_deeplab
from auto_deeplab.search import bilevel
from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.bilevel import Search
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space.genotype import Genotype
from auto_deeplab.space.search_space import DIL_OPERATIONS
from official import input_pipeline, optimizers, schedules
from official.evaluation import Evaluator
from official.records import Description, read_description

SIZE = {"num_layers": 5, "num_blocks": 3, "operations": DIL_OPERATIONS}  # paper: 12, 5, OPERATIONS
STRATEGY = tf.distribute.get_strategy()  # this one device


def make_batches(data: Description, crop: int, **options) -> tf.data.Dataset:
    """Endless augmented batches of {"image": [4, crop, crop, 3], "label": [4, crop, crop]}."""
    return input_pipeline.make_train_batches(
        *(data, "train"),
        seed=0,
        batch_size=4,
        crop_size=(crop, crop),
        scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
        random_crop=True,
        flip=True,
        **options,
    )


def search(data: Description, crop: int, steps: int) -> Genotype:
    """Weights on trainA, alpha and beta on trainB, in turn (Sec. 4.2); decodes both (Sec. 4.3)."""
    half_a, half_b = input_pipeline.split_halves(data.split("train").num_examples, seed=0)
    stream_a = iter(make_batches(data, crop, records=half_a, stream=0))
    stream_b = iter(make_batches(data, crop, records=half_b, stream=1))
    architecture = Architecture(**SIZE, seed=0)
    searching = Search(
        SuperNet(**SIZE, num_classes=data.num_classes, filter_multiplier=4),
        architecture,
        weight_optimizer=optimizers.sgd(schedules.cosine(0.025, 0.001, steps), l2=3e-4),
        architecture_optimizer=optimizers.adam(0.03, l2=1e-3),
        ignore_label=data.ignore_label,
        strategy=STRATEGY,
    )
    for step in range(steps):
        # Alpha and beta wait until the weights have learned something.
        batch_b = next(stream_b) if step >= steps // 3 else None
        losses = searching.step(next(stream_a), batch_b)
        if step % 10 == 0:
            print(f"search {step}:", {name: round(float(x), 3) for name, x in losses.items()})
    return bilevel.decode(architecture, meta={"step": steps})[0]


def retrain(genotype: Genotype, data: Description, crop: int, steps: int) -> keras.Model:
    """Trains the network that was found, from its first weights on (Sec. 5.2)."""
    network = auto_deeplab.build(
        *(genotype, data.num_classes), filter_multiplier=4, head_filters=64, batch_norm_decay=0.95
    )
    network.compile(
        optimizer=optimizers.sgd(schedules.polynomial(0.05, steps), l2=4e-5),
        loss=keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, ignore_class=data.ignore_label
        ),
    )
    batches = make_batches(data, crop).map(lambda batch: (batch["image"], batch["label"]))
    network.fit(batches, steps_per_epoch=max(1, steps // 10), epochs=min(10, steps), verbose=2)
    return network


def evaluate(network: keras.Model, data: Description) -> dict:
    """The metrics on the whole images of val."""
    evaluator = Evaluator(
        lambda images: network(images, training=False),
        class_names=data.class_names,
        ignore_label=data.ignore_label,
        strategy=STRATEGY,
    )
    return evaluator(input_pipeline.read_eval_images(data, "val"))[0]


def main(data_dir: str, crops: tuple = (97, 145), steps: tuple = (120, 500)) -> None:
    """Searches and retrains with these crops and steps; prints what was found, and its mIoU."""
    keras.utils.set_random_seed(0)
    data = read_description(data_dir)
    genotype = search(data, crops[0], steps[0])
    print(genotype.describe())
    metrics = evaluate(retrain(genotype, data, crops[1], steps[1]), data)
    print(f"mIoU of the classes present: {metrics['miou_present']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data_dir")
    main(parser.parse_args().data_dir)

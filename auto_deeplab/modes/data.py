"""What modes share of data and devices: what a user says of them, checked, opened and started."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from official import distribution, input_pipeline
from official.errors import UsageError
from official.evaluation import Logits, Show, make_split_evaluator
from official.preprocessing import RANDOM_SCALES
from official.progress import say
from official.records import Description, read_description
from official.training_loop import Row

PathLike = str | os.PathLike[str]

MAX_PIXELS = 2**25
"""Of an image to segment, unless another limit is given: a camera's, but no map of a city."""


@dataclass(frozen=True)
class Data:
    """Which records a mode reads.

    Attributes:
        data_dir: a directory of TFRecords, as tfrecords_tools.convert writes them.
        eval_split: the name of the split to evaluate on, or to predict.
        num_classes, ignore_label: of data that do not say them, which are shards of DeepLab's own
            scripts; None: the data say them.
    """

    data_dir: PathLike
    eval_split: str = "val"
    num_classes: int | None = None
    ignore_label: int | None = None

    def read(self) -> Description:
        """The data's description.

        Raises:
            UsageError: it contradicts num_classes or ignore_label.
            RunError: there is none, or it is damaged.
        """
        data_dir = os.fspath(self.data_dir)
        description = read_description(data_dir, self.num_classes, self.ignore_label)
        for name in ("num_classes", "ignore_label"):
            value = getattr(self, name)
            if value is not None and value != getattr(description, name):
                raise UsageError(
                    f"--{name}={value}, but the data in --data_dir={self.data_dir} has "
                    f"{getattr(description, name)}: leave the flag away"
                )
        return description


@dataclass(frozen=True)
class Batches:
    """What a batch of training is, and how an image becomes one of its crops.

    Attributes:
        batch_size: images on all replicas together.
        crop_size: (height, width) of a crop in pixels.
        train_split: the name of the split that they are of.
        resize_longer_side: to so many pixels each image is resized first; None: to none.
        random_scale, random_crop, random_flip: what is drawn anew for each image.
        cache_data: whether decoded images are kept in memory.
    """

    batch_size: int
    crop_size: tuple[int, int]
    train_split: str = "train"
    resize_longer_side: int | None = None
    random_scale: bool = True
    random_crop: bool = True
    random_flip: bool = True
    cache_data: bool = False

    def check(self) -> None:
        """Raises UsageError if a number is not above 0, or the crop has not two sides."""
        if not isinstance(self.crop_size, Sequence) or len(self.crop_size) != 2:
            raise UsageError(f"--crop_size={self.crop_size}: give (height, width)")
        check_positive(self, "batch_size", "resize_longer_side")

    def scales(self) -> tuple[float, ...]:
        """The factors among which each image's scale is drawn."""
        return RANDOM_SCALES if self.random_scale else (1.0,)

    def options(self) -> dict[str, Any]:
        """The same as arguments of input_pipeline.distribute_batches."""
        return {
            "batch_size": self.batch_size,
            "crop_size": tuple(self.crop_size),
            "scales": self.scales(),
            "random_crop": self.random_crop,
            "flip": self.random_flip,
            "resize_longer_side": self.resize_longer_side,
            "cache": self.cache_data,
        }


@dataclass(frozen=True)
class Devices:
    """Where to compute, and in which number format.

    Attributes:
        distribution_strategy: see distribution.make_strategy.
        precision: see distribution.set_precision.
        deterministic: whether equal runs give equal bits, at some cost in speed.
    """

    distribution_strategy: str = "one_device"
    precision: str = "float32"
    deterministic: bool = False

    def start(self, mode: str, seed: int = 0) -> tf.distribute.Strategy:
        """Sets precision, seed and devices; must come before any other use of TensorFlow.

        Args:
            mode: what is going to run, a key of flag_definitions.MODES.
            seed: of whatever draws without a seed of its own, such as initial weights.

        Returns:
            the strategy in whose scope variables are to be made.

        Raises:
            UsageError: the devices are not there, or cannot do what `mode` needs.
        """
        if self.deterministic:
            distribution.make_deterministic(seed)
        keras.utils.set_random_seed(seed)
        if mode == "search":
            distribution.expect_many_operations()
        strategy = distribution.make_strategy(self.distribution_strategy)
        if distribution.set_precision(self.precision) != self.precision:
            say(
                f"warning: --precision={self.precision} brings nothing on this processor, which "
                "has no instructions for it: computing in float32"
            )
        learns = mode in ("search", "train")
        if learns and self.precision == "float16" and not tf.config.list_physical_devices("GPU"):
            raise UsageError(
                f"--precision=float16: --mode={mode} needs a GPU for it, as TensorFlow lacks "
                "gradients in float16 elsewhere; use bfloat16 or float32"
            )
        names = [name.rpartition("device:")[2] for name in strategy.extended.worker_devices]
        say(f"{mode} on {', '.join(names)}")
        return strategy


@dataclass(frozen=True)
class Compilation:
    """How TensorFlow runs the steps of a search or a training.

    Attributes:
        sync_batch_norm: whether BN normalises by the statistics of the global batch.
        jit_compile: whether XLA compiles the step.
        steps_per_loop: steps in one call of TensorFlow.
    """

    sync_batch_norm: bool = True
    jit_compile: bool = False
    steps_per_loop: int = 1

    def check(self, strategy: tf.distribute.Strategy) -> None:
        """Raises UsageError if that cannot be done on the strategy's replicas."""
        replicas = strategy.num_replicas_in_sync
        if self.jit_compile and self.sync_batch_norm and replicas > 1:
            raise UsageError(
                f"--jit_compile=true needs --sync_batch_norm=false on {replicas} replicas, as "
                "synchronised batch normalisation cannot be compiled; or use "
                "--distribution_strategy=one_device"
            )


@dataclass(frozen=True)
class Reports:
    """When a run says how it does, what it saves, and what it bears.

    Attributes:
        eval_every: steps between two reports with an evaluation; None: see the mode.
        save_every: steps between two checkpoints; None: one with each report.
        keep_checkpoints: how many of the newest are kept, beside the best.
        max_eval_images: how many images of the split are evaluated; None: all.
        max_bad_steps: how many steps in a row may have a loss, or lead to values, that are not
            finite; they change nothing.
    """

    eval_every: int | None = None
    save_every: int | None = None
    keep_checkpoints: int = 3
    max_eval_images: int | None = None
    max_bad_steps: int = 0

    def check(self) -> None:
        """Raises UsageError if a run could lose what it goes on from."""
        check_positive(self, "eval_every", "save_every", "max_eval_images")
        if self.keep_checkpoints < 2:
            raise UsageError(
                f"--keep_checkpoints={self.keep_checkpoints}: give at least 2; whether the newest "
                "is good, only the loss of the next step tells"
            )
        if self.max_bad_steps < 0:
            raise UsageError(f"--max_bad_steps={self.max_bad_steps} must not be below 0")


def worst_loss(num_classes: int, class_weights: Sequence[float] | None) -> float:
    """The loss above which a run has diverged: a hundred times that of a guess.

    Whoever takes all classes for equally likely has the cross entropy ln C, times the class weight.
    """
    return 100 * math.log(num_classes) * max(class_weights or [1.0], default=1.0)


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raises UsageError if the value of a flag or argument is none of the choices."""
    if value not in choices:
        raise UsageError(f"--{name}={value} is not one of {', '.join(choices)}")


def check_positive(values: Any, *names: str) -> None:
    """Raises UsageError if one of these fields is not above 0; None is no value."""
    for name in names:
        value = getattr(values, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"--{name}={value} must be above 0")


def check_training_data(
    data: Data,
    description: Description,
    batches: Batches,
    strategy: tf.distribute.Strategy,
    num_records: int,
    class_weights: list[float] | None,
) -> None:
    """Raises UsageError if batch, crop or weights do not fit the devices or the data.

    RunError if a split has no label.

    Args:
        data, description: what is to be trained on.
        batches: of what.
        strategy: on what.
        num_records: how many of the training split's records there are to train on.
        class_weights: one for each class, or None.
    """
    if len({*range(description.num_classes)} - {description.ignore_label}) == 1:
        raise UsageError(
            f"--data_dir={description.data_dir} has one class beside void, so there is nothing to "
            "tell apart: name a class for the rest too, such as background, instead of void"
        )
    distribution.check_batch_size(batches.batch_size, strategy)
    if batches.batch_size > num_records:
        raise UsageError(
            f"--batch_size={batches.batch_size} is larger than the {num_records} images to train "
            "on: give a smaller one"
        )
    if class_weights and len(class_weights) != description.num_classes:
        raise UsageError(
            f"--class_weights has {len(class_weights)} numbers, but the data in "
            f"--data_dir={description.data_dir} has {description.num_classes} classes: give one "
            "for each"
        )
    input_pipeline.check_crop_size(
        description,
        batches.train_split,
        (batches.crop_size[0], batches.crop_size[1]),
        batches.scales(),
        batches.resize_longer_side,
    )
    for split in dict.fromkeys((batches.train_split, data.eval_split)):
        input_pipeline.check_labelled(description, split)


def make_validation(
    model: Logits,
    description: Description,
    split: str,
    strategy: tf.distribute.Strategy,
    max_images: int | None,
    show: Show | None = None,
) -> Callable[[], Row]:
    """A function that evaluates the model as it is now, in the words of history.jsonl."""
    evaluate = make_split_evaluator(
        model, description, split, strategy=strategy, max_images=max_images, show=show
    )

    def row() -> Row:
        metrics, _ = evaluate()
        return {
            "val_miou": metrics["miou"],
            "val_miou_present": metrics["miou_present"],
            "val_images": metrics["num_images"],
            "val_per_class_iou": metrics["per_class_iou"],
        }

    return row

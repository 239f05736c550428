"""Segmentation quality over whole images of any size, at one or several scales."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from official.errors import RunError
from official.files import write_atomically
from official.images import MAX_PIXELS
from official.input_pipeline import make_data_error, read_eval_images
from official.progress import Progress
from official.records import Description
from official.resizing import resize_bilinear, sides
from official.segmentation_metrics import count_confusions, summarize

Logits = Callable[[tf.Tensor], tf.Tensor]

SAMPLES = 3  # evenly spaced images of an evaluation that are handed out to be looked at


@dataclass(frozen=True)
class Sample:
    """An image of an evaluation, to look at.

    Attributes:
        name: its file's.
        image: uint8 [H, W, 3].
        truth, prediction: integers [H, W]; void in the truth is the data's ignore_label.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


Show = Callable[[list[Sample]], None]


def compute_logits(model: Logits, images: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Runs the network and checks that it has the right number of classes.

    Args:
        model: takes float32 images [N, H, W, 3] in 0..255, gives float32 logits [N, H, W, C].
        images: uint8 or float32 [N, H, W, 3] in 0..255.
        num_classes: C.

    Returns:
        float32 logits [N, H, W, C].

    Raises:
        RunError: the network has another number of classes.
    """
    logits = model(tf.cast(images, tf.float32))
    if logits.shape[-1] != num_classes:
        raise RunError(
            f"the network has {logits.shape[-1]} classes, the data {num_classes}: give the "
            "--data_dir that it was trained on, or another --checkpoint"
        )
    return logits


def compute_scores(
    model: Logits, images: tf.Tensor, num_classes: int, *, scales: Sequence[float], flip: bool
) -> tf.Tensor:
    """Computes the scores whose argmax is a pixel's class, in evaluation and prediction alike.

    Args:
        model, images, num_classes, scales, flip: as those of `average_probabilities`.

    Returns:
        float32 [N, H, W, C]: for the one scale 1 without flip the logits, of which a softmax could
        round two to a tie; else `average_probabilities`.
    """
    if list(scales) == [1.0] and not flip:
        return compute_logits(model, images, num_classes)
    return average_probabilities(model, images, num_classes, scales=scales, flip=flip)


def check_enlarged(pixels: int, enlarged: float, what: str, flags: str) -> None:
    """Checks that the network sees no image that is enlarged beyond all reason.

    Args:
        pixels: of the image.
        enlarged: of the largest that is made of it.
        what: the image, for the error's line.
        flags: those that enlarge it.

    Raises:
        RunError: it is larger than before, and than any image that is decoded unasked.
    """
    if enlarged > max(pixels, MAX_PIXELS):
        raise RunError(
            f"{what} would be enlarged to {enlarged:.3g} pixels, whose limit is {MAX_PIXELS}: give "
            f"smaller {flags}"
        )


def average_probabilities(
    model: Logits, images: tf.Tensor, num_classes: int, *, scales: Sequence[float], flip: bool
) -> tf.Tensor:
    """Averages class probabilities over scales and, with `flip`, over the mirror images too.

    Every scale is made from the given images, never from another scale. Logits come back to the
    images' grid before the softmax.

    Args:
        model, images, num_classes: as those of `compute_logits`.
        scales: factors of the images' sides, > 0.
        flip: whether to add the mirror image at every scale.

    Returns:
        float32 [N, H, W, C], summing to 1 over C.
    """
    images = tf.cast(images, tf.float32)
    height, width = sides(images)
    answers = []
    for scale in scales:
        scaled = resize_bilinear(images, (_scale_side(height, scale), _scale_side(width, scale)))
        for mirror in (tf.identity, _mirror) if flip else (tf.identity,):
            logits = mirror(compute_logits(model, mirror(scaled), num_classes))
            answers.append(tf.nn.softmax(resize_bilinear(logits, (height, width))))
    return tf.add_n(answers) / len(answers)


def _scale_side(side: Any, scale: float) -> tf.Tensor:
    # Steps between pixels, not pixels, are scaled: that is what aligned corners make exact.
    steps = tf.cast(side - 1, tf.float32) * scale
    return tf.cast(tf.round(steps), tf.int32) + 1


def _mirror(x: tf.Tensor) -> tf.Tensor:
    return tf.reverse(x, [2])


class Evaluator:
    """Evaluates one network on one kind of data, as often as wanted; its graph is made once.

    Args:
        model: float32 images [N, H, W, 3] in 0..255 -> float32 logits [N, H, W, C], for any H and
            W; its variables were made under `strategy`.
        class_names: C names.
        ignore_label: the label of void pixels, which do not count.
        strategy: every replica works on images of its own.
        scales, flip: as those of `compute_scores`.
        show: is given SAMPLES evenly spaced images after each evaluation, or as many as there are;
            of several processes, each has its own.
    """

    def __init__(
        self,
        model: Logits,
        *,
        class_names: Sequence[str],
        ignore_label: int,
        strategy: tf.distribute.Strategy,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        show: Show | None = None,
    ) -> None:
        self._show = show
        self._model, self._strategy = model, strategy
        self._class_names, self._ignore_label = list(class_names), ignore_label
        self._scales, self._flip = [float(scale) for scale in scales], flip
        # It takes the iterator, not a batch: all image sizes have one type then, and one graph.
        # Autograph would bury the one line of a RunError.
        self.step = tf.function(self._step, autograph=False)

    def __call__(
        self, images: tf.data.Dataset, *, name: str = "evaluate"
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Evaluates a data set.

        Args:
            images: of {"image": uint8 [1, H, W, 3], "label": integer [1, H, W], ...}; their number
                is a multiple of that of the replicas. Copies whose labels are all void may fill the
                last turn: they change nothing.
            name: what the progress bar is called.

        Returns:
            The metrics: segmentation_metrics.summarize's, num_images (the images with at least one
            pixel that is not void), scales and flip; and the confusion matrix, int64 [C, C], which
            counts pixels by true class (row) and predicted class (column).

        Raises:
            RunError: no pixel is labelled, or the network has another number of classes.
        """
        confusion, num_images = self._count(images, name)
        if num_images == 0:
            raise RunError(
                f"{name}: none of the images has a labelled pixel (all are void, "
                f"{self._ignore_label}); choose another --eval_split"
            )
        metrics = {
            **summarize(confusion, self._class_names),
            "num_images": num_images,
            "scales": self._scales,
            "flip": self._flip,
        }
        return metrics, confusion

    def _count(self, images: tf.data.Dataset, name: str) -> tuple[np.ndarray, int]:
        # Not experimental_distribute_dataset: it would split each batch of one over the replicas.
        turns = self._strategy.distribute_datasets_from_function(
            lambda context: images.shard(context.num_input_pipelines, context.input_pipeline_id)
        )
        total = int(images.cardinality())
        num_classes = len(self._class_names)
        confusion = tf.zeros([num_classes, num_classes], tf.int64)
        num_images = tf.zeros([], tf.int64)

        def running_miou() -> str:
            miou = summarize(confusion.numpy(), self._class_names)["miou"]
            return "no label yet" if miou is None else f"mIoU {miou:.3f}"

        num_turns = -(-total // self._strategy.num_replicas_in_sync)
        shown = [number * num_turns // SAMPLES for number in range(SAMPLES)] if self._show else []
        samples = []
        iterator, turn = iter(turns), 0
        with Progress(name, total if total >= 0 else None) as progress:
            while True:
                try:
                    (turn_confusion, turn_images), answer = self.step(iterator)
                except tf.errors.OutOfRangeError:
                    break
                confusion, num_images = confusion + turn_confusion, num_images + turn_images
                if turn in shown:
                    samples.append(self._take_sample(*answer))
                turn += 1
                progress.advance(self._strategy.num_replicas_in_sync, running_miou)
        if self._show:
            self._show(samples)
        return confusion.numpy(), int(num_images)

    def _take_sample(self, element: dict[str, Any], prediction: Any) -> Sample:
        """The image of this process's first replica."""

        def read(value: Any) -> Any:
            return self._strategy.experimental_local_results(value)[0].numpy()[0]

        name = read(element["filename"]).decode(errors="replace")
        return Sample(name, read(element["image"]), read(element["label"]), read(prediction))

    def _step(self, iterator: Any) -> tuple[tuple[tf.Tensor, tf.Tensor], tuple[Any, Any]]:
        element = iterator.get_next()
        confusion, num_images, prediction = self._strategy.run(self._count_one, (element,))
        counts = (
            self._strategy.reduce("SUM", confusion, axis=None),
            self._strategy.reduce("SUM", num_images, axis=None),
        )
        return counts, (element, prediction)

    def _count_one(self, element: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """One replica's confusion matrix, int64 [C, C], number of labelled images, int64, and
        predicted classes, int32 [1, H, W].
        """
        images, labels = element["image"], element["label"]
        num_classes = len(self._class_names)
        scores = compute_scores(
            self._model, images, num_classes, scales=self._scales, flip=self._flip
        )
        prediction = tf.argmax(scores, -1, output_type=tf.int32)
        confusion = count_confusions(
            tf.cast(labels, tf.int32),
            prediction,
            num_classes=num_classes,
            ignore_label=self._ignore_label,
        )
        labelled = tf.reduce_any(tf.cast(labels, tf.int32) != self._ignore_label, axis=[1, 2])
        return confusion, tf.math.count_nonzero(labelled), prediction


def make_split_evaluator(
    model: Logits,
    description: Description,
    split: str,
    *,
    strategy: tf.distribute.Strategy,
    max_images: int | None = None,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    show: Show | None = None,
) -> Callable[[], tuple[dict[str, Any], np.ndarray]]:
    """Makes a function that evaluates the model on a split, with the weights of that moment.

    Args:
        model, strategy, scales, flip, show: as Evaluator's.
        description: the data directory's.
        split: name of the split.
        max_images: as that of input_pipeline.read_eval_images.

    Returns:
        () -> Evaluator's metrics and confusion matrix. It raises RunError if a record cannot be
        used.

    Raises:
        RunError: the scales enlarge an image beyond all reason.
    """
    largest = max(height * width for height, width, _ in description.split(split).sizes)
    check_enlarged(
        largest, largest * max(scales) ** 2, f"the largest image of {split}", "--eval_scales"
    )
    evaluator = Evaluator(
        model,
        class_names=description.class_names,
        ignore_label=description.ignore_label,
        strategy=strategy,
        scales=scales,
        flip=flip,
        show=show,
    )

    def evaluate() -> tuple[dict[str, Any], np.ndarray]:
        images = read_eval_images(
            description, split, max_images=max_images, multiple_of=strategy.num_replicas_in_sync
        )
        try:
            return evaluator(images)
        except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
            raise make_data_error(error, description) from None

    return evaluate


def format_class_table(metrics: dict[str, Any]) -> str:
    """Formats a table of every class' IoU and the means, in percent, for terminal and log."""
    rows = [
        (name, "-" if iou is None else f"{100 * iou:.2f}")
        for name, iou in zip(metrics["class_names"], metrics["per_class_iou"], strict=True)
    ]
    means = [
        (label, f"{100 * metrics[key]:.2f}")
        for label, key in (
            ("mIoU", "miou"),
            ("mIoU, classes present", "miou_present"),
            ("mean accuracy", "mean_accuracy"),
            ("pixel accuracy", "pixel_accuracy"),
            ("(mIoU + pixel accuracy) / 2", "miou_pixel_accuracy_mean"),
        )
    ]
    left = max(len(label) for label, _ in [*rows, *means])
    lines = [f"{label:<{left}}  {value:>6}" for label, value in [("class", "IoU %"), *rows, *means]]
    rule = "-" * (left + 8)
    lines = [lines[0], rule, *lines[1 : 1 + len(rows)], rule, *lines[1 + len(rows) :]]
    if None in metrics["per_class_iou"]:
        lines.append("-: neither in the labels nor predicted")
    return "\n".join(lines)


def write_metrics(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Writes metrics.json, whole or not at all; an older one is replaced.

    Args:
        path: the file.
        record: an Evaluator's metrics, and of what they are.

    Raises:
        RunError: the file cannot be written.
    """
    write_atomically(path, json.dumps(record, indent=2, allow_nan=False) + "\n")

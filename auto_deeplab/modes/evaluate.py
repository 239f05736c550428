"""--mode=eval: the metrics of a trained network on whole images."""

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from auto_deeplab.modes.data import Data, Devices, PathLike
from auto_deeplab.modes.model_dir import (
    as_logits,
    check_classes,
    identify_data,
    load_network,
    read_training,
)
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import read_scale
from official import confusion_matrix
from official.evaluation import format_class_table, make_split_evaluator, write_metrics
from official.files import check_replaceable, make_directory
from official.progress import say
from official.records import Description
from official.sizes import Sizes


@dataclass(frozen=True)
class Views:
    """In how many ways the network looks at an image; probabilities are averaged over all.

    Attributes:
        eval_scales: factors of the image's sides.
        eval_flip: whether it sees the mirror images too.
    """

    eval_scales: Sequence[float] = (1.0,)
    eval_flip: bool = False


def evaluate(
    model_dir: PathLike,
    data: Data,
    *,
    views: Views = Views(),
    max_eval_images: int | None = None,
    output: PathLike | None = None,
    show: Callable[[dict[str, Any]], None] = lambda metrics: None,
    devices: Devices = Devices(),
    checkpoint: PathLike | None = None,
) -> dict[str, Any]:
    """Evaluates on data.eval_split; writes metrics and confusion matrix.

    Args:
        model_dir: of a training.
        data: of the network's classes.
        views: how each image is looked at.
        max_eval_images: so many images, spread evenly over the split; None: all.
        output: the file for the metrics, new or of older ones; None: in model_dir, under a name
            that says what they are.
        show: is given what is returned before anything is written, which may fail.
        devices: where it runs.
        checkpoint: a path up to the step, a directory of checkpoints, or "best"; None: the newest.

    Returns:
        what the file for the metrics holds.

    Raises:
        UsageError, RunError: something is missing, damaged or of another kind.
    """
    model_dir = os.fspath(model_dir)
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    output = os.fspath(output) if output else None
    if output:
        check_replaceable(output, "--output", '"per_class_iou"')
    record = read_training(model_dir, data.num_classes)
    strategy, description = devices.start("eval"), data.read()
    check_classes(record, model_dir, description)
    warn_of_scale(read_scale(record), description)
    num_images = description.split(data.eval_split).num_examples
    network, step, path = load_network(model_dir, checkpoint, strategy)
    evaluate_split = make_split_evaluator(
        as_logits(network),
        description,
        data.eval_split,
        strategy=strategy,
        max_images=max_eval_images,
        scales=views.eval_scales,
        flip=views.eval_flip,
    )
    metrics, counts = evaluate_split()
    say(format_class_table(metrics))
    name = name_evaluation(
        split=data.eval_split,
        other_data=None if is_trained_on(record, description) else description.data_dir,
        max_images=max_eval_images if (max_eval_images or math.inf) < num_images else None,
        step=step if checkpoint else None,
        views=views,
    )
    what = {"split": data.eval_split, "step": step, "checkpoint": path}
    whole: dict[str, Any] = json.loads(json.dumps(metrics | what, allow_nan=False))
    show(whole)
    written, table, picture = name_files(model_dir, output, name)
    write_metrics(written, whole)
    confusion_matrix.write(table, counts, metrics["class_names"])
    confusion_matrix.draw(picture, counts, metrics, split=data.eval_split, step=step)
    say(f"written: {written}, {table}, {picture}")
    return whole


def is_trained_on(record: run_record.Record, description: Description) -> bool:
    """Whether these are the data of the training, as far as it knows."""
    own = identify_data(description)
    return bool(record["identity"].get("data_dir", own) == own)


def name_evaluation(
    *,
    split: str,
    other_data: str | None,
    max_images: int | None,
    step: int | None,
    views: Views,
) -> str:
    """What tells this evaluation from the plain one, which is all of val, once, at scale 1.

    Args:
        split: its name.
        other_data: data_dir, if it is not the training's.
        max_images: if they are fewer than all.
        step: if the checkpoint was chosen.
        views: how images are looked at.
    """
    parts = []
    if split != Data.eval_split:
        parts.append(split)
    if other_data:
        parts.append(f"on_{os.path.basename(os.path.abspath(other_data))}")
    if max_images is not None:
        parts.append(f"{max_images}_images")
    if step is not None:
        parts.append(f"step_{step}")
    if list(views.eval_scales) != [1.0]:
        parts.append("_".join(("scales", *(f"{scale:g}" for scale in views.eval_scales))))
    if views.eval_flip:
        parts.append("flip")
    return "".join(f"_{part}" for part in parts)


def name_files(model_dir: str, output: str | None, name: str) -> tuple[str, str, str]:
    """Where metrics, confusion matrix and its picture go: into model_dir, or beside `output`."""
    if output:
        make_directory(os.path.dirname(os.path.abspath(output)))
        matrix = os.path.splitext(output)[0] + "_confusion_matrix"
        return output, f"{matrix}.csv", f"{matrix}.png"
    return (
        os.path.join(model_dir, f"metrics{name}.json"),
        os.path.join(model_dir, f"confusion_matrix{name}.csv"),
        run_record.make_figure_path(model_dir, f"confusion_matrix{name}"),
    )


def warn_of_scale(trained: Sizes | None, description: Description) -> None:
    """Says so if the data to evaluate on have another scale than those of the training."""
    own = Sizes.from_options(description.options)
    if trained not in (None, own):
        say(
            f"warning: --data_dir={description.data_dir} has {own}, the network was trained on "
            f"{trained}: evaluated as they are, things have another size than it knows"
        )

"""--mode=export: a trained network in one or more formats, each checked before it appears."""

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab.modes.data import MAX_PIXELS, Data, Devices, PathLike, check_choice
from auto_deeplab.modes.model_dir import choose_scale, load_network, read_training
from auto_deeplab.runs import run_record
from official import export as saved_models
from official import formats, parity, warmup
from official.errors import RunError, UsageError
from official.files import make_directory, write_atomically, write_directory_atomically
from official.images import fit_size
from official.input_pipeline import read_eval_images
from official.progress import say
from official.sizes import OWN_SIZE, Sizes

SAVED_MODEL = "saved_model"
FORMATS = (SAVED_MODEL, *formats.FILES)
REPORT = "export.json"
LEAST_EQUAL = {"float32": 0.999, "float16": 0.99, "int8": 0.9}
"""By precision, the share of pixels that must get the network's label."""

VOID = 255
"""The label of void pixels in the images of the check."""

CHECKED = 8
"""So many images are tried, if nothing else is said."""


@dataclass(frozen=True)
class Form:
    """What is written, and what it must keep to.

    Attributes:
        export_format: of FORMATS, one or more.
        export_precision: of all but the SavedModel, one of formats.PRECISIONS.
        export_size: (height, width) of the images; None: any, where the format can.
        export_probabilities: whether it answers probabilities beside labels.
        min_equal_labels: the share of pixels that must get the network's label; None: that of
            LEAST_EQUAL. Of float32 no less.
    """

    export_format: Sequence[str] = (SAVED_MODEL,)
    export_precision: str = "float32"
    export_size: tuple[int, int] | None = None
    export_probabilities: bool = False
    min_equal_labels: float | None = None

    def check(self, data: Data | None) -> None:
        """Raises UsageError if this cannot be, here or at all."""
        if self.export_size is not None and (
            len(self.export_size) != 2 or min(self.export_size) < 1
        ):
            raise UsageError(f"--export_size={self.export_size}: give (height, width)")
        for name in self.export_format:
            check_choice("export_format", name, FORMATS)
        check_choice("export_precision", self.export_precision, formats.PRECISIONS)
        others = [form for form in self.export_format if form != SAVED_MODEL]
        for form in others:
            formats.check(form, self.export_precision, self.export_size)
        for name, value in (("precision", self.export_precision), ("size", self.export_size)):
            if value not in ("float32", None) and not others:
                raise UsageError(
                    f"--export_{name} is of {', '.join(formats.FILES)}: name one in --export_format"
                )
        if self.export_precision == "int8" and not data:
            raise UsageError(
                "--export_precision=int8 measures the ranges of numbers on images: give --data_dir"
            )
        least, given = LEAST_EQUAL[self.export_precision], self.min_equal_labels
        if given is not None and self.export_precision == "float32" and given < least:
            raise UsageError(
                f"--min_equal_labels={given:g} is below {least}, which float32 always reaches: a "
                "lower one would hide a fault"
            )


def export(
    model_dir: PathLike,
    *,
    export_dir: PathLike | None = None,
    form: Form = Form(),
    data: Data | None = None,
    max_eval_images: int | None = None,
    predict_scale: float | None = None,
    max_pixels: int = MAX_PIXELS,
    num_classes: int | None = None,
    devices: Devices = Devices(),
    checkpoint: PathLike | None = None,
) -> list[dict[str, Any]]:
    """Writes export_dir/1, 2, ...; of other formats export_dir/onnx/1, ...

    Each is run in its own engine beside the network before it appears, on images of `data` or made
    up ones. What was found stands in export.json beside the model, of a SavedModel in assets.extra,
    where requests to warm a server up are, too.

    Args:
        model_dir: of a training.
        export_dir: None: model_dir/export.
        form: the formats, and what they must keep to.
        data: on whose images the check runs; None: on made-up ones.
        max_eval_images: so many images; None: CHECKED.
        predict_scale: the factor of an image's sides; None: it comes to the training data's scale.
        max_pixels: of an image; a SavedModel refuses larger ones.
        num_classes: the number of classes that is expected; another one is an error.
        devices: where the graph is made.
        checkpoint: a path up to the step, a directory of checkpoints, or "best"; None: the newest.

    Returns:
        what export.json says of each format.

    Raises:
        UsageError, RunError: something is missing, damaged or of another kind, or an export does
            not answer as the network does.
    """
    model_dir = os.fspath(model_dir)
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    form.check(data)
    if form.export_size and math.prod(form.export_size) > max_pixels:
        height, width = form.export_size
        raise UsageError(
            f"--export_size={height},{width} is more than --max_pixels={max_pixels}: raise that, "
            "or make it smaller"
        )
    strategy, record = devices.start("export"), read_training(model_dir, num_classes)
    sizes = choose_scale(record, model_dir, predict_scale)
    if sizes != OWN_SIZE and set(form.export_format) != {SAVED_MODEL}:
        raise UsageError(
            f"the network was trained on {sizes}: the resizing inside is TensorFlow's alone; with "
            "--predict_scale=1 the other formats take images that are of that scale already"
        )
    if devices.precision != "float32" and set(form.export_format) != {SAVED_MODEL}:
        raise UsageError(
            f"--precision={devices.precision} is what TensorFlow computes in: for other formats "
            "say --export_precision"
        )
    network, _, prefix = load_network(model_dir, checkpoint, strategy)
    images, labels = _take_images(record, form, data, max_eval_images or CHECKED, max_pixels)
    root = Path(export_dir or os.path.join(model_dir, "export"))
    reports = {}
    # All appear, or none: the SavedModel, which appears by itself, is the last that is tried.
    with contextlib.ExitStack() as unpublished:
        for name in sorted(form.export_format, key=SAVED_MODEL.__eq__):
            check = partial(
                _check,
                images=images,
                labels=labels,
                form=form,
                record=record,
                about={"format": name, "checkpoint": os.path.basename(prefix)},
            )
            if name == SAVED_MODEL:
                reports[name] = _write_saved_model(
                    *(root, network, record, form, sizes, max_pixels, images[0], check)
                )
            else:
                writing = _write_other(name, root / name, network, record, form, images, check)
                reports[name] = unpublished.enter_context(writing)
    for name in form.export_format:
        say(f"exported: {reports[name]['path']}: {_describe(reports[name])}")
    return [reports[name] for name in form.export_format]


def _write_saved_model(
    root: Path,
    network: keras.Model,
    record: Mapping[str, Any],
    form: Form,
    sizes: Sizes,
    max_pixels: int,
    image: np.ndarray,
    check: Any,
) -> dict[str, Any]:
    count = len(record["class_names"])
    reference = tf.function(
        saved_models.make_answer(network, count, False, sizes, max_pixels),
        [tf.TensorSpec([None, None, None, 3], tf.uint8)],
        autograph=False,
    )
    found: list[dict[str, Any]] = []

    def inspect(directory: Path) -> None:
        signature = tf.saved_model.load(str(directory)).signatures["serving_default"]
        report = check(
            answer=lambda image: _to_numpy(signature(images=tf.constant(image))),
            reference=lambda image: _to_numpy(reference(tf.constant(image))),
            directory=directory,
            # It is what the network computes, in the same engine; numbers are float32.
            precision="float32",
        )
        (directory / "assets.extra").mkdir()
        if warmup.is_possible():
            warmup.write_warmup(directory, image)
        else:
            say(
                "without tensorflow-serving-api there is no warm-up file: a server's first answer "
                "will be slow (pip install 'auto-deeplab-tf2[serving]')"
            )
        write_atomically(directory / "assets.extra" / REPORT, json.dumps(report, indent=1) + "\n")
        found.append(report)

    path = saved_models.export(
        network,
        root,
        class_names=record["class_names"],
        palette=record["palette"],
        probabilities=form.export_probabilities,
        sizes=sizes,
        max_pixels=max_pixels,
        inspect=inspect,
    )
    return {**found[0], "path": str(path)}


@contextlib.contextmanager
def _write_other(
    name: str,
    root: Path,
    network: keras.Model,
    record: Mapping[str, Any],
    form: Form,
    images: Sequence[np.ndarray],
    check: Any,
) -> Iterator[dict[str, Any]]:
    """What export.json says; the export appears when the context is left without an error."""
    count = len(record["class_names"])
    plain = formats.Plain(network, count, form.export_size, form.export_probabilities)
    function = plain.make_function(form.export_size)
    target = saved_models.find_next(make_directory(root))
    with write_directory_atomically(target, "--export_dir") as directory:
        path = formats.write(name, plain, directory, form.export_precision, images)
        saved_models.write_assets(directory, record["class_names"], record["palette"])
        report: dict[str, Any] = check(
            answer=formats.load(name, path),
            reference=lambda image: _to_numpy(function(tf.constant(image))),
            directory=directory,
            precision=form.export_precision,
        )
        write_atomically(directory / REPORT, json.dumps(report, indent=1) + "\n")
        yield {**report, "path": str(target)}


def _check(
    *,
    answer: formats.Answer,
    reference: formats.Answer,
    directory: Path,
    precision: str,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None,
    form: Form,
    record: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What export.json holds.

    Raises:
        RunError: too few labels are the network's.
    """
    found = parity.compare(
        *(reference, answer, images, labels),
        class_names=record["class_names"],
        ignore_label=VOID,
        name=f"check {about['format']}",
    )
    files = [path for path in directory.rglob("*") if path.is_file()]
    report = {
        **about,
        "precision": precision,
        "size": list(form.export_size) if form.export_size else None,
        "images": "of the data" if labels is not None else "made up",
        "image_size": list(images[0].shape[1:3]),
        **found,
        "megabytes": sum(path.stat().st_size for path in files) / 1e6,
        "threads": os.cpu_count(),
        "class_names": list(record["class_names"]),
        "palette": [list(colour) for colour in record["palette"]],
    }
    given, default = form.min_equal_labels, LEAST_EQUAL[precision]
    # In float32 it can only be raised: it is the SavedModel's beside an int8 one, too.
    least = default if given is None else max(given, default if precision == "float32" else 0)
    if found["equal_labels"] < least:
        lower = "" if precision == "float32" else ", or lower --min_equal_labels"
        raise RunError(
            f"{about['format']}, {precision}: {found['equal_labels']:.3%} of the pixels get the "
            f"network's label, less than {least:.1%}: nothing is exported; take another "
            f"--export_format or --export_precision{lower}"
        )
    return report


def _take_images(
    record: Mapping[str, Any], form: Form, data: Data | None, count: int, max_pixels: int
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Images uint8 [1, H, W, 3] of the export's size, and their labels, if they are of data."""
    if data is None:
        size = form.export_size or tuple(record.get(run_record.IMAGE_SIZE) or (256, 256))
        size = fit_size((size[0], size[1]), max_pixels)
        rng = np.random.default_rng(0)
        coarse = rng.uniform(0, 255, (count, 1 + size[0] // 16, 1 + size[1] // 16, 3))
        smooth = tf.image.resize(coarse, size, "bicubic")
        noisy = smooth + rng.normal(0, 8, smooth.shape)
        return [np.asarray(one[None]) for one in np.clip(noisy, 0, 255).astype(np.uint8)], None
    description = data.read()
    if list(description.class_names) != list(record["class_names"]):
        raise UsageError(
            f"--data_dir={description.data_dir} has other classes than the training's data"
        )
    images, labels = [], []
    for one in read_eval_images(description, data.eval_split, max_images=count):
        image, label = one["image"][0], one["label"][0]
        if form.export_size:
            resized = tf.image.resize(image, form.export_size, antialias=True)
            image = tf.cast(tf.round(resized), tf.uint8)
            label = tf.image.resize(label[..., None], form.export_size, "nearest")[..., 0]
        if image.shape[0] * image.shape[1] > max_pixels:
            continue
        truth = label.numpy()
        truth = np.where(truth == description.ignore_label, VOID, truth)
        images.append(image.numpy()[None])
        labels.append(truth[None])
    if not images:
        raise RunError(
            f"--max_pixels={max_pixels} is less than the images of --data_dir={data.data_dir} have"
        )
    return images, labels


def _to_numpy(answer: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in answer.items()}


def _describe(report: Mapping[str, Any]) -> str:
    logits = report["max_logit_difference"]
    parts = [
        f"{report['equal_labels']:.3%} equal labels on {report['num_images']} images "
        f"{report['images']}",
        "" if logits is None else f"logits differ by {logits:.2g} at most",
        f"mIoU {report['miou']:.4f} (network {report['network_miou']:.4f})"
        if "miou" in report
        else "",
        f"{report['megabytes']:.2f} MB",
        f"{report['median_ms']:.1f} ms an image (network {report['network_median_ms']:.1f})",
    ]
    return ", ".join(part for part in parts if part)

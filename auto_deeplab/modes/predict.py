"""--mode=predict: segments pictures, or the images of a split."""

import os
from collections.abc import Sequence
from pathlib import Path

from auto_deeplab.modes.data import MAX_PIXELS, Data, Devices, PathLike
from auto_deeplab.modes.evaluate import Views
from auto_deeplab.modes.model_dir import (
    as_logits,
    check_classes,
    choose_scale,
    load_network,
    read_training,
)
from official import prediction
from official.errors import UsageError
from official.prediction import open_pictures, open_split
from official.progress import say
from official.records import Description
from official.submission import Submission, make_submission


def predict(
    model_dir: PathLike,
    output_dir: PathLike,
    *,
    input: PathLike | None = None,
    data: Data | None = None,
    num_classes: int | None = None,
    views: Views = Views(),
    predict_scale: float | None = None,
    submission: str | None = None,
    max_pixels: int = MAX_PIXELS,
    devices: Devices = Devices(),
    checkpoint: PathLike | None = None,
) -> list[Path]:
    """Writes label maps and overlays, or a benchmark's submission.

    Args:
        model_dir: of a training.
        output_dir: for the answers.
        input: pictures: a file, a folder or a glob pattern.
        data: without `input`, the images of its eval_split are segmented.
        num_classes: the number of classes that is expected; another one is an error.
        views: how each image is looked at.
        predict_scale: the factor of an image's sides; None: it comes to the training data's scale.
        submission: one of official.submission.FORMS; None: label maps and overlays.
        max_pixels: of an image; larger ones are refused.
        devices: where it runs.
        checkpoint: a path up to the step, a directory of checkpoints, or "best"; None: the newest.

    Returns:
        the files, one for each image.

    Raises:
        UsageError, RunError: something is missing, damaged or of another kind.
    """
    model_dir = os.fspath(model_dir)
    output_dir = os.fspath(output_dir)
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    if input is None and data is None:
        raise UsageError(
            "--mode=predict needs --input (pictures) or --data_dir (the images of its split "
            "--eval_split)"
        )
    strategy, record = devices.start("predict"), read_training(model_dir, num_classes)
    class_names, palette = record["class_names"], record["palette"]
    description = None
    if data and not input:
        description = data.read()
        check_classes(record, model_dir, description)
        class_names, palette = description.class_names, description.palette
    split = data.eval_split if data and description else "test"
    form = choose_submission(submission, class_names, split, description)
    sizes = choose_scale(record, model_dir, predict_scale, description)
    if description:
        found = open_split(description, split, max_pixels)
    else:
        assert input  # so was checked
        found = open_pictures(os.fspath(input), output_dir, max_pixels)
    network, _, _ = load_network(model_dir, checkpoint, strategy)
    done = prediction.predict(
        as_logits(network),
        found,
        output_dir,
        class_names=class_names,
        palette=palette,
        scales=views.eval_scales,
        flip=views.eval_flip,
        sizes=sizes,
        submission=form,
    )
    say(f"{len(done)} images segmented: {output_dir}")
    return done


def choose_submission(
    form: str | None, class_names: Sequence[str], split: str, description: Description | None
) -> Submission | None:
    """The form of that name; None for None.

    Raises:
        UsageError: networks of these classes, or the images of this data, do not suit it.
    """
    if form is None:
        return None
    options = description.options if description else {}
    for name, unchanged in (("resize_factor", 1.0), ("max_side", None)):
        value = options.get(name, unchanged)
        if value != unchanged:
            assert description
            raise UsageError(
                f"--submission={form} needs images of their own size, but those in "
                f"--data_dir={description.data_dir} were converted with --{name}={value}"
            )
    return make_submission(form, class_names, split)

"""--mode=predict: segments pictures, or the images of a split."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
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
from official.records import Description
from official.resizing import STRIDE
from official.submission import Submission, make_submission


@dataclass(frozen=True)
class Portions:
    """What goes through the network at once.

    Attributes:
        batch_size: so many pictures, or tiles, of one size that follow each other.
        tile: height and width of a tile, in pixels as the network sees them; None: whole pictures.
        overlap: how many pixels neighbouring tiles share at least; each keeps its half.
    """

    batch_size: int = 1
    tile: tuple[int, int] | None = None
    overlap: int = 0

    def check(self) -> None:
        """Raises UsageError if tiles do not get on."""
        if self.tile is None and self.overlap:
            raise UsageError(f"--overlap={self.overlap} is of tiles: give their size as --tile")
        if self.tile is not None and min(self.tile) - self.overlap < STRIDE:
            height, width = self.tile
            raise UsageError(
                f"--tile={height},{width} with --overlap={self.overlap}: a tile must be larger "
                f"than the overlap by {STRIDE} pixels at least"
            )


def predict(
    model_dir: PathLike,
    output_dir: PathLike,
    *,
    input: PathLike | None = None,
    data: Data | None = None,
    num_classes: int | None = None,
    views: Views = Views(),
    predict_scale: float | None = None,
    portions: Portions = Portions(),
    save_probabilities: bool = False,
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
        portions: what goes through the network at once.
        save_probabilities: whether they are written too.
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
    portions.check()
    if submission and save_probabilities:
        raise UsageError(
            f"--save_probabilities: --submission={submission} is what a server takes, and nothing "
            "beside it: predict once more into another --output_dir"
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
    return prediction.predict(
        as_logits(network),
        found,
        output_dir,
        class_names=class_names,
        palette=palette,
        scales=views.eval_scales,
        flip=views.eval_flip,
        sizes=sizes,
        batch_size=portions.batch_size,
        tile=portions.tile and (portions.tile[0], portions.tile[1]),
        overlap=portions.overlap,
        save_probabilities=save_probabilities,
        submission=form,
    )


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

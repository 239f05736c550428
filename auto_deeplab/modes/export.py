"""--mode=export: a trained network as a SavedModel."""

import os
from pathlib import Path

from auto_deeplab.modes.data import MAX_PIXELS, Devices, PathLike
from auto_deeplab.modes.model_dir import choose_scale, load_network, read_training
from official.export import export as write_saved_model
from official.progress import say


def export(
    model_dir: PathLike,
    *,
    export_dir: PathLike | None = None,
    export_probabilities: bool = False,
    predict_scale: float | None = None,
    max_pixels: int = MAX_PIXELS,
    num_classes: int | None = None,
    devices: Devices = Devices(),
    checkpoint: PathLike | None = None,
) -> Path:
    """Writes export_dir/1, 2, ...

    Args:
        model_dir: of a training.
        export_dir: None: model_dir/export.
        export_probabilities: whether it answers probabilities beside labels.
        predict_scale: the factor of an image's sides; None: it comes to the training data's scale.
        max_pixels: of an image; it refuses larger ones.
        num_classes: the number of classes that is expected; another one is an error.
        devices: where the graph is made.
        checkpoint: a path up to the step, a directory of checkpoints, or "best"; None: the newest.

    Returns:
        the SavedModel's directory.

    Raises:
        UsageError, RunError: something is missing, damaged or of another kind.
    """
    model_dir = os.fspath(model_dir)
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    strategy, record = devices.start("export"), read_training(model_dir, num_classes)
    sizes = choose_scale(record, model_dir, predict_scale)
    network, _, _ = load_network(model_dir, checkpoint, strategy)
    path = write_saved_model(
        network,
        export_dir or os.path.join(model_dir, "export"),
        class_names=record["class_names"],
        palette=record["palette"],
        probabilities=export_probabilities,
        sizes=sizes,
        max_pixels=max_pixels,
    )
    say(f"exported: {path}")
    return path

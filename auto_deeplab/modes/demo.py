"""--mode=demo: a page on this machine on which photographs are segmented."""

import os
import signal
import tempfile
from pathlib import Path

import tensorflow as tf
from PIL import Image

from auto_deeplab.modes.data import MAX_PIXELS, Data, Devices, PathLike
from auto_deeplab.modes.model_dir import (
    check_classes,
    choose_scale,
    load_network,
    read_training,
)
from auto_deeplab.report import demo_page
from auto_deeplab.runs import run_record
from official import latency
from official.errors import UsageError, shorten
from official.images import encode_png
from official.input_pipeline import make_data_error, read_eval_images
from official.interrupts import Interrupts
from official.progress import say
from official.records import Description
from official.segmenter import Segmenter
from official.sizes import Sizes

PORT = 7860
EXAMPLES = 6
"""So many images of the data are on the page."""
SIZE = (512, 1024)
"""Of the first picture, where the run does not know how large its data's images are."""


def demo(
    model_dir: PathLike,
    *,
    data: Data | None = None,
    port: int = PORT,
    predict_scale: float | None = None,
    max_pixels: int = MAX_PIXELS,
    num_classes: int | None = None,
    devices: Devices = Devices(),
    checkpoint: PathLike | None = None,
) -> None:
    """Serves the page to this machine alone until SIGINT, SIGTERM or SIGHUP comes.

    Args:
        model_dir: of a training.
        data: some images of its eval_split are examples on the page; None: there are none.
        port: where the page is; 0: any that is free.
        predict_scale: the factor of a picture's sides; None: it comes to the training data's scale.
        max_pixels: of a picture; larger ones are refused.
        num_classes: the number of classes that is expected; another one is an error.
        devices: where it runs.
        checkpoint: a path up to the step, a directory of checkpoints, or "best"; None: the newest.

    Raises:
        UsageError, RunError: something is missing, damaged or of another kind, gradio is not
            installed, or the port is in use.
    """
    model_dir = os.fspath(model_dir)
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    if not 0 <= port < 2**16:
        raise UsageError(f"--port={port}: give 0 to 65535")
    with (
        Interrupts() as interrupts,
        # Uploaded photographs lie there: gone whatever happens.
        tempfile.TemporaryDirectory(prefix="auto_deeplab-demo-") as folder,
    ):
        try:
            interrupts.at_once = True
            _serve(
                *(model_dir, Path(folder), data, port, predict_scale, max_pixels),
                *(num_classes, devices, checkpoint),
            )
        except KeyboardInterrupt:
            interrupts.at_once = False
            say("the page is closed, and what was uploaded is removed")


def _serve(
    model_dir: str,
    folder: Path,
    data: Data | None,
    port: int,
    predict_scale: float | None,
    max_pixels: int,
    num_classes: int | None,
    devices: Devices,
    checkpoint: str | None,
) -> None:
    """Serves until KeyboardInterrupt."""
    port = demo_page.find_port(port)  # before the network takes its seconds
    demo_page.import_gradio(folder)
    strategy, record = devices.start("demo"), read_training(model_dir, num_classes)
    class_names, palette = record["class_names"], record["palette"]
    description = None
    if data:
        description = data.read()
        check_classes(record, model_dir, description)
        class_names, palette = description.class_names, description.palette
    # Photographs have their own scale, whatever the conversion did to the examples.
    sizes = choose_scale(record, model_dir, predict_scale)
    network, step, _ = load_network(model_dir, checkpoint, strategy)
    segmenter = Segmenter(network, len(class_names), sizes=sizes, max_pixels=max_pixels)
    height, width = record.get(run_record.IMAGE_SIZE) or SIZE
    say(f"tracing the network, and warming it up with a picture of {height} x {width}")
    say(f"ready in {segmenter.warm_up((height, width)):.1f} s: no picture waits for it")
    examples: list[Path] = []
    if data and description:
        done = Sizes.from_options(description.options)
        factor = 1 / done.resize_factor if sizes == done else 1.0  # which the network's sizes undo
        examples = write_examples(
            *(description, data.eval_split, folder / "examples"),
            max_pixels=max_pixels,
            factor=factor,
        )
    threads = tf.config.threading.get_intra_op_parallelism_threads() or os.cpu_count()
    about = demo_page.About(
        title="What the network sees",
        words=(
            f"{Path(model_dir).resolve().name}: {len(class_names)} classes, {step:,} steps of "
            "training. Pictures stay on this computer."
        ),
        device=f"{latency.describe_device()}, {threads} threads",
        class_names=class_names,
        palette=palette,
    )
    with demo_page.serve(
        segmenter.segment, about, port=port, folder=folder, examples=examples
    ) as address:
        say(f"the page is {address} (on this machine alone); Ctrl-C closes it")
        print(address, flush=True)
        while True:
            signal.pause()


def write_examples(
    description: Description, split: str, folder: Path, *, max_pixels: int, factor: float = 1.0
) -> list[Path]:
    """Writes EXAMPLES images, spread evenly over the split, as PNG files into a new folder.

    Args:
        description: the data directory's description.
        split: name of the split.
        folder: where they go.
        max_pixels: images with more are left out.
        factor: of their sides.

    Returns:
        the files.

    Raises:
        RunError: there is no such split, or it cannot be read.
    """
    folder.mkdir(parents=True)
    written = []
    try:
        for number, one in enumerate(
            read_eval_images(description, split, max_images=EXAMPLES), start=1
        ):
            image = Image.fromarray(one["image"][0].numpy())
            if factor != 1:
                size = round(factor * image.width), round(factor * image.height)
                image = image.resize(size, Image.Resampling.BICUBIC)
            if image.width * image.height > max_pixels:
                continue
            name = Path(os.fsdecode(one["filename"][0].numpy())).name
            safe = "".join(x if x.isalnum() or x in "-_" else "_" for x in shorten(name, 80))
            written.append(folder / f"{number}_{safe}.png")
            written[-1].write_bytes(encode_png(image))
    except tf.errors.OpError as error:
        raise make_data_error(error, description) from None
    return written

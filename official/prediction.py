"""Label maps and colour overlays, or submissions to a benchmark, of pictures or a split of data."""

import dataclasses
import glob
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from official.drawing import Palette, draw_legend, draw_overlay
from official.errors import RunError, explain, shorten
from official.evaluation import Logits, check_enlarged, compute_scores
from official.files import find_files, glob_files, make_directory, write_atomically
from official.images import (
    MAX_PIXELS,
    SUFFIXES,
    TOO_LARGE,
    decode_image,
    encode_png,
    read_image_file,
    read_orientation,
)
from official.input_pipeline import make_data_error, read_eval_images
from official.progress import Progress
from official.records import Description, parse_example
from official.sizes import OWN_SIZE, Sizes
from official.submission import Submission, check_alone

REMEDY = ": make it smaller, or give more as --max_pixels"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The pictures to segment. All names are known first; pixels are read one by one.

    Attributes:
        names: for each picture a relative path without suffix; its answers get that name.
        sources: for each picture the name for messages to the user: its file, or its record.
        images: uint8 [H, W, 3] for each, in their order; raises RunError for one that is
            unreadable.
        files: those that they are read from, none of which is written over.
    """

    names: list[str]
    sources: list[str]
    images: Iterator[np.ndarray]
    files: Sequence[Path] = ()


def open_pictures(inputs: str, output_dir: str, max_pixels: int = MAX_PIXELS) -> Pictures:
    """Opens the pictures that a file name, folder or glob pattern stands for.

    Args:
        inputs: a picture, a folder (searched with its sub-folders) or a glob pattern (** for any
            depth); PNG or JPEG.
        output_dir: where the answers go; those of earlier runs are no input.
        max_pixels: a picture with more is refused, when its turn comes and before it is decoded.

    Raises:
        RunError: there are none.
    """
    found = find_pictures(inputs, output_dir)
    return Pictures(
        names=[name for _, name in found],
        sources=[str(path) for path, _ in found],
        images=_read_pictures([path for path, _ in found], max_pixels),
        files=[path for path, _ in found],
    )


def open_split(description: Description, split: str, max_pixels: int = MAX_PIXELS) -> Pictures:
    """Opens the images of a split of a data directory; their records need no labels.

    Args:
        description: the data directory's description.
        split: name of the split.
        max_pixels: an image with more is refused when its turn comes.

    Raises:
        RunError: there is no such split, or it cannot be read.
    """
    elements = read_eval_images(description, split)
    records = tf.data.TFRecordDataset(description.split(split).files)
    filenames = records.map(lambda record: parse_example(record)["filename"])
    names = []
    with Progress("read names", description.split(split).num_examples) as progress:
        for filename in _read(filenames, description):
            names.append(os.fsdecode(filename.numpy()))
            progress.advance()

    def images() -> Iterator[np.ndarray]:
        for name, element in zip(names, _read(elements, description), strict=True):
            image = element["image"][0].numpy()
            if image.shape[0] * image.shape[1] > max_pixels:
                size = f"{image.shape[0]} x {image.shape[1]}"
                raise RunError(f"{shorten(name)}: {size} {TOO_LARGE} {max_pixels} in all{REMEDY}")
            yield image

    return Pictures(names, names, images())


def _read(dataset: tf.data.Dataset, description: Description) -> Iterator[Any]:
    try:
        yield from dataset
    except tf.errors.OpError as error:
        raise make_data_error(error, description) from None


def predict(
    model: Logits,
    pictures: Pictures,
    output_dir: str,
    *,
    class_names: Sequence[str],
    palette: Palette,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    sizes: Sizes = OWN_SIZE,
    submission: Submission | None = None,
) -> list[Path]:
    """Segments pictures; each answer is as large as its picture.

    Writes for each picture <name>_labels.png (8-bit palette PNG whose values are the classes) and
    <name>_overlay.png, and once legend.png; or, for a submission, the one file that it wants.

    Args:
        model: float32 images [N, H, W, 3] in 0..255 -> float32 logits [N, H, W, C].
        pictures: see `open_pictures` and `open_split`.
        output_dir: made if it is not there; older answers of the same names are replaced.
        class_names: C names, C <= 256.
        palette: C colours (red, green, blue) in 0..255.
        scales, flip: as those of `evaluation.compute_scores`.
        sizes: the scale at which the model sees the pictures, and of which `scales` are factors.
            The scores come back to a picture's own size by bilinear resizing, before their argmax.
        submission: the form that a benchmark's server wants.

    Returns:
        the paths of the label maps, in the order of the pictures.

    Raises:
        RunError: two pictures would get the same name, one would be written over, one is
            unreadable or enlarged beyond all reason (those before it are done), a file cannot be
            written, the classes are not the network's, or a submission would be refused for its
            names. Names are checked before anything is written.
    """
    if len(class_names) > 256:
        raise RunError(f"{len(class_names)} classes do not fit 8-bit label maps: at most 256")
    files = _name_answers(pictures, output_dir, submission)
    make_directory(output_dir)

    @tf.function(input_signature=[tf.TensorSpec([1, None, None, 3], tf.uint8)], autograph=False)
    def classify(images: tf.Tensor) -> tf.Tensor:
        def score(images: tf.Tensor) -> tf.Tensor:
            return compute_scores(model, images, len(class_names), scales=scales, flip=flip)

        scores = sizes.answer(score, images)
        return tf.cast(tf.argmax(scores, -1, output_type=tf.int32), tf.uint8)

    colours = np.asarray(palette, np.uint8)
    if submission is None:
        write_atomically(
            Path(output_dir, "legend.png"), encode_png(draw_legend(class_names, palette))
        )
    written = []
    with Progress("predict", len(files)) as progress:
        for name, source, file, image in zip(
            pictures.names, pictures.sources, files, pictures.images, strict=True
        ):
            height, width = image.shape[:2]
            seen = math.prod(sizes.compute_size((height, width))) * max(scales) ** 2
            check_enlarged(height * width, seen, source, "--eval_scales or --predict_scale")
            labels = classify(image[np.newaxis])[0].numpy()
            written.append(Path(output_dir, file))
            make_directory(written[-1].parent)
            if submission is None:
                overlay = Image.fromarray(draw_overlay(image, labels, colours))
                write_atomically(Path(output_dir, f"{name}_overlay.png"), encode_png(overlay))
                answer = make_label_image(labels, palette)
            else:
                values = np.array(submission.values, np.uint8)
                answer = make_label_image(values[labels], submission.palette)
            write_atomically(written[-1], encode_png(answer))
            progress.advance()
    return written


def _name_answers(pictures: Pictures, output_dir: str, submission: Submission | None) -> list[str]:
    """Names each picture's label map, a path below output_dir; raises what `predict` says."""
    file_of = submission.file_of if submission else lambda name: f"{name}_labels.png"
    sources: dict[str, str] = {}
    for name, source in zip(pictures.names, pictures.sources, strict=True):
        # A record may be called anything.
        if Path(name).is_absolute() or ".." in Path(name).parts or not Path(name).parts:
            raise RunError(
                f"the answer to {shorten(repr(source))} would not be below {output_dir}: rename it"
            )
        if any(ord(character) < 32 for character in name):
            raise RunError(
                f"{shorten(repr(source))} has a control character in its name, which makes no file "
                "name: rename it"
            )
        file = file_of(name)
        if file in sources:
            raise RunError(
                f"{sources[file]} and {source} would both become {file} in {output_dir}: rename "
                "one, or predict them into two directories"
            )
        sources[file] = source
    if submission:
        check_alone(submission, output_dir, sources)
        written = list(sources)
    else:
        written = [*sources, *(f"{name}_overlay.png" for name in pictures.names), "legend.png"]
    inputs = {path.resolve() for path in pictures.files}
    for file in written:
        if Path(output_dir, file).resolve() in inputs:
            raise RunError(
                f"{Path(output_dir, file)} is one of the pictures, and would be written over: give "
                "another --output_dir"
            )
    return list(sources)


def find_pictures(inputs: str, output_dir: str) -> list[tuple[Path, str]]:
    """Finds the pictures that a file name, folder or glob pattern stands for.

    Files in output_dir are left out of folders and patterns: they are earlier answers.

    Returns:
        (picture, its path below the folder or the pattern's fixed part, without suffix), sorted.

    Raises:
        RunError: there are none.
    """
    if os.path.isfile(inputs):
        return [(Path(inputs), Path(inputs).stem)]
    if os.path.isdir(inputs):
        root, found = Path(inputs), find_files(inputs)
    else:
        root = _find_fixed_part(inputs)
        found = glob_files(inputs, root)
    answers = Path(output_dir).resolve()
    pictures = []
    for path in found:
        if path.suffix.lower() not in SUFFIXES or answers in path.resolve().parents:
            continue
        pictures.append((path, str(path.relative_to(root).with_suffix(""))))
    if not pictures:
        raise RunError(
            f"--input={inputs} matches no .png, .jpg or .jpeg file outside {output_dir}: give a "
            "picture, a folder, or a quoted pattern such as 'photos/**/*.jpg'"
        )
    return pictures


def _find_fixed_part(pattern: str) -> Path:
    """Finds the folder in which a glob pattern begins: what stands before its first wildcard.

    A folder that is there by its very name, such as `run[1]`, is no wildcard.
    """
    parts = Path(pattern).parts[:-1]
    fixed = 0
    while fixed < len(parts) and (
        not glob.has_magic(parts[fixed]) or os.path.isdir(Path(*parts[: fixed + 1]))
    ):
        fixed += 1
    return Path(*parts[:fixed])


def read_picture(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads a PNG or JPEG file as official.images decodes it: uint8 [H, W, 3], RGB in 0..255.

    Raises:
        RunError: it is unreadable, damaged anywhere, or has more pixels.
    """
    return _read_picture(path, max_pixels)[0]


def _read_picture(path: str | os.PathLike[str], max_pixels: int) -> tuple[np.ndarray, bytes]:
    """A picture, and the file that it was decoded from; raises what `read_picture` says."""
    try:
        file = read_image_file(path, max_pixels)
        return decode_image(file, max_pixels).numpy(), file
    except (OSError, ValueError, tf.errors.OpError) as error:
        reason = str(error.strerror) if isinstance(error, OSError) else explain(error)
        reason += REMEDY if TOO_LARGE in reason else ""
        raise RunError(f"cannot read the image {path}: {reason}") from None


def _read_pictures(paths: Sequence[Path], max_pixels: int) -> Iterator[np.ndarray]:
    warned = False
    for path in paths:
        image, file = _read_picture(path, max_pixels)
        if not warned and read_orientation(file) > 1:
            warned = True
            tqdm.write(
                f"warning: {path} has a rotation mark (EXIF), which is not obeyed, nor will others "
                "be: pixels are taken as they are stored, as in training and serving; turn such "
                "pictures first (mogrify -auto-orient, exiftran -ai)",
                file=sys.stderr,
            )
        yield image


def make_label_image(labels: np.ndarray, palette: Palette | None) -> Image.Image:
    """Makes an image of uint8 [H, W] whose stored values are the labels.

    Viewers show the palette's colours; without a palette, grey.
    """
    image = Image.fromarray(labels)
    if palette is not None:
        image.putpalette([int(value) for colour in palette for value in colour])
    return image

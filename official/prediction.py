"""Label maps and colour overlays, or submissions to a benchmark, of pictures or a split of data."""

import contextlib
import dataclasses
import glob
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

from official.drawing import Palette, draw_legend, draw_overlay, inset_legend
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
from official.parallel import map_in_order
from official.progress import Progress, say
from official.records import Description, parse_example
from official.sizes import OWN_SIZE, Sizes
from official.submission import Submission, check_alone
from official.tiles import Tile, join, make_tiles

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


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is said of a picture.

    Attributes:
        labels: uint8 [H, W].
        probabilities: float32 [H, W, C]; None: they were not asked for.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None


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
    batch_size: int = 1,
    tile: tuple[int, int] | None = None,
    overlap: int = 0,
    save_probabilities: bool = False,
    submission: Submission | None = None,
) -> list[Path]:
    """Segments pictures; each answer is as large as its picture.

    Writes for each picture <name>_labels.png (8-bit palette PNG whose values are the classes) and
    <name>_overlay.png with the names of its classes in a corner, and once legend.png; or, for a
    submission, the one file that it wants. Pictures are read and answers written in threads beside
    the network. The last line says how many a second went through.

    Args:
        model: float32 images [N, H, W, 3] in 0..255 -> float32 logits [N, H, W, C].
        pictures: see `open_pictures` and `open_split`.
        output_dir: made if it is not there; older answers of the same names are replaced.
        class_names: C names, C <= 256.
        palette: C colours (red, green, blue) in 0..255.
        scales, flip: as those of `evaluation.compute_scores`.
        sizes: the scale at which the model sees the pictures, and of which `scales` are factors.
            The scores come back to a picture's own size by bilinear resizing, before their argmax.
        batch_size: so many pictures or tiles that follow each other go through the model at once,
            if they are of one size.
        tile, overlap: see `tiles.make_tiles`, in pixels of what the model sees; None: whole images.
        save_probabilities: whether <name>_probabilities.npz is written too: `probabilities`,
            float16 [H, W, C] summing to 1 over C, and `class_names`.
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
    files = _name_answers(pictures, output_dir, submission, save_probabilities)
    make_directory(output_dir)

    def check(source: str, size: tuple[int, int]) -> None:
        seen = math.prod(sizes.compute_size(size)) * max(scales) ** 2
        check_enlarged(math.prod(size), seen, source, "--eval_scales or --predict_scale")

    def score(pieces: tf.Tensor) -> tf.Tensor:
        return compute_scores(model, pieces, len(class_names), scales=scales, flip=flip)

    def answer(scores: tf.Tensor) -> tuple[tf.Tensor, ...]:
        labels = tf.cast(tf.argmax(scores, -1, output_type=tf.int32), tf.uint8)
        if not save_probabilities:
            return (labels,)
        are_logits = list(scales) == [1.0] and not flip
        return labels, tf.nn.softmax(scores) if are_logits else scores

    def write(item: tuple[str, str, np.ndarray, Answer]) -> Path:
        name, file, image, found = item
        path = Path(output_dir, file)
        make_directory(path.parent)
        if submission is not None:
            values = np.array(submission.values, np.uint8)
            labels = make_label_image(values[found.labels], submission.palette)
        else:
            overlay = draw_answer(image, found.labels, class_names, palette)
            write_atomically(Path(output_dir, f"{name}_overlay.png"), encode_png(overlay))
            labels = make_label_image(found.labels, palette)
        if found.probabilities is not None:
            held = io.BytesIO()
            half = found.probabilities.astype(np.float16)
            np.savez_compressed(held, probabilities=half, class_names=np.array(class_names))
            write_atomically(Path(output_dir, f"{name}_probabilities.npz"), held.getvalue())
        write_atomically(path, encode_png(labels))
        return path

    if submission is None:
        write_atomically(
            Path(output_dir, "legend.png"), encode_png(draw_legend(class_names, palette))
        )
    images = _check_each(pictures, check)
    answers = _answer_pieces(images, score, answer, sizes, batch_size, tile, overlap)
    items = (
        (name, file, image, found)
        for name, file, (image, found) in zip(pictures.names, files, answers, strict=True)
    )
    written: list[Path] = []
    clock = [time.monotonic()]
    with (
        Progress("predict", len(files)) as progress,
        # What waits holds a picture and its answer.
        contextlib.closing(map_in_order(write, items, ahead=4)) as paths,
    ):
        for path in paths:
            written.append(path)
            clock.append(time.monotonic())
            progress.advance()
    say(f"{len(written)} images segmented{_describe_rate(clock)}: {output_dir}")
    return written


def _check_each(
    pictures: Pictures, check: Callable[[str, tuple[int, int]], None]
) -> Iterator[np.ndarray]:
    for source, image in zip(pictures.sources, pictures.images, strict=True):
        check(source, image.shape[:2])
        yield image


def _answer_pieces(
    images: Iterator[np.ndarray],
    score: Callable[[tf.Tensor], tf.Tensor],
    answer: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
    sizes: Sizes,
    batch_size: int,
    tile: tuple[int, int] | None,
    overlap: int,
) -> Iterator[tuple[np.ndarray, Answer]]:
    """Gives each image with its answer.

    Args:
        images: uint8 [H, W, 3] each.
        score: pieces uint8 [N, h, w, 3] -> scores [N, h, w, C].
        answer: scores [N, H, W, C] -> labels [N, H, W] and, if asked for, probabilities.
        sizes, batch_size, tile, overlap: as those of `predict`.
    """
    any_size = [tf.TensorSpec([None, None, None, 3], tf.uint8)]
    own_size = sizes == OWN_SIZE
    bring = tf.function(lambda x: tf.cast(sizes.bring(x), tf.uint8), any_size, autograph=False)
    # Where nothing is resized, a pixel's answer hangs on its own scores: tiles are joined as
    # labels, which take a byte a pixel where scores take 4 C.
    look = tf.function(
        (lambda x: answer(score(x))) if own_size else (lambda x: (score(x),)),
        any_size,
        autograph=False,
    )
    enlarge = tf.function(
        lambda scores, size: answer(tf.image.resize(scores, size)),
        [tf.TensorSpec([1, None, None, None], tf.float32), tf.TensorSpec([2], tf.int32)],
        autograph=False,
    )

    def cut() -> Iterator[_Piece]:
        for image in images:
            seen = image if own_size else bring(image[np.newaxis])[0].numpy()
            laid = make_tiles(seen.shape[:2], tile, overlap)
            for number, one in enumerate(laid, 1):
                pixels = seen[one.rows, one.columns]
                yield _Piece(image, seen.shape[:2], one, pixels, number == len(laid))

    parts: list[tuple[Tile, list[np.ndarray]]] = []
    for batch in _batch(cut(), batch_size):
        found = [x.numpy() for x in look(np.stack([piece.pixels for piece in batch]))]
        for index, piece in enumerate(batch):
            parts.append((piece.tile, [x[index] for x in found]))
            if piece.is_last:
                whole: Sequence[np.ndarray] = [
                    join([(one, values[kind]) for one, values in parts], piece.size)
                    for kind in range(len(found))
                ]
                parts.clear()
                if not own_size:
                    (scores,) = whole
                    given = enlarge(scores[np.newaxis], piece.image.shape[:2])
                    whole = [x[0].numpy() for x in given]
                yield piece.image, Answer(whole[0], whole[1] if len(whole) > 1 else None)


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A tile of a picture: pixels uint8 [h, w, 3] of what the network sees, of `size` in all."""

    image: np.ndarray
    size: tuple[int, int]
    tile: Tile
    pixels: np.ndarray
    is_last: bool


def _batch(pieces: Iterator[_Piece], batch_size: int) -> Iterator[list[_Piece]]:
    """Groups pieces of one size that follow each other.

    Raises:
        RunError: what `pieces` raised, after those before it.
    """
    waiting: list[_Piece] = []
    failure = None
    try:
        for piece in pieces:
            if waiting and piece.pixels.shape != waiting[0].pixels.shape:
                yield waiting
                waiting = []
            waiting.append(piece)
            if len(waiting) == batch_size:
                yield waiting
                waiting = []
    except RunError as error:
        failure = error
    if waiting:
        yield waiting
    if failure:
        raise failure


def _describe_rate(clock: Sequence[float]) -> str:
    """How fast pictures were done, from the start and the end of each; the first traces."""
    if len(clock) < 3 or clock[-1] <= clock[1]:
        return f" in {clock[-1] - clock[0]:.1f} s"
    rate = (len(clock) - 2) / (clock[-1] - clock[1])
    return f" in {clock[-1] - clock[0]:.1f} s, {rate:.3g} a second after the first"


def _name_answers(
    pictures: Pictures, output_dir: str, submission: Submission | None, save_probabilities: bool
) -> list[str]:
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
    if save_probabilities:
        written += [f"{name}_probabilities.npz" for name in pictures.names]
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
    reading = map_in_order(lambda path: _read_picture(path, max_pixels), paths, ahead=4)
    with contextlib.closing(reading) as read:
        for path, (image, file) in zip(paths, read, strict=True):
            if not warned and read_orientation(file) > 1:
                warned = True
                tqdm.write(
                    f"warning: {path} has a rotation mark (EXIF), which is not obeyed, nor will "
                    "others be: pixels are taken as they are stored, as in training and serving; "
                    "turn such pictures first (mogrify -auto-orient, exiftran -ai)",
                    file=sys.stderr,
                )
            yield image


def draw_answer(
    image: np.ndarray, labels: np.ndarray, class_names: Sequence[str], palette: Palette
) -> Image.Image:
    """Draws the overlay of a picture, uint8 [H, W, 3], with the legend of its labels, [H, W]."""
    overlay = Image.fromarray(draw_overlay(image, labels, np.asarray(palette, np.uint8)))
    return inset_legend(overlay, labels, class_names, palette)


def make_label_image(labels: np.ndarray, palette: Palette | None) -> Image.Image:
    """Makes an image of uint8 [H, W] whose stored values are the labels.

    Viewers show the palette's colours; without a palette, grey.
    """
    image = Image.fromarray(labels)
    if palette is not None:
        image.putpalette([int(value) for colour in palette for value in colour])
    return image

"""A SavedModel that needs TensorFlow alone, in TensorFlow Serving's layout.

Signatures, the same labels from all:
    serving_default: images uint8 [B, H, W, 3], RGB
    serve_bytes:     image_bytes string [B], PNG or JPEG files, of one size per batch, decoded as
                     in training (official/images.py): a camera's rotation mark is not obeyed
    -> labels uint8 [B, H, W], on request also probabilities float32 [B, H, W, C]
    serve_png:       image_bytes string [B], of any sizes -> PNG files, string [B] each:
                     label_png_bytes, whose grey values are labels, and overlay_png_bytes, the
                     classes' colours over the picture. TensorFlow Serving's REST interface gives
                     what is called _bytes as base64.
A batch without images is an error. H and W are the images' own; an image of more pixels than
`export` was told is an error, that of a file before it is decoded. A network of data that were
converted smaller sees them at its data's scale; its logits are resized bilinearly to H x W, and
labels and probabilities made of those.
Assets: labels.txt, a class name per line, and palette.txt, its "red green blue" in 0..255.
"""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from official.errors import RunError
from official.evaluation import check_enlarged, compute_logits
from official.files import make_directory, write_directory_atomically
from official.images import MAX_PIXELS, check_pixels, decode_image, image_size
from official.paths import check_plain
from official.sizes import OWN_SIZE, Sizes

ASSETS = ("labels.txt", "palette.txt")
OTHER_SIZE = "the images of a batch must be of one size: ask serve_png, or for one at a time"


def export(
    model: keras.Model,
    export_dir: str | os.PathLike[str],
    *,
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    probabilities: bool = False,
    sizes: Sizes = OWN_SIZE,
    max_pixels: int = MAX_PIXELS,
    inspect: Callable[[Path], None] = lambda path: None,
) -> Path:
    """Writes export_dir/<n>, n = 1 + the largest number there; it appears whole or not at all.

    Args:
        model: float32 images [N, H, W, 3] in 0..255 -> float32 logits [N, H, W, C], for any N, H,
            W.
        export_dir: made if it is not there.
        class_names: C names, C <= 256.
        palette: C colours (red, green, blue) in 0..255.
        probabilities: whether the signatures answer probabilities too.
        sizes: the scale at which the model sees the images; both signatures bring them to it, and
            its logits back to the images' own size.
        max_pixels: of an image; larger ones are refused.
        inspect: is given the directory before it appears; if it raises, it never does.

    Returns:
        the path of export_dir/<n>.

    Raises:
        RunError: more than 256 classes, not the network's number of classes, images of max_pixels
            would be enlarged beyond all reason, or export_dir cannot be written or would not be
            found again by TensorFlow.
    """
    if len(class_names) > 256:
        raise RunError(f"{len(class_names)} classes do not fit labels of type uint8: at most 256")
    check_enlarged(
        *(max_pixels, max_pixels * sizes.resize_factor**2),
        f"an image of --max_pixels={max_pixels}",
        "--predict_scale or --max_pixels",
    )
    check_plain(os.fspath(export_dir), "the SavedModel's directory")
    root = make_directory(export_dir)
    _remove_leftovers(root)
    target = find_next(root)
    # Serving watches for names that are numbers, so it never sees the directory before it is whole.
    with (
        write_directory_atomically(target, "--export_dir") as directory,
        tempfile.TemporaryDirectory() as words,
    ):
        assets = write_assets(Path(words), class_names, palette)  # TensorFlow copies them
        served = _Served(model, palette, probabilities, sizes, max_pixels, assets)
        tf.saved_model.save(
            served,
            str(directory),
            signatures={
                "serving_default": served.serve_images,
                "serve_bytes": served.serve_bytes,
                "serve_png": served.serve_png,
            },
        )
        inspect(directory)
    return target


def find_next(root: Path) -> Path:
    """root/<n>, n = 1 + the largest number there."""
    versions = [int(path.name) for path in root.iterdir() if path.name.isdecimal()]
    return root / str(1 + max(versions, default=0))


def make_answer(
    model: keras.Model,
    num_classes: int,
    probabilities: bool = False,
    sizes: Sizes = OWN_SIZE,
    max_pixels: int = MAX_PIXELS,
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The function of the SavedModel: images uint8 [B, H, W, 3] -> what its signatures answer.

    Args:
        model, probabilities, sizes, max_pixels: as those of `export`.
        num_classes: C.
    """

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        checks = [_check_filled(images), check_pixels(tf.shape(images)[1:3], max_pixels)]
        with tf.control_dependencies(checks):
            checked = tf.identity(images)
        logits = sizes.answer(lambda x: compute_logits(model, x, num_classes), checked)
        labels = tf.cast(tf.argmax(logits, -1, output_type=tf.int32), tf.uint8)
        if not probabilities:
            return {"labels": labels}
        return {"labels": labels, "probabilities": tf.nn.softmax(logits)}

    return answer


def _check_filled(batch: tf.Tensor) -> tf.Operation | None:
    """An operation that fails if there are no images; run at once if eagerly."""
    words = "the batch is empty: give one image at least"
    return tf.raw_ops.Assert(condition=tf.shape(batch)[0] > 0, data=[words])


def _remove_leftovers(root: Path) -> None:
    """Removes what a killed export of an earlier version left, and nothing that is like it."""
    for leftover in root.glob("unfinished-????????"):
        with contextlib.suppress(OSError):  # another export may be removing it
            names = [path.name for path in leftover.iterdir()]
            is_ours = all(name in ASSETS or name.isdecimal() for name in names)
            # Whichever goes on has touched it by now.
            if is_ours and time.time() - leftover.stat().st_mtime > 24 * 3600:
                shutil.rmtree(leftover)


def write_assets(
    directory: Path, class_names: Sequence[str], palette: Sequence[Sequence[int]]
) -> list[str]:
    """Writes labels.txt and palette.txt, and returns their paths."""
    colours = [" ".join(str(int(value)) for value in colour) for colour in palette]
    for name, content in zip(ASSETS, (class_names, colours), strict=True):
        Path(directory, name).write_text("".join(f"{line}\n" for line in content), "utf-8")
    return [str(directory / name) for name in ASSETS]


class _Served(tf.Module):
    """Holds what the SavedModel keeps: the model's variables, the assets, the two functions."""

    def __init__(
        self,
        model: keras.Model,
        palette: Sequence[Sequence[int]],
        probabilities: bool,
        sizes: Sizes,
        max_pixels: int,
        assets: Sequence[str],
    ) -> None:
        super().__init__()
        # The variables, not the model: tracking through Keras layers misses those held in nested
        # lists, and would tie the SavedModel to Keras.
        self.model_variables = [variable.value for variable in model.variables]
        self.assets = [tf.saved_model.Asset(path) for path in assets]

        answer = make_answer(model, len(palette), probabilities, sizes, max_pixels)
        colours = tf.constant(np.asarray(palette, np.uint8).reshape(-1, 3))

        def serve_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            with tf.control_dependencies([_check_filled(image_bytes)]):
                size = image_size(image_bytes[0])

            def decode(encoded: tf.Tensor) -> tf.Tensor:
                image = decode_image(encoded, max_pixels=max_pixels)
                same = tf.reduce_all(tf.shape(image, tf.int64)[:2] == size)
                check = tf.raw_ops.Assert(condition=same, data=[OTHER_SIZE])
                with tf.control_dependencies([check]):
                    return tf.identity(image)

            picture = tf.TensorSpec([None, None, 3], tf.uint8)
            return answer(tf.map_fn(decode, image_bytes, fn_output_signature=picture))

        def draw(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = decode_image(encoded, max_pixels=max_pixels)
            labels = answer(image[tf.newaxis])["labels"][0]
            overlay = draw_overlay(image, labels, colours)
            return tf.io.encode_png(labels[..., tf.newaxis]), tf.io.encode_png(overlay)

        def serve_png(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
            string = tf.TensorSpec([], tf.string)
            with tf.control_dependencies([_check_filled(image_bytes)]):
                files = tf.identity(image_bytes)
            label_png, overlay_png = tf.map_fn(
                draw, files, fn_output_signature=(string, string), parallel_iterations=1
            )
            return {"label_png_bytes": label_png, "overlay_png_bytes": overlay_png}

        images = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
        image_bytes = tf.TensorSpec([None], tf.string, name="image_bytes")
        self.serve_images = tf.function(answer, [images], autograph=False)
        self.serve_bytes = tf.function(serve_bytes, [image_bytes], autograph=False)
        self.serve_png = tf.function(serve_png, [image_bytes], autograph=False)


def draw_overlay(image: tf.Tensor, labels: tf.Tensor, palette: tf.Tensor) -> tf.Tensor:
    """official.drawing's overlay in TensorFlow, for labels without void; nothing is brightened.

    Args:
        image: uint8 [H, W, 3].
        labels: uint8 [H, W], each below C.
        palette: uint8 [C, 3].

    Returns:
        uint8 [H, W, 3].
    """
    colours = tf.gather(palette, tf.cast(labels, tf.int32))
    blend = 0.5 * tf.cast(image, tf.float32) + 0.5 * tf.cast(colours, tf.float32)
    width = 1 + tf.reduce_min(tf.shape(labels)) // 700
    across = tf.pad(labels[:, width:] != labels[:, :-width], [[0, 0], [width, 0]])
    down = tf.pad(labels[width:] != labels[:-width], [[width, 0], [0, 0]])
    border = tf.logical_or(across, down)[..., tf.newaxis]
    blend = tf.where(border, 0.25 * blend + 0.75 * 255, blend)
    return tf.cast(tf.round(blend), tf.uint8)

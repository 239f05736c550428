"""One picture at a time through a trained network: its labels, its shares, how long it took."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from official.drawing import Palette, count_classes
from official.errors import RunError
from official.evaluation import check_enlarged
from official.export import make_answer
from official.images import MAX_PIXELS, encode_png, fit_size, read_orientation
from official.prediction import draw_answer, make_label_image, read_picture
from official.sizes import OWN_SIZE, Sizes


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What a network says of a picture.

    Attributes:
        image: uint8 [H, W, 3], as it was decoded.
        labels: uint8 [H, W], a class for each pixel.
        milliseconds: what the network took, with the resizing to the scale of its training data
            and back, and without reading and drawing.
        turned: whether the file has a rotation mark (EXIF), which is not obeyed.
    """

    image: np.ndarray
    labels: np.ndarray
    milliseconds: float
    turned: bool = False

    def count_shares(self) -> list[tuple[int, float]]:
        """The classes that the picture has, each with its share of the pixels, largest first."""
        return [(index, count / self.labels.size) for index, count in count_classes(self.labels)]

    def draw(self, class_names: Sequence[str], palette: Palette) -> tuple[bytes, bytes]:
        """The overlay with its legend and the label map, PNG files as --mode=predict writes them.

        Args:
            class_names: C names.
            palette: C colours (red, green, blue) in 0..255.
        """
        overlay = draw_answer(self.image, self.labels, class_names, palette)
        return encode_png(overlay), encode_png(make_label_image(self.labels, palette))


class Segmenter:
    """A trained network, ready for pictures.

    Args:
        model: float32 images [N, H, W, 3] in 0..255 -> float32 logits [N, H, W, C].
        num_classes: C, at most 256.
        sizes: the scale at which the model sees the pictures.
        max_pixels: a picture with more is refused before it is decoded.

    Raises:
        RunError: there are more classes.
    """

    def __init__(
        self,
        model: keras.Model,
        num_classes: int,
        *,
        sizes: Sizes = OWN_SIZE,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if num_classes > 256:
            raise RunError(f"{num_classes} classes do not fit 8-bit label maps: at most 256")
        self._sizes, self._max_pixels = sizes, max_pixels
        self._answer: Callable[[tf.Tensor], dict[str, tf.Tensor]] = tf.function(
            make_answer(model, num_classes, False, sizes, max_pixels),
            [tf.TensorSpec([1, None, None, 3], tf.uint8)],
            autograph=False,
        )

    def warm_up(self, size: tuple[int, int]) -> float:
        """Traces the graph and runs it on a grey picture of (height, width): the seconds taken.

        A larger size than a picture may have is made smaller.
        """
        start = time.monotonic()
        height, width = fit_size(size, self._max_pixels)
        self._measure(np.full((height, width, 3), 128, np.uint8))
        return time.monotonic() - start

    def segment(self, path: str | os.PathLike[str]) -> Segmentation:
        """Segments the picture in a PNG or JPEG file, decoded as in training.

        Raises:
            RunError: the file is unreadable or damaged, its picture has too many pixels, would be
                enlarged beyond all reason, or does not fit into memory.
        """
        image = read_picture(path, self._max_pixels)
        height, width = image.shape[:2]
        seen = math.prod(self._sizes.compute_size((height, width)))
        check_enlarged(height * width, seen, os.fspath(path), "--predict_scale")
        try:
            labels, milliseconds = self._measure(image)
        except tf.errors.ResourceExhaustedError:
            raise RunError(
                f"{os.fspath(path)}: {height} x {width} pixels do not fit into the memory of this "
                "device: make the picture smaller"
            ) from None
        turned = read_orientation(Path(path).read_bytes()) > 1
        return Segmentation(image, labels, milliseconds, turned)

    def _measure(self, image: np.ndarray) -> tuple[np.ndarray, float]:
        images = tf.constant(image[np.newaxis])
        start = time.perf_counter()
        labels = self._answer(images)["labels"][0].numpy()  # which waits for the device
        return labels, 1e3 * (time.perf_counter() - start)

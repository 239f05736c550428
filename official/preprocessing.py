"""Paired augmentation of an image and its label map: resize, scale, pad, crop, flip.

Everything random is drawn from one stateless seed, so an example looks the same wherever and
whenever it is made.

Resizing, scaling, cropping and flipping only choose, for every row and column of the crop, the row
and column of the source that it shows: `draw_crop_positions` draws them, before anything is
decoded, and `sample_image` and `sample_label` look there. They are computed in integers on the
aligned-corner grid: the image interpolates between the two neighbours of a position and the label
takes the nearer one. So both follow one grid exactly, and pixels that the crop does not show are
never computed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from official.resizing import pad_to_network_size

PAD_VALUE = 127.5  # the centre of the pixels' range: 0 after `network_input`
RANDOM_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)  # the recipe of DeepLabv3+


def network_input(images: tf.Tensor) -> tf.Tensor:
    """What every network does first: pads to sides 32 n + 1, and maps 0..255 to -1..1.

    Args:
        images: uint8 or floats [N, H, W, 3], values 0..255.

    Returns:
        float32 [N, H', W', 3], padded at the bottom and right with `PAD_VALUE`, that is with 0.
    """
    return pad_to_network_size(tf.cast(images, tf.float32), PAD_VALUE) * (2.0 / 255.0) - 1.0


class Positions(NamedTuple):
    """Where the pixels of one axis of the crop lie in the source.

    Attributes:
        lower, upper: int64 [n], the two neighbouring source pixels.
        fraction: float32 [n] in 0..1, the weight of `upper`.
        nearest: int64 [n], the nearer one of both (`upper` when they are equally near).
        inside: bool [n], False where the crop extends over the scaled image and is padded.
    """

    lower: tf.Tensor
    upper: tf.Tensor
    fraction: tf.Tensor
    nearest: tf.Tensor
    inside: tf.Tensor


def scale_side(side: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """`side` pixels scaled: the nearest integer (halves to even), at least 1; int64."""
    return tf.maximum(tf.cast(tf.round(tf.cast(side, tf.float32) * scale), tf.int64), 1)


def fit_longer_side(size: tf.Tensor, longer_side: int) -> tf.Tensor:
    """The size to which an image is resized so that its longer side has `longer_side` pixels.

    The other side is the nearest integer to its share (halves up, computed in integers), at least
    1. Small images are enlarged.

    Args:
        size: integers [..., 2] >= 1, height and width.
        longer_side: >= 1.

    Returns:
        int64 [..., 2].
    """
    size = tf.cast(size, tf.int64)
    longer = tf.reduce_max(size, axis=-1, keepdims=True)
    return tf.maximum((2 * size * longer_side + longer) // (2 * longer), 1)


def find_source_positions(side: tf.Tensor, scaled: tf.Tensor, places: tf.Tensor) -> Positions:
    """Finds pixels of a scaled image in its source, on the aligned-corner grid.

    Pixel p of the scaled image lies at p (side - 1) / (scaled - 1) of the source. Quotient and
    remainder are integers, so no rounding error can move a label by a pixel.

    Args:
        side: number of source pixels, int64 scalar >= 1.
        scaled: number of pixels after scaling, int64 scalar >= 1.
        places: int64 [n], pixels of the scaled image; those >= scaled are padding.
    """
    steps = tf.maximum(scaled - 1, 1)
    numerator = tf.clip_by_value(places, 0, scaled - 1) * (side - 1)
    lower = numerator // steps
    remainder = numerator - lower * steps
    upper = tf.minimum(lower + 1, side - 1)
    return Positions(
        lower=lower,
        upper=upper,
        fraction=tf.cast(remainder, tf.float32) / tf.cast(steps, tf.float32),
        nearest=tf.where(2 * remainder >= steps, upper, lower),
        inside=places < scaled,
    )


def sample_image(image: tf.Tensor, rows: Positions, columns: Positions) -> tf.Tensor:
    """Bilinear values of `image` (uint8 [H, W, 3]) at rows x columns: float32 [h, w, 3], 0..255."""
    first, last = tf.reduce_min(columns.lower), tf.reduce_max(columns.upper)
    image = image[:, first : last + 1]
    columns = columns._replace(lower=columns.lower - first, upper=columns.upper - first)

    def picked() -> tf.Tensor:
        return tf.cast(tf.gather(tf.gather(image, rows.lower), columns.lower, axis=1), tf.float32)

    def interpolated() -> tf.Tensor:
        # Rows first: they are contiguous, and afterwards only the crop's rows remain. As products
        # of [1, 2] and [2, values of a row]: passes over whole maps would cost three times that.
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        neighbours = tf.stack([rows.lower, rows.upper], 1)
        neighbours = tf.gather(tf.reshape(image, [height, -1]), neighbours)
        weights = tf.stack([1.0 - rows.fraction, rows.fraction], 1)[:, tf.newaxis]
        between = tf.reshape(weights @ tf.cast(neighbours, tf.float32), [-1, width, 3])
        left = tf.gather(between, columns.lower, axis=1)
        right = tf.gather(between, columns.upper, axis=1)
        return left + (right - left) * columns.fraction[:, tf.newaxis]

    # At scale 1 every place is a pixel.
    on_pixels = tf.reduce_all(rows.fraction == 0) & tf.reduce_all(columns.fraction == 0)
    image = tf.cond(on_pixels, picked, interpolated)
    inside = _find_inside(rows, columns)
    return tf.cond(
        tf.reduce_all(inside),
        lambda: image,
        lambda: tf.where(inside[..., tf.newaxis], image, PAD_VALUE),
    )


def sample_label(
    label: tf.Tensor, rows: Positions, columns: Positions, ignore_label: int
) -> tf.Tensor:
    """Nearest values of `label` (uint8 [H, W]) at rows x columns: int32 [h, w]; padding is void."""
    label = tf.gather(tf.gather(label, rows.nearest), columns.nearest, axis=1)
    return tf.where(_find_inside(rows, columns), tf.cast(label, tf.int32), ignore_label)


def draw_crop_positions(
    size: tf.Tensor,
    seed: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    scales: Sequence[float],
    random_crop: bool,
    flip: bool,
    resize_longer_side: int | None = None,
) -> tuple[Positions, Positions]:
    """Finds which rows and columns of the source a crop shows; no pixel is needed for that.

    First every image is resized as `resize_longer_side` says. Then it is scaled by one of `scales`,
    chosen uniformly (DeepLab's training: 0.5, 0.75, ..., 2.0). A scaled image smaller than the crop
    is padded at the bottom and right, image with 127.5 and label with void. The crop's place and,
    with probability 1/2, the flip follow.

    Resizing and scaling are one step from the source, so nothing is interpolated twice. It is where
    the two steps would lead: with aligned corners, pixel p of H2 pixels lies at p (H1 - 1) /
    (H2 - 1) of the H1 resized ones, and that at p (H - 1) / (H2 - 1) of the source's H. The sides
    alone are rounded twice, as in two steps: H to H1 by `fit_longer_side`, H1 to H2 by
    `scale_side`.

    Args:
        size: int64 [2], the source's height and width.
        seed: int32 or int64 [2]; equal seeds give equal results.
        crop_size: (height, width) of the result.
        scales: scale factors > 0; (1.0,) leaves sizes alone.
        random_crop: False takes the middle of the scaled image (the pixel above or left of it, if
            the rest is odd).
        flip: whether to mirror left and right at random.
        resize_longer_side: the pixels to which the longer side of every image is resized before
            it is scaled, >= 1; None leaves images as they are.
    """
    resized = size if resize_longer_side is None else fit_longer_side(size, resize_longer_side)
    draws = tf.random.stateless_uniform([4], seed)
    scale = tf.gather(tf.constant(scales, tf.float32), tf.cast(draws[0] * len(scales), tf.int32))
    axes = []
    for axis, crop in enumerate(crop_size):
        scaled = scale_side(resized[axis], scale)
        rest = tf.maximum(scaled - crop, 0)
        start = rest // 2
        if random_crop:
            start = tf.cast(draws[1 + axis] * tf.cast(rest + 1, tf.float32), tf.int64)
        places = start + tf.range(crop, dtype=tf.int64)
        if axis == 1 and flip:
            places = tf.where(draws[3] < 0.5, places[::-1], places)
        axes.append(find_source_positions(size[axis], scaled, places))
    rows, columns = axes
    return rows, columns


def _find_inside(rows: Positions, columns: Positions) -> tf.Tensor:
    return tf.logical_and(rows.inside[:, tf.newaxis], columns.inside[tf.newaxis, :])

"""Resizing on the aligned-corner grid, and the sizes on which every level halves exactly.

With aligned corners the first and last pixels of both grids coincide. A side of d = 32 n + 1 pixels
has (d - 1) / s + 1 pixels at stride s = 2, 4, ..., 32, and pixel i of that grid is pixel s * i of
the image: images, labels and every level of a network share one grid.
"""

from typing import Any

import tensorflow as tf

STRIDE = 32


def network_size(side: Any) -> Any:
    """The smallest 32 n + 1 that is >= side, for side >= 1 (Python int or integer tensor)."""
    return (side + STRIDE - 2) // STRIDE * STRIDE + 1


def dimensions(x: tf.Tensor) -> list[Any]:
    """The shape of x: ints where it is known, else integer scalars."""
    known = list(x.shape)
    if None not in known:
        return known
    dynamic = tf.unstack(tf.shape(x), len(known))
    return [there if size is None else size for size, there in zip(known, dynamic, strict=True)]


def sides(x: tf.Tensor) -> tuple[Any, Any]:
    """Height and width of [N, H, W, ...]: ints where the graph knows them, else scalars."""
    _, height, width, *_ = dimensions(x)
    return height, width


def resize_bilinear(x: tf.Tensor, size: tuple[Any, Any]) -> tf.Tensor:
    """Bilinear resize of floats [N, H, W, C] to size = (height, width); keeps the dtype."""
    old = sides(x)
    if all(isinstance(side, int) for side in (*old, *size)) and old == tuple(size):
        return x
    # The kernel returns float32 whatever it is given.
    resized = tf.raw_ops.ResizeBilinear(images=x, size=tf.stack(size), align_corners=True)
    return tf.cast(resized, x.dtype)


def pad_to_network_size(x: tf.Tensor, value: float) -> tf.Tensor:
    """Pads [N, H, W, C] at the bottom and right to sides of the form 32 n + 1."""
    height, width = sides(x)
    below, right = network_size(height) - height, network_size(width) - width
    return tf.pad(x, [[0, 0], [0, below], [0, right], [0, 0]], constant_values=value)

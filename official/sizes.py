"""The scale of a data set: how its conversion changed images' sizes, and the same inside a graph.

A network recognises things at the size that they had in its training. `tfrecords_tools.convert` may
have made those images smaller. So pictures that the network is given later, at their own size, must
be made smaller in the same way, and its answers as large as the pictures again.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from official.errors import shorten
from official.resizing import sides


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A rule by which images are resized: by a factor, or to a longest side.

    Attributes:
        resize_factor: scales both sides, > 0; of the converter at most 1.
        max_side: an image whose longer side is longer is resized so that it has this length; None
            if there is no limit.
    """

    resize_factor: float = 1.0
    max_side: int | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> "Sizes":
        """Reads the rule from a data description's or a run's options; without any, OWN_SIZE.

        Raises:
            ValueError: a number is none, or not between those that make sense.
        """
        factor, side = options.get("resize_factor", 1.0), options.get("max_side")
        if type(factor) not in (int, float) or not 1e-30 <= factor <= 65_535:
            raise ValueError(
                f"resize_factor is {shorten(factor)}: it must be above 0, 65535 at most"
            )
        if side is not None and (type(side) is not int or not 0 < side < 2**31):
            raise ValueError(f"max_side is {shorten(side)}: it must be a whole number above 0")
        return cls(factor, side)

    def to_options(self) -> dict[str, Any]:
        """Gives the options that a data description holds, which `from_options` reads."""
        # Without --max_side as before there was one: descriptions stay equal.
        limit = {} if self.max_side is None else {"max_side": self.max_side}
        return {"resize_factor": self.resize_factor, **limit}

    def __str__(self) -> str:
        if self == OWN_SIZE:
            return "images at their own size"
        if self.max_side is None:
            return f"images scaled by {self.resize_factor:g}"
        return f"images of at most {self.max_side} pixels a side"

    def compute_rest(self, done: "Sizes") -> "Sizes | None":
        """Finds the rule by which images that `done` has resized become as this rule wants them.

        None if there is no such rule: how much a longest side has shrunk an image is not known
        any more.
        """
        if self == done:
            return OWN_SIZE
        if done == OWN_SIZE:
            return self
        if self.max_side is None and done.max_side is None:
            return Sizes(self.resize_factor / done.resize_factor)
        return None

    def compute_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Gives the size (height, width) to which an image of this size is resized."""
        factor = self.resize_factor
        if self.max_side is not None and max(size) > self.max_side:
            factor = self.max_side / max(size)
        height, width = (max(1, round(side * factor)) for side in size)
        return height, width

    def bring(self, images: tf.Tensor) -> tf.Tensor:
        """Resizes images by this rule, as the converter does.

        Antialiased (Lanczos, three lobes): the columns first, then the rows, each rounded to
        0..255. Values equal Pillow's but for one in a hundred or fewer, which differ by 1, seldom
        2.

        Args:
            images: uint8 or whole float32 [N, H, W, 3] in 0..255, of any H, W >= 1.

        Returns:
            whole numbers, float32 [N, *compute_size((H, W)), 3] in 0..255; `images` itself where
            nothing is to be done.
        """
        if self == OWN_SIZE:
            return images
        height, width = sides(images)
        new_height, new_width = self._compute_sides(height, width)
        images = tf.cast(images, tf.float32)
        for new in ((height, new_width), (new_height, new_width)):
            images = tf.image.resize(images, new, tf.image.ResizeMethod.LANCZOS3, antialias=True)
            images = tf.clip_by_value(tf.floor(images + 0.5), 0.0, 255.0)
        return images

    def answer(self, network: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
        """Runs a network on images resized by this rule, and resizes its answer back.

        Back it goes bilinearly, with pixels' centres on centres as in `bring`. Give it a network
        of logits or probabilities and take the argmax afterwards: then borders between classes may
        lie between the pixels that the network saw.

        Args:
            network: images as `bring` returns them -> float32 [N, h, w, C] of the same size.
            images: uint8 or float32 [N, H, W, 3] in 0..255.

        Returns:
            float32 [N, H, W, C].
        """
        if self == OWN_SIZE:
            return network(images)
        return tf.image.resize(network(self.bring(images)), sides(images))

    def _compute_sides(self, height: Any, width: Any) -> tuple[Any, Any]:
        """`compute_size` for sides that may be tensors, known only when the graph runs."""
        if isinstance(height, int) and isinstance(width, int):
            return self.compute_size((height, width))
        size = tf.cast(tf.stack([height, width]), tf.float64)  # as Python's floats
        factor: Any = tf.constant(self.resize_factor, tf.float64)
        if self.max_side is not None:
            longer = tf.reduce_max(size)
            factor = tf.where(longer > self.max_side, self.max_side / longer, factor)
        new_height, new_width = tf.unstack(tf.cast(tf.round(size * factor), tf.int32))
        return tf.maximum(1, new_height), tf.maximum(1, new_width)


OWN_SIZE = Sizes()
"""Images stay as they are."""

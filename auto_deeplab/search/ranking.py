"""What one architecture is worth in a trained super-net, whose weights it takes as they are.

The super-net runs with alpha and beta that are 1 for what the architecture has and 0 for all else.
Its moving statistics are those of the mixture that was trained; a single path has others, so they
are estimated anew on training images (as Guo et al., Single Path One-Shot, ECCV 2020, Sec. 3.2).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from auto_deeplab.search.supernet import SuperNet


class Candidate:
    """A super-net as one architecture after another. Make it in the strategy's scope.

    Args:
        supernet: its weights are not changed; its moving statistics are.
        alpha_shape, beta_shape: of Architecture's alpha and beta.
        strategy: of one replica, or several, whose statistics are averaged.
    """

    def __init__(
        self,
        supernet: SuperNet,
        alpha_shape: tuple[int, ...],
        beta_shape: tuple[int, ...],
        strategy: tf.distribute.Strategy,
    ) -> None:
        self.supernet, self._strategy = supernet, strategy
        # Variables, so that all architectures have one graph.
        options: dict[str, Any] = {"trainable": False}
        self.alpha = tf.Variable(tf.zeros(alpha_shape), name="candidate_alpha", **options)
        self.beta = tf.Variable(tf.zeros(beta_shape), name="candidate_beta", **options)
        self._measure = tf.function(self._measure_batch, autograph=False)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Logits float32 [N, H, W, C] of images in 0..255, by the moving statistics."""
        return self._run(images, training=False)[0]

    def _run(self, images: tf.Tensor, training: bool) -> tuple[tf.Tensor, list[Any]]:
        options = {"training": training, "fixed_weights": True}
        if self.supernet.partial_channels == 1:
            return self.supernet(images, self.alpha, self.beta, **options)
        # Where edges have weights, those of a block sum to 1: of its two branches each has a half,
        # and what is not there passes nothing.
        of_edges = tf.reduce_sum(self.alpha, -1)
        alpha = tf.math.divide_no_nan(tf.convert_to_tensor(self.alpha), of_edges[..., None])
        return self.supernet(images, alpha, self.beta, edge_weights=of_edges / 2, **options)

    def become(self, alpha: np.ndarray, beta: np.ndarray, batches: Iterable[Any]) -> None:
        """Takes an architecture, and estimates its statistics.

        Args:
            alpha, beta: as encoding.encode gives them.
            batches: {"image": float32 [n, h, w, 3], ...} of each replica; the moving statistics
                become the means of these batches' statistics.
        """
        self.alpha.assign(alpha)
        self.beta.assign(beta)
        measured = [self._measure(batch["image"]) for batch in batches]
        means = [tf.add_n(values) / len(values) for values in zip(*measured, strict=True)]
        for variable, mean in zip(self.supernet.moving_statistics(), means, strict=True):
            variable.assign(mean)

    def _measure_batch(self, images: Any) -> list[tf.Tensor]:
        def measure(images: tf.Tensor) -> list[tf.Tensor]:
            return tf.nest.flatten(self._run(images, training=True)[1])

        return [
            self._strategy.reduce("MEAN", value, axis=None)
            for value in self._strategy.run(measure, (images,))
        ]

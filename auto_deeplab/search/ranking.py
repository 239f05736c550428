"""What one architecture is worth in a trained super-net.

The super-net runs with alpha and beta that are 1 for what the architecture has and 0 for all else.
Its moving statistics are those of the mixture that was trained; a single path has others, so they
are estimated anew on training images (as Guo et al., Single Path One-Shot, ECCV 2020, Sec. 3.2).

The weights too are the mixture's: none of them ever had to do without the others. `SinglePaths`
trains them for one architecture at a time, as all of that super-net's training is there (Sec. 3.1).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab.search.supernet import SuperNet
from official.training_step import Losses, mean_loss, minimize, pixels_of_all_replicas


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
        self.supernet, self.strategy = supernet, strategy
        # Variables, so that all architectures have one graph.
        options: dict[str, Any] = {"trainable": False}
        self.alpha = tf.Variable(tf.zeros(alpha_shape), name="candidate_alpha", **options)
        self.beta = tf.Variable(tf.zeros(beta_shape), name="candidate_beta", **options)
        self._measure = tf.function(self._measure_batch, autograph=False)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """Logits float32 [N, H, W, C] of images in 0..255, by the moving statistics."""
        return self.run(images, training=False)[0]

    def run(
        self, images: tf.Tensor, *, training: bool, fixed_weights: bool = True
    ) -> tuple[tf.Tensor, list[Any]]:
        """What the super-net returns of images, as this architecture; see SuperNet.call."""
        options = {"training": training, "fixed_weights": fixed_weights}
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
            return tf.nest.flatten(self.run(images, training=True)[1])

        return [
            self.strategy.reduce("MEAN", value, axis=None)
            for value in self.strategy.run(measure, (images,))
        ]


class SinglePaths:
    """Steps of a super-net's weights, each for one architecture. Make it in the strategy's scope.

    What an architecture has not gets no gradient, but its share of the weight decay. The moving
    statistics stay as they are.

    Args:
        candidate: of the super-net.
        optimizer: of its weights.
        ignore_label: label of void pixels.
        class_weights: factors of the classes' losses, or None.
    """

    def __init__(
        self,
        candidate: Candidate,
        *,
        optimizer: keras.optimizers.Optimizer,
        ignore_label: int,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        self.candidate, self._optimizer = candidate, optimizer
        self._ignore_label, self._class_weights = ignore_label, class_weights
        optimizer.build(candidate.supernet.trainable_variables)
        self._step = tf.function(self._update_all, autograph=False)

    def steps(self, *arguments: tuple[np.ndarray, np.ndarray, Any]) -> list[Losses]:
        """Steps, one after the other.

        Args:
            arguments: for each step alpha and beta, as encoding.encode gives them, and a batch
                {"image": float32 [n, h, w, 3], "label": int32 [n, h, w]} of each replica.

        Returns:
            of each step loss_w, the loss before the update.
        """
        losses = []
        for alpha, beta, batch in arguments:
            self.candidate.alpha.assign(alpha)
            self.candidate.beta.assign(beta)
            losses.append({"loss_w": self._step(batch)})
        return losses

    def _update_all(self, batch: Any) -> tf.Tensor:
        strategy = self.candidate.strategy
        return strategy.reduce("SUM", strategy.run(self._update, (batch,)), axis=None)

    def _update(self, batch: Any) -> tf.Tensor:
        pixels = pixels_of_all_replicas(batch["label"], self._ignore_label)

        def forward() -> tuple[tf.Tensor, None]:
            logits, _ = self.candidate.run(batch["image"], training=True, fixed_weights=False)
            loss = mean_loss(
                *(batch["label"], logits, self._ignore_label, pixels),
                class_weights=self._class_weights,
            )
            return loss, None

        weights = self.candidate.supernet.trainable_variables
        return minimize(forward, weights, self._optimizer)[0]

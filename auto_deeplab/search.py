"""The bilevel search step (paper, Sec. 4.2): weights on trainA, then alpha and beta on trainB."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab import decoding
from auto_deeplab.architecture import Architecture
from auto_deeplab.genotype import Genotype
from auto_deeplab.supernet import SuperNet
from official.training_step import mean_loss, minimize

Batch = dict[str, tf.Tensor]


class Search:
    """The two groups of variables, their optimizers, and the steps that update them in turn.

    Make it, and everything it is given, in the strategy's scope.

    Args:
        supernet: its trainable variables are the weights w.
        architecture: alpha and beta.
        weight_optimizer: of w.
        architecture_optimizer: of alpha and beta.
        ignore_label: label of void pixels.
        strategy: the steps run on all its replicas.
        jit_compile: compile the whole step with XLA; one replica only.
    """

    def __init__(
        self,
        supernet: SuperNet,
        architecture: Architecture,
        *,
        weight_optimizer: keras.optimizers.Optimizer,
        architecture_optimizer: keras.optimizers.Optimizer,
        ignore_label: int,
        strategy: tf.distribute.Strategy,
        jit_compile: bool = False,
    ) -> None:
        self.supernet, self.architecture = supernet, architecture
        self.weight_optimizer = weight_optimizer
        self.architecture_optimizer = architecture_optimizer
        self._ignore_label, self._strategy = ignore_label, strategy
        # By identity: the groups are disjoint, so that neither step can touch the other's
        # variables.
        w, a = supernet.trainable_variables, architecture.trainable_variables
        assert not {id(v) for v in w} & {id(v) for v in a}
        weight_optimizer.build(w)
        architecture_optimizer.build(a)
        self.weight_step = tf.function(self._weight_step, jit_compile=jit_compile)
        self.search_step = tf.function(self._search_step, jit_compile=jit_compile)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """The super-net's answer in evaluation: logits float32 [N, H, W, C] of images in 0..255."""
        return self.supernet(images, *self.architecture.probabilities(), training=False)[0]

    def step(self, batch_a: Batch, batch_b: Batch | None = None) -> dict[str, tf.Tensor]:
        """One step: of w on batch_a, then, if there is a batch_b, of alpha and beta on it.

        Args:
            batch_a, batch_b: "image" float32 [n, h, w, 3] and "label" int32 [n, h, w], per replica.

        Returns:
            the losses before the updates: loss_w and, with batch_b, loss_arch.
        """
        if batch_b is None:
            return {"loss_w": self.weight_step(batch_a)}
        loss_w, loss_arch = self.search_step(batch_a, batch_b)
        return {"loss_w": loss_w, "loss_arch": loss_arch}

    def _weight_step(self, batch: Batch) -> tf.Tensor:
        return self._sum(self._strategy.run(self._update_weights, (batch,)))

    def _search_step(self, batch_a: Batch, batch_b: Batch) -> tuple[tf.Tensor, tf.Tensor]:
        loss_w = self._strategy.run(self._update_weights, (batch_a,))
        loss_arch = self._strategy.run(self._update_architecture, (batch_b,))
        return self._sum(loss_w), self._sum(loss_arch)

    def _sum(self, per_replica: Any) -> tf.Tensor:
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    def _update_weights(self, batch: Batch) -> tf.Tensor:
        loss, statistics = minimize(
            self._forward(batch), self.supernet.trainable_variables, self.weight_optimizer
        )
        self.supernet.update_moving_statistics(statistics)
        return loss

    def _update_architecture(self, batch: Batch) -> tf.Tensor:
        variables = self.architecture.trainable_variables
        return minimize(self._forward(batch), variables, self.architecture_optimizer)[0]

    def _forward(self, batch: Batch) -> Callable[[], tuple[tf.Tensor, Any]]:
        def forward() -> tuple[tf.Tensor, Any]:
            alpha, beta = self.architecture.probabilities()
            logits, statistics = self.supernet(batch["image"], alpha, beta, training=True)
            return mean_loss(batch["label"], logits, self._ignore_label), statistics

        return forward


def batches(
    stream_a: Iterator[Batch], stream_b: Iterator[Batch], start_step: int, first_search_step: int
) -> Iterator[tuple[Batch, ...]]:
    """The arguments of `Search.step` from `start_step` on: trainA's batch, later trainB's too."""
    step = start_step
    while True:
        yield (next(stream_a),) if step < first_search_step else (next(stream_a), next(stream_b))
        step += 1


def decoded(architecture: Architecture, meta: dict[str, Any]) -> tuple[Genotype, np.ndarray]:
    """The architecture that alpha and beta stand for now, and beta's probabilities [L, 4, 3]."""
    alpha, beta = (tensor.numpy() for tensor in architecture.probabilities())
    operations, num_blocks = architecture.operations, architecture.num_blocks
    return decoding.decode(alpha, beta, operations, num_blocks, meta=meta), beta


def report(architecture: Architecture) -> dict[str, Any]:
    """What each report says about the architecture: entropies (nats), counts, path and cell."""
    alpha, beta = (tensor.numpy() for tensor in architecture.probabilities())
    genotype = decoding.decode(alpha, beta, architecture.operations, architecture.num_blocks)
    return {
        "alpha_entropy": decoding.alpha_entropy(alpha),
        "beta_entropy": decoding.beta_entropy(beta),
        "skip_connects": decoding.count_skip_connects(genotype.cells[0]),
        "none_edges": decoding.count_none_edges(alpha, architecture.operations),
        "path": genotype.path,
        "cell": genotype.cells[0],
    }

"""The training step of a derived network (paper, Sec. 5.2)."""

from typing import Any

import keras
import tensorflow as tf

from auto_deeplab.network import Network
from official.training_step import mean_loss, minimize

Batch = dict[str, tf.Tensor]


class Retrain:
    """A network, its optimizer, and the step that updates it.

    Make it, and everything it is given, in the strategy's scope.

    Args:
        network: built.
        optimizer: counts the steps made.
        ignore_label: label of void pixels.
        seed: of dropout and drop path.
        total_steps: T, after which drop path has reached its final strength.
        strategy: the step runs on all its replicas.
        jit_compile: compile the whole step with XLA; one replica only.
    """

    def __init__(
        self,
        network: Network,
        *,
        optimizer: keras.optimizers.Optimizer,
        ignore_label: int,
        seed: int,
        total_steps: int,
        strategy: tf.distribute.Strategy,
        jit_compile: bool = False,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self._ignore_label, self._seed, self._total_steps = ignore_label, seed, total_steps
        self._strategy = strategy
        optimizer.build(network.trainable_variables)
        self.train_step = tf.function(self._train_step, jit_compile=jit_compile)

    def step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One update.

        Args:
            batch: "image" float32 [n, h, w, 3], "label" int32 [n, h, w] and "number" int64 [n], the
                examples' places in the run's stream, per replica.

        Returns:
            loss_w, the loss before the update.
        """
        return {"loss_w": self.train_step(batch)}

    def _train_step(self, batch: Batch) -> tf.Tensor:
        loss = self._strategy.run(self._update, (batch,))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)

    def _update(self, batch: Batch) -> tf.Tensor:
        numbers = tf.cast(batch["number"], tf.int32)
        seeds = tf.stack([tf.fill(tf.shape(numbers), self._seed), numbers], axis=1)
        progress = tf.cast(self.optimizer.iterations, tf.float32) / self._total_steps

        def forward() -> tuple[tf.Tensor, Any]:
            logits = self.network(batch["image"], training=True, seeds=seeds, progress=progress)
            return mean_loss(batch["label"], logits, self._ignore_label), None

        return minimize(forward, self.network.trainable_variables, self.optimizer)[0]

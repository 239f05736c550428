"""The training of a derived network (paper, Sec. 5.2): its step."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from auto_deeplab.network.network import Network
from official import averaging
from official.losses import compute_mining_share
from official.optimizers import without_counter
from official.training_step import (
    NO_INLINE,
    Losses,
    mean_loss,
    minimize,
    multi_step,
    pixels_of_all_replicas,
    undo_bad,
)

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
        class_weights: factors of the classes' losses, or None.
        top_k_pixels: share in (0, 1] of each image's valid pixels, those of the largest losses,
            that count; see losses.sum_cross_entropy.
        hard_mining_steps: the share falls from 1 to top_k_pixels over so many steps; 0: at once.
        averaged: a second network, built with the same arguments, whose variables become the moving
            averages of the first one's; None: no averages.
        ema_decay: in [0, 1), of the averages; see averaging.compute_decay.
        jit_compile: compile with XLA: the whole step of one replica; of several, the forward and
            backward passes, for which the network's BN must not be synchronised.
        undoes_bad_steps: whether a step that makes something not finite changes nothing.
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
        class_weights: Sequence[float] | None = None,
        top_k_pixels: float = 1.0,
        hard_mining_steps: int = 0,
        averaged: Network | None = None,
        ema_decay: float = 0.0,
        jit_compile: bool = False,
        undoes_bad_steps: bool = False,
    ) -> None:
        self.network, self.optimizer = network, optimizer
        self._ignore_label, self._seed, self._total_steps = ignore_label, seed, total_steps
        self._strategy = strategy
        self._class_weights = class_weights
        self._top_k_pixels, self._hard_mining_steps = top_k_pixels, hard_mining_steps
        self.averaged, self._ema_decay = averaged, ema_decay
        self.start_averages()
        optimizer.build(network.trainable_variables)
        several_replicas = strategy.num_replicas_in_sync > 1
        self._compile_passes = jit_compile and several_replicas
        self.train_step = tf.function(
            self._train_step,
            jit_compile=jit_compile and not several_replicas,
            experimental_attributes=NO_INLINE,
        )
        step = self.step
        if undoes_bad_steps:
            averages = averaged.variables if averaged else []
            step = undo_bad(step, [*network.variables, *averages, *without_counter(optimizer)])
        self.steps = multi_step(step)

    def start_averages(self) -> None:
        """Begins the averages at the network's present values: for whoever has changed those."""
        if self.averaged is not None:
            averaging.start(self.averaged.variables, self.network.variables)

    def step(self, batch: Batch) -> Losses:
        """One update; `steps` makes several of them, or one, in one call.

        Args:
            batch: "image" float32 [n, h, w, 3], "label" int32 [n, h, w] and "number" int64 [n], the
                examples' places in the run's stream, per replica.

        Returns:
            loss_w, the loss before the update.
        """
        return {"loss_w": self.train_step(batch)}

    def _train_step(self, batch: Batch) -> tf.Tensor:
        step = tf.convert_to_tensor(self.optimizer.iterations)
        loss = self._strategy.run(self._update, (batch,))
        if self.averaged is not None:
            averaging.update(
                self.averaged.variables,
                self.network.variables,
                averaging.compute_decay(self._ema_decay, step),
                self._strategy,
            )
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, loss, axis=None)

    def _update(self, batch: Batch) -> tf.Tensor:
        numbers = tf.cast(batch["number"], tf.int32)
        seeds = tf.stack([tf.fill(tf.shape(numbers), self._seed), numbers], axis=1)
        progress = tf.cast(self.optimizer.iterations, tf.float32) / self._total_steps

        share = compute_mining_share(
            self._top_k_pixels, self._hard_mining_steps, self.optimizer.iterations
        )
        pixels = pixels_of_all_replicas(batch["label"], self._ignore_label, share)
        network = self.network
        moving = network.non_trainable_variables if network.fine_tune_batch_norm else []

        def forward() -> tuple[tf.Tensor, list[tf.Tensor]]:
            # What is compiled cannot assign the mean over replicas to the moving statistics.
            with keras.StatelessScope() as scope:
                logits = network(batch["image"], training=True, seeds=seeds, progress=progress)
            loss = mean_loss(
                batch["label"],
                logits,
                self._ignore_label,
                pixels,
                class_weights=self._class_weights,
                top_k_pixels=share,
            )
            return loss, [scope.get_current_value(variable) for variable in moving]

        loss, moved = minimize(
            forward, network.trainable_variables, self.optimizer, self._compile_passes
        )
        for variable, value in zip(moving, moved, strict=True):
            variable.assign(value)
        return loss

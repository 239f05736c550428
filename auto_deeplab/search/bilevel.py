"""The bilevel search step (paper, Sec. 4.2): weights on trainA, then alpha and beta on trainB."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab.search import curvature
from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.space import decoding
from auto_deeplab.space.genotype import Genotype
from official.distribution import assign, sum_over_replicas
from official.optimizers import without_counter
from official.training_step import (
    NO_INLINE,
    Losses,
    compute_gradients,
    mean_loss,
    minimize,
    multi_step,
    pixels_of_all_replicas,
    undo_bad,
)

DIGITS = 5  # of the probabilities in a report

Batch = dict[str, tf.Tensor]
"""One replica's part: "image" float32 [n, h, w, 3], values 0..255, and "label" int32 [n, h, w]."""

CostTerm = Callable[[Callable[[int, int], tf.Tensor], tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
"""(function that gives the alpha of node (layer, level), beta) -> (penalty, expected cost)."""


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
        class_weights: factors of the classes' losses, or None.
        cost_term: its penalty is added to the architecture's loss; None: nothing is. See
            expected_cost.make_budget_term.
        second_order: whether the architecture's gradient sees what its change does to w; see
            `_compute_second_order_gradients`.
        jit_compile: compile with XLA: the whole step of one replica; of several, the forward and
            backward passes, for which the super-net's BN must not be synchronised.
        undoes_bad_steps: whether a step that makes something not finite changes nothing.
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
        class_weights: Sequence[float] | None = None,
        cost_term: CostTerm | None = None,
        second_order: bool = False,
        jit_compile: bool = False,
        undoes_bad_steps: bool = False,
    ) -> None:
        self.supernet, self.architecture = supernet, architecture
        self.cost_term, self._second_order = cost_term, second_order
        self._class_weights = class_weights
        self.weight_optimizer = weight_optimizer
        self.architecture_optimizer = architecture_optimizer
        self._ignore_label, self._strategy = ignore_label, strategy
        # By identity: the groups are disjoint, so that neither step can touch the other's
        # variables.
        w, a = supernet.trainable_variables, architecture.trainable_variables
        assert not {id(v) for v in w} & {id(v) for v in a}
        weight_optimizer.build(w)
        architecture_optimizer.build(a)
        several_replicas = strategy.num_replicas_in_sync > 1
        self._compile_passes = jit_compile and several_replicas
        options = {
            "jit_compile": jit_compile and not several_replicas,
            "autograph": False,
            "experimental_attributes": NO_INLINE,
        }
        self.weight_step = tf.function(self._weight_step, **options)
        self.architecture_step = tf.function(self._architecture_step, **options)
        self._gradient_at = tf.function(self._compute_gradient_at, **options)
        step = self.step
        if undoes_bad_steps:
            step = undo_bad(
                step,
                [
                    *(*supernet.variables, *architecture.variables),
                    *without_counter(weight_optimizer),
                    *without_counter(architecture_optimizer),
                ],
            )
        self.steps = multi_step(step)

    def logits(self, images: tf.Tensor) -> tf.Tensor:
        """The super-net's answer in evaluation: logits float32 [N, H, W, C] of images in 0..255."""
        edge_weights = self.architecture.edge_weights()
        return self.supernet(
            images, *self.architecture(), training=False, edge_weights=edge_weights
        )[0]

    def step(self, batch_a: Batch, batch_b: Batch | None = None) -> Losses:
        """One step: of w on batch_a, then, if there is a batch_b, of alpha and beta on it.

        `steps` makes one or more of them in one call.

        Args:
            batch_a, batch_b: of trainA and trainB, per replica.

        Returns:
            the losses before the updates: loss_w and, with batch_b, loss_arch.
        """
        losses = {"loss_w": self.weight_step(batch_a)}
        if batch_b is not None:
            losses["loss_arch"] = self.architecture_step(batch_b, batch_a)
        return losses

    def measure_curvature(self, batches: Sequence[Batch]) -> float:
        """The largest eigenvalue of the Hessian by alpha of the mean loss of batches of trainB.

        What RobustDARTS (arXiv:1909.09656, Sec. 4) watches, with the batches' BN statistics, as the
        architecture step has them. Nothing is changed.

        Args:
            batches: of trainB, per replica; for values to be compared, always the same.
        """

        def gradient(logits: np.ndarray) -> np.ndarray:
            at = tf.constant(logits, tf.float32)
            return np.mean([self._gradient_at(at, batch).numpy() for batch in batches], axis=0)

        return curvature.largest_eigenvalue(gradient, self.architecture.alpha.numpy())

    def _compute_gradient_at(self, alpha_logits: tf.Tensor, batch: Batch) -> tf.Tensor:
        """The gradient of a batch's loss by alpha's logits, were they these."""

        def on_replica(batch: Batch) -> tf.Tensor:
            scale = self.architecture_optimizer.scale_loss(tf.ones([]))  # float16 needs it
            forward = self._make_forward(batch, fixed_weights=True, alpha_logits=alpha_logits)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(alpha_logits)
                scaled = scale * forward()[0]
            return tape.gradient(scaled, alpha_logits) / scale

        return self._sum(self._strategy.run(on_replica, (batch,)))

    def _weight_step(self, batch: Batch) -> tf.Tensor:
        return self._sum(self._strategy.run(self._update_weights, (batch,)))

    def _architecture_step(self, batch_b: Batch, batch_a: Batch) -> tf.Tensor:
        return self._sum(self._strategy.run(self._update_architecture, (batch_b, batch_a)))

    def _sum(self, per_replica: Any) -> tf.Tensor:
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, per_replica, axis=None)

    def _update_weights(self, batch: Batch) -> tf.Tensor:
        loss, statistics = minimize(
            self._make_forward(batch),
            self.supernet.trainable_variables,
            self.weight_optimizer,
            self._compile_passes,
        )
        self.supernet.update_moving_statistics(statistics)
        return loss

    def _update_architecture(self, batch_b: Batch, batch_a: Batch) -> tf.Tensor:
        forward_b = self._make_forward(batch_b, fixed_weights=not self._second_order)

        def forward() -> tuple[tf.Tensor, tf.Tensor]:
            loss, _ = forward_b()
            return loss + self._compute_penalty(), loss

        optimizer, a = self.architecture_optimizer, self.architecture.trainable_variables
        if not self._second_order:
            return minimize(forward, a, optimizer, self._compile_passes)[1]
        loss, gradients = self._compute_second_order_gradients(forward, batch_a)
        optimizer.apply([optimizer.scale_loss(gradient) for gradient in gradients], a)
        return loss

    def _compute_second_order_gradients(
        self, forward_b: Callable[[], tuple[tf.Tensor, Any]], batch_a: Batch
    ) -> tuple[Any, list[tf.Tensor]]:
        """This replica's share of the gradient of L_B(w', a) by a = (alpha, beta).

        w' = w - r dL_A/dw(w, a) is what one step of rate r, w's present one, would make of w (the
        second-order form of DARTS, on which Sec. 4.2 builds). By the chain rule the gradient is

            dL_B/da(w', a) - r d2L_A/da dw(w, a) v,    v = dL_B/dw'(w', a),

        whose last product is a central difference of dL_A/da between w + e v and w - e v, with
        e = 0.01 / |v|. Four gradients instead of one, and a copy of w. w ends as it began.

        Returns:
            the second result of `forward_b` at w', and the gradients by a's variables.
        """
        w, a = self.supernet.trainable_variables, self.architecture.trainable_variables
        start = [tf.identity(variable) for variable in w]

        def move(direction: Sequence[tf.Tensor], factor: Any) -> None:
            pairs = zip(start, direction, strict=True)
            assign(w, [value + factor * change for value, change in pairs])

        def differentiate(
            variables: Sequence[keras.Variable], forward: Callable[[], tuple[tf.Tensor, Any]]
        ) -> tuple[Any, list[tf.Tensor]]:
            (_, other), scaled = compute_gradients(forward, variables, scale, self._compile_passes)
            return other, [gradient / scale for gradient in scaled]

        forward_a = self._make_forward(batch_a)
        rate = tf.cast(self.weight_optimizer.learning_rate, tf.float32)
        scale = self.architecture_optimizer.scale_loss(tf.ones([]))  # float16 needs it
        _, by_w = differentiate(w, forward_a)
        move(sum_over_replicas(by_w), -rate)
        loss, both = differentiate([*a, *w], forward_b)
        by_a, direction = both[: len(a)], sum_over_replicas(both[len(a) :])
        step = tf.math.divide_no_nan(0.01, tf.linalg.global_norm(direction))
        forward_a = self._make_forward(batch_a, fixed_weights=True)
        move(direction, step)
        _, above = differentiate(a, forward_a)
        # A super-net must not run twice at the same time: see MixedCell.
        with tf.control_dependencies(above):
            move(direction, -step)
        _, below = differentiate(a, forward_a)
        assign(w, start)
        change = tf.math.divide_no_nan(rate, 2 * step)
        return loss, [
            g - change * (plus - minus) for g, plus, minus in zip(by_a, above, below, strict=True)
        ]

    def _compute_penalty(self) -> tf.Tensor | float:
        """This replica's share of the cost term."""
        cost = self.expected_cost()
        return 0.0 if cost is None else cost[0] / self._strategy.num_replicas_in_sync

    def expected_cost(self) -> tuple[tf.Tensor, tf.Tensor] | None:
        """The cost term's penalty and expected cost for alpha and beta as they are; None if off."""
        if self.cost_term is None:
            return None
        alpha, beta = self.architecture()
        return self.cost_term(partial(self.architecture.alpha_of, alpha), beta)

    def _make_forward(
        self,
        batch: Batch,
        fixed_weights: bool = False,
        alpha_logits: tf.Tensor | None = None,
    ) -> Callable[[], tuple[tf.Tensor, Any]]:
        pixels = pixels_of_all_replicas(batch["label"], self._ignore_label)

        def forward() -> tuple[tf.Tensor, Any]:
            alpha, beta = self.architecture(alpha_logits)
            logits, statistics = self.supernet(
                *(batch["image"], alpha, beta),
                training=True,
                fixed_weights=fixed_weights,
                edge_weights=self.architecture.edge_weights(),
            )
            loss = mean_loss(
                batch["label"],
                logits,
                self._ignore_label,
                pixels,
                class_weights=self._class_weights,
            )
            return loss, statistics

        return forward


def pair_batches(
    stream_a: Iterator[Batch], stream_b: Iterator[Batch], start_step: int, first_search_step: int
) -> Iterator[tuple[Batch, ...]]:
    """What each step takes, from `start_step` on: a batch of trainA and, later, one of trainB.

    Args:
        stream_a, stream_b: the batches of trainA and of trainB.
        start_step: how many steps are done.
        first_search_step: the first step, counted from 0, that also moves alpha and beta.
    """
    step = start_step
    while True:
        yield (next(stream_a),) if step < first_search_step else (next(stream_a), next(stream_b))
        step += 1


def count_passes(first_search_step: int, second_order: bool) -> Callable[[int], int]:
    """A function that tells how many forward and backward passes a step makes.

    It takes the number of the step, from 0. One pass is the weights', one the architecture's, which
    takes four if it is of second order.
    """
    return lambda step: 1 if step < first_search_step else 5 if second_order else 2


def decode(architecture: Architecture, meta: dict[str, Any]) -> tuple[Genotype, np.ndarray]:
    """The architecture that alpha and beta mean now (Sec. 4.3), and beta's probabilities [L, 4, 3].

    Args:
        architecture: alpha and beta.
        meta: what the genotype says of where it comes from.
    """
    alpha, beta = (tensor.numpy() for tensor in architecture())
    edge_weights = architecture.edge_weights()
    if edge_weights is not None:
        meta = {**meta, "partial_channels": architecture.partial_channels}
    genotype = decoding.decode(
        *(alpha, beta, architecture.operations, architecture.num_blocks, meta),
        alpha_sharing=architecture.alpha_sharing,
        edge_weights=None if edge_weights is None else edge_weights.numpy(),
    )
    return genotype, beta


def report(
    architecture: Architecture, cost: tuple[tf.Tensor, tf.Tensor] | None = None
) -> dict[str, Any]:
    """What each report says about the architecture: entropies (nats), counts, path and cell.

    Where alpha is untied, skip_connects is that of the cell with the most, and all cells of the
    path are listed, with the one of each layer. alpha, beta and edge_weights are rounded.

    Args:
        architecture: alpha and beta.
        cost: what Search.expected_cost returned.
    """
    genotype, beta = decode(architecture, {})
    alpha = np.asarray(genotype.meta["alpha"])
    if genotype.cell_of_layer is None:
        cells: dict[str, Any] = {"cell": genotype.cells[0]}
    else:
        cells = {"cells": genotype.cells, "cell_of_layer": genotype.cell_of_layer}
    edges: dict[str, Any] = {}
    if "edge_weights" in genotype.meta:
        weights = np.asarray(genotype.meta["edge_weights"])
        edges["edge_entropy"] = decoding.edge_entropy(weights)
        edges["edge_weights"] = weights.round(DIGITS).tolist()
    return {
        "alpha_entropy": decoding.alpha_entropy(alpha),
        "beta_entropy": decoding.beta_entropy(beta),
        **edges,
        "skip_connects": max(map(decoding.count_skip_connects, genotype.cells)),
        "none_edges": decoding.count_none_edges(alpha, architecture.operations),
        "path": genotype.path,
        **cells,
        **({"expected_cost": float(cost[1])} if cost else {}),
        "alpha": alpha.round(DIGITS).tolist(),
        "beta": beta.round(DIGITS).tolist(),
    }

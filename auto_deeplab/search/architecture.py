"""The architecture variables alpha and beta, and their only softmax (paper, Sec. 4.1)."""

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab.space import search_space


class Architecture(keras.layers.Layer):
    """Logits of alpha [edges of the cell, operations] and beta [L, 4, 3].

    With alpha untied (the paper's outlook, Sec. 6) there are G alphas, [G, edges, operations]:
    4, one per level, or L, one per layer.

    A layer of its own, outside the super-net: the architecture is one group of variables, the
    super-net's weights are the other.

    Beside each alpha there may be logits of the cell's edges, [edges] or [G, edges] (PC-DARTS,
    arXiv:1907.05737, Sec. 3.3).

    Args:
        num_layers: L.
        num_blocks: B.
        operations: names, the columns of alpha.
        seed: of the initial values, a standard Gaussian times 1e-3 (Sec. 5.1).
        alpha_sharing: one of search_space.ALPHA_SHARING.
        partial_channels: K of the super-net; above 1 the edges have logits.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        operations: tuple[str, ...],
        seed: int,
        alpha_sharing: str = "global",
        partial_channels: int = 1,
    ) -> None:
        super().__init__(name="architecture", dtype="float32")
        self.num_layers, self.num_blocks, self.operations = num_layers, num_blocks, operations
        self.alpha_sharing, self.partial_channels = alpha_sharing, partial_channels

        def logits(name: str, shape: tuple[int, ...], seed: int) -> keras.Variable:
            initial = keras.initializers.RandomNormal(stddev=1e-3, seed=seed)
            return self.add_weight(
                name=name, shape=shape, initializer=initial, dtype="float32", autocast=False
            )

        count = search_space.num_alphas(alpha_sharing, num_layers)
        shape = (search_space.num_cell_edges(num_blocks), len(operations))
        self.alpha = logits("alpha", shape if count == 1 else (count, *shape), 2 * seed)
        self.beta = logits("beta", (num_layers, search_space.NUM_LEVELS, 3), 2 * seed + 1)
        self.edges = (
            logits("edges", tuple(self.alpha.shape[:-1]), 2**32 - 1 - seed)
            if partial_channels > 1
            else None
        )
        self.legal = make_legal_mask(num_layers)
        self.built = True

    def call(self, inputs: tf.Tensor | None = None) -> tuple[tf.Tensor, tf.Tensor]:
        """Alpha and beta: probabilities, float32, shaped as their logits.

        Every row of alpha sums to 1 (Eqs. 3, 4). In beta, what leaves a node sums to 1 (Eq. 7);
        directions that do not exist, and rows of nodes that do not, are exactly 0, without
        gradient.

        Args:
            inputs: logits to take in place of alpha's, in their shape; None: alpha's own.
        """
        logits = tf.convert_to_tensor(self.alpha if inputs is None else inputs)
        alpha = tf.nn.softmax(logits)  # Eq. 4
        beta = masked_softmax(tf.convert_to_tensor(self.beta), self.legal)  # Eqs. 7, 8
        return alpha, beta

    def edge_weights(self) -> tf.Tensor | None:
        """The weights of the cell's edges, float32 [edges] or [G, edges]; None without such logits.

        Those of the edges that end in one block sum to 1.
        """
        if self.edges is None:
            return None
        inputs = [2 + block for block in range(self.num_blocks)]
        blocks = tf.split(tf.convert_to_tensor(self.edges), inputs, axis=-1)
        return tf.concat([tf.nn.softmax(block) for block in blocks], -1)

    def alpha_of(self, alpha: tf.Tensor, layer: int, level: int) -> tf.Tensor:
        """The part of a normalised alpha that node (layer, level) has: [edges, operations]."""
        if alpha.shape.rank == 2:
            return alpha
        return alpha[search_space.alpha_index(self.alpha_sharing, layer, level)]


def make_legal_mask(num_layers: int) -> np.ndarray:
    """Which entries of beta exist: bool [L, 4, 3]."""
    legal = np.zeros((num_layers, search_space.NUM_LEVELS, 3), bool)
    for layer, source, level in search_space.edges(num_layers):
        legal[layer - 1, source, search_space.direction(source, level)] = True
    return legal


def masked_softmax(logits: tf.Tensor, legal: np.ndarray) -> tf.Tensor:
    """Softmax over the last axis within `legal`; 0 elsewhere, and in rows without a legal entry."""
    # The mask is on both sides of the exponential: a row of -inf would make NaN, here or in the
    # gradient. The greatest legal logit is subtracted, so that large logits cannot overflow.
    lowest = tf.where(legal, logits, tf.fill(tf.shape(logits), logits.dtype.min))
    top = tf.stop_gradient(tf.reduce_max(lowest, -1, keepdims=True))
    shifted = tf.where(legal, logits - top, tf.zeros_like(logits))
    weights = tf.where(legal, tf.exp(shifted), tf.zeros_like(logits))
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, -1, keepdims=True))

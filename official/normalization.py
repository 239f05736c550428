"""Batch normalisation: one kernel where one device runs, one all-reduce where several do.

The functions return the batch's statistics instead of updating anything, so that a caller may
recompute a forward pass, or run one that must leave no trace. `PackedNorm` strings many of them
together; `BatchNorm` is the ordinary layer.

Statistics are those of the *global* batch; or, if not synchronised, each replica's own, and the
moving ones are the means over the replicas. The moving variance is the unbiased one (n - 1), as in
the fused kernels of TensorFlow and in TF1 checkpoints.
"""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from official.convolutions import computes_well
from official.resizing import dimensions

Statistics = tuple[tf.Tensor, tf.Tensor]
"""(mean, variance), float32 [C] each."""

MovingStatistics = tuple[tf.Tensor, ...]
"""(mean, variance) to normalise by; or (), which means to normalise by the batch."""


def normalize_batch(
    x: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    epsilon: float,
    synchronized: bool = True,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises by the statistics of the global batch, or of this replica's part of it.

    Args:
        x: floats [N, H, W, C], this replica's part of the batch (equally large on every replica).
        scale: float32 [C].
        offset: float32 [C].
        epsilon: added to the variance, at least 1e-5.
        synchronized: whether the statistics are the global batch's. If so, and several replicas
            run, it can be neither compiled with XLA nor called in a traced function of its own.

    Returns:
        (y like x, mean float32 [C], unbiased variance float32 [C]); no gradient flows from the two
        statistics, which are for moving averages.
    """
    if not computes_well(x.dtype):
        wide = tf.cast(x, tf.float32)
        y, mean, variance = normalize_batch(wide, scale, offset, epsilon, synchronized)
        return tf.cast(y, x.dtype), mean, variance
    context = tf.distribute.get_replica_context()
    if not synchronized or context is None or context.num_replicas_in_sync == 1:
        y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=x,
            scale=scale,
            offset=offset,
            mean=[],
            variance=[],
            epsilon=epsilon,
            is_training=True,
        )
        return y, tf.stop_gradient(mean), tf.stop_gradient(variance)

    wide = tf.cast(x, tf.float32)
    local = tf.stack([tf.reduce_mean(wide, [0, 1, 2]), tf.reduce_mean(tf.square(wide), [0, 1, 2])])
    mean, square = tf.unstack(
        context.all_reduce(tf.distribute.ReduceOp.SUM, local) / context.num_replicas_in_sync
    )
    # Rounding can make a constant channel's variance a tiny negative number.
    variance = tf.nn.relu(square - tf.square(mean))
    y = normalize(x, scale, offset, mean, variance, epsilon)
    count = tf.cast(tf.reduce_prod(tf.shape(x)[:3]) * context.num_replicas_in_sync, tf.float32)
    unbiased = variance * count / tf.maximum(count - 1.0, 1.0)
    return y, tf.stop_gradient(mean), tf.stop_gradient(unbiased)


def normalize(
    x: tf.Tensor,
    scale: tf.Tensor,
    offset: tf.Tensor,
    mean: tf.Tensor,
    variance: tf.Tensor,
    epsilon: float,
) -> tf.Tensor:
    """Normalises floats [N, H, W, C] by given statistics, float32 [C] each; keeps the dtype."""
    factor = scale * tf.math.rsqrt(variance + epsilon)
    return x * tf.cast(factor, x.dtype) + tf.cast(offset - mean * factor, x.dtype)


def moving_average(variable: Any, value: tf.Tensor, momentum: float) -> None:
    """variable <- momentum * variable + (1 - momentum) * value."""
    old = tf.convert_to_tensor(variable.value)
    variable.assign(old + (value - old) * (1.0 - momentum))


class PackedNorm:
    """Normalises one tensor after another; the moving statistics of all of them are one vector.

    The super-net has thousands of normalisations. Packed, they are a hundred variables, and what a
    recomputed function has to hand out is two tensors. The order of the calls is the layout.

    Args:
        epsilon: added to every variance.
        moving: (mean, variance), float32 [sum of all channels], to normalise by; () to normalise
            by the batch and collect its statistics.
        synchronized: see `normalize_batch`.
    """

    def __init__(
        self, epsilon: float, moving: MovingStatistics = (), synchronized: bool = True
    ) -> None:
        self.epsilon, self._moving, self._synchronized = epsilon, moving, synchronized
        self._used = 0
        self._collected: list[Statistics | PackedNorm] = []

    def __call__(
        self, x: tf.Tensor, scale: tf.Tensor | None = None, offset: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalises floats [N, H, W, C]; scale and offset, float32 [C], default to 1 and 0."""
        channels = dimensions(x)[-1]
        scale = tf.ones([channels]) if scale is None else scale
        offset = tf.zeros([channels]) if offset is None else offset
        if self._moving:
            mean, variance = self._take(channels)
            return normalize(x, scale, offset, mean, variance, self.epsilon)
        y, mean, variance = normalize_batch(x, scale, offset, self.epsilon, self._synchronized)
        self._collected.append((mean, variance))
        return y

    def reserve(self, channels: int) -> "PackedNorm":
        """A `PackedNorm` whose place in the layout is here, however late it is used.

        Args:
            channels: how many channels it will normalise in all.
        """
        reserved = PackedNorm(self.epsilon, self._take(channels), self._synchronized)
        self._collected.append(reserved)
        return reserved

    def nested(self, function: Callable[..., Any], channels: int, *inputs: Any) -> Any:
        """Runs a function that has a `PackedNorm` of its own, whose layout continues this one.

        Args:
            function: (moving, *inputs) -> (output, statistics), as `statistics` returns them.
            channels: how many channels it normalises in all.
        """
        output, statistics = function(self._take(channels), *inputs)
        if not self._moving:
            for statistic in statistics:
                statistic.set_shape([channels])  # a function traced for all sizes cannot tell
            self._collected.append(statistics)
        return output

    def statistics(self) -> Statistics | None:
        """The batch's (mean, unbiased variance), float32 [sum of channels], if collected."""
        if self._moving:
            return None
        found = [
            own.statistics() if isinstance(own, PackedNorm) else own for own in self._collected
        ]
        if not found:
            return tf.zeros([0]), tf.zeros([0])
        means, variances = zip(*found, strict=True)
        return tf.concat(means, 0), tf.concat(variances, 0)

    def _take(self, channels: int) -> MovingStatistics:
        """The next of the moving statistics; () if there are none."""
        mine = slice(self._used, self._used + channels)
        self._used += channels
        return tuple(statistic[mine] for statistic in self._moving)


class BatchNorm(keras.layers.Layer):
    """Batch normalisation with scale and offset over the last axis of [N, H, W, C].

    Args:
        momentum: share of the old moving statistics kept at each training call, in [0, 1).
        epsilon: added to the variance.
        synchronized: see `normalize_batch`.
    """

    def __init__(
        self,
        *,
        momentum: float,
        epsilon: float,
        synchronized: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.momentum, self.epsilon, self.synchronized = momentum, epsilon, synchronized

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Creates gamma, beta and the two moving statistics, float32 [C]."""
        weight = {"shape": shape[-1:], "dtype": "float32", "autocast": False}
        self.gamma = self.add_weight(name="gamma", initializer="ones", **weight)
        self.beta = self.add_weight(name="beta", initializer="zeros", **weight)
        # Synchronised, all replicas have the same, and what the first one assigns is enough.
        one = "only_first_replica" if self.synchronized else "mean"
        weight |= {"trainable": False, "aggregation": one}
        self.moving_mean = self.add_weight(name="moving_mean", initializer="zeros", **weight)
        self.moving_variance = self.add_weight(name="moving_variance", initializer="ones", **weight)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns y like x; with `training`, uses the batch's statistics and moves the averages."""
        scale, offset = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not training:
            mean = tf.convert_to_tensor(self.moving_mean)
            variance = tf.convert_to_tensor(self.moving_variance)
            return normalize(x, scale, offset, mean, variance, self.epsilon)
        y, mean, variance = normalize_batch(x, scale, offset, self.epsilon, self.synchronized)
        moving_average(self.moving_mean, mean, self.momentum)
        moving_average(self.moving_variance, variance, self.momentum)
        return y


MakeBatchNorm = Callable[..., BatchNorm]
"""Makes a BatchNorm, called with (epsilon, name)."""

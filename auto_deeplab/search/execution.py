"""How the layers of a super-net are run: what they share, and what is computed a second time.

Written out for every node, the graph of twelve layers has so many operations that TensorFlow takes
minutes to build and to prepare it. So what many layers have in common is one function, which is
traced once and then called. And all that the backward pass needs does not fit in memory. So most of
it is computed again when the backward pass comes to it.

Everything that is shared or computed again has one signature, `Function`.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf

from official.normalization import MovingStatistics, PackedNorm, Statistics
from official.training_step import NO_INLINE

EPSILON = 1e-3
"""Of every batch normalisation in the search."""

RECOMPUTE = ("cell", "node", "none")
"""What the backward pass computes again instead of keeping it: what is inside a cell (it keeps the
cell's blocks), all of a node (it keeps the nodes' outputs), or nothing.
"""

Function = Callable[..., tuple[Any, Statistics | None]]
"""(moving statistics, maps, weights, *others) -> (output, the batch's statistics).

The moving statistics are a pair (mean, variance) to normalise by; or (), which means training: then
it is normalised by the batch, and the batch's statistics are the second result, which else is None.
All arguments are tensors, in any nesting; it reads no variables.
"""


class Execution:
    """How all layers of one super-net are run.

    Args:
        recompute: one of RECOMPUTE.
        inline: whether every layer's operations are written out in the graph, because functions
            that are called cannot be had: XLA takes what one function's gradient takes from another
            for constants, and synchronised BN cannot run in them where there are several replicas.
        sync_batch_norm: whether BN normalises by the global batch's statistics, or by those of each
            replica's part.
    """

    def __init__(
        self, *, recompute: str = "cell", inline: bool = False, sync_batch_norm: bool = True
    ) -> None:
        self.recompute, self.inline, self.sync_batch_norm = recompute, inline, sync_batch_norm
        self._functions: dict[Hashable, Function] = {}

    def make_norm(self, moving: MovingStatistics) -> PackedNorm:
        """Normalises by the moving statistics or, if they are (), by the batch."""
        return PackedNorm(EPSILON, moving, self.sync_batch_norm)

    def share(
        self,
        function: Function,
        part: str,
        training: bool,
        *key: Hashable,
        signature: Any = None,
    ) -> Function:
        """A function to call instead of `function`: one for all that are asked for alike.

        Args:
            function: what to compute, for the first who asks with these other arguments.
            part: what the function is of, "cell" or "node", as in RECOMPUTE.
            training: whether it will be given no moving statistics.
            key: whatever else it depends on beside its arguments.
            signature: of the arguments, as tf.function takes it, to trace it once for all sizes.
        """
        key = (part, training, *key)
        if key not in self._functions:
            if training and part == self.recompute:
                function = rematerialize(function)
            if not self.inline:
                function = tf.function(
                    function, signature, autograph=False, experimental_attributes=NO_INLINE
                )
            self._functions[key] = function
        return self._functions[key]


def as_function(layer: keras.layers.Layer, **options: Any) -> Function:
    """A layer's call as a Function: the values of its variables are arguments.

    So the function of one layer serves all others whose variables and options are alike.

    Args:
        layer: called with (*maps, *others) and `training`; its moving statistics are its last two
            variables.
        options: what it is called with beside.
    """

    def function(
        moving: MovingStatistics, maps: Any, weights: Sequence[tf.Tensor], *others: Any
    ) -> tuple[Any, Statistics | None]:
        values = [*weights, *moving]
        # In this scope, Keras' variables have the values that they are given here.
        with keras.StatelessScope(zip(layer.variables, values, strict=False)):
            return layer(*maps, *others, training=not moving, **options)  # type: ignore[no-any-return]

    return function


def rematerialize(function: Function) -> Function:
    """A Function, for training, that is computed again in the backward pass instead of kept.

    Args:
        function: its output is one tensor.
    """

    def run_again(_: tuple[()], maps: Any, *others: Any) -> Any:
        number = len(tf.nest.flatten(maps))

        @tf.custom_gradient
        def run(*tensors: tf.Tensor) -> tuple[Any, Callable[..., Any]]:
            def compute(tensors: Sequence[tf.Tensor]) -> Any:
                return function((), *tf.nest.pack_sequence_as((maps, *others), tensors))

            def gradient(dy: tf.Tensor, *of_statistics: tf.Tensor) -> list[tf.Tensor]:
                again = [*delay(tensors[:number], until=dy), *tensors[number:]]
                with tf.GradientTape() as tape:
                    tape.watch(again)
                    y = compute(again)[0]
                return tape.gradient(y, again, dy)

            y, (mean, variance) = compute(tensors)
            return (y, mean, variance), gradient

        y, mean, variance = run(*tf.nest.flatten((maps, *others)))
        return y, (mean, variance)

    return run_again


def delay(maps: Sequence[tf.Tensor], until: tf.Tensor) -> list[tf.Tensor]:
    """The same maps, but none is there before another tensor is.

    TensorFlow computes whatever it has the inputs of. That is too early for what the backward pass
    computes again: it would be kept after all. And two calls of one function must not run at the
    same time, see `MixedCell`. In the backward pass the order is the other way round: the gradient
    by `until` is not there before those by the maps.

    Args:
        maps: floats.
        until: of the same type. If its first value is NaN, so are the maps.
    """
    # XLA keeps no order but that in which values are needed. So the maps need one: a zero that can
    # only be told when `until` is there.
    first = tf.reshape(until, [-1])[0]
    zero = tf.where(tf.math.is_nan(first), first, tf.zeros_like(first))
    return [x + zero for x in maps]

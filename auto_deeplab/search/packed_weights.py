"""The variables of the super-net's layers: thousands of weights packed in hundreds of variables.

Every variable costs time in each step, and TensorFlow takes seconds to place a thousand of them and
to build their optimizer's operations. So weights of one layer that have the same shape but for one
axis are slices of one variable along that axis.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from official.normalization import Statistics, moving_average

MOMENTUM = 0.9
"""The share of the old moving statistics that a step keeps."""

Shape = tuple[int, ...]
Tensors = dict[str, tf.Tensor]


class PackedWeights(keras.layers.Layer):
    """The weights of one layer, packed; `read` gives each by its own name.

    A name is PLACE.kernel, PLACE.gamma, PLACE.beta or PLACE.bias. Depthwise kernels of one size are
    one variable, and so are all pointwise kernels; any other kernel is a variable by itself. All
    gammas are one variable, all betas, and all biases.

    Args:
        name: of the layer that computes with them, under which its variables' paths are.
        kernels: shape of each kernel.
        vectors: (initial value, length) of each vector.
    """

    def __init__(
        self,
        name: str,
        kernels: Mapping[str, Shape] | None = None,
        vectors: Mapping[str, tuple[float, int]] | None = None,
    ) -> None:
        super().__init__(name=name)
        self.sizes: dict[str, dict[str, int]] = {}
        """Of each pack, the names of its weights, and how long they are along the packed axis."""
        shapes: dict[str, Shape] = {}
        initializers: dict[str, keras.initializers.Initializer] = {}
        for key, shape in (kernels or {}).items():
            pack = _name_pack(key, shape)
            self.sizes.setdefault(pack, {})[key] = shape[_packed_axis(pack)]
            # One is made for each kernel, though a pack takes the last: each draws a seed, and the
            # first weights that a seed gives must stay what they are.
            shapes[pack], initializers[pack] = shape, make_initializer(key, shape)
        for key, (value, length) in (vectors or {}).items():
            pack = key.rpartition(".")[2]
            self.sizes.setdefault(pack, {})[key] = length
            shapes[pack], initializers[pack] = (length,), keras.initializers.Constant(value)
        for pack, sizes in self.sizes.items():
            sides = list(shapes[pack])
            sides[_packed_axis(pack)] = sum(sizes.values())
            self.add_weight(
                name=pack,
                shape=tuple(sides),
                initializer=initializers[pack],
                dtype="float32",
                autocast=False,
            )

    def read(self) -> Tensors:
        """Every weight by its name: kernels in the compute dtype, vectors in float32."""
        return self.unpack(
            [
                tf.cast(
                    tf.convert_to_tensor(variable),
                    self.compute_dtype if "kernel" in variable.name else tf.float32,
                )
                for variable in self.variables
            ]
        )

    def unpack(self, packed: Sequence[tf.Tensor]) -> Tensors:
        """Every weight by its name, of tensors like the variables, such as their gradients."""
        weights: Tensors = {}
        for (pack, sizes), tensor in zip(self.sizes.items(), packed, strict=True):
            pieces = tf.split(tensor, list(sizes.values()), axis=_packed_axis(pack))
            weights |= dict(zip(sizes, pieces, strict=True))
        return weights


class PackedStatistics(keras.layers.Layer):
    """The moving statistics of all normalisations of one layer, in the order of its calls.

    Args:
        name: of that layer, under which the variables' paths are.
        channels: how many channels it normalises in all.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__(name=name)
        # Replicas whose BN is synchronised have the same; the mean is for those whose is not.
        options: dict[str, Any] = {"trainable": False, "aggregation": "mean", "autocast": False}
        options |= {"shape": (channels,), "dtype": "float32"}
        self.mean = self.add_weight(name="moving_mean", initializer="zeros", **options)
        self.variance = self.add_weight(name="moving_variance", initializer="ones", **options)

    def read(self) -> Statistics:
        """The moving mean and variance, float32 [channels] each."""
        return tf.convert_to_tensor(self.mean), tf.convert_to_tensor(self.variance)

    def move(self, statistics: Statistics) -> None:
        """Moves both averages towards the batch's (mean, unbiased variance)."""
        for variable, value in zip((self.mean, self.variance), statistics, strict=True):
            moving_average(variable, value, MOMENTUM)


def make_initializer(name: str, shape: Shape) -> keras.initializers.Initializer:
    """Uniform within fan-in^-0.5 on either side of 0, of variance 1 / (3 fan-in).

    As in the published network's cells; the paper is silent. Fan-in: how many values of its input
    one value of a convolution's output is made of.
    """
    height, width, channels, _ = shape
    fan_in = height * width * (1 if "depthwise" in name else channels)
    return keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)


def _name_pack(name: str, shape: Shape) -> str:
    """The variable that a kernel is packed in."""
    if "depthwise" in name:
        return f"depthwise_kernel_{shape[0]}x{shape[1]}"
    return "pointwise_kernel" if "pointwise" in name else name


def _packed_axis(pack: str) -> int:
    return 2 if "depthwise" in pack else -1

"""The operations of a finished cell (paper, Sec. 3.1) as Keras layers.

Every operation takes [N, H, W, C] to [N, ceil(H / stride), ceil(W / stride), filters];
convolutions have no bias. `OPERATIONS` says which layer a name stands for. In all layers here
`training=True` means that BN uses the batch's statistics and moves its averages; otherwise BN is
an affine map, and part of the convolution before it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import tensorflow as tf

from official.convolutions import conv2d, exportable_depthwise_conv2d
from official.normalization import BatchNorm, MakeBatchNorm
from official.resizing import resize_bilinear, sides

EPSILON = 1e-3
"""BN's epsilon in stem and cells."""

Shape = tuple[int | None, ...]


def make_scaled_uniform() -> keras.initializers.Initializer:
    """The initializer of stem and cells: uniform variance scaling 1/3 by fan-in.

    Layers take a function that makes an initializer: one Keras initializer object gives all kernels
    of one shape the same values.
    """
    return keras.initializers.VarianceScaling(1 / 3, mode="fan_in", distribution="uniform")


def shrink_shape(shape: Shape, stride: int, filters: int) -> Shape:
    """[N, ceil(H / stride), ceil(W / stride), filters] from [N, H, W, C]; None stays None."""
    batch, height, width, _ = shape
    new = (None if side is None else (side - 1) // stride + 1 for side in (height, width))
    return (batch, *new, filters)


def convolve_and_normalize(
    x: tf.Tensor,
    kernel: keras.Variable,
    norm: BatchNorm,
    training: bool,
    *,
    stride: int = 1,
    rate: int = 1,
) -> tf.Tensor:
    """A dense convolution with SAME padding, then BN; without `training` the two are one.

    BN by the moving statistics multiplies every channel by a number and adds another. The factor
    goes into the kernel: the same up to rounding, and one pass over the map less.
    """

    def convolve(kernel: tf.Tensor) -> tf.Tensor:
        # Not tf.nn.convolution, which unrolls atrous rates into padded copies of the map.
        return conv2d(x, kernel, stride, rate)

    kernel = tf.convert_to_tensor(kernel)
    if training:
        return norm(convolve(kernel), training=True)
    scale, offset, mean, variance = (
        tf.convert_to_tensor(variable)
        for variable in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    factor = scale * tf.math.rsqrt(variance + norm.epsilon)
    folded = tf.cast(tf.cast(kernel, tf.float32) * factor, kernel.dtype)
    # A plain sum: TensorFlow joins it and the ReLU after it to the convolution on CPUs, which it
    # does not with tf.nn.bias_add.
    return convolve(folded) + tf.cast(offset - mean * factor, kernel.dtype)


class ConvNorm(keras.layers.Layer):
    """A dense convolution with SAME padding, then BN; no ReLU.

    Args:
        filters: output channels.
        size: side of the kernel.
        stride, rate: of the convolution; one of them is 1.
        batch_norm: makes the BN.
        epsilon: of BN.
        initializer: makes the kernel's initializer.
    """

    def __init__(
        self,
        filters: int,
        size: int,
        *,
        stride: int = 1,
        rate: int = 1,
        batch_norm: MakeBatchNorm,
        epsilon: float = EPSILON,
        initializer: Callable[[], Any] = make_scaled_uniform,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.filters, self.size, self.stride, self.rate = filters, size, stride, rate
        self.initializer = initializer
        self.norm = batch_norm(epsilon=epsilon, name="norm")

    def build(self, shape: Shape) -> None:
        """Creates kernel [size, size, C, filters] and BN's variables."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(self.size, self.size, shape[-1], self.filters),
            initializer=self.initializer(),
        )
        self.norm.build((*shape[:-1], self.filters))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), filters]."""
        return convolve_and_normalize(
            x, self.kernel, self.norm, training, stride=self.stride, rate=self.rate
        )


class SeparableNorm(keras.layers.Layer):
    """ReLU, depthwise convolution (stride or rate), pointwise convolution, one BN."""

    def __init__(
        self,
        filters: int,
        size: int,
        *,
        stride: int = 1,
        rate: int = 1,
        batch_norm: MakeBatchNorm,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.filters, self.size, self.stride, self.rate = filters, size, stride, rate
        self.norm = batch_norm(epsilon=EPSILON, name="norm")

    def build(self, shape: Shape) -> None:
        """Creates kernels [size, size, C, 1] and [1, 1, C, filters], and BN's variables."""
        self.depthwise_kernel = self.add_weight(
            name="depthwise_kernel",
            shape=(self.size, self.size, shape[-1], 1),
            initializer=make_scaled_uniform(),
        )
        self.pointwise_kernel = self.add_weight(
            name="pointwise_kernel",
            shape=(1, 1, shape[-1], self.filters),
            initializer=make_scaled_uniform(),
        )
        self.norm.build((*shape[:-1], self.filters))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), filters]."""
        kernel = tf.convert_to_tensor(self.depthwise_kernel)
        x = exportable_depthwise_conv2d(tf.nn.relu(x), kernel, self.stride, self.rate)
        return convolve_and_normalize(x, self.pointwise_kernel, self.norm, training)


class SepConv(keras.layers.Layer):
    """Twice (ReLU, depthwise, pointwise, BN); the stride is the first depthwise convolution's."""

    def __init__(
        self, size: int, filters: int, stride: int, batch_norm: MakeBatchNorm, name: str
    ) -> None:
        super().__init__(name=name)
        self.first = SeparableNorm(
            filters, size, stride=stride, batch_norm=batch_norm, name="first"
        )
        self.second = SeparableNorm(filters, size, batch_norm=batch_norm, name="second")

    def build(self, shape: Shape) -> None:
        """Creates the variables of both halves."""
        self.first.build(shape)
        self.second.build((*shape[:-1], self.first.filters))

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), filters]."""
        return self.second(self.first(x, training=training), training=training)


class AtrousConv(keras.layers.Layer):
    """ReLU, one convolution of rate 2, BN; dense, or depthwise-separable as in DARTS (dil_conv).

    At stride 2 the map is halved by a bilinear resize and the rate is 1: the taps then lie on the
    same pixels of the input.

    Args:
        conv: ConvNorm or SeparableNorm.
        size: side of the kernel.
    """

    def __init__(
        self,
        conv: Callable[..., keras.layers.Layer],
        size: int,
        filters: int,
        stride: int,
        batch_norm: MakeBatchNorm,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.stride = stride
        rate = 2 if stride == 1 else 1
        self.conv = conv(filters, size, rate=rate, batch_norm=batch_norm, name="conv")

    def build(self, shape: Shape) -> None:
        """Creates the variables of the convolution and its BN."""
        self.conv.build(shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), filters]."""
        return self.conv(downsize(tf.nn.relu(x), self.stride), training=training)


class Pool(keras.layers.Layer):
    """3x3 pooling with SAME padding (which an average leaves out); 1x1, BN if channels change."""

    def __init__(
        self,
        pool: Callable[..., tf.Tensor],
        filters: int,
        stride: int,
        batch_norm: MakeBatchNorm,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.pool, self.filters, self.stride, self.batch_norm = pool, filters, stride, batch_norm
        self.project: ConvNorm | None = None

    def build(self, shape: Shape) -> None:
        """Creates the 1x1 convolution if there is one."""
        if shape[-1] != self.filters:
            self.project = ConvNorm(self.filters, 1, batch_norm=self.batch_norm, name="project")
            self.project.build(shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), filters]."""
        x = self.pool(x, 3, self.stride, "SAME")
        return x if self.project is None else self.project(x, training=training)


class SkipConnect(keras.layers.Layer):
    """Identity; ReLU, 1x1 convolution (stride), BN where the shape changes."""

    def __init__(self, filters: int, stride: int, batch_norm: MakeBatchNorm, name: str) -> None:
        super().__init__(name=name)
        self.filters, self.stride, self.batch_norm = filters, stride, batch_norm
        self.project: ConvNorm | None = None

    def build(self, shape: Shape) -> None:
        """Creates the 1x1 convolution if there is one."""
        if self.stride > 1 or shape[-1] != self.filters:
            self.project = ConvNorm(
                self.filters, 1, stride=self.stride, batch_norm=self.batch_norm, name="project"
            )
            self.project.build(shape)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, H, W, C] -> [N, ceil(H / stride), ceil(W / stride), filters]."""
        return x if self.project is None else self.project(tf.nn.relu(x), training=training)


def downsize(x: tf.Tensor, stride: int) -> tf.Tensor:
    """Bilinear resize of [N, H, W, C] to sides (d - 1) // stride + 1, corners aligned."""
    if stride == 1:
        return x
    height, width = sides(x)
    return resize_bilinear(x, ((height - 1) // stride + 1, (width - 1) // stride + 1))


OPERATIONS: dict[str, Callable[..., keras.layers.Layer]] = {
    "sep_conv_3x3": partial(SepConv, 3),
    "sep_conv_5x5": partial(SepConv, 5),
    "atrous_conv_3x3": partial(AtrousConv, ConvNorm, 3),
    "atrous_conv_5x5": partial(AtrousConv, ConvNorm, 5),
    "dil_conv_3x3": partial(AtrousConv, SeparableNorm, 3),
    "dil_conv_5x5": partial(AtrousConv, SeparableNorm, 5),
    "avg_pool_3x3": partial(Pool, tf.nn.avg_pool2d),
    "max_pool_3x3": partial(Pool, tf.nn.max_pool2d),
    "skip_connect": SkipConnect,
}
"""The layer of each operation, called with (filters, stride, batch_norm, name)."""

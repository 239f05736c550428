"""Convolutions with the gradients that CPUs compute fast, and right.

TensorFlow's CPU kernels (oneDNN) have three peculiarities:

* The raw depthwise operation follows its dilations forward, but *both its gradients are silently
  wrong* then, which is why tf.nn.depthwise_conv2d goes through SpaceToBatch: three operations and
  two copies for one.
* The depthwise filter gradient is two to three times as fast for kernels up to three wide.
* The filter gradient of a dilated convolution in bfloat16 reads beyond its inputs where channels
  are no multiple of 16: the process ends, or the gradient is NaN.

So on CPUs these gradients are made here, of kernels that are right and fast; elsewhere
TensorFlow's own path is taken.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from official.resizing import dimensions

FAST_WIDTH = 3  # of depthwise filter gradients


def conv2d(x: tf.Tensor, kernel: tf.Tensor, stride: int = 1, rate: int = 1) -> tf.Tensor:
    """tf.nn.conv2d, SAME, with a safe filter gradient.

    Args:
        x: floats [N, H, W, C].
        kernel: like x, [k, k, C / groups, filters].
        stride: of the result's pixels.
        rate: the distance of the kernel's taps, in pixels.

    Returns:
        like x, [N, ceil(H / stride), ceil(W / stride), filters]; where rate > 1 in bfloat16 on a
        CPU, derivatives of the gradients are not defined.
    """

    def forward(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(x, kernel, stride, "SAME", dilations=rate)

    if rate == 1 or x.dtype != tf.bfloat16 or not _only_cpus():
        return forward(x, kernel)

    @tf.custom_gradient
    def convolution(
        x: tf.Tensor, kernel: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            options = {
                "strides": [1, stride, stride, 1],
                "padding": "SAME",
                "dilations": [1, rate, rate, 1],
            }
            dx = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, **options
            )
            by_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=tf.cast(x, tf.float32),
                filter_sizes=tf.shape(kernel),
                out_backprop=tf.cast(dy, tf.float32),
                **options,
            )
            return dx, tf.cast(by_kernel, kernel.dtype)

        return forward(x, kernel), gradient

    return convolution(x, kernel)


def depthwise_conv2d(x: tf.Tensor, kernel: tf.Tensor, rate: int = 1) -> tf.Tensor:
    """Depthwise convolution, stride 1, SAME.

    Args:
        x: floats [N, H, W, C].
        kernel: like x, [k, k, C, 1], k odd.
        rate: the distance of the kernel's taps, in pixels.

    Returns:
        like x; derivatives of the gradients are not defined.
    """
    if not _direct():
        return tf.nn.depthwise_conv2d(x, kernel, [1] * 4, "SAME", dilations=[rate, rate])

    def forward(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.DepthwiseConv2dNative(
            input=x,
            filter=kernel,
            strides=[1] * 4,
            padding="SAME",
            dilations=[1, rate, rate, 1],
        )

    @tf.custom_gradient
    def convolution(
        x: tf.Tensor, kernel: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]]:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # At stride 1 the input's gradient is the convolution with the kernel turned round.
            dx = forward(dy, tf.reverse(kernel, [0, 1]))
            return dx, filter_gradient(x, dy, kernel.shape[0], rate)

        return forward(x, kernel), gradient

    return convolution(x, kernel)


def filter_gradient(x: tf.Tensor, dy: tf.Tensor, size: int, rate: int) -> tf.Tensor:
    """The gradient by a depthwise kernel, [size, size, C, 1], from x and dy, [N, H, W, C].

    A dilated convolution is an ordinary one on each of the rate x rate sub-grids of the map, which
    SpaceToBatch sorts into the batch. The kernel's columns are taken FAST_WIDTH at a time.
    """
    reach = rate * (size // 2)
    _, height, width, channels = dimensions(x)
    below, right = -height % rate, -width % rate  # up to whole sub-grids
    if rate == 1:
        x = tf.pad(x, [[0, 0], [reach, reach], [reach, reach], [0, 0]])
    else:
        x = tf.space_to_batch(x, [rate, rate], [[reach, reach + below], [reach, reach + right]])
        dy = tf.space_to_batch(dy, [rate, rate], [[0, below], [0, right]])
    columns = dimensions(dy)[2]
    pieces = []
    for first in range(0, size, FAST_WIDTH):
        wide = min(FAST_WIDTH, size - first)
        pieces.append(
            tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=x[:, :, first : first + columns + wide - 1],
                filter_sizes=[size, wide, channels, 1],
                out_backprop=dy,
                strides=[1] * 4,
                padding="VALID",
            )
        )
    return tf.concat(pieces, 1)


def _only_cpus() -> bool:
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


@functools.cache
def _direct() -> bool:
    """Whether this process computes on a CPU whose raw operation follows its dilations."""
    if not _only_cpus():
        return False
    with tf.init_scope():  # on values, even while a function is traced
        x = tf.reshape(tf.range(25.0), [1, 5, 5, 1])
        kernel = tf.reshape(tf.range(9.0), [3, 3, 1, 1])
        wanted = tf.nn.depthwise_conv2d(x, kernel, [1] * 4, "SAME", dilations=[2, 2])
        try:
            found = tf.raw_ops.DepthwiseConv2dNative(
                input=x, filter=kernel, strides=[1] * 4, padding="SAME", dilations=[1, 2, 2, 1]
            )
        except tf.errors.OpError:
            return False
        return bool(tf.reduce_all(tf.abs(found - wanted) < 1e-3))

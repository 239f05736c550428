"""Convolutions with the gradients that CPUs compute fast, and right.

TensorFlow's kernels for CPUs have gaps. With oneDNN:

* The raw depthwise operation follows its dilations forward, but *both its gradients are silently
  wrong* then, which is why tf.nn.depthwise_conv2d goes through SpaceToBatch: three operations and
  two copies for one.
* The depthwise filter gradient is two to three times as fast for kernels up to three wide.
* The filter gradient of a dilated convolution in bfloat16 reads beyond its inputs where channels
  are no multiple of 16: the process ends, or the gradient is NaN.

Without oneDNN, which TensorFlow uses by itself on few processors only:

* Gradients of dilated and of grouped convolutions are missing.
* The raw depthwise operation refuses dilations.

On processors without instructions for bfloat16, either way:

* Convolutions in bfloat16 are missing, or their gradients are summed up in its eight bits.

So on CPUs these gradients are made here, of kernels that are right and fast; elsewhere TensorFlow's
own path is taken. Which kernels this process has is found out by trying them once.
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from official.resizing import dimensions

FAST_WIDTH = 3  # of depthwise filter gradients

Gradients = tuple[tf.Tensor, tf.Tensor]


def conv2d(x: tf.Tensor, kernel: tf.Tensor, stride: int = 1, rate: int = 1) -> tf.Tensor:
    """tf.nn.conv2d, SAME, with right gradients on every machine.

    Args:
        x: floats [N, H, W, C].
        kernel: like x, [k, k, C / groups, filters].
        stride: of the result's pixels.
        rate: the distance of the kernel's taps, in pixels; stride or rate is 1.

    Returns:
        like x, [N, ceil(H / stride), ceil(W / stride), filters]; where rate > 1 in bfloat16 on a
        CPU, derivatives of the gradients are not defined.
    """
    if not computes_well(x.dtype):
        return _in_float32(functools.partial(conv2d, stride=stride, rate=rate), x, kernel)
    # A function that is traced for all sizes cannot tell how many groups there will be.
    one_group = x.shape[-1] is not None and x.shape[-1] == kernel.shape[2]
    if not (rate == 1 and one_group) and not _has_gradients():
        gradients = _plain_gradients
    elif rate > 1 and x.dtype == tf.bfloat16 and _only_cpus():
        gradients = _raw_gradients
    else:
        return tf.nn.conv2d(x, kernel, stride, "SAME", dilations=rate)

    @tf.custom_gradient
    def convolution(
        x: tf.Tensor, kernel: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
        y = tf.nn.conv2d(x, kernel, stride, "SAME", dilations=rate)
        return y, lambda dy: gradients(x, kernel, dy, stride, rate)

    return convolution(x, kernel)


def _raw_gradients(
    x: tf.Tensor, kernel: tf.Tensor, dy: tf.Tensor, stride: int, rate: int
) -> Gradients:
    """conv2d's gradients by x and by kernel from TensorFlow's kernels; the second in float32."""
    options = {
        "strides": [1, stride, stride, 1],
        "padding": "SAME",
        "dilations": [1, rate, rate, 1],
    }
    by_x = tf.raw_ops.Conv2DBackpropInput(
        input_sizes=tf.shape(x), filter=kernel, out_backprop=dy, **options
    )
    by_kernel = tf.raw_ops.Conv2DBackpropFilter(
        input=tf.cast(x, tf.float32),
        filter_sizes=tf.shape(kernel),
        out_backprop=tf.cast(dy, tf.float32),
        **options,
    )
    return by_x, tf.cast(by_kernel, kernel.dtype)


def _plain_gradients(
    x: tf.Tensor, kernel: tf.Tensor, dy: tf.Tensor, stride: int, rate: int
) -> Gradients:
    """conv2d's gradients by x and by kernel from convolutions of one group and rate 1 alone.

    Groups are a dense kernel with zeros between them, and a dilated convolution is an ordinary one
    on each sub-grid of the map.
    """
    size, (inputs, filters) = kernel.shape[:2], dimensions(kernel)[2:]
    channels = dimensions(x)[3]
    groups = channels // inputs
    with tf.GradientTape() as tape:
        tape.watch((x, kernel))
        by_group = tf.reshape(kernel, [*size, 1, inputs, groups, filters // groups])
        diagonal = tf.eye(groups, dtype=kernel.dtype)[:, None, :, None]
        dense = tf.reshape(by_group * diagonal, [*size, channels, filters])
        if rate == 1:
            y = tf.nn.conv2d(x, dense, stride, "SAME")
        else:
            y = _on_sub_grids(lambda x: tf.nn.conv2d(x, dense, 1, "VALID"), x, size[0], rate)
    return tuple(tape.gradient(y, (x, kernel), dy))


def depthwise_conv2d(x: tf.Tensor, kernel: tf.Tensor, rate: int = 1) -> tf.Tensor:
    """Depthwise convolution, stride 1, SAME.

    Args:
        x: floats [N, H, W, C].
        kernel: like x, [k, k, C, 1], k odd.
        rate: the distance of the kernel's taps, in pixels.

    Returns:
        like x; derivatives of the gradients are not defined.
    """
    if not computes_well(x.dtype):
        return _in_float32(functools.partial(depthwise_conv2d, rate=rate), x, kernel)

    def forward(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        def raw(x: tf.Tensor, padding: str, rate: int) -> tf.Tensor:
            return tf.raw_ops.DepthwiseConv2dNative(
                input=x,
                filter=kernel,
                strides=[1] * 4,
                padding=padding,
                dilations=[1, rate, rate, 1],
            )

        # (tf.nn.depthwise_conv2d has to know all sizes.)
        if rate == 1 or _follows_dilations():
            return raw(x, "SAME", rate)
        return _on_sub_grids(lambda x: raw(x, "VALID", 1), x, kernel.shape[0], rate)

    if not _only_cpus():
        return forward(x, kernel)

    @tf.custom_gradient
    def convolution(
        x: tf.Tensor, kernel: tf.Tensor
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], Gradients]]:
        def gradients(dy: tf.Tensor) -> Gradients:
            # At stride 1 the input's gradient is the convolution with the kernel turned round.
            dx = forward(dy, tf.reverse(kernel, [0, 1]))
            return dx, filter_gradient(x, dy, kernel.shape[0], rate)

        return forward(x, kernel), gradients

    return convolution(x, kernel)


def exportable_depthwise_conv2d(
    x: tf.Tensor, kernel: tf.Tensor, stride: int = 1, rate: int = 1
) -> tf.Tensor:
    """Depthwise convolution, SAME, of operations that every machine has: for graphs that travel.

    Args:
        x: floats [N, H, W, C].
        kernel: like x, [k, k, C, 1]; its sizes are known.
        stride: of the result's pixels.
        rate: the distance of the kernel's taps, in pixels; stride or rate is 1.

    Returns:
        like x, [N, ceil(H / stride), ceil(W / stride), C].
    """
    if not computes_well(x.dtype):
        convolution = functools.partial(exportable_depthwise_conv2d, stride=stride, rate=rate)
        return _in_float32(convolution, x, kernel)
    strides, dilations = [1, stride, stride, 1], [rate, rate]
    return tf.nn.depthwise_conv2d(x, kernel, strides, "SAME", dilations=dilations)


def filter_gradient(x: tf.Tensor, dy: tf.Tensor, size: int, rate: int) -> tf.Tensor:
    """The gradient by a depthwise kernel, [size, size, C, 1], from x and dy, [N, H, W, C].

    A dilated convolution is an ordinary one on each sub-grid of the map. The kernel's columns are
    taken FAST_WIDTH at a time.
    """
    channels = dimensions(x)[3]
    x, dy = sub_grids(x, rate, rate * (size // 2)), sub_grids(dy, rate, 0)
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


def sub_grids(x: tf.Tensor, rate: int, reach: int) -> tf.Tensor:
    """Splits x into the rate x rate grids that every rate-th row and column make.

    The grids follow each other in the batch.

    Args:
        x: [N, H, W, C].
        rate: the distance of a grid's pixels.
        reach: the width of the zeros that x is put between, a multiple of rate; below and at the
            right, more are added up to whole grids.

    Returns:
        [N * rate^2, (H + 2 reach) / rate, (W + 2 reach) / rate, C], quotients rounded up.
    """
    if rate == 1 and reach == 0:
        return x
    _, height, width, _ = dimensions(x)
    zeros = [[reach, reach + -height % rate], [reach, reach + -width % rate]]
    if rate == 1:
        return tf.pad(x, [[0, 0], *zeros, [0, 0]])
    return tf.space_to_batch(x, [rate, rate], zeros)


def _on_sub_grids(
    convolve: Callable[[tf.Tensor], tf.Tensor], x: tf.Tensor, size: int, rate: int
) -> tf.Tensor:
    """A dilated convolution, SAME, as an ordinary one, VALID, with size x size taps."""
    _, height, width, _ = dimensions(x)
    y = convolve(sub_grids(x, rate, rate * (size // 2)))
    return tf.batch_to_space(y, [rate, rate], [[0, -height % rate], [0, -width % rate]])


def _only_cpus() -> bool:
    return all(device.device_type == "CPU" for device in tf.config.list_logical_devices())


def _in_float32(
    convolution: Callable[[tf.Tensor, tf.Tensor], tf.Tensor], x: tf.Tensor, kernel: tf.Tensor
) -> tf.Tensor:
    wide = convolution(tf.cast(x, tf.float32), tf.cast(kernel, tf.float32))
    return tf.cast(wide, x.dtype)


def _gives(function: Callable[[], tf.Tensor], wanted: Callable[[], tf.Tensor]) -> bool:
    """Whether function() runs in this process and its values are those of wanted().

    They are run now, outside of any graph that is being traced.
    """
    with tf.init_scope():
        try:
            found = tf.cast(function(), tf.float32)
        except tf.errors.OpError:
            return False
        return bool(tf.reduce_all(tf.abs(found - wanted()) < 1e-3))


@functools.cache
def computes_well(dtype: tf.DType) -> bool:
    """Whether this machine's kernels compute right in this type; if not, float32 is used.

    Only bfloat16 on CPUs is in question: some add up in bfloat16 too, where 256 + 1 is 256.
    """
    if dtype != tf.bfloat16 or not _only_cpus():
        return True

    def sum_of_products() -> tf.Tensor:
        ones = tf.ones([1, 64, 64, 8], dtype)
        return tf.raw_ops.Conv2DBackpropFilter(
            input=ones,
            filter_sizes=[1, 1, 8, 8],
            out_backprop=ones,
            strides=[1] * 4,
            padding="SAME",
        )

    # Counting by ones in bfloat16 ends at 256, for there is no 257.
    return _gives(sum_of_products, lambda: tf.constant(4096.0))


@functools.cache
def _has_gradients() -> bool:
    """Whether this machine has TensorFlow's gradients of dilated and of grouped convolutions."""
    if not _only_cpus():
        return True

    def x() -> tf.Tensor:
        return tf.reshape(tf.range(50.0) % 5, [1, 5, 5, 2])

    def kernel() -> tf.Tensor:
        return tf.reshape(tf.range(18.0) % 3, [3, 3, 1, 2])  # two groups

    def by_gradients() -> tf.Tensor:
        gradients = _raw_gradients(x(), kernel(), x(), 1, 2)
        return tf.stack(
            [tf.reduce_sum(t * g) for t, g in zip((x(), kernel()), gradients, strict=True)]
        )

    def by_output() -> tf.Tensor:
        return tf.reduce_sum(x() * tf.nn.conv2d(x(), kernel(), 1, "SAME", dilations=2))

    # The output is linear in x and in the kernel, so either times its gradient sums up to
    # the output times dy (which is x here).
    return _gives(by_gradients, by_output)


@functools.cache
def _follows_dilations() -> bool:
    """Whether this machine's raw depthwise operation obeys `dilations`, going forward.

    (Its gradients never do.)
    """
    if not _only_cpus():
        return False

    def x() -> tf.Tensor:
        return tf.reshape(tf.range(25.0), [1, 5, 5, 1])

    def kernel() -> tf.Tensor:
        return tf.reshape(tf.range(9.0), [3, 3, 1, 1])

    def raw() -> tf.Tensor:
        return tf.raw_ops.DepthwiseConv2dNative(
            input=x(), filter=kernel(), strides=[1] * 4, padding="SAME", dilations=[1, 2, 2, 1]
        )

    # With one channel, it is what the other operation does too.
    return _gives(raw, lambda: tf.nn.conv2d(x(), kernel(), 1, "SAME", dilations=2))

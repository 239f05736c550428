"""ASPP and the decoder of DeepLabv3+ as the released Auto-DeepLab has them: all convolutions dense.

As in operations.py, `training=True` means that BN uses the batch's statistics; otherwise it is part
of the convolution before it.
"""

import keras
import tensorflow as tf

from auto_deeplab.network.operations import ConvNorm, Shape
from official.normalization import MakeBatchNorm
from official.resizing import resize_bilinear, sides

EPSILON = 1e-5
"""BN's epsilon in ASPP and decoder."""

ATROUS_RATES = (6, 12, 18)
"""At output stride 16; in inverse proportion at others, so that they span the same pixels."""

DROPOUT_KEEP_PROB = 0.9


def make_conv_norm(
    filters: int, size: int, batch_norm: MakeBatchNorm, name: str | None = None, rate: int = 1
) -> ConvNorm:
    """Makes a convolution and BN as ASPP and decoder have them."""
    return ConvNorm(
        filters,
        size,
        rate=rate,
        batch_norm=batch_norm,
        epsilon=EPSILON,
        initializer=keras.initializers.GlorotUniform,
        name=name,
    )


class ASPP(keras.layers.Layer):
    """Image mean, 1x1 and three atrous 3x3 branches, concatenated and projected; each BN, ReLU.

    Args:
        filters: channels of every branch and of the output.
        output_stride: image pixels per input feature: 4, 8, 16 or 32.
        batch_norm: makes each BN.
    """

    def __init__(
        self, filters: int, output_stride: int, batch_norm: MakeBatchNorm, name: str
    ) -> None:
        super().__init__(name=name)
        self.filters = filters
        self.pooled = make_conv_norm(filters, 1, batch_norm, "pooled")
        rates = [rate * 16 // output_stride for rate in ATROUS_RATES]
        self.branches = [make_conv_norm(filters, 1, batch_norm, "branch_0")] + [
            make_conv_norm(filters, 3, batch_norm, f"branch_{number}", rate)
            for number, rate in enumerate(rates, start=1)
        ]
        self.project = make_conv_norm(filters, 1, batch_norm, "project")

    def build(self, shape: Shape) -> None:
        """Creates all variables."""
        for layer in [self.pooled, *self.branches]:
            layer.build(shape)
        self.project.build((*shape[:-1], (1 + len(self.branches)) * self.filters))

    def compute_output_shape(self, shape: Shape) -> Shape:
        """[N, h, w, C] -> [N, h, w, filters]."""
        return (*shape[:-1], self.filters)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """[N, h, w, C] -> [N, h, w, filters]."""
        mean = tf.reduce_mean(tf.cast(x, tf.float32), [1, 2], keepdims=True)  # [N, 1, 1, C]
        mean = tf.nn.relu(self.pooled(mean, training=training))
        # What an aligned-corner resize from one pixel gives.
        mean = tf.broadcast_to(mean, tf.concat([tf.shape(x)[:3], [self.filters]], 0))
        branches = [tf.nn.relu(branch(x, training=training)) for branch in self.branches]
        return tf.nn.relu(self.project(tf.concat([mean, *branches], -1), training=training))


class Decoder(keras.layers.Layer):
    """ASPP's output at the size of a stride-4 feature, both concatenated, two 3x3, the classes.

    Args:
        num_classes: channels of the logits.
        filters: of the two 3x3 convolutions.
        low_level_filters: to which the stride-4 feature is projected.
        batch_norm: makes each BN.
    """

    def __init__(
        self,
        num_classes: int,
        filters: int,
        low_level_filters: int,
        batch_norm: MakeBatchNorm,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.low_level = make_conv_norm(low_level_filters, 1, batch_norm, "low_level")
        self.convs = [
            make_conv_norm(filters, 3, batch_norm, f"conv_{number}") for number in range(2)
        ]
        self.logits = keras.layers.Conv2D(
            num_classes,
            1,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.01),
            dtype="float32",  # in every precision policy
            data_format="channels_last",  # whatever keras.json says
            name="logits",
        )

    def build(self, encoded_shape: Shape, low_level_shape: Shape) -> None:
        """Creates all variables from the shapes of `call`'s first two arguments."""
        self.low_level.build(low_level_shape)
        channels = encoded_shape[-1] + self.low_level.filters  # type: ignore[operator]
        for conv in self.convs:
            conv.build((None, None, None, channels))
            channels = conv.filters
        self.logits.build((None, None, None, channels))

    def compute_output_shape(self, encoded_shape: Shape, low_level_shape: Shape) -> Shape:
        """The shape of the logits, from those of `call`'s first two arguments."""
        return (*low_level_shape[:-1], self.logits.filters)

    def call(self, encoded: tf.Tensor, low_level: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns float32 logits at stride 4.

        Args:
            encoded: [N, h, w, C], ASPP's output at any stride.
            low_level: [N, (H - 1) / 4 + 1, (W - 1) / 4 + 1, D].
            training: whether BN uses the batch's statistics.
        """
        encoded = resize_bilinear(encoded, sides(low_level))
        low_level = tf.nn.relu(self.low_level(low_level, training=training))
        x = tf.concat([encoded, low_level], -1)
        for conv in self.convs:
            x = tf.nn.relu(conv(x, training=training))
        return self.logits(x)

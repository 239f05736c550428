"""The network that a Genotype describes: stem, one cell per layer of the path, ASPP, decoder.

Built with the published genotype it is the Auto-DeepLab of the paper's Table 2 (Fig. 3, Sec. 5.2).

A side of 32 n + 1 pixels has (d - 1) / s + 1 features at stride s, so levels halve and double
exactly, whatever kind of layer does it. The network pads every image to such a size itself and cuts
its logits back.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from auto_deeplab.network.deeplab_head import ASPP, DROPOUT_KEEP_PROB, Decoder
from auto_deeplab.network.operations import OPERATIONS, ConvNorm, Shape, shrink_shape
from auto_deeplab.space import search_space
from auto_deeplab.space.genotype import Block, Genotype
from official.normalization import BatchNorm, MakeBatchNorm
from official.preprocessing import network_input
from official.resizing import network_size, resize_bilinear, sides
from official.sizes import OWN_SIZE, Sizes

# What is folded into an example's seed, one number per use.
DROP_PATH_STREAM, DROPOUT_STREAM = 0, 1


class Stem(keras.layers.Layer):
    """Three 3x3 convolutions of stride 2, 1, 2, each with BN; ReLU between them.

    Args:
        filters: output channels of the three.
        batch_norm: makes each BN.
    """

    def __init__(self, filters: Sequence[int], batch_norm: MakeBatchNorm, name: str) -> None:
        super().__init__(name=name)
        self.convs = [
            ConvNorm(channels, 3, stride=stride, batch_norm=batch_norm, name=f"conv_{number}")
            for number, (channels, stride) in enumerate(zip(filters, (2, 1, 2), strict=True))
        ]

    def build(self, shape: Shape) -> None:
        """Creates all variables."""
        for conv in self.convs:
            conv.build(shape)
            shape = shrink_shape(shape, conv.stride, conv.filters)

    def compute_output_shape(self, shape: Shape) -> tuple[Shape, Shape]:
        """The shapes of what `call` returns for images of this shape."""
        shapes = [shape]
        for conv in self.convs:
            shapes.append(shrink_shape(shapes[-1], conv.stride, conv.filters))
        return shapes[-2], shapes[-1]

    def call(self, x: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns H^-1 at stride 2 and H^0 at stride 4, both before their ReLU."""
        x = tf.nn.relu(self.convs[0](x, training=training))
        half = self.convs[1](x, training=training)
        return half, self.convs[2](tf.nn.relu(half), training=training)


class Cell(keras.layers.Layer):
    """The blocks of a cell: each the sum of two operations on inputs or earlier blocks.

    Args:
        blocks: a cell of a Genotype: two (input, operation) per block.
        filters: C, the channels of every block.
        stride: of the operations on the cell's two inputs, 1 or 2.
        batch_norm: makes each BN.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        filters: int,
        *,
        stride: int = 1,
        batch_norm: MakeBatchNorm,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        self.filters = filters
        self.sources = [source for block in blocks for source, _ in block]
        self.names = [operation for block in blocks for _, operation in block]
        # A flat list, left and right of every block in turn.
        self.operations = [
            OPERATIONS[operation](
                filters=filters,
                stride=stride if source < 2 else 1,
                batch_norm=batch_norm,
                name=f"block_{index // 2}_{('left', 'right')[index % 2]}",
            )
            for index, (source, operation) in enumerate(zip(self.sources, self.names, strict=True))
        ]

    def build(self, shape: Shape) -> None:
        """Creates all variables from the shape of either input."""
        for operation in self.operations:
            operation.build((*shape[:-1], self.filters))

    def call(
        self,
        first: tf.Tensor,
        second: tf.Tensor,
        training: bool = False,
        drop_path: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the concatenation of the B blocks.

        Args:
            first, second: H^{l-1} and H^{l-2}, brought to [N, H, W, C] both.
            training: whether BN uses the batch's statistics.
            drop_path: what each operation's output is multiplied by per example, [N, 2 B] with the
                left and right one of every block in turn; skip_connect is never dropped.

        Returns:
            [N, ceil(H / stride), ceil(W / stride), B * C].
        """
        states = [first, second]
        for block in range(len(self.operations) // 2):
            outputs = []
            for index in (2 * block, 2 * block + 1):
                y = self.operations[index](states[self.sources[index]], training=training)
                if drop_path is not None and self.names[index] != search_space.SKIP_CONNECT:
                    y *= drop_path[:, index, None, None, None]
                outputs.append(y)
            states.append(outputs[0] + outputs[1])
        return tf.concat(states[2:], -1)


class PathCell(keras.layers.Layer):
    """A cell of the path: both inputs are brought to one size and C channels, then `Cell`.

    Args:
        blocks: a cell of a Genotype.
        filters: C.
        levels: of H^{l-2}, H^{l-1} and the cell itself. Where the cell's is finer than that of
            H^{l-1}, H^{l-1} is doubled first; where it is coarser, the cell has stride 2.
        batch_norm: makes each BN.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        filters: int,
        levels: tuple[int, int, int],
        batch_norm: MakeBatchNorm,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.filters, self.levels = filters, levels
        self.first = ConvNorm(filters, 1, batch_norm=batch_norm, name="first")
        self.second = ConvNorm(filters, 1, batch_norm=batch_norm, name="second")
        self.stride = 2 if levels[2] > levels[1] else 1
        self.blocks = Cell(
            blocks, filters, stride=self.stride, batch_norm=batch_norm, name="blocks"
        )
        self.output_channels = len(blocks) * filters

    def build(self, first_shape: Shape, second_shape: Shape) -> None:
        """Creates all variables from the shapes of `call`'s first two arguments."""
        self.first.build(first_shape)
        # H^{l-2} is taken as it is where it has C channels already.
        self.projects_second = second_shape[-1] != self.filters
        if self.projects_second:
            self.second.build(second_shape)
        self.blocks.build((*first_shape[:-1], self.filters))

    def compute_output_shape(self, first_shape: Shape, second_shape: Shape) -> Shape:
        """The shape of H^l from those of H^{l-1} and H^{l-2}."""
        _, last, own = self.levels
        if own < last:
            batch, height, width, channels = first_shape
            first_shape = (batch, *map(_double, (height, width)), channels)
        return shrink_shape(first_shape, self.stride, self.output_channels)

    def call(
        self,
        first: tf.Tensor,
        second: tf.Tensor,
        training: bool = False,
        drop_path: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns H^l from H^{l-1} and H^{l-2} as they left their cells; see `Cell.call`."""
        first, second = self.adapt_inputs(first, second, training)
        return self.blocks(first, second, training=training, drop_path=drop_path)

    def adapt_inputs(
        self, first: tf.Tensor, second: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns H^{l-1} and H^{l-2} as the blocks take them: of one size, with C channels."""
        before_last, last, own = self.levels
        if own < last:
            height, width = sides(first)
            first = resize_bilinear(first, (2 * height - 1, 2 * width - 1))
        if before_last != min(last, own):
            second = resize_bilinear(second, sides(first))
        first = self.first(tf.nn.relu(first), training=training)
        if self.projects_second:
            second = self.second(tf.nn.relu(second), training=training)
        return first, second


def _double(side: int | None) -> int | None:
    """The side of a map whose level is one finer, corners aligned."""
    return None if side is None else 2 * side - 1


@keras.saving.register_keras_serializable(package="auto_deeplab")
class Network(keras.Model):
    """The segmentation network of a genotype.

    A Keras model: it can be compiled and fitted to any data of (image, label), saved as .keras
    and loaded where this module has been imported, cloned, and summarised once it is built. It
    computes in the precision that keras.config.dtype_policy() names when it is made; its variables
    and its logits are float32.

    Args:
        genotype: path and cells.
        num_classes: channels of the logits.
        filter_multiplier: F; the cells of level k have C = F * 2^k filters. Table 2's
            Auto-DeepLab-S, -M and -L have 20, 32 and 48.
        stem_filters: channels of the stem's three convolutions.
        batch_norm_decay: share of the old moving statistics kept at each step. A training of T
            steps needs one whose T-th power is near 0, or it is evaluated with the initial
            statistics.
        fine_tune_batch_norm: False uses BN's moving statistics in training too, and leaves them.
        sync_batch_norm: whether BN normalises by the global batch's statistics or by each
            replica's.
        drop_path_keep_prob: in (0, 1], for the last cell at the last step; see
            `schedule_drop_path`.
        head_filters: channels of ASPP and decoder.
        low_level_filters: channels of the decoder's stride-4 feature.
        class_names: what the classes are called, if that is known.
        palette: (red, green, blue) in 0..255 of each class, if that is known.
        sizes: what was done to the sizes of the images that it was trained on.
        seed: where the seeds begin that `call` draws when it is given none; None: anywhere, or
            where keras.utils.set_random_seed says.

    Attributes:
        genotype: the argument.
        class_names, palette: the arguments.
        sizes: the scale of the images that it was trained on, if that is known: as large as things
            were there they should be in the images that it is given. `sizes.answer(network,
            images)` sees to it, and gives logits of the images' own size.

    Raises:
        ValueError: stem_filters are not three, drop_path_keep_prob is not in (0, 1], or there are
            not as many names or colours as classes.
    """

    def __init__(
        self,
        genotype: Genotype,
        *,
        num_classes: int,
        filter_multiplier: int = 20,
        stem_filters: Sequence[int] = (64, 64, 128),
        batch_norm_decay: float = 0.9997,
        fine_tune_batch_norm: bool = True,
        sync_batch_norm: bool = True,
        drop_path_keep_prob: float = 1.0,
        head_filters: int = 256,
        low_level_filters: int = 48,
        class_names: Sequence[str] | None = None,
        palette: Sequence[Sequence[int]] | None = None,
        sizes: Sizes = OWN_SIZE,
        seed: int | None = None,
    ) -> None:
        # A fixed name, as checkpoints go by the variables' paths. No autocast: images and
        # `progress` stay float32 here, whatever precision the layers compute in.
        super().__init__(name="network", autocast=False)
        if len(stem_filters) != 3:
            raise ValueError(f"stem_filters is {stem_filters}: the stem has three convolutions")
        if not 0.0 < drop_path_keep_prob <= 1.0:
            raise ValueError(f"drop_path_keep_prob is {drop_path_keep_prob}: it must be in (0, 1]")
        for name, values in (("class_names", class_names), ("palette", palette)):
            if values is not None and len(values) != num_classes:
                raise ValueError(f"{name} has {len(values)} entries for {num_classes} classes")
        self._options = {
            "num_classes": num_classes,
            "filter_multiplier": filter_multiplier,
            "stem_filters": tuple(stem_filters),
            "batch_norm_decay": batch_norm_decay,
            "fine_tune_batch_norm": fine_tune_batch_norm,
            "sync_batch_norm": sync_batch_norm,
            "drop_path_keep_prob": drop_path_keep_prob,
            "head_filters": head_filters,
            "low_level_filters": low_level_filters,
            "seed": seed,
        }
        self.genotype = genotype
        self.class_names, self.palette = class_names, palette
        self.sizes = sizes
        self.fine_tune_batch_norm = fine_tune_batch_norm
        self.drop_path_keep_prob = drop_path_keep_prob
        batch_norm = partial(BatchNorm, momentum=batch_norm_decay, synchronized=sync_batch_norm)
        path = genotype.path
        self.stem = Stem(stem_filters, batch_norm, name="stem")
        self.cells = [
            PathCell(
                genotype.cell(number + 1),
                filter_multiplier * 2**level,
                (before_last, last, level),
                batch_norm,
                name=f"cell_{number}",
            )
            for number, (before_last, last, level) in enumerate(
                zip((-1, 0, *path), (0, *path), path, strict=False)
            )
        ]
        self.aspp = ASPP(head_filters, search_space.stride(path[-1]), batch_norm, name="aspp")
        self.decoder = Decoder(
            num_classes, head_filters, low_level_filters, batch_norm, name="decoder"
        )
        # The decoder takes the last output at stride 4 before the path first leaves it (layer 0 is
        # the stem).
        self.low_level_layer = next(
            (layer for layer, level in enumerate(path) if level > 0), len(path)
        )

    def get_config(self) -> dict[str, Any]:
        """The arguments that make this network again, as plain JSON; for `from_config`."""
        config = {
            "genotype": json.loads(self.genotype.to_json()),
            **self._options,
            "class_names": self.class_names,
            "palette": None if self.palette is None else np.asarray(self.palette).tolist(),
            "sizes": self.sizes.to_options(),
        }
        return dict(json.loads(json.dumps(config)))  # with lists for tuples

    @classmethod
    def from_config(cls, config: Mapping[str, Any], custom_objects: Any = None) -> Self:
        """Makes an unbuilt network from what `get_config` returned.

        Raises:
            ValueError, KeyError, TypeError: it is not such a config.
        """
        genotype = Genotype.from_json(json.dumps(config["genotype"]))
        return cls(**{**config, "genotype": genotype, "sizes": Sizes.from_options(config["sizes"])})

    def build(self, input_shape: Shape) -> None:
        """Creates every variable.

        Args:
            input_shape: [N, H, W, 3] of the images. The network takes images of any other size too;
                these sizes, of which each may be None, are those that `summary` shows.
        """
        batch, height, width, channels = input_shape
        padded = (None if side is None else network_size(side) for side in (height, width))
        shape = (batch, *padded, channels)
        self.stem.build(shape)
        shapes = list(self.stem.compute_output_shape(shape))  # of layers -1, 0, 1, ...
        for cell in self.cells:
            cell.build(shapes[-1], shapes[-2])
            shapes.append(cell.compute_output_shape(shapes[-1], shapes[-2]))
        self.aspp.build(shapes[-1])
        encoded_shape = self.aspp.compute_output_shape(shapes[-1])
        self.decoder.build(encoded_shape, shapes[1 + self.low_level_layer])
        # Made last, as without a seed it draws one where the weights have drawn theirs. Its state
        # is none of the network's: held by a function, Keras does not count it among `variables`,
        # and no checkpoint has it.
        generator = keras.random.SeedGenerator(self._options["seed"])
        self._draw_seeds = partial(draw_seeds, generator)

    def call(
        self,
        images: tf.Tensor,
        training: bool = False,
        seeds: tf.Tensor | None = None,
        progress: tf.Tensor | float | None = None,
    ) -> tf.Tensor:
        """Returns logits, float32 [N, H, W, num_classes].

        Args:
            images: float32 or uint8 [N, H, W, 3] of any size, values 0..255.
            training: whether dropout and drop path act and BN, if fine-tuned, uses batch
                statistics.
            seeds: int32 [N, 2]; what is dropped from an example in training depends on its seed
                alone, not on the rest of the batch. None, as in `fit`: new ones at each call, drawn
                by a keras.random.SeedGenerator.
            progress: t / T, the share of training that is done, by which drop path grows. None, as
                in `fit`, which does not know T: drop path has its final strength from the first
                step on.
        """
        size = sides(images)
        x = network_input(images)
        padded_size = sides(x)
        batch_norm_training = training and self.fine_tune_batch_norm
        if training and seeds is None:
            seeds = self._draw_seeds(tf.shape(images)[0])
        drop_path = self._draw_drop_path(seeds, progress) if training else None

        outputs = list(self.stem(x, training=batch_norm_training))  # from layer -1 on
        for number, cell in enumerate(self.cells):
            outputs.append(
                cell(
                    outputs[-1],
                    outputs[-2],
                    training=batch_norm_training,
                    drop_path=None if drop_path is None else drop_path[:, number],
                )
            )
        x = self.aspp(tf.nn.relu(outputs[-1]), training=batch_norm_training)
        if training:
            x = apply_dropout(x, seeds)
        low_level = outputs[1 + self.low_level_layer]
        logits = self.decoder(x, low_level, training=batch_norm_training)
        return resize_bilinear(logits, padded_size)[:, : size[0], : size[1]]

    def _draw_drop_path(self, seeds: tf.Tensor, progress: Any) -> tf.Tensor | None:
        """What operations' outputs are multiplied by, [N, L, 2 B]; None without drop path."""
        if self.drop_path_keep_prob == 1.0:
            return None
        progress = 1.0 if progress is None else progress
        keep = schedule_drop_path(self.genotype.num_layers, self.drop_path_keep_prob, progress)
        shape = (self.genotype.num_layers, 2 * self.genotype.num_blocks)
        return make_keep_mask(draw_uniform(seeds, DROP_PATH_STREAM, shape), keep[:, None])


def schedule_drop_path(num_layers: int, keep_prob: float, progress: tf.Tensor | float) -> tf.Tensor:
    """The share of operations that ScheduledDropPath keeps in each cell, float32 [L].

    In cell l of L, when the share t / T of the training is done, it is
    1 - t / T * l / L * (1 - keep_prob): all of them at first, `keep_prob` in the last cell at last.

    Args:
        num_layers: L.
        keep_prob: in (0, 1].
        progress: t / T; what is above 1 counts as 1.
    """
    depth = tf.range(1, num_layers + 1, dtype=tf.float32) / num_layers
    return 1.0 - tf.minimum(1.0, tf.cast(progress, tf.float32)) * depth * (1.0 - keep_prob)


def apply_dropout(x: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
    """Dropout of [N, h, w, C] by the examples' own seeds, int32 [N, 2]."""
    mask = make_keep_mask(draw_uniform(seeds, DROPOUT_STREAM, tf.shape(x)[1:]), DROPOUT_KEEP_PROB)
    return x * tf.cast(mask, x.dtype)


def make_keep_mask(noise: tf.Tensor, keep: tf.Tensor | float) -> tf.Tensor:
    """1 / keep where `noise`, uniform on [0, 1], is up to `keep`, else 0: 1 on average."""
    return tf.where(noise <= keep, 1.0 / keep, 0.0)


def draw_seeds(generator: keras.random.SeedGenerator, count: tf.Tensor | int) -> tf.Tensor:
    """Seeds for `count` examples, int32 [count, 2]: new ones at each call and on each replica."""
    seeds = keras.random.randint((count, 2), 0, tf.int32.max, "int32", seed=generator)
    context = tf.distribute.get_replica_context()  # every replica has a copy of the generator
    return seeds if context is None else seeds + context.replica_id_in_sync_group


def draw_uniform(seeds: tf.Tensor, stream: int, shape: Any) -> tf.Tensor:
    """Float32 [N, *shape], uniform on [0, 1], example by example from seeds int32 [N, 2]."""

    def draw(seed: tf.Tensor) -> tf.Tensor:
        # XLA draws other floats from a seed than the kernels do, but the same integers, if the seed
        # is not negative.
        seed = tf.random.fold_in(seed, stream) & tf.int32.max
        bits = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int32)
        return tf.cast(bits, tf.float32) * 2.0**-32 + 0.5

    return tf.map_fn(draw, seeds, fn_output_signature=tf.float32)

"""The costs of all pieces that the networks of a search space are made of, measured once.

A piece is a layer of a derived network on maps of one size: an operation at a level and stride, the
projections of a cell's two inputs for the levels that they come from, ASPP at a level, ... What any
network costs is the sum over its pieces; `expected_cost` adds them up. The table is a JSON file:

    {"format": 1, "metric": "latency", "unit": "ms", "settings": {"filter_multiplier": 20, ...},
     "pieces": {"stem": 1.9, "operation sep_conv_3x3 0 1": 0.7, ...}}
"""

import hashlib
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import keras
import tensorflow as tf

from auto_deeplab.network.network import Cell, Network, PathCell
from auto_deeplab.network.operations import OPERATIONS
from auto_deeplab.space import search_space
from auto_deeplab.space.genotype import Genotype
from official import latency, model_cost
from official.files import make_directory, read_small, write_atomically
from official.normalization import BatchNorm
from official.preprocessing import network_input
from official.progress import Progress
from official.resizing import network_size, resize_bilinear

FORMAT = 1
UNITS = {"multiply_adds": "billions", "latency": "ms"}
SETTINGS = (
    *("filter_multiplier", "num_blocks", "operations", "crop_size"),
    *("stem_filters", "head_filters", "num_classes"),
)
"""What a table is measured for: flags of train.py, and keys of its `settings`."""

BATCH_NORM = partial(BatchNorm, momentum=0.9)  # it is not trained here

Key = tuple[str | int, ...]
Piece = tuple[Callable[..., Any], Sequence[tf.TensorSpec]]


@dataclass(frozen=True)
class CostTable:
    """The costs of all pieces, in UNITS[metric].

    Attributes:
        metric: a key of UNITS.
        settings: SETTINGS, and for the latency device and precision; plain JSON.
        pieces: the cost of every piece of `list_pieces`, >= 0, by the key's words.
    """

    metric: str
    settings: Mapping[str, Any]
    pieces: Mapping[str, float]

    def __call__(self, *key: str | int) -> float:
        """The cost of a piece; see `list_pieces`."""
        return self.pieces[_join(key)]

    def cost_of_inputs(self, layer: int, before_last: int, last: int, level: int) -> float:
        """The cost of bringing the two inputs of a cell in layer 1..L to its size and channels.

        Args:
            layer: of the cell.
            before_last, last, level: levels of H^{l-2}, of H^{l-1} and of the cell.
        """
        return self("inputs", _merge_layers(layer), before_last, last, level)

    def to_json(self) -> str:
        """The table as JSON text, one piece a line."""
        content = {
            "format": FORMAT,
            "metric": self.metric,
            "unit": UNITS[self.metric],
            "settings": self.settings,
            "pieces": self.pieces,
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote.

        Raises:
            ValueError: the text is no cost table, or not a whole one.
        """
        try:
            content = json.loads(text)
            table = cls(content["metric"], content["settings"], content["pieces"])
            names = {_join(key) for key in list_pieces(table.settings["operations"])}
            whole = (
                (content["format"], content["unit"]) == (FORMAT, UNITS[table.metric])
                and table.settings.keys() >= set(SETTINGS)
                and table.pieces.keys() == names
                and all(0 <= value < math.inf for value in table.pieces.values())
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise ValueError(f"not a whole cost table of format {FORMAT}")
        return table

    def digest(self) -> str:
        """12 hex digits, equal for equal content whatever the file is called."""
        content = json.dumps([self.metric, self.settings, self.pieces], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file at once: a reader sees the old file or the new one, whole."""
        make_directory(Path(path).parent)
        write_atomically(path, self.to_json())


def load(path: str | os.PathLike[str]) -> CostTable:
    """Reads the file that `CostTable.save` wrote.

    Raises:
        ValueError: it cannot be read, or is no cost table; one line that names it.
    """
    try:
        return CostTable.from_json(read_small(path).decode("utf-8", errors="replace"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"{path} is no cost table ({error}): --mode=profile writes one") from None


def list_pieces(operations: Sequence[str]) -> list[Key]:
    """Lists the keys of the pieces of all networks over `operations`.

    ("stem",)
    ("operation", name, level, stride): at the cell's own level. `none` has no piece.
    ("inputs", layer, before last, last, level): both inputs of a cell of `level` whose
      H^{l-2} and H^{l-1} are of the first two levels. The layer is 1, 2 or 3, for all the later
      ones: the first two layers take stem tensors, which have channel counts of their own.
    ("blocks", level): the sums and the concatenation of a cell, which are no multiply-adds.
    ("aspp", level): of the last layer.
    ("decoder", "cell" or "stem"): by where its stride-4 feature comes from.

    Raises:
        ValueError: see search_space.validate_operations.
    """
    levels = range(search_space.NUM_LEVELS)
    keys: list[Key] = [("stem",)]
    for name in search_space.validate_operations(operations):
        if name != search_space.NONE:
            # Nothing leads down to the finest level.
            keys += [
                ("operation", name, level, stride)
                for level in levels
                for stride in ((1, 2) if level else (1,))
            ]
    for layer in (1, 2, search_space.NUM_LEVELS + 1):  # the last one has all triples of levels
        keys += [("inputs", _merge_layers(layer), *triple) for triple in list_level_triples(layer)]
    keys += [(name, level) for name in ("blocks", "aspp") for level in levels]
    return [*keys, ("decoder", "cell"), ("decoder", "stem")]


def list_level_triples(layer: int) -> Iterator[tuple[int, int, int]]:
    """Lists all levels (of layer - 2, of layer - 1, of layer) that a path can have in turn.

    The stem's output at stride 4 is layer 0, its tensor at stride 2 is layer -1 and has level -1.
    """
    for level in search_space.levels_at(layer):
        for last in search_space.predecessors(layer, level):
            for before_last in search_space.predecessors(layer - 1, last) or (-1,):
                yield before_last, last, level


def measure(settings: Mapping[str, Any], metric: str) -> CostTable:
    """Measures all pieces, with progress.

    Multiply-adds are counted in traced graphs. Latency is the median time of one image on the
    default device in the current precision, less that of a function that does nothing: a network
    is called once, not once per piece.

    Args:
        settings: SETTINGS, the flags' values.
        metric: a key of UNITS.
    """
    settings = {name: settings[name] for name in SETTINGS}
    build = _Builder(**settings)
    idle = 0.0
    if metric == "latency":
        settings |= {
            "device": latency.describe_device(),
            "precision": keras.config.dtype_policy().name,
        }
        idle = _measure(tf.identity, [tf.TensorSpec([1], tf.float32)])
    keys = list_pieces(settings["operations"])
    pieces = {}
    with Progress("profile", len(keys), unit="pieces") as progress:
        for key in keys:
            function, inputs = build(key)
            if metric == "latency":
                value = max(0.0, _measure(function, inputs) - idle)
            else:
                value = model_cost.count_multiply_adds(function, inputs) / 1e9
            pieces[_join(key)] = value
            progress.advance()
    return CostTable(metric, settings, pieces)


class _Builder:
    """Makes the pieces out of the layers of real networks. The arguments are SETTINGS."""

    def __init__(
        self,
        filter_multiplier: int,
        num_blocks: int,
        operations: Sequence[str],
        crop_size: Sequence[int],
        stem_filters: Sequence[int],
        head_filters: int,
        num_classes: int,
    ) -> None:
        self.filters = [filter_multiplier * 2**level for level in range(search_space.NUM_LEVELS)]
        self.num_blocks, self.crop_size = num_blocks, crop_size
        self.sides = [network_size(side) for side in crop_size]
        self.stem_channels = {-1: stem_filters[1], 0: stem_filters[2]}  # by layer
        operation = next(name for name in operations if name != search_space.NONE)
        cell = (((0, operation), (1, operation)),) * num_blocks
        # One for every last level; the decoder's stride-4 feature is a cell's in the first alone.
        self.networks = [
            Network(
                Genotype(path, (cell,)),
                num_classes=num_classes,
                filter_multiplier=filter_multiplier,
                stem_filters=stem_filters,
                head_filters=head_filters,
            )
            for path in ((0,), (1,), (1, 2), (1, 2, 3))
        ]

    def __call__(self, key: Key) -> Piece:
        """The function of a piece, whose layer is built, and what it takes."""
        kind, *which = key
        return getattr(self, f"_make_{kind}")(*which)

    def _make_stem(self) -> Piece:
        image = tf.TensorSpec([1, *self.crop_size, 3], tf.float32)
        stem = self.networks[0].stem
        stem.build(image.shape)
        return lambda images: stem(network_input(images)), [image]

    def _make_operation(self, name: str, level: int, stride: int) -> Piece:
        x = self._specify_map(level - (stride == 2), self.filters[level])
        layer = OPERATIONS[name](
            filters=self.filters[level], stride=stride, batch_norm=BATCH_NORM, name=name
        )
        layer.build(x.shape)
        return layer, [x]

    def _make_inputs(self, layer: int, before_last: int, last: int, level: int) -> Piece:
        first = self._specify_map(last, self._count_channels(layer - 1, last))
        second = self._specify_map(before_last, self._count_channels(layer - 2, before_last))
        cell = PathCell((), self.filters[level], (before_last, last, level), BATCH_NORM, "inputs")
        cell.build(first.shape, second.shape)
        return cell.adapt_inputs, [first, second]

    def _make_blocks(self, level: int) -> Piece:
        # Identities, so that sums and concatenation are all that is left. The sums differ, lest
        # TensorFlow compute one for all.
        skip = search_space.SKIP_CONNECT
        blocks = [((0, skip), (1 + block, skip)) for block in range(self.num_blocks)]
        x = self._specify_map(level, self.filters[level])
        cell = Cell(blocks, self.filters[level], batch_norm=BATCH_NORM)
        cell.build(x.shape)
        return cell, [x, x]

    def _make_aspp(self, level: int) -> Piece:
        x = self._specify_map(level, self._count_channels(3, level))
        aspp = self.networks[level].aspp
        aspp.build(x.shape)
        # With the resizing that the decoder begins with: it depends on the level.
        size = tuple(self._specify_map(0, 1).shape[1:3])
        return lambda x: resize_bilinear(aspp(tf.nn.relu(x)), size), [x]

    def _make_decoder(self, source: str) -> Piece:
        network = self.networks[source == "stem"]
        encoded = self._specify_map(0, network.aspp.filters)
        low_level = self._specify_map(0, self._count_channels(0 if source == "stem" else 3, 0))
        network.decoder.build(encoded.shape, low_level.shape)

        def decode(encoded: tf.Tensor, low_level: tf.Tensor) -> tf.Tensor:
            logits = resize_bilinear(network.decoder(encoded, low_level), tuple(self.sides))
            return logits[:, : self.crop_size[0], : self.crop_size[1]]

        return decode, [encoded, low_level]

    def _count_channels(self, layer: int, level: int) -> int:
        """The channels of H^layer at a level."""
        return self.stem_channels.get(layer) or self.num_blocks * self.filters[level]

    def _specify_map(self, level: int, channels: int) -> tf.TensorSpec:
        """One image's features at a level -1..3."""
        size = [(side - 1) // search_space.stride(level) + 1 for side in self.sides]
        return tf.TensorSpec([1, *size, channels], keras.config.dtype_policy().compute_dtype)


def _merge_layers(layer: int) -> int:
    """The layer 1, 2 or 3 whose pieces `layer` has: all from 3 on have the same."""
    return min(layer, 3)


def _join(key: Sequence[str | int]) -> str:
    return " ".join(map(str, key))


def _measure(function: Callable[..., Any], inputs: Sequence[tf.TensorSpec]) -> float:
    return statistics.median(latency.measure(function, inputs))

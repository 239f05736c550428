"""A `Genotype`: one discrete architecture, the plain data that every step after the search takes.

Presets (Fig. 2 and 3 of the paper) have names; everything else is a small JSON file:

    {"format": 1, "path": [0, 0, 1], "cell_of_layer": null, "meta": {},
     "cells": [[[[0, "sep_conv_3x3"], [1, "skip_connect"]], [[2, "atrous_conv_5x5"], ...]]]}
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from auto_deeplab.space import search_space
from official.errors import shorten
from official.files import make_directory, read_small, write_atomically

FORMAT = 1
MOST = 1000
"""Of layers, cells and blocks: a network of more is a mistake, and would fill all memory."""

Branch = tuple[int, str]  # (input, operation)
Block = tuple[Branch, Branch]
Cell = tuple[Block, ...]


@dataclass(frozen=True)
class Genotype:
    """A path through the trellis and the cell of each of its layers.

    Attributes:
        path: the level 0..3 (stride 4 * 2^level) of every layer 1..L.
        cells: the distinct cells. A cell is a list of blocks, a block the sum of two branches
            (input, operation), where input 0 is H^{l-1}, 1 is H^{l-2} and 2 + i is block i. The
            order of the branches has no effect, and both may take the same input.
        cell_of_layer: the index into `cells` for every layer, or None: one cell for all layers.
        meta: where the architecture comes from, any JSON. No part of it: two genotypes are equal
            when they describe the same network.

    Lists are accepted for tuples, and everything is copied.

    Raises:
        ValueError: it is not an architecture of the search space; says what is wrong in one line.
    """

    path: tuple[int, ...]
    cells: tuple[Cell, ...]
    cell_of_layer: tuple[int, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        path = _integers(self.path, "path")
        cells = tuple(
            _cell(cell, f"cells[{number}]")
            for number, cell in enumerate(_list(self.cells, "cells", "cells"))
        )
        _check_path(path)
        if any(len(cell) != len(cells[0]) for cell in cells):
            raise ValueError("cells: all cells must have the same number of blocks")
        set_field = object.__setattr__  # the way into a frozen dataclass
        set_field(self, "path", path)
        set_field(self, "cells", cells)
        set_field(self, "cell_of_layer", _cell_of_layer(self.cell_of_layer, cells, len(path)))
        set_field(self, "meta", _json_copy(self.meta))

    @property
    def num_layers(self) -> int:
        """L, the number of cells on the path."""
        return len(self.path)

    @property
    def num_blocks(self) -> int:
        """B, the number of blocks of every cell."""
        return len(self.cells[0])

    def cell(self, layer: int) -> Cell:
        """The cell of a layer 1..L.

        Raises:
            IndexError: there is no such layer.
        """
        if not 1 <= layer <= self.num_layers:
            raise IndexError(f"layer {layer} of a genotype of {self.num_layers} layers")
        return self.cells[self.cell_of_layer[layer - 1] if self.cell_of_layer else 0]

    def to_json(self) -> str:
        """The genotype as JSON text, one block a line, so that a person can read and edit it."""
        cells = ",\n".join(
            "    [\n" + ",\n".join(f"      {json.dumps(block)}" for block in cell) + "\n    ]"
            for cell in self.cells
        )
        return (
            "{\n"
            f'  "format": {FORMAT},\n'
            f'  "path": {json.dumps(self.path)},\n'
            f'  "cells": [\n{cells}\n  ],\n'
            f'  "cell_of_layer": {json.dumps(self.cell_of_layer)},\n'
            f'  "meta": {json.dumps(self.meta)}\n'
            "}\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Reads what `to_json` wrote; `cell_of_layer` and `meta` may be left out.

        Raises:
            ValueError: the text is not a genotype; says what is wrong with it.
        """
        try:
            data = json.loads(text)
        except RecursionError:
            raise ValueError("not a genotype's JSON: it is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"not JSON ({error})") from None
        if not isinstance(data, dict):
            raise ValueError("not a JSON object with the keys format, path and cells")
        for key in ("format", "path", "cells"):
            if key not in data:
                raise ValueError(f"the key {key!r} is missing")
        if data["format"] != FORMAT or isinstance(data["format"], bool):
            raise ValueError(
                f"format {shorten(repr(data['format']), 60)} is not the one read here, {FORMAT}"
            )
        unknown = sorted(set(data) - {"format", "path", "cells", "cell_of_layer", "meta"})
        if unknown:
            raise ValueError(f"unknown key {shorten(repr(unknown[0]), 60)}")
        return cls(data["path"], data["cells"], data.get("cell_of_layer"), data.get("meta", {}))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file at once: a reader sees the old file or the new one, whole."""
        make_directory(Path(path).parent)
        write_atomically(path, self.to_json())

    def describe(self) -> str:
        """A few lines of text: the path as strides and every cell as a list of sums."""
        strides = " ".join(str(search_space.stride(level)) for level in self.path)
        lines = [f"path: {self.num_layers} layers at strides {strides}"]
        for number, cell in enumerate(self.cells):
            lines.append("cell:" if self.cell_of_layer is None else f"cell {number}:")
            for block, branches in enumerate(cell):
                terms = " + ".join(f"{name}({input_name(source)})" for source, name in branches)
                lines.append(f"  block {block} = {terms}")
        if self.cell_of_layer is not None:
            lines.append("cell of each layer: " + " ".join(map(str, self.cell_of_layer)))
        return "\n".join(lines)


def input_name(source: int) -> str:
    """What a branch's input is called: `H[l-1]`, `H[l-2]`, `block 0`, ..."""
    return ("H[l-1]", "H[l-2]")[source] if source < 2 else f"block {source - 2}"


PUBLISHED_CELL: Cell = (
    ((1, "atrous_conv_5x5"), (0, "sep_conv_3x3")),
    ((1, "sep_conv_3x3"), (0, "atrous_conv_3x3")),
    ((3, "sep_conv_3x3"), (1, "sep_conv_3x3")),
    ((4, "sep_conv_5x5"), (2, "sep_conv_5x5")),
    ((3, "sep_conv_5x5"), (5, "atrous_conv_5x5")),
)
"""The cell of Fig. 3, in the order of the authors' released graph."""

PRESET_PATHS: dict[str, tuple[int, ...]] = {
    "published": (0, 0, 0, 1, 2, 1, 2, 2, 3, 3, 2, 1),  # Fig. 3, found on Cityscapes
    # Fig. 2 as read here: known designs as paths of this space, with the published cell.
    "deeplabv3": (0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2),
    "conv_deconv": (0, 1, 1, 2, 2, 3, 3, 2, 2, 1, 1, 0),
    "stacked_hourglass": (1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0),
}


def load(name_or_path: str | os.PathLike[str]) -> Genotype:
    """Returns the preset of that name, or the genotype in that JSON file.

    Raises:
        ValueError: neither; one line that names the file and what is wrong with it.
    """
    name = os.fspath(name_or_path)
    if name in PRESET_PATHS:
        return Genotype(PRESET_PATHS[name], (PUBLISHED_CELL,), meta={"preset": name})
    try:
        return Genotype.from_json(read_small(name).decode("utf-8-sig"))
    except FileNotFoundError:
        presets = ", ".join(PRESET_PATHS)
        raise ValueError(
            f"genotype {name!r}: no such file, and no preset (presets are {presets})"
        ) from None
    except OSError as error:
        raise ValueError(f"genotype {name!r}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ValueError(f"genotype {name!r} is not a genotype file: not text") from None
    except ValueError as error:
        raise ValueError(f"genotype {name!r} is not a genotype file: {error}") from None


def _list(value: object, name: str, content: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{name} must be a list of {content}, not {shorten(repr(value), 60)}")
    if len(value) > MOST:
        raise ValueError(f"{name} has {len(value)} {content}: at most {MOST} are read")
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integers(value: object, name: str) -> tuple[int, ...]:
    numbers = _list(value, name, "whole numbers")
    for number in numbers:
        if not _is_integer(number):
            raise ValueError(f"{name} must hold whole numbers, not {shorten(repr(number), 60)}")
    return tuple(numbers)


def _check_path(path: Iterable[int]) -> None:
    source = 0  # the stem's output
    for layer, level in enumerate(path, start=1):
        if not 0 <= level < search_space.NUM_LEVELS:
            raise ValueError(
                f"path: level {level} of layer {layer} is not in 0..{search_space.NUM_LEVELS - 1}"
            )
        if level not in search_space.successors(layer - 1, source):
            origin = f"layer {layer - 1}" if layer > 1 else "the stem, which is at level 0,"
            raise ValueError(
                f"path: from {origin} to layer {layer} the level goes from {source} to {level}, "
                "but it can change by 1 at most"
            )
        source = level


def _cell(value: object, name: str) -> Cell:
    cell = []
    for number, pair in enumerate(_list(value, name, "blocks")):
        block = f"{name}, block {number}"
        branches = _list(pair, block, "two [input, operation] pairs")
        if len(branches) != 2:
            raise ValueError(f"{block} has {len(branches)} inputs: every block adds exactly two")
        first, second = (_branch(branch, number, block) for branch in branches)
        cell.append((first, second))
    return tuple(cell)


def _branch(value: object, block_number: int, name: str) -> Branch:
    pair = _list(value, f"{name}: a branch", "input and operation")
    if len(pair) != 2:
        raise ValueError(f"{name}: {shorten(repr(value), 60)} is not a pair [input, operation]")
    source, operation = pair
    if not _is_integer(source) or not 0 <= source < 2 + block_number:
        raise ValueError(
            f"{name}: input {shorten(repr(source), 60)} is not in 0..{1 + block_number} "
            "(0 and 1 are the previous layers, 2 + i is the earlier block i)"
        )
    if operation == search_space.NONE:
        raise ValueError(f"{name}: {search_space.NONE!r} is no operation of a finished cell")
    if operation not in search_space.KNOWN_OPERATIONS:
        raise ValueError(f"{name}: {search_space.explain_unknown_operation(operation)}")
    return source, operation


def _cell_of_layer(
    value: object, cells: tuple[Cell, ...], num_layers: int
) -> tuple[int, ...] | None:
    if value is None:
        if len(cells) > 1:
            raise ValueError(f"cell_of_layer must say which of the {len(cells)} cells a layer uses")
        return None
    numbers = _integers(value, "cell_of_layer")
    if len(numbers) != num_layers:
        raise ValueError(f"cell_of_layer has {len(numbers)} entries for {num_layers} layers")
    for number in numbers:
        if not 0 <= number < len(cells):
            raise ValueError(f"cell_of_layer: there is no cell {number}, only {len(cells)} cell(s)")
    return numbers


def _json_copy(meta: object) -> dict[str, Any]:
    if not isinstance(meta, dict):
        raise ValueError(f"meta must be an object, not {shorten(repr(meta), 60)}")
    try:
        return dict(json.loads(json.dumps(meta, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"meta must be plain JSON: {error}") from None

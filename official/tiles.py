"""Large images in tiles that overlap, each answered alone, of which the middles are kept.

A pixel that lies further from its tile's border than the network looks gets what the whole image
would give it: tiles begin at multiples of 32, so that all levels of a network see the same grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from official.resizing import STRIDE


@dataclass(frozen=True)
class Tile:
    """A part of an image.

    Attributes:
        rows, columns: what the network sees, of the image.
        kept_rows, kept_columns: the part whose answer is kept, of the image too. Those of all tiles
            make up the image, each pixel once.
    """

    rows: slice
    columns: slice
    kept_rows: slice
    kept_columns: slice

    def keep(self, answer: np.ndarray) -> np.ndarray:
        """Cuts the kept part out of the tile's answer [rows, columns, ...]."""
        top, left = self.rows.start, self.columns.start
        return answer[
            self.kept_rows.start - top : self.kept_rows.stop - top,
            self.kept_columns.start - left : self.kept_columns.stop - left,
        ]


def make_tiles(
    size: tuple[int, int], tile: tuple[int, int] | None = None, overlap: int = 0
) -> list[Tile]:
    """Lays tiles over an image, row by row.

    Args:
        size: height and width of the image.
        tile: height and width of a tile, >= overlap + 32; None: one tile, the image.
        overlap: how many pixels two neighbours share at least, >= 0; each keeps half of them.
    """
    if tile is None:
        tile = size
    rows, columns = (
        list(_split(side, part, overlap)) for side, part in zip(size, tile, strict=True)
    )
    return [
        Tile(seen_rows, seen_columns, kept_rows, kept_columns)
        for seen_rows, kept_rows in rows
        for seen_columns, kept_columns in columns
    ]


def _split(side: int, tile: int, overlap: int) -> Iterator[tuple[slice, slice]]:
    """What is seen and what is kept of each tile along a side."""
    # The last one goes back to be as large as the others, up to the 31 pixels of the grid.
    last = -(-max(0, side - tile) // STRIDE) * STRIDE
    step = (tile - overlap) // STRIDE * STRIDE
    starts = [*range(0, last, step), last] if last else [0]
    stops = [min(side, start + tile) for start in starts]
    cuts = [(start + stop) // 2 for start, stop in zip(starts[1:], stops, strict=False)]
    for start, stop, first, end in zip(starts, stops, [0, *cuts], [*cuts, side], strict=True):
        yield slice(start, stop), slice(first, end)


def join(parts: list[tuple[Tile, np.ndarray]], size: tuple[int, int]) -> np.ndarray:
    """Puts the answers [rows, columns, ...] of an image's tiles together: [*size, ...]."""
    first = parts[0][1]
    if len(parts) == 1:
        return first
    whole = np.empty((*size, *first.shape[2:]), first.dtype)
    for tile, answer in parts:
        whole[tile.kept_rows, tile.kept_columns] = tile.keep(answer)
    return whole

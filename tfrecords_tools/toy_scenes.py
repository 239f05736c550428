"""Paints toy street scenes: python -m tfrecords_tools.toy_scenes --output_dir=DIR [--seed=0 ...]

They are written in the Cityscapes layout with Cityscapes label ids, so that everything downstream
is the real path. Light, camera and colours change so much from scene to scene that colour and row
say little about a pixel's class; shape, texture and context say it.
"""

import math
import pathlib
from collections.abc import Callable
from functools import partial

import numpy as np
import tqdm
from absl import flags
from PIL import Image, ImageDraw, ImageFilter

from official.command_line import run_app
from official.errors import UsageError
from official.files import write_directory_atomically
from official.paths import define_path
from tfrecords_tools.toy_street import CIRCLE, SIDEWALK, TERRAIN, Street

# No city is in two splits, as in Cityscapes.
CITIES = {"train": ("toyford", "toyham", "toyburg"), "val": ("toyville",)}
MIN_SIZE = 32


class Plan:
    """Who stands where on a street.

    All is planned before it is painted: shadows lie under every thing, and far comes before near.
    """

    def __init__(self, street: Street):
        self.street = street
        self.bands: dict[int, list[tuple[float, int]]] = {}
        self.buildings: list[tuple[float, Callable[[], object]]] = []
        self.things: list[tuple[float, Callable[[], object]]] = []
        self.shade = Image.new("L", (street.width, street.height))
        self.shade_draw = ImageDraw.Draw(self.shade)
        for side in (-1, 1):
            self.add_side(side)
        self.add_traffic()

    def add(
        self,
        u: float,
        z: float,
        radius: float,
        height: float,
        paint: Callable[..., object],
        *args: object,
    ) -> None:
        """Adds `paint(u, z, *args)` and its shadow: that of a post of this radius and height."""
        street, sunlit = self.street, int(255 * self.street.sunny)
        if street.in_sight(u, z, reach=4):
            self.things.append((z, partial(paint, u, z, *args)))
        tip_u, tip_z = u - 0.8 * street.sun * height, z + 0.35 * height
        reach = radius / 2
        self.darken(
            [(u - reach, z), (u + reach, z), (tip_u + reach, tip_z), (tip_u - reach, tip_z)], sunlit
        )
        # Even under clouds it is dark beneath a thing.
        for centre_u, centre_z, tone in ((tip_u, tip_z, sunlit), (u, z, max(150, sunlit))):
            ring = [(centre_u + radius * a, max(centre_z + radius * b, 1.0)) for a, b in CIRCLE]
            self.darken(ring, tone)

    def darken(self, outline: list[tuple[float, float]], tone: int) -> None:
        """Puts a patch of the ground, (u, z) in metres, into shadow: tone 0 .. 255."""
        points = self.street.project([(u, 0, z) for u, z in outline])
        self.shade_draw.polygon(points.ravel().tolist(), fill=tone)

    def add_side(self, side: int) -> None:
        """One side of the street: pavement, perhaps grass, and all that stands there."""
        street, rng, half = self.street, self.street.rng, self.street.half
        walk = rng.uniform(1.8, 4.5)
        grass = rng.uniform(1.5, 7.0) if street.chance(0.55) else 0.0
        grass_first = 0 < grass < 3 and street.chance(0.5)  # between road and pavement
        edge = half + (grass if grass_first else walk)
        line = half + walk + grass
        band = [(half, TERRAIN), (edge, SIDEWALK)] if grass_first else [(half, SIDEWALK)]
        if grass and not grass_first:
            band.append((edge, TERRAIN))
        band.append((line, TERRAIN if grass or street.chance(0.4) else SIDEWALK))
        self.bands[side] = band
        walk_middle = (edge + line) / 2 if grass_first else half + walk / 2
        grass_middle = (half + edge) / 2 if grass_first else (edge + line) / 2
        self.add_buildings(side, line)
        self.add_plants(side, grass_middle if grass else walk_middle + 0.3 * walk, bool(grass))
        self.add_people(side, walk_middle, walk)
        self.add_furniture(side, walk_middle + 0.3 * walk)

    def add_buildings(self, side: int, line: float) -> None:
        """A closed row, nearly closed, houses with gardens, or a park with few."""
        street, rng = self.street, self.street.rng
        (least, most), heights = street.pick(
            (((0, 0.5), (7, 20)), ((0, 3), (6, 14)), ((3, 12), (4, 9)), ((12, 40), (4, 12)))
        )
        near = rng.uniform(2.5, 9.0)
        while near < 100:
            far, height = near + rng.uniform(7, 18), rng.uniform(*heights)
            front = line + rng.uniform(0, 0.3 if most < 1 else 2.5)
            args = (side, front, near, far, height)
            self.buildings.append((far, partial(street.paint_building, *args)))
            if side * street.sun > 0:  # the sun stands behind this row
                tip = side * (front - 0.6 * abs(street.sun) * height)
                foot = side * front
                block = [(foot, near), (foot, far), (tip, far + 2), (tip, near + 2)]
                self.darken(block, int(235 * street.sunny))
            near = far + rng.uniform(least, most)

    def add_plants(self, side: int, middle: float, grass: bool) -> None:
        """A row of trees and, on grass, bushes."""
        street, rng = self.street, self.street.rng
        if street.chance(0.6):
            for z in np.arange(rng.uniform(6, 14), 90, rng.uniform(7, 14)).tolist():
                height, width = rng.uniform(4.5, 9.5), rng.uniform(3.0, 6.0)
                self.add(side * middle, z, 0.35 * width, height, street.paint_tree, height, width)
        for _ in range(rng.integers(7) if grass else 0):
            u, z = side * (middle + rng.uniform(-0.6, 3.0)), rng.uniform(6, 45)
            high, width, leaf = (
                rng.uniform(0.8, 2.2),
                rng.uniform(1.2, 5.0),
                street.vary(street.leaf, 14),
            )
            self.add(u, z, 0.4 * width, 0.3, street.paint_foliage, -0.15, high, width, leaf)

    def add_people(self, side: int, middle: float, walk: float) -> None:
        """People on the pavement, some in groups, some of them children."""
        street, rng = self.street, self.street.rng
        for _ in range(rng.integers(1, 5)):
            u, z = side * (middle + rng.uniform(-0.45, 0.45) * walk), 5 + 21 * rng.random() ** 1.3
            for _ in range(street.pick((1, 1, 2, 3))):
                height = rng.uniform(1.5, 1.95) if street.chance(0.85) else rng.uniform(1.1, 1.4)
                self.add(u, z, 0.3, height, street.paint_person, height)
                u, z = u + side * rng.uniform(0.3, 0.8), z + rng.uniform(-0.5, 0.5)

    def add_furniture(self, side: int, inside: float) -> None:
        """Street lamps and traffic signs along the kerb, and sometimes a litter bin."""
        street, rng, kerb = self.street, self.street.rng, self.street.half + 0.5
        for z in np.arange(rng.uniform(5, 16), 40, rng.uniform(10, 22)).tolist():
            height = rng.uniform(5, 8.5)
            self.add(side * kerb, z, 0.12, height, street.paint_lamp, height)
        for _ in range(rng.integers(1, 3)):
            u, z = side * (kerb + rng.uniform(-0.1, 0.8)), rng.uniform(5, 17)
            self.add(u, z, 0.12, 2.5, street.paint_sign)
        if street.chance(0.3):
            self.add(side * inside, rng.uniform(6, 18), 0.3, 1.0, street.paint_bin)

    def add_traffic(self) -> None:
        """Cars parked along the kerbs, driving both ways and crossing; people who cross."""
        street, rng, half = self.street, self.street.rng, self.street.half
        lanes = [(-half + 1.0, math.pi, 0.55), (half - 1.0, 0.0, 0.55)]
        if half > 4.4:
            lanes += [(-0.42 * half, math.pi, 0.4), (0.42 * half, 0.0, 0.4)]
        for lane, heading, busy in lanes:
            z = rng.uniform(7.5, 16)
            while z < 70:
                if street.chance(busy):
                    u, turn = lane + rng.uniform(-0.25, 0.25), heading + rng.normal(0, 0.04)
                    self.add(u, z, 1.1, 0.6, street.paint_car, turn)
                z += rng.uniform(6, 13)
        if street.chance(0.2):
            u, z, heading = (
                rng.uniform(-half, half),
                rng.uniform(9, 20),
                street.pick((-1, 1)) * math.pi / 2,
            )
            self.add(u, z, 1.4, 0.6, street.paint_car, heading)
        for _ in range(rng.integers(1, 4) if street.chance(0.4) else 0):
            u, z, height = rng.uniform(-half, half), rng.uniform(7, 16), rng.uniform(1.5, 1.95)
            self.add(u, z, 0.3, height, street.paint_person, height)

    def paint(self) -> None:
        """Paints the street from far to near."""
        street = self.street
        street.paint_sky()
        soft = self.shade.filter(ImageFilter.BoxBlur(street.height / 128))
        street.paint_ground(self.bands, np.asarray(soft, np.float32) / 255)
        street.paint_backdrop()
        for layer in (self.buildings, self.things):
            for _, paint in sorted(layer, key=lambda item: -item[0]):
                paint()
        if street.chance(0.5):
            street.paint_bonnet()


def photograph(street: Street) -> tuple[np.ndarray, np.ndarray]:
    """Takes the picture: halves the canvas, then contrast, light, exposure, colour cast, noise.

    Returns:
        image uint8 [H, W, 3] and label ids uint8 [H, W].
    """
    rng = street.rng
    labels = np.asarray(street.canvas)[::2, ::2, 3].copy()
    height, width = labels.shape
    image = np.asarray(street.canvas.convert("RGB").reduce(2), np.float32)
    light = (
        1
        + 0.05 * street.smooth_noise(height, width, 6)
        + 0.02 * street.smooth_noise(height, width, 40)
    )
    light += rng.uniform(-0.15, 0.15) * np.linspace(-1, 1, width, dtype=np.float32)
    light += rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    exposure = np.float32(rng.uniform(0.72, 1.2) * (1 + rng.normal(0, 0.07, 3)))
    mean = image.mean()
    image = (mean + rng.uniform(0.75, 1.15) * (image - mean)) * light[..., None] * exposure
    image += rng.uniform(2, 7) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), labels


def paint_scene(
    seed: int, split: str, index: int, size: tuple[int, int] = (128, 256)
) -> tuple[np.ndarray, np.ndarray]:
    """Paints one scene; it depends on nothing but the arguments.

    Args:
        seed: of the whole dataset, >= 0.
        split: "train" or "val".
        index: number of the scene in its split, >= 0.
        size: (height, width) in pixels, each >= 32.

    Returns:
        image uint8 [H, W, 3] and Cityscapes label ids uint8 [H, W].
    """
    rng = np.random.default_rng([seed, list(CITIES).index(split), index])
    street = Street(rng, size)
    Plan(street).paint()
    return photograph(street)


def write_dataset(
    output_dir: str,
    *,
    num_train: int = 200,
    num_val: int = 50,
    size: tuple[int, int] = (128, 256),
    seed: int = 0,
) -> None:
    """Writes leftImg8bit/ and gtFine/ below output_dir, all of it or nothing.

    Args:
        output_dir: a directory that is empty or does not exist yet.
        num_train: number of training scenes.
        num_val: number of validation scenes.
        size: (height, width) in pixels, each >= 32.
        seed: equal seeds give identical files, >= 0.

    Raises:
        RunError: output_dir is not empty, or something could not be written; then nothing is there.
    """
    with write_directory_atomically(output_dir, "--output_dir") as directory:
        for split, count in (("train", num_train), ("val", num_val)):
            for index in tqdm.trange(count, desc=split, unit="scene", disable=None):
                image, labels = paint_scene(seed, split, index, size)
                _save(image, directory / "leftImg8bit" / split, index, "leftImg8bit")
                _save(labels, directory / "gtFine" / split, index, "gtFine_labelIds")
    print(f"wrote {num_train} training and {num_val} validation scenes to {output_dir}")


def _save(pixels: np.ndarray, folder: pathlib.Path, index: int, kind: str) -> None:
    cities = CITIES[folder.name]
    city = cities[index % len(cities)]
    (folder / city).mkdir(parents=True, exist_ok=True)
    path = folder / city / f"{city}_{index // len(cities):06d}_000019_{kind}.png"
    Image.fromarray(pixels).save(path, compress_level=1)


def main() -> None:
    """Reads the flags and writes the scenes."""
    values = flags.FLAGS
    try:
        height, width = (int(side) for side in values.size)
    except ValueError:
        height = width = 0
    if min(height, width) < MIN_SIZE:
        raise UsageError(
            f"--size={','.join(values.size)} must be height,width, both {MIN_SIZE} pixels or more"
        )
    write_dataset(
        values.output_dir,
        num_train=values.num_train,
        num_val=values.num_val,
        size=(height, width),
        seed=values.seed,
    )


# Defined here and not above: other commands have flags of the same names, and tests import both.
if __name__ == "__main__":
    define_path(
        "output_dir", None, "directory to create; it must not hold anything yet", required=True
    )
    flags.DEFINE_integer("num_train", 200, "training scenes", lower_bound=1)
    flags.DEFINE_integer("num_val", 50, "validation scenes", lower_bound=1)
    flags.DEFINE_list("size", ["128", "256"], "height,width of the pictures in pixels")
    flags.DEFINE_integer("seed", 0, "equal seeds give identical files", lower_bound=0)
    run_app(main)

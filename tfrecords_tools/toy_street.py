"""A street that paints itself: the camera, the light and one method per kind of thing.

Street coordinates are metres: (u, y, z) = (right of the road's axis, up, ahead of the camera). The
canvas is RGBA and has twice the picture's size; its fourth channel is the label id, so whatever is
painted is labelled, to the pixel. Walls, cars, clothes and shop fronts share one palette: a colour
says little about what a thing is, its shape and texture say it.
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw

# Cityscapes label ids (not train ids); 1 and 4 are void there.
EGO_VEHICLE, STATIC = 1, 4
ROAD, SIDEWALK, BUILDING, POLE, TRAFFIC_SIGN = 7, 8, 11, 17, 20
VEGETATION, TERRAIN, SKY, PERSON, CAR = 21, 22, 23, 24, 26

Colour = tuple[float, float, float]
Ink = tuple[int, int, int, int]  # red, green, blue, label id
Outline = tuple[tuple[float, float], ...]
Numbers = float | np.ndarray
T = TypeVar("T")

# fmt: off
PAINT: tuple[Colour, ...] = (
    (225, 222, 215), (185, 186, 188), (128, 130, 134), (72, 75, 80), (45, 48, 56),
    (165, 62, 50), (140, 88, 66), (196, 160, 112), (222, 200, 160), (206, 172, 66),
    (62, 92, 142), (118, 148, 182), (84, 108, 78), (120, 132, 96), (98, 78, 66),
)
FOLIAGE: tuple[Colour, ...] = (
    (70, 102, 50), (92, 116, 62), (52, 80, 52), (112, 118, 58),
    (150, 112, 52), (158, 84, 46), (112, 84, 60), (92, 62, 62),
)
GRASS: tuple[Colour, ...] = ((92, 120, 62), (122, 126, 74), (150, 136, 92), (120, 100, 78))
SLABS: tuple[Colour, ...] = ((128, 126, 124), (112, 112, 114), (146, 130, 114))
GLASS: tuple[Colour, ...] = ((58, 66, 78), (88, 100, 114), (40, 42, 46), (150, 164, 178))
ROOFS: tuple[Colour, ...] = ((120, 66, 52), (84, 80, 82), (100, 78, 66), (60, 62, 70))
POSTS: tuple[Colour, ...] = ((128, 130, 134), (72, 75, 80), (165, 166, 168), (84, 92, 84))
SKIN: tuple[Colour, ...] = ((226, 186, 156), (196, 146, 110), (146, 100, 72), (92, 62, 48))
HAIR: tuple[Colour, ...] = ((38, 30, 26), (84, 58, 38), (150, 116, 68), (150, 148, 146))
SKIES: tuple[tuple[Colour, Colour], ...] = (  # zenith, horizon
    ((72, 120, 188), (186, 206, 224)), ((48, 84, 150), (160, 182, 208)),
    ((148, 154, 162), (196, 196, 196)), ((98, 103, 114), (146, 148, 152)),
    ((208, 210, 212), (236, 233, 226)), ((116, 112, 148), (236, 186, 138)),
)
SIGN_FACES: tuple[tuple[Colour, Colour], ...] = (  # rim, face
    ((178, 44, 40), (226, 224, 218)), ((226, 224, 218), (52, 84, 150)),
    ((60, 60, 62), (212, 176, 56)), ((226, 224, 218), (70, 112, 82)),
    ((178, 44, 40), (208, 190, 90)),
)
SIGN_SHAPES = ((24, 0.0), (3, 0.0), (4, 0.0), (4, math.pi / 4), (8, math.pi / 8))  # corners, turn
# A car's side as (along, up) from its lower rear over the roof to its lower front, which edges of
# it are glass, and the side window.
CARS: tuple[tuple[Outline, tuple[int, int], Outline], ...] = (
    (((0, 0.3), (0, 0.88), (0.7, 0.98), (1.2, 1.45), (2.7, 1.45), (3.4, 0.98), (4.3, 0.82),
      (4.4, 0.3)), (2, 4), ((0.95, 1.0), (1.3, 1.36), (2.65, 1.36), (3.2, 1.0))),
    (((0, 0.3), (0, 0.95), (0.4, 1.5), (2.4, 1.5), (3.1, 0.98), (3.85, 0.82), (3.95, 0.3)),
     (1, 3), ((0.3, 1.02), (0.55, 1.4), (2.35, 1.4), (2.85, 1.02))),
    (((0, 0.35), (0, 1.1), (0.25, 1.75), (2.9, 1.75), (3.5, 1.1), (4.35, 0.98), (4.45, 0.35)),
     (1, 3), ((0.25, 1.15), (0.45, 1.64), (2.85, 1.64), (3.3, 1.15))),
    (((0, 0.35), (0, 1.15), (0.1, 2.0), (3.7, 2.0), (4.3, 1.15), (4.8, 0.95), (4.85, 0.35)),
     (1, 3), ((2.5, 1.2), (2.5, 1.85), (3.65, 1.85), (4.1, 1.2))),
)
# fmt: on
CIRCLE = tuple((math.sin(t), math.cos(t)) for t in np.linspace(0, 2 * math.pi, 17)[:-1].tolist())


class Street:
    """One street: what is fixed for the whole scene, and how each thing is painted.

    Attributes:
        rng: all randomness of the scene, in the order of the calls.
        height, width: of the canvas in canvas pixels: twice the picture's.
        half: the road's half width in metres.
        sun: where the sun stands: -1 far left, 1 far right. sunny: 0 (overcast) .. 1 (hard
            shadows).
        leaf: this street's foliage colour.
        canvas: RGBA; the fourth channel is the label id.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        self.rng = rng
        self.height, self.width = 2 * size[0], 2 * size[1]
        self.focal = self.height * rng.uniform(1.0, 1.5)
        self.eye = rng.uniform(1.4, 2.3)
        self.horizon = self.height * rng.uniform(0.34, 0.58)
        self.vanishing = self.width * rng.uniform(0.28, 0.72)
        self.roll = rng.uniform(-0.05, 0.05)
        self.bend = rng.uniform(-0.007, 0.007)
        self.half = rng.uniform(3.0, 6.0)
        self.lane = rng.uniform(-0.2, 0.75) * (
            self.half - 1.0
        )  # where on the road the camera drives
        self.sun = rng.uniform(-1, 1)
        self.sunny = rng.uniform(0, 1)
        self.zenith, self.haze = self.pick(SKIES)
        self.visibility = rng.uniform(70, 260)
        self.grain = rng.standard_normal((128, 128), np.float32)
        self.leaf = self.vary(self.pick(FOLIAGE), 14)
        self.canvas = Image.new("RGBA", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.canvas)

    # Tools ---------------------------------------------------------------------------------------

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, choices: Sequence[T]) -> T:
        """One of the choices, all equally likely."""
        return choices[int(self.rng.integers(len(choices)))]

    def vary(self, colour: Colour, spread: float) -> Colour:
        """The colour moved a little, in brightness more than in hue."""
        red, green, blue = (
            self.rng.normal(0, 0.4 * spread, 3) + self.rng.normal(0, spread)
        ).tolist()
        return colour[0] + red, colour[1] + green, colour[2] + blue

    def ink(self, colour: Colour, label: int, z: float, light: float = 1.0) -> Ink:
        """The colour under this light, seen through z metres of haze, together with the label."""
        clear = math.exp(-z / self.visibility)
        (red, green, blue), own, veil = colour, light * clear, 1 - clear
        haze_red, haze_green, haze_blue = self.haze
        return (
            min(max(int(own * red + veil * haze_red), 0), 255),
            min(max(int(own * green + veil * haze_green), 0), 255),
            min(max(int(own * blue + veil * haze_blue), 0), 255),
            label,
        )

    def project(self, points: object) -> np.ndarray:
        """Street coordinates [..., 3] to canvas pixels (x, y) [..., 2]; here the road bends."""
        street = np.asarray(points, np.float64)
        u, y, z = street[..., 0], street[..., 1], street[..., 2]
        pixels = np.empty((*street.shape[:-1], 2))
        x = self.vanishing + self.focal * (u - self.lane + 0.5 * self.bend * z * z) / z
        pixels[..., 0] = x
        pixels[..., 1] = (
            self.horizon + self.focal * (self.eye - y) / z + self.roll * (x - self.width / 2)
        )
        return pixels

    def in_sight(self, u: float, z: float, reach: float) -> bool:
        """Whether what reaches this many metres to both sides of (u, z) can be in the picture."""
        x, margin = float(self.project((u, 0, z))[0]), reach * self.focal / z
        return -margin < x < self.width + margin

    def polygon(self, points: object, ink: Ink) -> None:
        """Paints a polygon of street coordinates [n, 3]."""
        self.draw.polygon(self.project(points).ravel().tolist(), fill=ink)

    def upright(self, u: float, z: float, outline: Iterable[tuple[float, float]], ink: Ink) -> None:
        """Paints a flat figure at (u, z), facing the camera; outline: (right, up) in metres."""
        self.polygon([(u + right, up, z) for right, up in outline], ink)

    def disk(self, u: float, y: float, z: float, radius: float, ink: Ink) -> None:
        """Paints an upright, slightly tall ellipse."""
        (x, row), across = self.project((u, y, z)).tolist(), radius * self.focal / z
        self.draw.ellipse(
            (x - across, row - 1.12 * across, x + across, row + 1.12 * across), fill=ink
        )

    def smooth_noise(self, height: int, width: int, cells: int) -> np.ndarray:
        """Noise of about unit variance, `cells` bumps high, float32 [height, width]."""
        shape = (cells + 1, round(cells * width / height) + 2)
        coarse = Image.fromarray(self.rng.standard_normal(shape, np.float32))
        return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))

    # Sky and ground ------------------------------------------------------------------------------

    def paint_sky(self) -> None:
        """Fills the canvas with a sky that pales towards the horizon, and clouds."""
        height, width = self.height // 2, self.width // 2  # smooth: half the size will do
        zenith, haze = (np.asarray(c, np.float32) for c in (self.zenith, self.haze))
        down = np.linspace(0, self.height / self.horizon, height, dtype=np.float32)[:, None, None]
        sky = zenith + (haze - zenith) * np.minimum(down, 1)
        cloud = self.smooth_noise(height, width, 4) + 0.5 * self.smooth_noise(height, width, 12)
        cloud = np.clip(cloud - self.rng.uniform(-0.3, 1.5), 0, 1) * self.rng.uniform(0.1, 0.6)
        sky = sky + (self.rng.uniform(170, 245) - sky) * cloud[..., None]
        painted = np.full((height, width, 4), SKY, np.uint8)
        painted[..., :3] = np.clip(sky, 0, 255)
        self.canvas.paste(Image.fromarray(painted.repeat(2, axis=0).repeat(2, axis=1)))

    def paint_ground(self, bands: dict[int, list[tuple[float, int]]], shade: np.ndarray) -> None:
        """Paints everything below the horizon.

        Args:
            bands: what lies beside the road, per side (-1 left, 1 right), from the inside out:
                (distance from the axis in metres where it begins, label).
            shade: float32 [height, width], 0 in the light .. 1 in full shadow.
        """
        top = max(0, int(self.horizon - abs(self.roll) * self.width / 2))
        row = np.arange(top, self.height, dtype=np.float32)[:, None]
        x = np.arange(self.width, dtype=np.float32)
        below = row - self.horizon - self.roll * (x - self.width / 2)
        z = self.focal * self.eye / np.maximum(below, 0.3)
        u = (x - self.vanishing) * z / self.focal + self.lane - 0.5 * self.bend * z * z
        label = np.full(z.shape, ROAD, np.uint8)
        for side, band in bands.items():
            for begin, kind in band:
                label[side * u > begin] = kind
        haze, clear = np.asarray(self.haze, np.float32), np.exp(-z / self.visibility)[..., None]
        lit = self.ground_colour(u, z, label) * (1 - 0.55 * shade[top:, :, None])
        painted = np.empty((*z.shape, 4), np.uint8)
        painted[..., :3] = np.clip(haze + (lit - haze) * clear, 0, 255)
        painted[..., 3] = label
        self.canvas.paste(Image.fromarray(painted), (0, top), Image.fromarray(below > 0))

    def ground_colour(self, u: np.ndarray, z: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The colour of asphalt and its markings, slabs and grass at (u, z), float32 [..., 3]."""
        rng = self.rng
        base = np.zeros((256, 3), np.float32)
        base[ROAD] = self.vary((100, 100, 103), 16)
        base[SIDEWALK] = self.vary(self.pick(SLABS), 14)
        base[TERRAIN] = self.vary(self.pick(GRASS), 12)
        road, slabs, grass = label == ROAD, label == SIDEWALK, label == TERRAIN

        def laid(across: float, along: float) -> np.ndarray:  # the grain, lying on the ground
            return self.grain[
                (u * across).astype(np.int32) & 127, (z * along).astype(np.int32) & 127
            ]

        size = rng.uniform(0.6, 1.2)
        joint = (np.mod(u / size, 1) < 0.09) | (np.mod(z / size, 1) < 0.12)
        near = np.clip(1.3 - z / 35, 0, 1)  # what is too far to resolve would only flicker
        texture = 1 + 0.05 * road * laid(0.5, 0.12) + 0.07 * grass * laid(1, 0.5)
        texture += near * road * 0.05 * laid(14, 7)
        texture += near * grass * 0.2 * laid(16, 5)
        texture += near * slabs * (0.06 * laid(1 / size, 1 / size) - 0.22 * joint)
        colour = base[label] * texture[..., None]

        from_edge = np.abs(u) - self.half
        colour[slabs & (np.abs(from_edge - 0.1) < 0.12)] *= rng.uniform(1.1, 1.3)  # the kerb stone
        mark, dash = np.zeros(u.shape, bool), rng.uniform(4, 9)
        if self.chance(0.75):
            lane_line = 0.0 if self.half < 4.2 else self.half / 2
            mark |= (np.abs(np.abs(u) - lane_line) < 0.085) & (np.mod(z, dash) < 0.5 * dash)
        if self.chance(0.4):
            mark |= np.abs(from_edge + 0.35) < 0.08
        if self.chance(0.3):  # a zebra crossing
            mark |= (np.abs(z - rng.uniform(7, 18)) < 1.4) & (np.mod(u, 1.1) < 0.55)
        colour[mark & road] = self.vary((205, 205, 198), 12)
        return colour

    # Buildings -----------------------------------------------------------------------------------

    def paint_wall(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        height: float,
        wall: Colour,
        light: float,
    ) -> None:
        """One wall and its windows, standing on the line between two ground points (u, z)."""
        rng, (u0, z0), (u1, z1) = self.rng, start, end
        ends = self.project([(u0, 0, z0), (u1, 0, z1)])[:, 0]
        if ends.max() < 0 or ends.min() > self.width:
            return
        z = (z0 + z1) / 2

        def quads(t0: Numbers, t1: Numbers, low: Numbers, high: Numbers) -> np.ndarray:
            t = np.stack(np.broadcast_arrays(t0, t1, t1, t0), -1)
            y = np.stack(np.broadcast_arrays(low, low, high, high), -1)
            return self.project(np.stack([u0 + (u1 - u0) * t, y, z0 + (z1 - z0) * t], -1))

        def fill(quad: np.ndarray, colour: Colour, tone: float) -> None:
            self.draw.polygon(quad.ravel().tolist(), fill=self.ink(colour, BUILDING, z, tone))

        fill(quads(0, 1, 0, height), wall, light)
        columns = round(math.hypot(u1 - u0, z1 - z0) / rng.uniform(2.0, 3.4))
        floors = max(1, round(height / rng.uniform(2.8, 3.5)))
        storey, wide, tall = height / floors, rng.uniform(0.2, 0.36), rng.uniform(0.22, 0.34)
        floor, column = np.divmod(np.arange(floors * columns), max(columns, 1))
        panes = quads(
            (column + 0.5 - wide) / max(columns, 1),
            (column + 0.5 + wide) / max(columns, 1),
            (floor + 0.52 - tall) * storey,
            (floor + 0.52 + tall) * storey,
        )
        glass = self.vary(self.pick(GLASS), 8)
        frame = self.vary(self.pick((PAINT[0], POSTS[1], wall)), 6)
        frame_ink = self.ink(frame, BUILDING, z, light)
        glass_inks = [self.ink(glass, BUILDING, z, tone) for tone in (0.8, 0.95, 1.05, 1.3, 1.9)]
        kinds = (5 * rng.random(len(panes)) ** 1.5).astype(np.int32)  # few are bright
        x, row = panes[..., 0], panes[..., 1]
        seen = (
            (np.ptp(x, axis=-1) > 1.5)
            & (x.max(-1) > 0)
            & (x.min(-1) < self.width)
            & (row.max(-1) > 0)
        )
        flat = panes.reshape(-1, 8).tolist()
        for i in np.flatnonzero(seen).tolist():
            self.draw.polygon(flat[i], fill=glass_inks[kinds[i]], outline=frame_ink)
        if self.chance(0.45):  # a shop's sign over the ground floor
            fill(quads(0, 1, 0.88 * storey, 1.12 * storey), self.vary(self.pick(PAINT), 10), light)
        fill(quads(0, 1, 0.97 * height, height), wall, light * self.pick((0.75, 1.2)))

    def paint_building(
        self, side: int, line: float, near: float, far: float, height: float
    ) -> None:
        """A building with its front `line` metres from the axis, from `near` to `far` ahead."""
        wall, front = self.vary(self.pick(PAINT), 12), side * line
        back = side * (line + self.rng.uniform(7, 12))
        lit = 1 - 0.35 * self.sunny * side * self.sun
        if self.chance(0.5):  # a pitched roof: its slope, then the gable
            middle, ridge = (front + back) / 2, height + self.rng.uniform(1.5, 3.5)
            eaves = [(front, height, near), (front, height, far)]
            tiles = self.ink(self.vary(self.pick(ROOFS), 10), BUILDING, (near + far) / 2, lit)
            self.polygon([*eaves, (middle, ridge, far), (middle, ridge, near)], tiles)
            gable = [(front, height, near), (back, height, near), (middle, ridge, near)]
            self.polygon(gable, self.ink(wall, BUILDING, near, 0.85))
        self.paint_wall((front, near), (back, near), height, wall, 0.85)
        self.paint_wall((front, near), (front, far), height, wall, lit)

    def paint_backdrop(self) -> None:
        """Closes the far end of the street with houses or with trees, or leaves it open."""
        kind, z = self.rng.random(), self.rng.uniform(90, 150)
        if kind < 0.4:
            left = -z
            while left < z:
                right = left + self.rng.uniform(8, 22)
                wall, height = self.vary(self.pick(PAINT), 12), self.rng.uniform(6, 26)
                self.paint_wall((left, z), (right, z), height, wall, 1.0)
                left = right + self.rng.uniform(-2, 4)
        elif kind < 0.8:
            for u in np.arange(-z, z, 9).tolist():
                self.paint_foliage(u, z, -1, self.rng.uniform(6, 14), 15, self.vary(self.leaf, 8))

    # Plants --------------------------------------------------------------------------------------

    def paint_foliage(
        self, u: float, z: float, low: float, high: float, width: float, leaf: Colour
    ) -> None:
        """Clumps of leaves with a ragged edge, lit by the sun, from `low` to `high` metres up."""
        scale = self.focal / z
        size = w, h = max(6, int(width * scale)), max(6, int((high - low) * scale))
        left, top = np.rint(self.project((u, high, z)) - (w / 2, 0)).astype(int).tolist()
        if left + w < 0 or left > self.width or top > self.height or max(size) > 4 * self.width:
            return

        def grown(small: np.ndarray) -> np.ndarray:
            image = Image.fromarray(small.astype(np.float32))
            return np.asarray(image.resize(size, Image.Resampling.BILINEAR))

        cells = min(32, max(size))
        across = np.linspace(-1.1, 1.1, cells, dtype=np.float32)
        mass = np.full((cells, cells), -0.2, np.float32)
        clumps = self.rng.uniform((0, 0.0, 0.3), (2 * math.pi, 0.62, 0.52), (11, 3)).tolist()
        for angle, away, radius in clumps:
            dx, dy = across - away * math.cos(angle), across[:, None] - away * math.sin(angle)
            np.maximum(mass, radius * radius - dx * dx - dy * dy, out=mass)
        slope_y, slope_x = np.gradient(np.sqrt(np.maximum(mass, 0)), 2.2 / (cells - 1))
        light = 0.95 - 0.2 * slope_x * self.sun - 0.2 * slope_y * (0.5 + 0.5 * self.sunny)
        # Leaves keep their size: a cell of the grain is 0.13 m, or a canvas pixel if that is more.
        bunch = max(1.0, 0.13 * scale)
        rows, columns = (min(128, math.ceil(side / bunch)) for side in (h, w))
        y, x = (int(self.rng.integers(129 - n)) for n in (rows, columns))
        leaves = grown(self.grain[y : y + rows, x : x + columns])
        shade = np.clip(grown(light), 0.45, 1.5) * (1 + 0.25 * leaves)
        haze, clear = np.asarray(self.haze, np.float32), math.exp(-z / self.visibility)
        tile = np.full((h, w, 4), VEGETATION, np.uint8)
        tile[..., :3] = np.clip(
            haze + (np.asarray(leaf, np.float32) * shade[..., None] - haze) * clear, 0, 255
        )
        mask = grown(mass) + 0.05 * leaves > 0
        self.canvas.paste(Image.fromarray(tile), (left, top), Image.fromarray(mask))

    def paint_tree(self, u: float, z: float, height: float, width: float) -> None:
        """A trunk and, above it, the crown."""
        half, crown = 0.19 * (0.6 + height / 15), height * self.rng.uniform(0.22, 0.4)
        trunk = ((-half, 0), (half, 0), (0.7 * half, 1.6 * crown), (-0.7 * half, 1.6 * crown))
        self.upright(u, z, trunk, self.ink(self.vary((86, 72, 60), 10), VEGETATION, z))
        self.paint_foliage(u, z, crown, height, width, self.vary(self.leaf, 12))

    # Cars and people -----------------------------------------------------------------------------

    def paint_car(self, u: float, z: float, heading: float) -> None:
        """A car at (u, z); heading 0 drives away from the camera, pi towards it."""
        outline, glazed, window = self.pick(CARS)
        paint, glass = self.vary(self.pick(PAINT), 10), self.vary((62, 72, 84), 14)
        cos, sin = math.cos(heading), math.sin(heading)
        length, half = outline[-1][0], self.rng.uniform(0.82, 0.95)
        black = self.ink((28, 28, 30), CAR, z)

        def place(along: float, across: float, up: float) -> tuple[float, float, float]:
            forward = along - length / 2
            return u + forward * sin + across * cos, up, z + forward * cos - across * sin

        def board(along: float, left: float, right: float, low: float, high: float) -> list:
            return [
                place(along, *corner)
                for corner in ((left, low), (right, low), (right, high), (left, high))
            ]

        def face(points: list, ink: Ink) -> bool:
            corners = self.project(points).tolist()
            area = sum(
                a * d - b * c
                for (a, b), (c, d) in zip(corners, corners[1:] + corners[:1], strict=True)
            )
            if area < 0:  # it faces away
                self.polygon(points, ink)
            return area < 0

        for across in (-half, half):  # the dark gap under the body and the tyres' treads
            gap = ((0.25, 0.08), (length - 0.25, 0.08), (length - 0.1, 0.4), (0.1, 0.4))
            self.polygon([place(along, across, up) for along, up in gap], black)
            for axle in (0.75, length - 0.8):
                self.polygon(board(axle, 0.8 * across, across, 0, 0.4), black)
        for end in (0.2, length - 0.2):
            self.polygon(board(end, -half, half, 0.1, 0.4), black)

        for i, ((a0, y0), (a1, y1)) in enumerate(itertools.pairwise(outline)):
            light = 1.12 - 0.22 * abs(y1 - y0) / (
                abs(a1 - a0) + abs(y1 - y0)
            )  # roofs catch the sky
            strip = [
                place(a0, half, y0),
                place(a1, half, y1),
                place(a1, -half, y1),
                place(a0, -half, y0),
            ]
            colour, light = (glass, 1.0) if i in glazed else (paint, light)
            if face(strip, self.ink(colour, CAR, z, light)) and i in (0, len(outline) - 2):
                (end, lamp) = (a0, (190, 40, 36)) if i == 0 else (a0, (238, 234, 214))
                low, high = min(y0, y1), max(y0, y1)
                middle = low + 0.62 * (high - low)
                for left, right in ((-0.96, -0.6), (0.6, 0.96)):
                    lamps = board(end, left * half, right * half, middle, high - 0.06)
                    self.polygon(lamps, self.ink(lamp, CAR, z))
                plate = board(end, -0.26, 0.26, low + 0.12, low + 0.26)
                self.polygon(plate, self.ink((222, 220, 205), CAR, z))

        for across in (-half, half):
            lit = 0.92 + 0.25 * self.sunny * self.sun * math.copysign(1, across * cos)
            side = [place(along, across, up) for along, up in outline[:: 1 if across < 0 else -1]]
            if not face(side, self.ink(paint, CAR, z, lit)):
                continue
            self.polygon([place(a, across, y) for a, y in window], self.ink(glass, CAR, z, 0.9))
            (_, low), (_, high) = window[:2]
            middle = (window[0][0] + window[-1][0]) / 2
            pillar = ((-0.06, low), (0.06, low), (0.06, high), (-0.06, high))
            ink = self.ink(paint, CAR, z, lit)
            self.polygon([place(middle + a, across, y) for a, y in pillar], ink)
            for hub in (0.8, length - 0.85):
                for radius, tone in ((0.34, (28, 28, 30)), (0.18, (150, 150, 152))):
                    rim = [place(hub + radius * a, across, 0.34 + radius * b) for a, b in CIRCLE]
                    self.polygon(rim, self.ink(tone, CAR, z))

    def paint_person(self, u: float, z: float, height: float) -> None:
        """A person who stands or walks: legs, arms, body and head."""
        rng, k = self.rng, height / 1.75  # the outlines below are of a person of 1.75 m
        coat, trousers = self.vary(self.pick(PAINT), 12), self.vary(self.pick(PAINT), 12)
        skin, hair = self.pick(SKIN), self.pick(HAIR)
        stride, swing, hem = rng.uniform(0, 0.3), rng.uniform(0, 0.14), self.pick((0.8, 0.8, 0.6))

        def part(outline: Outline, colour: Colour, light: float = 1.0) -> None:
            self.upright(
                u, z, [(k * x, k * y) for x, y in outline], self.ink(colour, PERSON, z, light)
            )

        def ball(x: float, y: float, radius: float, colour: Colour) -> None:
            self.disk(u + k * x, k * y, z, k * radius, self.ink(colour, PERSON, z))

        for side, light in ((-1, 0.85), (1, 1.0)):
            hip, foot = 0.1 * side, (stride + 0.08) * side
            leg = ((hip - 0.1, 0.85), (hip + 0.1, 0.85), (foot + 0.08, 0.08), (foot - 0.08, 0.08))
            part(leg, trousers, light)
            shoe = (
                (foot - 0.09, 0.09),
                (foot + 0.12, 0.09),
                (foot + 0.12, 0.0),
                (foot - 0.09, 0.0),
            )
            part(shoe, (40, 36, 34))
            hand = (0.3 + swing) * side
            arm = ((0.2 * side, 1.44), (0.3 * side, 1.38), (hand + 0.06, 0.84), (hand - 0.06, 0.84))
            part(arm, coat, 0.85)
            ball(hand, 0.82, 0.06, skin)
        part(
            ((-0.2, 1.46), (0.2, 1.46), (0.27, 1.38), (0.2, hem), (-0.2, hem), (-0.27, 1.38)), coat
        )
        part(((-0.06, 1.55), (0.06, 1.55), (0.06, 1.44), (-0.06, 1.44)), skin, 0.9)
        ball(0, 1.62, 0.14, hair)
        if self.chance(0.6):  # the others look away
            ball(0, 1.59, 0.11, skin)

    # Street furniture ----------------------------------------------------------------------------

    def paint_pole(self, u: float, z: float, height: float, width: float) -> float:
        """A post, never thinner than 2.5 pixels of the picture; returns its half width."""
        half, colour = max(width / 2, 2.5 * z / self.focal), self.vary(self.pick(POSTS), 10)
        for left, light in ((-half, 1.0), (0.3 * half, 0.75)):  # lit, and its shadow side
            post = ((left, 0), (half, 0), (half, height), (left, height))
            self.upright(u, z, post, self.ink(colour, POLE, z, light))
        return half

    def paint_lamp(self, u: float, z: float, height: float) -> None:
        """A street lamp: a tall post with an arm over the road."""
        thick = 1.8 * self.paint_pole(u, z, height, 0.2)
        arm, tip = -math.copysign(self.rng.uniform(1.0, 2.0), u), height + 0.2
        beam = ((0, height), (arm, tip), (arm, tip - thick), (0, height - thick))
        self.upright(u, z, beam, self.ink((92, 95, 100), POLE, z))

    def paint_sign(self, u: float, z: float) -> None:
        """A traffic sign on its post: a disk, a triangle, a diamond, a square or an octagon."""
        top, radius = self.rng.uniform(2.3, 3.0), self.rng.uniform(0.42, 0.58)
        (rim, face), (corners, turn) = self.pick(SIGN_FACES), self.pick(SIGN_SHAPES)
        self.paint_pole(u, z, top, 0.1)
        for size, colour in ((radius, rim), (0.72 * radius, face)):
            angles = [2 * math.pi * i / corners + turn for i in range(corners)]
            plate = [(size * math.sin(t), top + size * math.cos(t)) for t in angles]
            self.upright(u, z, plate, self.ink(self.vary(colour, 8), TRAFFIC_SIGN, z))
        w, h = self.pick(((0.34, 0.1), (0.1, 0.34), (0.2, 0.2)))
        w, h = w * radius, h * radius
        symbol = ((-w, top - h), (w, top - h), (w, top + h), (-w, top + h))
        ink = (40, 40, 44) if sum(face) > 400 else (230, 228, 222)
        self.upright(u, z, symbol, self.ink(ink, TRAFFIC_SIGN, z))

    def paint_bin(self, u: float, z: float) -> None:
        """A litter bin: `static`, void in Cityscapes."""
        colour = self.vary(self.pick(PAINT), 8)
        body, lid = (
            ((-0.3, 0), (0.3, 0), (0.36, 0.95), (-0.36, 0.95)),
            ((-0.4, 0.95), (0.4, 0.95), (0, 1.2)),
        )
        self.upright(u, z, body, self.ink(colour, STATIC, z))
        self.upright(u, z, lid, self.ink(colour, STATIC, z, 0.7))

    def paint_bonnet(self) -> None:
        """The camera's own car along the bottom edge: `ego vehicle`, void in Cityscapes."""
        w, h, rise = self.width, self.height, self.rng.uniform(0.05, 0.12)
        colour = self.vary(self.pick(PAINT), 8)
        dark, bright = (self.ink(colour, EGO_VEHICLE, 0, light) for light in (0.8, 1.1))
        self.draw.ellipse((-0.25 * w, h * (1 - rise), 1.25 * w, h * (1 + 3 * rise)), fill=dark)
        self.draw.ellipse((0.2 * w, h * (1 - 0.6 * rise), 0.8 * w, h * 1.4), fill=bright)

import numpy as np
import pytest
from PIL import Image

from official.drawing import (
    LEGEND_ROW,
    MEAN,
    SWATCH,
    brighten,
    draw_checkerboard,
    draw_legend,
    draw_overlay,
    inset_legend,
)

PALETTE = [(70, 130, 180), (128, 64, 128), (0, 0, 142)]


def test_overlay_is_half_colour_and_light_borders():
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.array([[0, 0, 0, 1, 1, 1]] * 4)
    overlay = draw_overlay(image, labels, np.array(PALETTE, np.uint8))
    # Half of 100 and half of (70, 130, 180); of (128, 64, 128).
    assert overlay[1, 1].tolist() == [85, 115, 140]
    assert overlay[1, 4].tolist() == [114, 82, 114]
    # The border pixel: a quarter of (114, 82, 114) and three quarters of 255, rounded.
    assert overlay[1, 3].tolist() == [220, 212, 220]
    assert (overlay == overlay[:1]).all()


def picture(low, high):
    """A ramp from low to high, uint8 [64, 64, 3]."""
    return np.linspace(low, high, 64).round().astype(np.uint8).repeat(192).reshape(64, 64, 3)


def test_a_dark_picture_keeps_what_it_shows_under_an_overlay():
    light = picture(20, 160)  # MEAN on average
    labels = np.zeros((64, 64), int)
    shown = [
        draw_overlay(image, labels, np.array(PALETTE, np.uint8)) for image in (light, light // 4)
    ]
    # A quarter of the light gives the same picture again, but for the 3 levels lost by rounding.
    assert np.abs(shown[0].astype(int) - shown[1]).max() <= 3
    assert np.ptp(shown[1][..., 0]) > 60  # half of 140; unlit it would be an eighth


@pytest.mark.parametrize("lamp", [0, 255])
def test_brightening_keeps_order_and_range(lamp):
    dark = picture(0, 30)
    dark[:2] = lamp  # 3 % of the pixels: no factor can help now
    lighter = brighten(dark)
    assert 0.85 * MEAN < lighter.mean() / 255 < 1.15 * MEAN
    assert lighter.min() >= 0 and lighter.max() <= 255
    order = np.argsort(dark, axis=None, kind="stable")
    assert (np.diff(lighter.ravel()[order]) >= 0).all()


def test_light_and_black_pictures_stay_as_they_are():
    for image in (picture(80, 120), np.zeros((4, 4, 3), np.uint8)):
        np.testing.assert_array_equal(brighten(image).round(), image)


def test_void_is_dark_grey_with_stripes():
    image = np.full((20, 20, 3), (60, 120, 180), np.uint8)
    overlay = draw_overlay(image, np.full((20, 20), 3), np.array(PALETTE, np.uint8))
    # 0.35 of the mean, 120, and 150 more on the diagonals: two pixels in ten.
    values, counts = np.unique(overlay, return_counts=True)
    assert values.tolist() == [42, 192] and counts.tolist() == [3 * 320, 3 * 80]
    assert (overlay == overlay[..., :1]).all()


def test_256_classes_leave_no_label_for_void():
    palette = np.arange(256, dtype=np.uint8)[:, np.newaxis].repeat(3, 1)
    overlay = draw_overlay(np.zeros((2, 2, 3), np.uint8), np.full((2, 2), 255, np.uint8), palette)
    assert (overlay == 128).all()  # half of 255, rounded


@pytest.mark.parametrize("classes", [1, 19, 256])
def test_legend_shows_every_colour_and_holds_every_name(classes):
    colours = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    palette = np.unique(colours.reshape(-1, 3), axis=0)[:classes]
    names = [f"class {index}" for index in range(classes)]
    drawn = draw_legend(names, palette)
    shown = {colour for _, colour in drawn.getcolors(drawn.width * drawn.height)}
    assert {tuple(colour) for colour in palette.tolist()} <= shown
    legend = np.asarray(drawn)
    for side in (legend[0], legend[-1], legend[:, 0], legend[:, -1]):
        assert (side == 255).all()  # nothing is cut off
    longer = draw_legend([name + " with a long name" for name in names], palette)
    assert longer.width > drawn.width


def test_legend_of_some_classes_and_a_mark():
    pattern = draw_checkerboard(SWATCH)
    marks = {"padding": pattern}
    drawn = np.asarray(draw_legend(["a", "b", "c"], PALETTE, classes=[0, 2], marks=marks))
    shown = {tuple(colour) for colour in drawn.reshape(-1, 3).tolist()}
    assert PALETTE[0] in shown and PALETTE[2] in shown and PALETTE[1] not in shown
    # The third line: its swatch stands 14 from the left, in the middle of the line.
    top = 14 + 2 * LEGEND_ROW + (LEGEND_ROW - SWATCH[0]) // 2
    inner = drawn[top + 1 : top + SWATCH[0] - 1, 15 : 14 + SWATCH[1] - 1]
    np.testing.assert_array_equal(inner, pattern[1:-1, 1:-1])


def test_legend_with_fewer_rows_has_more_columns():
    names, palette = [f"class {i}" for i in range(10)], PALETTE[:1] * 10
    one, three = (draw_legend(names, palette, max_rows=rows) for rows in (10, 4))
    assert one.height - three.height == 6 * LEGEND_ROW
    assert three.width > 2.5 * one.width


def test_checkerboard():
    board = draw_checkerboard((16, 24))
    assert board.shape == (16, 24, 3) and board.dtype == np.uint8
    assert board[::8, ::8, 0].tolist() == [[215, 255, 215], [255, 215, 255]]
    assert (board[:8, :8] == 215).all()


def test_an_inset_legend_names_the_classes_that_are_there_largest_first():
    # Rows 0..199 are class 2, 200..299 class 0; class 1 is nowhere.
    labels = np.repeat([2, 0], [200, 100])[:, None].repeat(400, 1)
    palette = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    plain = Image.new("RGB", (400, 300), "black")
    drawn = np.asarray(inset_legend(plain, labels, ["road", "car", "sky"], palette))
    there = np.nonzero(drawn.sum(-1))
    # Lower left, two rows of 36 and a margin of 28 at 0.6 of their size; the rest is untouched.
    assert there[0].min() == 300 - 60 and there[1].min() == 0 and there[1].max() < 0.6 * 400
    swatches = drawn[[-42, -20], 15]
    assert [int(colour.argmax()) for colour in swatches] == [2, 0]
    # The class that is nowhere has no swatch: nothing is green.
    values = drawn.astype(int)
    assert (values[..., 1] - np.maximum(values[..., 0], values[..., 2])).max() < 50
    tiny = Image.new("RGB", (40, 30))
    assert inset_legend(tiny, labels[:30, :40], ["road", "car", "sky"], palette) is tiny

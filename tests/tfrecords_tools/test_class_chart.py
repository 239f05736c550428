import itertools

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from official.datasets import make_voc_palette
from official.records import Description
from tfrecords_tools import class_chart
from tfrecords_tools.findings import Findings


def description(classes, void=255):
    names = tuple(f"class {i}, or one of its synonyms"[: 8 + 2 * (i % 9)] for i in range(classes))
    return Description("toy", "", names, make_voc_palette(classes), void, splits={}, options={})


def findings(pixels, void=0):
    found = Findings(records=118_287)
    found.pixels[: len(pixels)], found.pixels[255] = pixels, void
    return found


def bars(figure, split):
    """The length of the bars of a split from top to bottom, in inches."""
    return [
        patch.get_width()
        for axes in figure.axes
        for patch in axes.patches
        if isinstance(patch, Rectangle) and patch.get_label() == split
    ]


def texts(figure):
    figure.draw_without_rendering()
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def test_bars_are_square_roots_of_shares():
    # 400 of 500 valid pixels, 100, none; 500 of all 1000 are void. In val 250 of 250.
    splits = {"train": findings([400, 100, 0], 500), "val": findings([0, 0, 250])}
    figure = class_chart.draw_figure(splits, description(3))
    train, val = bars(figure, "train"), bars(figure, "val")
    longest = val[2]
    assert train == pytest.approx([longest * share**0.5 for share in (0.8, 0.2, 0, 0.5)])
    assert val == pytest.approx([0, 0, longest, 0])
    shown = [text.get_text() for text in texts(figure)]
    assert [text for text in shown if text.endswith(" %") or text == "never"][:8] == [
        *("80 %", "never", "20 %", "never", "never", "100 %", "50 %", "0 %")
    ]


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (2, ["train"]),
        (2, ["train", "val"]),
        (19, ["train", "val", "test", "train_coarse", "val_coarse", "train_extra"]),
        (21, ["train", "val", "trainval"]),
        (150, ["train", "val"]),
    ],
)
def test_texts_can_be_read(classes, names):
    rng = np.random.default_rng(classes)
    splits = {
        name: findings((1e9 * rng.dirichlet(np.full(classes, 0.2))).astype(np.int64), 10**8)
        for name in names
    }
    if "test" in splits:
        splits["test"] = findings([0], 10**8)
    figure = class_chart.draw_figure(splits, description(classes))
    width, height = figure.get_size_inches()
    assert width < 40 and height < 16
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts(figure)]
    bars = len(names) - ("test" in names)
    assert len(boxes) > (1 + bars) * (classes + 1)
    for name, box in boxes:
        assert box.x0 >= 0 and box.y0 >= 0, name
        assert box.x1 <= width * figure.dpi and box.y1 <= height * figure.dpi, name
    for (one, box), (other, other_box) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other_box), (one, other)


def test_a_split_without_labels_has_no_bars():
    splits = {"train": findings([1, 1]), "test": findings([0, 0], 100)}
    figure = class_chart.draw_figure(splits, description(2))
    assert len(bars(figure, "train")) == 3 and not bars(figure, "test")
    shown = [text.get_text() for text in texts(figure)]
    assert "test (118,287 images, no labels)" in shown and "never" not in shown


def test_file_and_nothing_to_draw(tmp_path):
    splits = {"train": findings([0, 0])}
    class_chart.draw(tmp_path / "a.png", splits, description(2))
    class_chart.draw(tmp_path / "b.png", {"train": findings([3, 1])}, description(2, void=0))
    for name in "ab":
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG" and picture.width > 600

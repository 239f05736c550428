import csv

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from official import confusion_matrix
from official.segmentation_metrics import summarize


def random_matrix(classes: int, empty: tuple[int, ...] = ()) -> np.ndarray:
    matrix = np.random.default_rng(0).integers(1, 1000, (classes, classes))
    matrix += 5000 * np.eye(classes, dtype=int)
    matrix[list(empty)] = 0
    return matrix


def draw(path, matrix, names=None, **more) -> np.ndarray:
    names = names or [f"class {index}" for index in range(len(matrix))]
    metrics = {**summarize(matrix, names), "num_images": 500}
    confusion_matrix.draw(path, matrix, metrics, **{"split": "val", "step": 90_000, **more})
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_table_survives_what_class_names_may_hold(tmp_path):
    names = ["sky", 'bus, "double-decker"', "Grün\n fläche", "truth \\ prediction", "'"]
    matrix = random_matrix(5)
    matrix[1, 2] = 2**53 + 1  # a float would lose the one
    path = tmp_path / "confusion_matrix.csv"
    path.write_text("older")
    confusion_matrix.write(path, matrix, names)
    with open(path, newline="", encoding="utf-8") as file:
        (_, *header), *rows = csv.reader(file)
    assert header == names and [row[0] for row in rows] == names
    assert [[int(count) for count in row[1:]] for row in rows] == matrix.tolist()
    assert [p.name for p in tmp_path.iterdir()] == ["confusion_matrix.csv"]


@pytest.mark.parametrize(("classes", "largest"), [(1, 1200), (2, 1200), (19, 2200), (150, 4200)])
def test_picture_is_whole_and_of_a_size_that_can_be_read(tmp_path, classes, largest):
    drawn = draw(tmp_path / "confusion.png", random_matrix(classes, empty=range(1, classes, 7)))
    height, width = drawn.shape[:2]
    assert 300 < height < largest and 300 < width < largest
    for side in (drawn[0], drawn[-1], drawn[:, 0], drawn[:, -1]):
        assert (side == 255).all()  # nothing is cut off
    assert [p.name for p in tmp_path.iterdir()] == ["confusion.png"]


@pytest.fixture
def figures(monkeypatch):
    """Matplotlib's figures in the place of the files."""
    saved = []

    def savefig(figure, file, **_):
        saved.append(figure)
        file.write(b"")

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def test_what_the_picture_says(tmp_path, figures):
    # Rows: 997, 2 and 1 of 1000 pixels; none; 1, 1 and 2 of 4.
    matrix = np.array([[997, 2, 1], [0, 0, 0], [1, 1, 2]])
    names = ["sky", "a name that is far too long to be shown in full", "$5 & <b>"]
    metrics = {"class_names": names, "num_images": 1234, "miou": 0.12345}
    confusion_matrix.draw(tmp_path / "x.png", matrix, metrics, split="test_b", step=5000)
    axes = figures[0].axes[0]
    numbers = {tuple(reversed(text.get_position())): text.get_text() for text in axes.texts}
    assert numbers == {
        **{(0, 0): "99.7", (0, 1): "0.2", (0, 2): "0.1"},
        **{(2, 0): "25.0", (2, 1): "25.0", (2, 2): "50.0"},
    }
    np.testing.assert_allclose(axes.images[0].get_array()[[0, 2]], [[99.7, 0.2, 0.1], [25, 25, 50]])
    (hatched,) = [patch for patch in axes.patches if patch.get_hatch()]
    assert hatched.get_bbox().bounds == (-0.5, 0.5, 3, 1)  # all of row 1
    title = axes.get_title(loc="left")
    for words in ("test_b", "step 5,000", "1,234 images", "mIoU 12.3 %", "hatched"):
        assert words in title
    for axis in (axes.xaxis, axes.yaxis):
        shown = [label.get_text() for label in axis.get_ticklabels()]
        assert shown == ["sky", "a name that is far too long\N{HORIZONTAL ELLIPSIS}", "$5 & <b>"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "truth")


@pytest.mark.parametrize(("classes", "numbers"), [(2, 4), (19, 19 * 19), (40, 1600), (150, 0)])
def test_numbers_stand_in_cells_that_hold_them(tmp_path, figures, classes, numbers):
    # Every cell has at least 1 % of its row, so only the space decides.
    matrix = np.full((classes, classes), 1) + 60 * np.eye(classes, dtype=int)
    metrics = {"class_names": list(map(str, range(classes))), "num_images": 1, "miou": 0.5}
    confusion_matrix.draw(tmp_path / "x.png", matrix, metrics, split="val", step=1)
    (axes, scale) = figures[0].axes
    assert len(axes.texts) == numbers
    inches = figures[0].get_size_inches() / classes
    for text in axes.texts[:1]:
        # A digit of this font is 0.7 of its size wide when bold.
        assert 0.7 * len(text.get_text()) * text.get_fontsize() / 72 < inches[0]
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        assert 5 <= label.get_fontsize() <= 72 * inches[1]
    assert "hatched" not in axes.get_title(loc="left")
    assert [text.get_text() for text in scale.get_yticklabels()][-1] == "100 %"

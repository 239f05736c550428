"""What TensorBoard shows of a run: numbers in groups, classes, alpha and beta, pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from auto_deeplab.report import figures, pages
from auto_deeplab.report.board import Pictures, describe, list_hparams
from auto_deeplab.space import decoding, genotype, search_space
from official.evaluation import Sample

NAMES = ["road", "tree", "sky"]
OPERATIONS = ["sep_conv_3x3", "skip_connect", "none"]
IDENTITY = {
    **{"operations": OPERATIONS, "num_layers": 2, "num_blocks": 2, "seed": 1},
    **{"data_dir": "x", "stem_filters": [4, 4], "gradient_clip_norm": None},
}


@pytest.fixture
def row():
    rng = np.random.default_rng(0)
    beta = np.zeros([2, 4, 3])
    for layer, source, level in search_space.edges(2):
        beta[layer - 1, source, search_space.direction(source, level)] = rng.uniform(0.1, 1)
    alpha = rng.dirichlet(np.ones(3), search_space.num_cell_edges(2))
    found = decoding.decode(alpha, beta, OPERATIONS, 2)
    return {
        **{
            "step": 7,
            "saved": 7,
            "epoch": 0.5,
            "loss_w": 1.5,
            "val_miou": 0.25,
        },
        **{"images_per_s": 3, "resumed_within": True, "skip_connects": 2, "phase": ""},
        **{"val_per_class_iou": [0.5, None, 0.0], "path": list(found.path), "cell": found.cells[0]},
        **{"alpha": alpha.tolist(), "beta": beta.tolist()},
    }


def test_numbers_stand_in_their_groups(row):
    shown = describe(row, NAMES)
    numbers = {name: value for name, value in shown.items() if np.ndim(value) == 0}
    assert numbers == {
        **{"loss/loss_w": 1.5, "validation/val_miou": 0.25, "run/epoch": 0.5},
        **{"run/images_per_s": 3.0, "architecture/skip_connects": 2.0},
        **{"iou/road": 0.5, "iou/sky": 0.0},  # no tree was there
    }
    np.testing.assert_array_equal(shown["architecture/alpha"], np.ravel(row["alpha"]))
    # Edges that do not exist, whose beta is 0, are no part of it.
    assert len(shown["architecture/beta"]) == len(search_space.edges(2))
    assert np.all(shown["architecture/beta"] >= 0.1)


@pytest.mark.parametrize(
    "odd",
    [
        {"alpha": "x", "beta": 3, "val_per_class_iou": [0.5]},
        {"alpha": [[float("nan")]], "beta": [[[None]]], "val_per_class_iou": None},
        {"alpha": [], "beta": [], "val_per_class_iou": {"road": 1}},
        {"alpha": [[1], [2, 3]], "beta": [[1.0]], "val_per_class_iou": [[0], [1], [2]]},
    ],
)
def test_what_is_odd_is_left_out(row, odd):
    shown = describe(row | odd, NAMES)
    assert shown["loss/loss_w"] == 1.5
    assert not [name for name in shown if name.startswith(("architecture/alpha", "iou/"))]
    assert "architecture/beta" not in shown


def test_a_report_without_classes_is_of_an_earlier_version(row):
    del row["val_per_class_iou"], row["alpha"], row["beta"]
    assert describe(row, NAMES)["loss/loss_w"] == 1.5


def read_colour(picture, x, y):
    return tuple(int(value) for value in picture[y, x])


def test_a_search_has_pictures(row, tmp_path):
    image = np.full([8, 10, 3], 200, np.uint8)
    truth = np.zeros([8, 10], int)
    prediction = np.ones([8, 10], int)
    palette = [(128, 64, 128), (0, 128, 0), (0, 0, 255)]
    pages.keep_samples(tmp_path, palette, [Sample("a", image, truth, prediction)] * 2)
    pictures = Pictures(tmp_path, IDENTITY)
    shown = pictures.draw(row)
    assert set(shown) == {
        *("architecture/network", "architecture/alpha_map", "predictions/0", "predictions/1"),
    }
    assert not shown.keys() & describe(row, NAMES).keys()  # TensorBoard would show one of the two
    for picture in shown.values():
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    # From left to right: the image (as JPEG has it), road, tree.
    sample = shown["predictions/0"]
    assert sample.shape == (8, 30, 3)
    assert np.abs(sample[:, :10].astype(int) - 200).max() <= 2
    assert read_colour(sample, 15, 4) == palette[0] and read_colour(sample, 25, 4) == palette[1]
    # The network is the one that is drawn by --mode=draw.
    found = pages.decode_row(row, IDENTITY)
    figures.draw_architecture(found, tmp_path / "wanted.png")
    wanted = Image.open(io.BytesIO((tmp_path / "wanted.png").read_bytes())).convert("RGB")
    wanted.thumbnail((1600, 3200))
    np.testing.assert_array_equal(shown["architecture/network"], np.asarray(wanted))
    # The same network is not drawn twice, but predictions are others at each report.
    assert set(pictures.draw(row)) == {"predictions/0", "predictions/1"}
    other = pictures.draw(row | {"path": [0, 0] if row["path"] != [0, 0] else [0, 1]})
    assert np.any(other["architecture/network"] != shown["architecture/network"])


def test_a_training_shows_its_network_once(tmp_path):
    pictures = Pictures(tmp_path, {"seed": 1}, genotype.load("published"))
    assert set(pictures.draw({"step": 1})) == {"architecture/network"}
    assert pictures.draw({"step": 2}) == {}


@pytest.mark.parametrize(
    "odd", [{"path": "x"}, {"cell": None}, {"alpha": [[float("nan")] * 3] * 5}, {"alpha": [[1]]}]
)
def test_a_picture_that_cannot_be_drawn_is_warned_of(row, odd, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pages, "only_warned_of", ONLY_WARNED_OF)
    (tmp_path / "samples.json").write_text("[{}]")
    shown = Pictures(tmp_path, IDENTITY).draw(row | odd)
    assert "predictions/0" not in shown and "architecture/alpha_map" not in shown
    said = capsys.readouterr().err
    assert "for TensorBoard is not written" in said and "Traceback" not in said


ONLY_WARNED_OF = pages.only_warned_of  # tests/conftest.py takes it away


def test_hparams_are_what_a_page_can_sort_by():
    given = IDENTITY | {"genotype": [[0, 1], [[[]]]]}
    assert list_hparams(given, genotype.load("deeplabv3"))["path"].count(" ") == 11
    assert "genotype" not in list_hparams(given)
    assert list_hparams(IDENTITY) == {
        **{"operations": '["sep_conv_3x3", "skip_connect", "none"]', "num_layers": 2},
        **{"num_blocks": 2, "seed": 1, "stem_filters": "[4, 4]"},
    }

"""Tables of the public datasets against their makers' definitions; colours of one's own classes."""

import numpy as np
import pytest

from official import datasets


def test_cityscapes_has_19_classes_of_34_label_ids():
    ids = datasets.CITYSCAPES_LABEL_IDS
    assert ids == (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)  # 6 + 10 + 3 = 19
    assert max(ids) < datasets.CITYSCAPES_NUM_LABEL_IDS == 34


def test_voc_colours_are_those_of_the_development_kit():
    palette = datasets.make_voc_palette(256)
    assert len(datasets.VOC_NAMES) == 21 and palette[:21] == datasets.VOC_PALETTE
    assert len(set(palette)) == 256
    # Typed from the kit's documentation of its label images.
    assert palette[0] == (0, 0, 0)
    named = dict(zip(datasets.VOC_NAMES, palette, strict=False))
    assert named["aeroplane"] == (128, 0, 0) and named["bicycle"] == (0, 128, 0)
    assert named["bottle"] == (128, 0, 128) and named["cat"] == (64, 0, 0)
    assert named["person"] == (192, 128, 128) and named["tvmonitor"] == (0, 64, 128)
    assert palette[255] == (224, 224, 192)  # the border between objects, which is void


def test_ade20k_has_the_150_classes_of_the_scene_parsing_benchmark():
    names, palette = datasets.ADE20K_NAMES, datasets.ADE20K_PALETTE
    assert len(names) == len(set(names)) == len(palette) == 150
    # Typed from objectInfo150.txt, which counts from 1, with the colours of color150.
    for number, name, colour in (
        (1, "wall", (120, 120, 120)),
        (3, "sky", (6, 230, 230)),
        (13, "person", (150, 5, 61)),
        (21, "car", (0, 102, 200)),
        (45, "chest of drawers", (6, 51, 255)),
        (61, "river", (11, 200, 200)),
        (90, "television", (0, 255, 194)),
        (120, "ball", (255, 0, 163)),
        (139, "ashcan", (173, 0, 255)),
        (150, "flag", (92, 0, 255)),
    ):
        assert names[number - 1] == name and palette[number - 1] == colour
    # Two classes share a colour, as published.
    assert palette[names.index("road")] == palette[names.index("skyscraper")] == (140, 140, 140)
    assert len(set(palette)) == 149


def test_cielab_of_known_colours():
    # sRGB's corners in CIELAB with white D65, as tables give them to two digits.
    known = {
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (255, 0, 0): (53.24, 80.09, 67.20),
        (0, 255, 0): (87.74, -86.18, 83.18),
        (0, 0, 255): (32.30, 79.19, -107.86),
        (119, 119, 119): (50.03, 0, 0),
    }
    found = datasets.convert_to_cielab(np.array(list(known)))
    np.testing.assert_allclose(found, list(known.values()), atol=0.05)


@pytest.mark.parametrize(
    # 2.3 is just noticeable (Mahy et al. 1994). Half a distance is left where a colour is laid over
    # a picture by half, and an eye that looks from the legend to the street should not have to
    # compare: ten times that for a few classes, six times for twenty, twice for all there can be.
    ("classes", "least"),
    [(8, 2 * 10 * 2.3), (20, 2 * 6 * 2.3), (256, 2 * 2 * 2.3)],
)
def test_distinct_colours_are_far_apart(classes, least):
    lab = datasets.convert_to_cielab(np.array(datasets.make_distinct_palette(classes)))
    distances = np.linalg.norm(lab[:, np.newaxis] - lab, axis=-1)
    assert distances[~np.eye(classes, dtype=bool)].min() >= least


def test_distinct_colours_do_not_depend_on_how_many_are_asked_for():
    palette = datasets.make_distinct_palette(256)
    assert len(palette) == 256 and datasets.make_distinct_palette(11) == palette[:11]
    assert all(type(value) is int and 0 <= value <= 255 for colour in palette for value in colour)

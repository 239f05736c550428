"""Tables of the public datasets against their makers' definitions."""

from official import datasets


def test_cityscapes_has_19_classes_of_34_label_ids():
    ids = datasets.CITYSCAPES_LABEL_IDS
    assert ids == (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)  # 6 + 10 + 3 = 19
    assert max(ids) < datasets.CITYSCAPES_NUM_LABEL_IDS == 34


def test_voc_colors_are_those_of_the_development_kit():
    palette = datasets.voc_palette(256)
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
    for number, name, color in (
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
        assert names[number - 1] == name and palette[number - 1] == color
    # Two classes share a colour, as published.
    assert palette[names.index("road")] == palette[names.index("skyscraper")] == (140, 140, 140)
    assert len(set(palette)) == 149

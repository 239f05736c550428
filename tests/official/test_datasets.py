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

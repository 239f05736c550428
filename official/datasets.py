"""Classes, colours and label ids of the public datasets, as their makers define them.

Converters read the datasets' files with these, and results for the makers' servers are written with
them.
"""

Color = tuple[int, int, int]

# Cityscapes (cityscapesScripts, helpers/labels.py): label id, name and colour of the classes that
# are evaluated, in the order of their train ids 0..18. The label ids 0..33 that are not listed are
# void.
CITYSCAPES_CLASSES: tuple[tuple[int, str, Color], ...] = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CITYSCAPES_NUM_LABEL_IDS = 34  # label ids are 0..33

CITYSCAPES_LABEL_IDS = tuple(label_id for label_id, _, _ in CITYSCAPES_CLASSES)
CITYSCAPES_NAMES = tuple(name for _, name, _ in CITYSCAPES_CLASSES)
CITYSCAPES_PALETTE = tuple(color for _, _, color in CITYSCAPES_CLASSES)

# PASCAL VOC 2012 (development kit, VOCinit.m and VOClabelcolormap.m): a label is a class' number.
VOC_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)


def voc_palette(num_colors: int) -> tuple[Color, ...]:
    """The colours of VOC's label images, for labels 0..num_colors-1 (at most 256).

    The three lowest bits of a label are the highest bits of red, green and blue, the next three the
    next ones, and so on.
    """
    return tuple(_voc_color(label) for label in range(num_colors))


def _voc_color(label: int) -> Color:
    red, green, blue = (
        sum((label >> (3 * place + channel) & 1) << (7 - place) for place in range(3))
        for channel in range(3)
    )
    return red, green, blue


VOC_PALETTE = voc_palette(len(VOC_NAMES))

"""Label ids, class names and colours of the datasets, as their makers define them."""

import numpy as np

from official.records import IGNORE_LABEL

# Cityscapes (cityscapesScripts, helpers/labels.py): label id, name and colour of the classes that
# are evaluated, in the order of their train ids 0..18. The label ids 0..33 that are not listed are
# void.
CITYSCAPES_CLASSES: tuple[tuple[int, str, tuple[int, int, int]], ...] = (
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
CITYSCAPES_LABEL_IDS = 34  # label ids are 0..33

CITYSCAPES_NAMES = tuple(name for _, name, _ in CITYSCAPES_CLASSES)
CITYSCAPES_PALETTE = tuple(color for _, _, color in CITYSCAPES_CLASSES)


def cityscapes_train_ids() -> np.ndarray:
    """The table label id -> train id: uint8 [34], 255 where the label id is void."""
    table = np.full(CITYSCAPES_LABEL_IDS, IGNORE_LABEL, np.uint8)
    for train_id, (label_id, _, _) in enumerate(CITYSCAPES_CLASSES):
        table[label_id] = train_id
    return table

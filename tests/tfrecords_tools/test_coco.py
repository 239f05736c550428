"""COCO from miniatures in the makers' layout."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as masks
from pycocotools.coco import COCO

from official.datasets import VOC_NAMES
from official.errors import RunError, UsageError
from official.records import read_description
from tests.contents import contents
from tfrecords_tools import coco
from tfrecords_tools.convert import convert

# Of the makers' file: the ids of the twenty categories, and two of the sixty others.
CATEGORIES = {
    **{"person": 1, "bicycle": 2, "car": 3, "motorcycle": 4, "airplane": 5, "bus": 6, "train": 7},
    **{"truck": 8, "boat": 9, "bird": 16, "cat": 17, "dog": 18, "horse": 19, "sheep": 20},
    **{"cow": 21, "bottle": 44, "chair": 62, "couch": 63, "potted plant": 64},
    **{"dining table": 67, "tv": 72, "toothbrush": 90},
}
SIZE = (6, 8)


def rectangle(top, left, bottom, right):
    """The polygon of the pixels [top, bottom) x [left, right); x comes first."""
    return [left, top, right, top, right, bottom, left, bottom]


def uncompressed(mask):
    """Lengths of the runs of 0 and 1 in turn, down the columns, from the makers' definition."""
    counts, last = [0], 0
    for value in np.asarray(mask).T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {"size": list(np.shape(mask)), "counts": counts}


def compressed(mask):
    code = masks.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(np.shape(mask)), "counts": code["counts"].decode()}


def write_coco(root, split, images, *, folder="{split}2017"):
    """Writes images, each a list of (category, iscrowd, segmentation), as 0.jpg, 1.jpg, ...

    In the file the annotations of the images are mixed, and only their order per image is kept.
    """
    content = {
        "info": {"year": 2017},
        "categories": [{"id": id, "name": name} for name, id in CATEGORIES.items()],
        "images": [],
        "annotations": [],
    }
    directory = root / folder.format(split=split)
    directory.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    for i, (size, annotations) in enumerate(images):
        pixels = np.full((*size, 3), 10 * i, np.uint8)
        Image.fromarray(pixels).save(directory / f"{i:012d}.jpg")
        height, width = size
        # Ids begin at 100, so that a mix-up with positions is seen.
        row = {"id": 100 + i, "file_name": f"{i:012d}.jpg", "height": height, "width": width}
        content["images"].insert(0, row)
        for k, (category, iscrowd, segmentation) in enumerate(annotations):
            annotation = {
                "id": 1000 * k + i,
                "image_id": 100 + i,
                "category_id": CATEGORIES[category],
                "iscrowd": iscrowd,
                "segmentation": segmentation,
            }
            content["annotations"].append(annotation)
    content["annotations"].sort(key=lambda annotation: annotation["id"])
    path = root / "annotations" / f"instances_{split}2017.json"
    path.write_text(json.dumps(content))
    return path


def labels_of(root, tmp_path, split="train"):
    convert("coco", str(root), str(tmp_path / "data"), min_labelled_pixels=0)
    return [label for _, label in contents(tmp_path / "data", split).values()]


def test_twenty_categories_are_vocs_classes():
    # VOC's classes 1..20 in their order, as COCO calls them.
    expected = (
        *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep"),
        *("couch", "train", "tv"),
    )
    assert {coco.LABELS[name]: name for name in coco.LABELS} == dict(enumerate(expected, 1))
    assert coco.LABELS.keys() < CATEGORIES.keys()


def test_labels_are_painted_as_drawn(tmp_path):
    crowd = np.zeros(SIZE, np.uint8)
    crowd[3:6, 5:8] = 1
    horse = np.zeros(SIZE, np.uint8)
    horse[0, :] = horse[2, 4] = 1
    annotations = [
        ("dog", 0, [rectangle(1, 1, 3, 4)]),
        ("truck", 0, [rectangle(0, 0, 6, 8)]),  # none of VOC's: hides nothing, paints nothing
        ("person", 0, [rectangle(2, 2, 5, 6)]),  # below the dog, which came first
        ("person", 1, uncompressed(crowd)),  # below the person
        ("toothbrush", 1, uncompressed(np.ones(SIZE, np.uint8))),
        ("horse", 0, compressed(horse)),  # below the person in row 2
        ("tv", 0, [rectangle(4, 0, 6, 1), rectangle(4, 6, 6, 8)]),  # two parts; below the crowd
    ]
    write_coco(tmp_path, "train", [(SIZE, annotations)])
    # dog 12, horse 13, person 15, tv 20; VOC's numbers.
    expected = [
        [13, 13, 13, 13, 13, 13, 13, 13],
        [0, 12, 12, 12, 0, 0, 0, 0],
        [0, 12, 12, 12, 15, 15, 0, 0],
        [0, 0, 15, 15, 15, 15, 255, 255],
        [20, 0, 15, 15, 15, 15, 255, 255],
        [20, 0, 0, 0, 0, 255, 255, 255],
    ]
    (label,) = labels_of(tmp_path, tmp_path)
    assert label.tolist() == expected


def test_masks_are_those_of_pycocotools(tmp_path, capsys):
    rng = np.random.default_rng(0)
    images, names = [], list(coco.LABELS)
    for i in range(12):
        height, width = size = (30 + i, 50 - i)
        some = (rng.random(size) < 0.3).astype(np.uint8)
        segmentations = [
            # Triangles and more, with corners between pixels and a little outside.
            [
                (rng.random((corners, 2)) * (width + 4, height + 4) - 2).ravel().tolist()
                for corners in (3, 7)
            ],
            uncompressed(some),
            compressed(some[::-1]),
        ]
        picked = rng.permutation(3).tolist()
        annotations = [(names[rng.integers(20)], 0, segmentations[k]) for k in picked]
        images.append((size, annotations))
    path = write_coco(tmp_path, "train", images)
    theirs = COCO(path)
    found = labels_of(tmp_path, tmp_path)
    assert len(found) == 12
    for i, label in enumerate(found):
        expected = np.zeros(images[i][0], np.uint8)
        for annotation in theirs.loadAnns(theirs.getAnnIds(imgIds=100 + i)):
            (category,) = theirs.loadCats(annotation["category_id"])
            mask = theirs.annToMask(annotation)
            assert mask.any()
            expected[(mask == 1) & (expected == 0)] = coco.LABELS[category["name"]]
        assert np.array_equal(label, expected)


def write_thresholds(root):
    """Images of 1000 pixels of a class, of 999, of 999 and a crowd, and of nothing."""
    rest = np.zeros((40, 50), np.uint8)
    rest[30:, :] = 1
    almost = np.zeros((40, 50), np.uint8)
    almost[:20] = 1
    almost[0, 0] = 0
    images = [
        [("cat", 0, [rectangle(0, 0, 20, 50)])],
        [("cat", 0, uncompressed(almost))],
        [("cat", 0, uncompressed(almost)), ("cat", 1, uncompressed(rest))],
        [],
    ]
    return write_coco(root, "val", [((40, 50), each) for each in images])


def test_images_with_few_labelled_pixels_are_left_out(tmp_path, capsys):
    source = tmp_path / "source"
    write_thresholds(source)
    convert("coco", str(source), str(tmp_path / "data"))
    out = capsys.readouterr().out
    assert "train: skipped, no annotations/instances_train2017.json" in out
    assert "warning: val has 4 images here, 5000 are published" in out
    assert "val: 3 image(s) left out, with too few labelled pixels" in out
    records = contents(tmp_path / "data", "val")
    assert list(records) == ["val2017/000000000000"]
    image, label = records["val2017/000000000000"]
    assert image == (source / "val2017" / "000000000000.jpg").read_bytes()
    assert np.bincount(label.ravel()).tolist() == [1000, *[0] * 7, 1000]  # cat is 8
    description = read_description(str(tmp_path / "data"))
    assert description.class_names == VOC_NAMES
    assert description.options == {"resize_factor": 1.0, "min_labelled_pixels": 1000}

    convert("coco", str(source), str(tmp_path / "more"), min_labelled_pixels=999)
    assert len(contents(tmp_path / "more", "val")) == 3
    convert("coco", str(source), str(tmp_path / "all"), min_labelled_pixels=0)
    assert len(contents(tmp_path / "all", "val")) == 4
    fingerprints = {
        read_description(str(tmp_path / name)).fingerprint() for name in ("data", "more", "all")
    }
    assert len(fingerprints) == 3
    with pytest.raises(UsageError, match="--min_labelled_pixels=-1"):
        convert("coco", str(source), str(tmp_path / "none"), min_labelled_pixels=-1)


def test_images_may_lie_in_a_folder_images(tmp_path, capsys):
    source = tmp_path / "source"
    some = [("cow", 0, [rectangle(0, 0, 3, 3)])]
    write_coco(source, "train", [(SIZE, some)] * 2, folder="images/{split}2017")
    write_coco(source, "val", [(SIZE, some)], folder="elsewhere/{split}2017")
    convert("coco", str(source), str(tmp_path / "data"), min_labelled_pixels=0)
    assert list(contents(tmp_path / "data", "train")) == [
        "images/train2017/000000000000",
        "images/train2017/000000000001",
    ]
    assert "val: skipped, no val2017 and no images/val2017" in capsys.readouterr().out


def change(key, value):
    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        content["annotations"][1][key] = value
        path.write_text(json.dumps(content))

    return spoil


def add_to(rows, **row):
    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        content[rows].append(row)
        path.write_text(json.dumps(content))

    return spoil


def drop(key):
    def spoil(path: Path) -> None:
        content = json.loads(path.read_text())
        del content[key]
        path.write_text(json.dumps(content))

    return spoil


def rename_categories(path):
    path.write_text(path.read_text().replace('"name": "', '"name": "some '))


def image(path, number):
    return path.parents[1] / "val2017" / f"{number:012d}.jpg"


NO_MASK = r"000000000001.jpg: annotation 1 is no mask of 40 x 50 pixels: "


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "instances_val2017.json cannot be read as"),
        (lambda p: p.write_bytes(b"\xff\xfe\xfd"), "instances_val2017.json cannot be read as JSON"),
        (
            drop("annotations"),
            "is no file of instances as COCO publishes it: annotations is no list",
        ),
        (drop("images"), "is no file of instances as COCO publishes it: images is no list"),
        (lambda p: p.write_text("[1]"), "is no file of instances as COCO publishes it"),
        (change("image_id", 5), "annotation 1 is of an image that is not there"),
        (change("category_id", 5000), "annotation 1 is of a category without a name"),
        (change("category_id", None), "category_id is missing or of another type in"),
        (change("iscrowd", "no"), "iscrowd is missing or of another type in"),
        (change("id", [7]), "id is missing or of another type in"),
        (change("segmentation", "x" * 10**5), r"segmentation is missing .{100,200}$"),
        (add_to("categories", id=17, name="a second cat"), 'category .*"a second cat".* twice'),
        (add_to("categories", id=5000, name="cat"), "category .*5000.* is there twice"),
        (add_to("categories", id=True, name="cats"), "id is missing or of another type"),
        (add_to("images", id=1, file_name=7), "file_name is missing or of another type"),
        (add_to("images", id=1, file_name="a", height=50_000, width=50_000), "no image has the"),
        (add_to("images", id=1, file_name="a", height=2**27, width=1), "no image has the size"),
        (add_to("images", id=1, file_name="a", height=0, width=5), "no image has the size"),
        (add_to("images", id=1, file_name="a", height=2.5, width=5), "height is missing or of"),
        (rename_categories, "none of the categories airplane, bicycle, "),
        # The C code would give pixels that nobody has set.
        (change("segmentation", {"size": [40, 50], "counts": [100]}), NO_MASK + ".* 100 pixels"),
        (change("segmentation", {"size": [40, 50], "counts": "54"}), NO_MASK + ".* 9 pixels"),
        (change("segmentation", {"size": [40, 50], "counts": [-1, 2001]}), NO_MASK),
        (change("segmentation", {"size": [50, 40], "counts": [2000]}), NO_MASK + r".*\[50, 40\]"),
        (change("segmentation", {"size": [40, 50], "counts": ""}), NO_MASK),
        (change("segmentation", {"counts": [2000]}), NO_MASK + "'size'"),
        (change("segmentation", [[1, 1, 9e9, 1, 5, 5]]), NO_MASK + ".*far outside"),
        (change("segmentation", [[1, 1]]), NO_MASK),
        (change("segmentation", [[1, 1, 5, 5, 9]]), NO_MASK + ".*at least three x, y"),
        (change("segmentation", [[1, 1, "5", 5, None, 9]]), NO_MASK),
        (change("segmentation", [[0, 0, 49, 39] * 2000]), NO_MASK + ".*round and round"),
        (change("segmentation", {"size": [40, 50], "counts": "o" * 10**6}), NO_MASK + ".*damaged"),
        (change("segmentation", {"size": [40, 50], "counts": [True] * 2000}), NO_MASK),
        (lambda p: p.unlink(), "holds no split of COCO 2017: --source_dir is the directory that"),
    ],
)
def test_bad_sources_are_named(tmp_path, spoil, message):
    spoil(write_thresholds(tmp_path / "source"))
    with pytest.raises(RunError, match=message):
        convert("coco", str(tmp_path / "source"), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    write_thresholds(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(RunError, match="needs the package pycocotools: pip install pycocotools"):
        coco.open_source(tmp_path)


def test_part_of_the_images_is_enough(tmp_path, capsys):
    json_file = write_thresholds(tmp_path)
    before = len(coco.open_source(tmp_path).splits["val"])
    image(json_file, 1).unlink()
    image(json_file, 7).write_bytes(image(json_file, 3).read_bytes())
    assert len(coco.open_source(tmp_path).splits["val"]) == before - 1
    out = capsys.readouterr().out
    assert "warning: " in out and "000000000001.jpg is missing, which" in out
    assert "000000000007.jpg is not described" in out
    for number in (0, 2, 3):
        image(json_file, number).unlink()
    with pytest.raises(RunError, match=r"000000000000.jpg is missing, .* and 3 more like it"):
        coco.open_source(tmp_path)


def described(root, change):
    """The val split of write_thresholds with its JSON file changed in place."""
    path = write_thresholds(root)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content), "utf-8-sig")  # with a byte order mark
    return path


def test_an_image_that_is_described_twice_keeps_all_annotations(tmp_path):
    # Image 0 has a cat in its upper half; a second description of it, with another id, a dog below.
    def twice(content):
        row = next(row for row in content["images"] if row["id"] == 100)
        content["images"].append({**row, "id": 900})
        content["images"].append(row)  # and once more as it is
        dog = {"id": 9000, "image_id": 900, "category_id": CATEGORIES["dog"], "iscrowd": 0}
        dog["segmentation"] = [rectangle(20, 0, 30, 50)]
        content["annotations"].append(dog)

    source = tmp_path / "source"
    described(source, twice)
    label = labels_of(source, tmp_path, "val")[0]
    # 20, 10 and 10 rows of 50: cat is 8, dog is 12.
    assert [int(np.sum(label == value)) for value in (8, 12, 0)] == [1000, 500, 500]


def one_id(content):
    content["images"][0]["id"] = content["images"][1]["id"]


def two_sizes(content):
    content["images"].append({**content["images"][0], "id": 900, "width": 51})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (one_id, r"gives the id 102 to 0+3\.jpg and to 0+2\.jpg, .*: give each its own id"),
        (two_sizes, r"describes 0+3\.jpg twice, 40 x 50 and 40 x 51 pixels large"),
    ],
)
def test_descriptions_that_contradict_each_other_are_refused(tmp_path, change, message):
    with pytest.raises(RunError, match=message):
        coco.read_annotations(described(tmp_path, change))


def test_images_of_all_suffixes_are_found(tmp_path, capsys):
    names = ["a.JPG", "b.png", "below/c.jpeg", "d.jpg"]

    def renamed(content):
        for row in content["images"]:
            old, row["file_name"] = row["file_name"], names[row["id"] - 100]
            path = tmp_path / "val2017" / row["file_name"]
            path.parent.mkdir(exist_ok=True)
            with Image.open(tmp_path / "val2017" / old) as picture:
                picture.save(path)
            (tmp_path / "val2017" / old).unlink()

    described(tmp_path, renamed)
    found = coco.open_source(tmp_path).splits["val"]
    assert [pair.image.relative_to(tmp_path / "val2017").as_posix() for pair in found] == names
    assert "warning" not in capsys.readouterr().out


def test_images_that_would_be_records_of_one_name_are_refused(tmp_path):
    def renamed(content):
        for row, name in zip(content["images"], ["a.jpg", "a.png"], strict=False):
            image = Image.open(tmp_path / "val2017" / row["file_name"])
            row["file_name"] = name
            image.save(tmp_path / "val2017" / name)

    described(tmp_path, renamed)
    with pytest.raises(RunError, match=r"a\.jpg and .*a\.png differ in their suffix alone"):
        convert("coco", str(tmp_path), str(tmp_path / "data"))

"""Shards without description, as DeepLab's own scripts write them."""

import contextlib
import io
import os
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official import datasets
from official.deeplab_shards import find_shards, read_image_size
from official.errors import RunError, UsageError
from official.images import decode_image, decode_label
from official.input_pipeline import make_train_batches, read_eval_images
from official.records import parse_example, read_description
from tests.deeplab_shards import SIZES, encoded, example, serialized, write_shards
from tfrecords_tools import browse, class_weights
from tfrecords_tools.check import check


@pytest.fixture
def data(tmp_path):
    """Two shards of five records for train, four shards of three records for val."""
    write_shards(tmp_path / "data", "train", [example(i) for i in range(5)], count=2)
    write_shards(tmp_path / "data", "val", [example(i) for i in range(5, 8)], count=4)
    return tmp_path / "data"


def test_what_can_be_found_out(data):
    description = read_description(str(data), 21)
    assert description.class_names == datasets.VOC_NAMES and description.num_classes == 21
    assert description.palette == datasets.VOC_PALETTE and description.ignore_label == 255
    assert set(description.splits) == {"train", "val"}
    train, val = description.split("train"), description.split("val")
    # Pictures 0..4 have the sizes 0, 1, 2, 3, 0 of SIZES, of which 3 is 0 again.
    assert train.num_examples == 5 and val.num_examples == 3
    assert train.sizes == ((*SIZES[1], 1), (*SIZES[0], 3), (*SIZES[2], 1))
    # Pictures 5, 6, 7: the sizes 1, 2, 3.
    assert val.sizes == ((*SIZES[1], 1), (*SIZES[3], 1), (*SIZES[2], 1))
    assert train.files == tuple(str(data / f"train-{k:05d}-of-00002.tfrecord") for k in range(2))
    assert len(val.files) == 4


@pytest.mark.parametrize(
    ("split", "suffix"),
    [("train_fine", ".tfrecord"), ("trainval", ".tfrecords"), ("val", ""), ("my-split", "")],
)
def test_names_of_shards(tmp_path, split, suffix):
    paths = write_shards(tmp_path, split, [example(0)], count=11, suffix=suffix)
    for other in ("labels.txt", "cityscapes-val.tfrecord-00000-of-00001", "val.tfrecord"):
        (tmp_path / other).write_bytes(b"")
    assert find_shards(str(tmp_path)) == {split: tuple(map(str, paths))}


@pytest.mark.parametrize(
    ("classes", "first", "last", "colour"),
    [
        (19, "road", "bicycle", (119, 11, 32)),
        (21, "background", "tvmonitor", (0, 64, 128)),
        (150, "wall", "flag", (92, 0, 255)),
        (151, "void", "flag", (92, 0, 255)),
        (6, "class 0", "class 5", datasets.make_distinct_palette(6)[-1]),
    ],
)
def test_names_and_colours_follow_the_number_of_classes(data, classes, first, last, colour):
    description = read_description(str(data), classes)
    assert len(description.class_names) == len(description.palette) == classes
    assert (description.class_names[0], description.class_names[-1]) == (first, last)
    assert description.palette[-1] == colour


def test_fingerprint_follows_what_is_there_not_where(data, tmp_path):
    def fingerprint(directory, *numbers):
        return read_description(str(directory), *numbers).fingerprint()

    first = fingerprint(data, 21)
    assert fingerprint(shutil.copytree(data, tmp_path / "other"), 21) == first
    assert fingerprint(data, 21, 255) == first
    others = {fingerprint(data, 20), fingerprint(data, 21, 0)}
    write_shards(data, "train", [example(i) for i in range(4)], count=2)
    others.add(fingerprint(data, 21))
    assert len(others - {first}) == 3


def test_sizes_are_those_of_the_records_and_no_image_is_read():
    features = example(0)
    features |= {"image/height": [123], "image/width": [4567], "image/encoded": [b"no image"]}
    for order in (1, -1):
        record = serialized(dict(list(features.items())[::order]))
        assert read_image_size(b"xx" + record + b"yy", 2, 2 + len(record)) == (123, 4567)


@pytest.mark.parametrize("image_format", ["png", "jpg"])
@pytest.mark.parametrize("value", [None, [], [0]])
@pytest.mark.parametrize("key", ["image/height", "image/width"])
def test_sizes_that_no_record_tells_are_those_of_the_image(image_format, key, value):
    features = example(1, image_format=image_format) | {key: value}
    if value is None:
        del features[key]
    record = serialized(features)
    assert read_image_size(record, 0, len(record)) == SIZES[1]


def test_no_length_leads_out_of_the_record():
    record = serialized(example(0))
    for broken in (b"\x0a\x7f", b"\x0a\xff", b"\x0a\x03\x0a\x7f\x0a", record[:-1], record[:40]):
        with pytest.raises(ValueError, match=r"it is no tf\.Example"):
            read_image_size(broken, 0, len(broken))


def test_what_is_no_record_is_named(data):
    no_image, broken = example(0, sides=False), example(0, sides=False)
    del no_image["image/encoded"]
    broken["image/encoded"] = [b"\xff\xd8 no image"]
    file = data / "val-00001-of-00004.tfrecord"
    for record, message in (
        (b"\xff" * 30, "it is no tf.Example"),
        (b"\x08\x00", "it is no tf.Example"),  # a number where there must be a message
        (serialized(no_image), "there is no image/encoded"),
        (serialized(broken), "its image cannot be read"),
    ):
        with tf.io.TFRecordWriter(str(file)) as writer:
            writer.write(serialized(example(1)))
            writer.write(record)
        with pytest.raises(
            RunError, match=f"{file}: the record at byte .* cannot be used: {message}"
        ):
            read_description(str(data), 21)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(RunError, match=f"{file} is cut off or damaged"):
        read_description(str(data), 21)


def test_some_of_a_splits_shards_are_enough(data, capsys):
    whole = read_description(str(data), 21).split("val")
    assert capsys.readouterr().err == ""
    for number in (1, 2, 3):
        (data / f"val-0000{number}-of-00004.tfrecord").unlink()
    split = read_description(str(data), 21).split("val")
    assert split.files == whole.files[:1] and 0 < split.num_examples < whole.num_examples
    assert capsys.readouterr().err == (
        "warning: split 'val' has 4 shards, 3 of which are not there "
        "(val-00001-of-00004.tfrecord, ...)\n"
    )


def test_shards_that_do_not_belong_together(data):
    for name in (
        "val-00000-of-00009.tfrecord",
        "val-00001-of-00004",
        "val-00004-of-00004.tfrecord",
    ):
        shutil.copy(data / "val-00000-of-00004.tfrecord", data / name)
        with pytest.raises(RunError, match=f"{name} is none of the 4 shards of split 'val'"):
            read_description(str(data), 21)
        (data / name).unlink()
    write_shards(data, "val", [], count=4)
    with pytest.raises(RunError, match="split 'val' has no record"):
        read_description(str(data), 21)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((), "without a description .*: give --num_classes, and --ignore_label if void is not 255"),
        ((None, 0), "give --num_classes"),
        ((1,), "--num_classes=1 must be 2 to 256"),
        ((257,), "--num_classes=257 must be 2 to 256"),
        ((21, 256), "--ignore_label=256 must be 0 to 255"),
        ((21, -1), "--ignore_label=-1 must be 0 to 255"),
    ],
)
def test_numbers_that_are_missing_or_impossible(data, numbers, message):
    with pytest.raises(UsageError, match=message):
        read_description(str(data), *numbers)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("2007_000033", "2007_000033"),
        ("2007_000033.jpg", "2007_000033"),
        ("./ADE20K/images/ADE_val_00000001.JPEG", "ADE20K/images/ADE_val_00000001"),
        ("/data/cityscapes/leftImg8bit/val/a/a_000000_000019", None),
        ("../../x/y.v2.png", "x/y.v2"),
        (".hidden/a.b/c.tiff", ".hidden/a.b/c.tiff"),
    ],
)
def test_filenames_are_paths_below_the_source_without_suffix(theirs, ours):
    record = serialized(example(0) | {"image/filename": [theirs.encode()]})
    assert parse_example(record)["filename"].numpy().decode() == (ours or theirs[1:])


def test_images_reach_the_network_and_its_judge(data):
    description = read_description(str(data), 21)
    images = {
        element["filename"][0].numpy().decode(): element
        for element in read_eval_images(description, "val")
    }
    assert set(images) == {f"2007_{i:06d}" for i in (5, 6, 7)}
    for i in (5, 6, 7):
        features, element = example(i), images[f"2007_{i:06d}"]
        jpeg, png = (
            features[key][0] for key in ("image/encoded", "image/segmentation/class/encoded")
        )
        assert np.array_equal(element["image"][0], decode_image(jpeg))
        assert np.array_equal(element["label"][0], decode_label(png, ""))
        assert element["label"].shape[1:] == SIZES[i % 4]
    batch = next(iter(batches(description)))
    assert batch["image"].shape == (2, 60, 60, 3)
    assert set(np.unique(batch["label"])) == {*range(21), 255}


def batches(description):
    return make_train_batches(
        *(description, "train"),
        seed=0,
        batch_size=2,
        crop_size=(60, 60),
        scales=(1.0,),
        random_crop=True,
        flip=True,
    )


@pytest.mark.parametrize("absent", ["key", "content"])
@pytest.mark.parametrize("ignore_label", [255, 0])
def test_images_without_label_are_void_everywhere(tmp_path, absent, ignore_label):
    examples = [example(i, label=False) for i in range(3)]
    if absent == "content":
        for features in examples:
            features["image/segmentation/class/encoded"] = [b""]
    write_shards(tmp_path, "train", examples, count=1)
    description = read_description(str(tmp_path), 21, ignore_label)
    for i, element in enumerate(read_eval_images(description, "train")):
        assert np.array_equal(element["label"][0], np.full(SIZES[i], ignore_label))
        assert element["label"].dtype == tf.uint8
    batch = next(iter(batches(description)))
    assert np.all(batch["label"] == ignore_label)


def test_void_may_be_a_number_below_the_classes(tmp_path):
    # DeepLab's script for ADE20K keeps the numbers 0 (void) and 1..150; padding is void too.
    labels = np.array([[0, 1, 2], [150, 75, 0]], np.uint8)
    features = example(0) | {
        "image/encoded": [encoded(np.zeros((2, 3, 3), np.uint8), "png")],
        "image/segmentation/class/encoded": [encoded(labels, "png")],
        "image/height": [2],
        "image/width": [3],
    }
    write_shards(tmp_path, "train", [features, features], count=1)
    description = read_description(str(tmp_path), 151, 0)
    assert description.ignore_label == 0 and description.class_names[1] == "wall"
    (element, _) = read_eval_images(description, "train")
    assert np.array_equal(element["label"][0], labels)
    batch = next(iter(batches(description)))
    assert np.count_nonzero(batch["label"]) == 2 * 4


def test_labels_that_are_no_classes_are_named(data):
    dataset = read_eval_images(read_description(str(data), 20), "train")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"2007_00000\d: label 20 is neither"):
        list(dataset)


def test_shards_without_a_number_of_all(data):
    # DeepLab's readers take <split>-*.
    whole = read_description(str(data), 21).split("val")
    for place, path in enumerate(sorted(data.glob("val-*"))):
        path.rename(data / f"val-{place}.tfrecord")
    split = read_description(str(data), 21).split("val")
    assert [os.path.basename(f) for f in split.files] == [f"val-{i}.tfrecord" for i in range(4)]
    assert (split.num_examples, split.sizes) == (whole.num_examples, whole.sizes)


def test_a_record_that_is_damaged_inside_is_named(data):
    file = data / "val-00000-of-00004.tfrecord"
    content = bytearray(file.read_bytes())
    place = content.index(b"image/height") + len(b"image/height")
    for change in range(256):  # what stands there are lengths and kinds, then the number
        content[place + 3] = change
        file.write_bytes(bytes(content))
        with contextlib.suppress(RunError):
            read_description(str(data), 21)


def label_file(kind: str) -> bytes:
    """A label map of 40 x 56 pixels of class 3 as somebody may have stored it."""
    values = np.full((40, 56), 3, np.uint8)
    image = {
        "8-bit RGB": Image.fromarray(np.stack([values, 0 * values, 0 * values], -1)),
        "16-bit grey": Image.fromarray(values.astype(np.uint16)),
        "8-bit palette": Image.fromarray(values),
    }[kind]
    if "palette" in kind:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["8-bit RGB", "16-bit grey", "8-bit palette"])
def test_label_maps_that_are_no_grey_pngs_are_refused_by_all_readers(tmp_path, kind, capsys):
    features = example(0)
    features["image/segmentation/class/encoded"] = [label_file(kind)]
    write_shards(tmp_path / "data", "train", [features], count=1)
    description = read_description(str(tmp_path / "data"), 21)
    message = f"2007_000000: .*the label map is a PNG, {kind}: it must be an 8-bit grey PNG"
    for cache in (False, True):
        with pytest.raises((RunError, tf.errors.InvalidArgumentError), match=message):
            next(iter(training_batches(description, cache)))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        list(read_eval_images(description, "train"))
    with pytest.raises(RunError, match=message):
        list(browse.read_stored(description, "train", 1, seed=0))
    with pytest.raises(RunError, match=message):
        class_weights.format_flag(description, "train", "inverse")
    with pytest.raises(RunError, match=r"1 error\(s\)"):
        check(description)
    assert re.search(f"ERROR {message}", capsys.readouterr().out)


def training_batches(description, cache):
    return make_train_batches(
        *(description, "train"),
        seed=0,
        batch_size=1,
        crop_size=(33, 33),
        scales=(1.0,),
        random_crop=True,
        flip=True,
        cache=cache,
    )

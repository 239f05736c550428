import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from official.errors import RunError
from official.records import (
    Description,
    Split,
    index_records,
    parse_example,
    read_description,
    read_record,
)
from tests.miniature import SIZE, write_cityscapes
from tfrecords_tools import convert


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("records")
    write_cityscapes(root / "source", train=5, val=2)
    with pytest.MonkeyPatch.context() as patch:
        # Two of the PNG files (some 9 kB each) fill a shard: 5 records make 3 shards.
        patch.setattr(convert, "SHARD_BYTES", 20_000)
        convert.convert("cityscapes", str(root / "source"), str(root / "data"))
    return root / "data"


@pytest.fixture
def copy(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "copy")


def test_description(data_dir):
    description = read_description(str(data_dir))
    assert description.name == "cityscapes"
    assert description.num_classes == 19 and description.ignore_label == 255
    assert description.class_names[0] == "road" and description.class_names[18] == "bicycle"
    assert description.palette[0] == (128, 64, 128) and len(description.palette) == 19
    assert description.options == {"resize_factor": 1.0}
    assert set(description.splits) == {"train", "val"}
    assert description.split("train").num_examples == 5
    assert description.split("train").sizes == ((*SIZE, 5),)
    assert len(description.split("train").files) == 3 and len(description.split("val").files) == 1


def test_records_have_the_keys_of_deeplab(data_dir):
    (file, *_) = read_description(str(data_dir)).split("train").files
    record = next(iter(tf.data.TFRecordDataset(file)))
    features = tf.train.Example.FromString(record.numpy()).features.feature
    assert set(features) == {
        "image/encoded",
        "image/filename",
        "image/format",
        "image/height",
        "image/width",
        "image/channels",
        "image/segmentation/class/encoded",
        "image/segmentation/class/format",
    }
    assert features["image/format"].bytes_list.value[0] == b"png"
    assert features["image/segmentation/class/format"].bytes_list.value[0] == b"png"
    shape = [features[f"image/{k}"].int64_list.value[0] for k in ("height", "width", "channels")]
    assert shape == [*SIZE, 3]


def test_deeplab_and_the_model_garden_can_parse_the_records(data_dir):
    # What they ask for, without the defaults that would hide a missing key or another type.
    text = (
        *("image/encoded", "image/filename", "image/format"),
        *("image/segmentation/class/encoded", "image/segmentation/class/format"),
    )
    numbers = ("image/height", "image/width", "image/channels")
    wanted = {
        **{key: tf.io.FixedLenFeature((), tf.string) for key in text},
        **{key: tf.io.FixedLenFeature((), tf.int64) for key in numbers},
    }
    files = read_description(str(data_dir)).split("train").files
    for record in tf.data.TFRecordDataset(files):
        parsed = tf.io.parse_single_example(record, wanted)
        image = tf.io.decode_image(parsed["image/encoded"])
        label = tf.io.decode_png(parsed["image/segmentation/class/encoded"])
        shape = [parsed[key] for key in numbers]
        assert image.shape == shape and label.shape == [*shape[:2], 1]
        assert parsed["image/format"] in (b"png", b"jpeg")


def test_tensorflow_datasets_reads_the_same_records(data_dir):
    description = read_description(str(data_dir))
    theirs = tfds.builder_from_directory(data_dir).as_dataset(split="train")
    ours = tf.data.TFRecordDataset(description.split("train").files).map(parse_example)
    pairs = list(zip(ours, theirs, strict=True))
    assert len(pairs) == 5
    for our, their in pairs:
        assert our["filename"] == their["image"]["filename"]
        assert our["image"] == their["image"]["encoded"]
        assert our["label"] == their["image"]["segmentation"]["class"]["encoded"]


def test_random_access_equals_reading_in_order(data_dir):
    files = read_description(str(data_dir)).split("train").files
    in_order = [record.numpy() for record in tf.data.TFRecordDataset(files)]
    numbers, offsets = index_records(files)
    assert numbers.dtype == np.int32 and offsets.dtype == np.int64
    assert numbers.tolist() == [0, 0, 1, 1, 2]
    for record in (4, 0, 3, 1, 2):
        file, offset = tf.constant(files[numbers[record]]), tf.constant(offsets[record])
        assert read_record(file, offset).numpy() == in_order[record]
        inside = tf.data.Dataset.from_tensors((file, offset)).map(read_record)
        assert next(iter(inside)).numpy() == in_order[record]


def test_fingerprint_follows_the_content_not_the_place(data_dir, copy):
    first = read_description(str(data_dir))
    assert read_description(str(copy)).fingerprint() == first.fingerprint()
    assert len(first.fingerprint()) == 12
    for key, value in (
        ("name", "other"),
        ("class_names", [f"thing {number}" for number in range(19)]),
        ("ignore_label", 0),
        ("options", {"resize_factor": 0.5}),
        ("sizes", {"train": [[40, 71, 5]], "val": [[*SIZE, 2]]}),
    ):
        change_metadata(copy, lambda meta, key=key, value=value: meta.update({key: value}))
        assert read_description(str(copy)).fingerprint() != first.fingerprint(), key
        shutil.copy(data_dir / "metadata.json", copy)


def change_metadata(directory, change):
    path = directory / "metadata.json"
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def test_unknown_split_lists_the_splits(data_dir):
    with pytest.raises(RunError, match="no split 'test': it has train, val"):
        read_description(str(data_dir)).split("test")


def test_not_a_dataset(tmp_path):
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RunError, match=r"holds no dataset .*tfrecords_tools.convert"):
            read_description(str(directory))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("metadata.json", "{"),
        ("metadata.json", "{}"),
        ("metadata.json", '{"format": 1}'),
        ("metadata.json", "[1]"),
        ("dataset_info.json", "not json"),
        ("features.json", None),
        ("metadata.json", None),
    ],
)
def test_damaged_descriptions(copy, file, content):
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_text(content)
    with pytest.raises(RunError, match=r"cannot be read as a dataset .*tfrecords_tools.convert"):
        read_description(str(copy))


@pytest.mark.parametrize(
    ("changes", "saying"),
    [
        ({"class_names": ["a", 7, "c"]}, "a name .* that can be printed: 7"),
        ({"class_names": ["a\nb"] * 19}, "a name .* that can be printed"),
        ({"class_names": ["x" * 10**5] * 19}, r"a name .*: x{57}\.\.\."),
        ({"name": None}, "a name .*: null"),
        ({"class_names": []}, "0 classes and 19 colours"),
        ({"palette": [[0, 0, 0]]}, "19 classes and 1 colours"),
        ({"palette": [[0, 0, 256]] * 19}, "not in 0..255: 256"),
        ({"palette": [[0, 0, True]] * 19}, "not in 0..255: true"),
        ({"palette": [["0", 0, 0]] * 19}, "not in 0..255: 0"),
        ({"palette": [[0, 0]] * 19}, "cannot be read"),
        ({"ignore_label": 255.0}, "not in 0..255: 255.0"),
        ({"options": 7}, "cannot be read"),
        ({"options": {"resize_factor": "half"}}, "resize_factor is half"),
        ({"sizes": {}}, "train"),
        ({"sizes": {"train": [[40, 72, 5]], "val": [[40, 72, 3]]}}, "val has 2 examples, but .* 3"),
        ({"sizes": {"train": [[40, 72, 5]], "val": [[40, -72, 2]]}}, "val .* numbers above 0"),
        ({"sizes": {"train": [[40, 72, 5]], "val": [[40, 72.0, 2]]}}, "val .* numbers above 0"),
        ({"sizes": {"train": [[40, 72, 5]], "val": [[40, 10**400, 2]]}}, "val .* numbers above 0"),
        ({"sizes": {"train": [[40, 72, 5]], "val": [[40, 72]]}}, "cannot be read"),
        ({"filler": "x" * 2**24}, "larger than 16 MB"),
    ],
)
def test_odd_metadata(copy, changes, saying):
    change_metadata(copy, lambda meta: meta.update(changes))
    with pytest.raises(RunError, match=saying) as error:
        read_description(str(copy))
    assert str(copy) in str(error.value) and len(str(error.value)) < 500


def test_a_dataset_without_a_split(copy):
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"splits": []}))
    with pytest.raises(RunError, match="it has no split"):
        read_description(str(copy))


def test_the_name_of_a_missing_shard_may_be_anything(copy):
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"name": "a\nb\x1f"}))
    with pytest.raises(RunError, match=r"a\\nb\\x1f-\S+ is missing: convert"):
        read_description(str(copy))


def test_the_size_that_most_images_have():
    def of(**splits):
        made = {
            name: Split(sum(size[2] for size in sizes), (), sizes) for name, sizes in splits.items()
        }
        return Description("", "", ("a",), ((0, 0, 0),), 255, made, {}).most_frequent_size()

    assert of(train=((3, 4, 5), (6, 7, 4)), val=((6, 7, 2),)) == (6, 7)
    assert of(train=((3, 4, 5), (6, 7, 5))) == (6, 7)


def test_the_files_of_a_dataset(data_dir):
    assert sorted(read_description(str(data_dir)).files()) == sorted(data_dir.iterdir())


def test_missing_shard(copy):
    file = read_description(str(copy)).split("train").files[1]
    (copy / file).unlink()
    with pytest.raises(RunError, match="00001-of-00003 is missing"):
        read_description(str(copy))


@pytest.mark.parametrize("size", [3, 11, 100, -1])
def test_cut_off_shard(copy, size):
    file = read_description(str(copy)).split("train").files[0]
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[:size])
    with pytest.raises(RunError, match="00000-of-00003 is cut off or damaged"):
        index_records([file])


@pytest.mark.parametrize("kind", ["GZIP", "ZLIB"])
def test_compressed_records_are_called_so(tmp_path, kind):
    file = str(tmp_path / "train-00000-of-00001.tfrecord")
    with tf.io.TFRecordWriter(file, kind) as writer:
        writer.write(b"some record")
    with pytest.raises(RunError, match=rf"00001.tfrecord is compressed \({kind}\), which is not"):
        index_records([file])

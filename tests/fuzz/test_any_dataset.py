"""Whatever a dataset's files hold, they are read or there is one short line."""

import json

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from official.errors import RunError
from official.input_pipeline import make_data_error, read_eval_images
from official.records import read_description
from tests.fuzz.promise import answer
from tests.fuzz.values import JSON, TEXT, damaged, mutated
from tests.miniature import change_records, write_cityscapes
from tfrecords_tools import coco, convert, voc2012
from tfrecords_tools import folder as own_folder
from tfrecords_tools.check import check

COCO = {
    "images": [{"id": 1, "file_name": "1.jpg", "height": 6, "width": 8}],
    "categories": [{"id": 3, "name": "car"}, {"id": 90, "name": "toothbrush"}],
    "annotations": [
        *(
            {"id": number, "image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": code}
            for number, code in enumerate(
                (
                    [[1, 1, 5, 1, 5, 4]],
                    {"size": [6, 8], "counts": [3, 40, 5]},
                    {"size": [6, 8], "counts": "3X15"},
                )
            )
        ),
        {"id": 9, "image_id": 1, "category_id": 90, "iscrowd": 1, "segmentation": []},
    ],
}


@pytest.fixture(scope="module")
def data(folder):
    """A small dataset, and its files' contents."""
    write_cityscapes(folder / "source", train=2, val=1)
    convert.convert("cityscapes", str(folder / "source"), str(folder / "data"))
    return folder / "data", {path: path.read_bytes() for path in (folder / "data").iterdir()}


@given(value=st.data())
def test_any_description(data, value):
    directory, whole = data
    name = value.draw(st.sampled_from(["metadata.json", "dataset_info.json", "features.json"]))
    good = whole[directory / name]
    content = value.draw(
        damaged(good) | (JSON | mutated(json.loads(good))).map(lambda x: json.dumps(x).encode())
    )
    (directory / name).write_bytes(content)
    try:
        description, _ = answer(read_description, str(directory))
    finally:
        (directory / name).write_bytes(good)
    if description is not None:
        assert description.splits and all(len(colour) == 3 for colour in description.palette)


@given(value=st.data())
def test_any_record_file(data, value):
    directory, whole = data
    shard = next(path for path in whole if "val" in path.name)
    shard.write_bytes(value.draw(damaged(whole[shard])))
    description = read_description(str(directory))

    def read():
        try:
            return list(read_eval_images(description, "val"))
        except tf.errors.OpError as error:
            raise make_data_error(error, description) from None

    try:
        elements, _ = answer(read)
        # What training would take, `check` takes too.
        _, message = answer(check, description)
        assert elements is not None or message is not None
    finally:
        shard.write_bytes(whole[shard])


@given(name=TEXT | st.binary(max_size=20))
def test_any_name_of_a_record(data, name):
    directory, whole = data
    shard = next(path for path in whole if "val" in path.name)

    def rename(_, features):
        value = name if isinstance(name, bytes) else name.encode(errors="replace")
        features["image/filename"].bytes_list.value[0] = value

    change_records(str(shard), rename)
    try:
        answer(check, read_description(str(directory)))
    finally:
        shard.write_bytes(whole[shard])


@given(content=mutated(COCO) | JSON)
def test_any_coco_file(folder, content):
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    images, _ = answer(coco.read_annotations, path)
    decode = coco._make_mask_decoder()
    for image in (images or {}).values():
        labels, _ = answer(coco.paint, image, decode)
        assert labels is None or (labels.shape, labels.dtype) == (image.size, np.uint8)


@given(content=damaged(b"2007_000032\n2007_000039\n\n") | st.lists(TEXT).map("\n".join))
def test_any_list(folder, content):
    path = folder / "train.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    names, _ = answer(voc2012.read_list, path)
    for name in names or ():
        assert name and "/" not in name and name.isprintable() and len(name.split()) == 1


@given(content=damaged("sky\t70,130,180\nroad\n\nStraße\t1,2,3\n".encode()))
def test_any_list_of_classes(folder, content):
    path = folder / "classes.txt"
    path.write_bytes(content)
    found, _ = answer(own_folder.read_classes, path)
    if found:
        assert len(found[0]) == len(found[1]) == len(set(found[0]))


@given(content=damaged(b"".join([b"\0" * 6, b"\1" * 6])), size=st.tuples(*[st.integers(1, 9)] * 2))
def test_any_mask_of_a_folder(folder, content, size):
    path = folder / "mask.png"
    pixels = np.resize(np.frombuffer(content or b"\0", np.uint8), size)
    Image.fromarray(pixels).save(path)
    values, message = answer(own_folder.read_mask, path, 2, errors=RunError)
    assert (values is None) == bool(message)

import dataclasses
import io
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official import input_pipeline
from official.errors import RunError, UsageError
from official.images import decode_image
from official.input_pipeline import (
    check_crop_size,
    distribute_batches,
    make_train_batches,
    read_eval_images,
    split_halves,
)
from official.preprocessing import fit_longer_side
from official.records import Description, Split, read_description
from official.resizing import resize_bilinear
from tests.miniature import SIZE, change_records, set_label, write_cityscapes, write_pair
from tfrecords_tools.convert import convert

AUGMENTED = {
    "crop_size": (33, 41),
    "scales": (0.5, 1.0, 1.5),
    "random_crop": True,
    "flip": True,
}
# With these the red channel of every pixel is the number of the record.
PLAIN = {"crop_size": (5, 7), "scales": (1.0,), "random_crop": True, "flip": False}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline")
    write_cityscapes(root / "source", train=7, val=5)
    convert("cityscapes", str(root / "source"), str(root / "data"))
    return root / "data"


@pytest.fixture(scope="module")
def description(data_dir):
    return read_description(str(data_dir))


@pytest.fixture
def copy(data_dir, tmp_path):
    return shutil.copytree(data_dir, tmp_path / "copy")


def take(dataset, count):
    return [{k: v.numpy() for k, v in batch.items()} for batch in dataset.take(count)]


def record_numbers(batches):
    return [batch["image"][:, 0, 0, 0].astype(int).tolist() for batch in batches]


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            assert np.array_equal(batch[key], other[key]), key


def test_batches_have_the_promised_form(description):
    dataset = make_train_batches(description, "train", seed=0, batch_size=3, **AUGMENTED)
    spec = dataset.element_spec
    assert spec["image"] == tf.TensorSpec((3, 33, 41, 3), tf.float32)
    assert spec["label"] == tf.TensorSpec((3, 33, 41), tf.int32)
    assert spec["number"] == tf.TensorSpec((3,), tf.int64)
    batches = take(dataset, 5)
    assert np.concatenate([batch["number"] for batch in batches]).tolist() == list(range(15))
    labels = set(np.unique([batch["label"] for batch in batches]).tolist())
    assert labels == {*range(19), 255}


def test_an_epoch_takes_every_record_at_most_once_in_its_own_order(description):
    # 7 records in batches of 3: 2 steps per epoch, one record is left out.
    assert input_pipeline.steps_per_epoch(7, 3) == 2
    dataset = make_train_batches(description, "train", seed=0, batch_size=3, **PLAIN)
    epochs = np.reshape(record_numbers(take(dataset, 2 * 30)), (30, 6))
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 6 and set(epoch.tolist()) <= set(range(7))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) > 25
    assert set(epochs.ravel().tolist()) == set(range(7))  # another one is left out each time


def test_start_step_continues_the_same_stream_bit_for_bit(description):
    options = {"seed": 4, "batch_size": 3, **AUGMENTED}
    batches = take(make_train_batches(description, "train", **options), 9)
    for start in (1, 2, 5):
        later = take(make_train_batches(description, "train", start_step=start, **options), 4)
        assert_equal(later, batches[start : start + 4])


def test_seed_and_stream_change_order_and_augmentation(description):
    def batches(seed, stream):
        options = {"seed": seed, "stream": stream, "batch_size": 7, **AUGMENTED}
        return take(make_train_batches(description, "train", **options), 2)

    base = batches(0, 0)
    assert_equal(base, batches(0, 0))
    for other in (batches(1, 0), batches(0, 1)):
        assert not np.array_equal(base[0]["image"], other[0]["image"])
    # The streams of one seed are no shifted or swapped copies of those of another.
    assert not np.array_equal(batches(1, 0)[0]["image"], batches(0, 1)[0]["image"])


def test_only_the_chosen_records_are_used(description):
    chosen = np.array([1, 4, 6])
    dataset = make_train_batches(
        description, "train", seed=0, batch_size=3, records=chosen, **PLAIN
    )
    for numbers in record_numbers(take(dataset, 6)):
        assert sorted(numbers) == [1, 4, 6]


@pytest.mark.parametrize(("pipelines", "replicas"), [(1, 2), (2, 2), (2, 4)])
def test_replicas_get_consecutive_parts_of_the_global_batch(description, pipelines, replicas):
    options = {"seed": 2, "batch_size": 4, "start_step": 1, **AUGMENTED}
    whole = take(make_train_batches(description, "train", **options), 3)
    for pipeline in range(pipelines):
        context = tf.distribute.InputContext(pipelines, pipeline, replicas)
        per_pipeline = replicas // pipelines
        part = make_train_batches(description, "train", input_context=context, **options)
        parts = take(part, 3 * per_pipeline)
        size = 4 // replicas
        for i, batch in enumerate(parts):
            step, replica = i // per_pipeline, pipeline * per_pipeline + i % per_pipeline
            expected = {k: v[replica * size : (replica + 1) * size] for k, v in whole[step].items()}
            assert_equal([batch], [expected])


def test_two_replicas_of_a_strategy_see_the_global_batch(description, two_replicas):
    options = {"seed": 2, "batch_size": 4, **AUGMENTED}
    whole = take(make_train_batches(description, "train", **options), 2)
    distributed = distribute_batches(two_replicas, description, "train", **options)
    for expected in whole:
        parts = next(distributed)
        for key, value in parts.items():
            joined = np.concatenate([part.numpy() for part in value.values])
            assert np.array_equal(joined, expected[key]), key


def test_batch_larger_than_the_data(description):
    with pytest.raises(UsageError, match=r"--batch_size=8 is larger than the 7 images"):
        make_train_batches(description, "train", seed=0, batch_size=8, **PLAIN)


@pytest.mark.parametrize("count", [2, 7, 8, 2975])
def test_halves_are_disjoint_and_equal(count):
    first, second = split_halves(count, seed=3)
    assert first.dtype == second.dtype == np.int64
    assert len(first) == len(second) == count // 2
    assert len({*first.tolist(), *second.tolist()}) == 2 * (count // 2)
    assert min(first.min(), second.min()) >= 0 and max(first.max(), second.max()) < count


def test_halves_follow_the_seed():
    assert np.array_equal(split_halves(20, 3), split_halves(20, 3))
    assert not np.array_equal(split_halves(20, 3), split_halves(20, 4))
    # Random, not the first half of the files: 10 of 20 records, 5 +- 1.1 of them below 10.
    assert 1 < np.sum(split_halves(20, 3)[0] < 10) < 9
    with pytest.raises(RunError, match="cannot be halved"):
        split_halves(1, 0)


def test_eval_images_are_whole_and_in_order(description):
    images = list(read_eval_images(description, "val"))
    assert len(images) == 5
    for i, element in enumerate(images):
        assert element["image"].dtype == tf.uint8 and element["image"].shape == (1, *SIZE, 3)
        assert element["label"].dtype == tf.uint8 and element["label"].shape == (1, *SIZE)
        assert np.all(element["image"][..., 0] == 7 + i)
        assert element["filename"].numpy().tolist() == [
            f"leftImg8bit/val/town/town_{7 + i:06d}_000019_leftImg8bit".encode()
        ]


def test_eval_images_can_be_thinned_and_padded(description):
    # floor(i * 7 / 3) for i = 0, 1, 2: records 0, 2, 4; then padded to a multiple of 2 with void.
    images = list(read_eval_images(description, "train", max_images=3, multiple_of=2))
    assert [int(element["image"][0, 0, 0, 0]) for element in images] == [0, 2, 4, 0]
    void = [bool(np.all(element["label"] == 255)) for element in images]
    assert void == [False, False, False, True]
    assert len(list(read_eval_images(description, "train", max_images=100, multiple_of=7))) == 7


def test_a_label_out_of_range_stops_training_and_evaluation(copy):
    def spoil(i, features):
        if i == 2:
            label = np.zeros(SIZE, np.uint8)
            label[-1, -1] = 42
            set_label(features, label)

    description = read_description(str(copy))
    change_records(description.split("train").files[0], spoil)
    wrong = "town_000002_000019_leftImg8bit: label 42 is neither 0..18 nor 255 (void)"
    # The crop need not hold the wrong pixel.
    training = make_train_batches(description, "train", seed=0, batch_size=7, **PLAIN)
    for dataset in (training, read_eval_images(description, "train")):
        with pytest.raises(tf.errors.InvalidArgumentError) as raised:
            take(dataset, 7)
        message = str(input_pipeline.make_data_error(raised.value, description))
        assert message == (
            f"{copy}: leftImg8bit/train/town/{wrong} "
            "(python -m tfrecords_tools.check names every bad record)"
        )


def test_a_distributed_run_ends_in_one_line(copy):
    description = read_description(str(copy))
    label = np.full(SIZE, 42, np.uint8)
    change_records(description.split("train").files[0], lambda i, f: set_label(f, label))
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    batches = distribute_batches(
        strategy, description, "train", seed=0, batch_size=7, start_step=0, **PLAIN
    )
    with pytest.raises(RunError, match=r"label 42 is neither 0..18 nor 255 \(void\)"):
        next(batches)


def test_a_label_map_of_another_size_stops_training(copy):
    description = read_description(str(copy))
    change_records(
        description.split("val").files[0],
        lambda i, features: set_label(features, np.zeros((40, 71), np.uint8)),
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="has another size than the image"):
        take(make_train_batches(description, "val", seed=0, batch_size=2, **PLAIN), 1)


def test_fewer_records_than_described(copy):
    description = read_description(str(copy))
    with tf.io.TFRecordWriter(description.split("val").files[0]):
        pass
    with pytest.raises(RunError, match="0 records, but its description says 5"):
        read_eval_images(description, "val")


def test_crop_that_no_image_fills(tmp_path):
    for i, size in enumerate(((40, 72), (60, 50))):
        write_pair(
            tmp_path / "source",
            "train",
            f"{i:06d}_000019",
            np.zeros((*size, 3), np.uint8),
            np.zeros(size, np.uint8),
        )
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    # At scale 2 the images are 80 x 144 and 120 x 100: each of these crops is filled by one of
    # them.
    for crop in ((80, 144), (120, 100), (80, 100)):
        check_crop_size(description, "train", crop, (0.5, 2.0))
    for crop in ((81, 144), (120, 101), (100, 120)):
        with pytest.raises(UsageError, match=f"--crop_size={crop[0]},{crop[1]} is larger"):
            check_crop_size(description, "train", crop, (0.5, 2.0))
    with pytest.raises(UsageError, match="--crop_size=80,144"):
        check_crop_size(description, "train", (80, 144), (1.0,))
    # With the longer side at 144 they are 80 x 144 and 144 x 120; at scale 0.5, 40 x 72, 72 x 60.
    for crop in ((80, 144), (144, 120)):
        check_crop_size(description, "train", crop, (0.5, 1.0), 144)
    for crop, scales in (((81, 144), (1.0,)), ((40, 73), (0.5,))):
        with pytest.raises(UsageError, match=f"={crop[0]},.*after --resize_longer_side=144, even"):
            check_crop_size(description, "train", crop, scales, 144)


def encoded_jpeg(image, **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=90, **options)
    return stream.getvalue()


def written(directory, images):
    """A description of records with these encoded images; label 0..18 changes every 5 pixels."""
    file, sizes = str(directory / "train.tfrecord"), []
    with tf.io.TFRecordWriter(file) as writer:
        for number, encoded in enumerate(images):
            height, width = tf.io.decode_image(encoded).shape[:2]
            sizes.append((height, width, 1))
            rows, columns = np.indices((height, width)) // 5
            label = ((rows + 3 * columns) % 19).astype("uint8")
            features = {
                "image/encoded": encoded,
                "image/filename": f"image {number}".encode(),
                "image/segmentation/class/encoded": tf.io.encode_png(label[..., None]).numpy(),
            }
            feature = {
                name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                for name, value in features.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    names = tuple(f"class {index}" for index in range(19))
    split = Split(len(images), (file,), tuple(sizes))
    return Description("made", str(directory), names, ((0, 0, 0),) * 19, 255, {"train": split}, {})


@pytest.fixture(scope="module")
def of_all_kinds(tmp_path_factory):
    """JPEGs with and without subsampled colours, grey, progressive; a PNG; all of other sizes."""
    rng = np.random.default_rng(0)
    big = np.kron(rng.integers(0, 256, (30, 40, 3)), np.ones((4, 4, 1))).astype("uint8")
    images = [
        encoded_jpeg(big, subsampling=2),
        encoded_jpeg(big[:99, :131], subsampling=1),
        encoded_jpeg(big[:64, :37], subsampling=0),
        encoded_jpeg(big[:77, :90, 0]),
        encoded_jpeg(big[:, :121], progressive=True),
        tf.io.encode_png(big[:50]).numpy(),
    ]
    return written(tmp_path_factory.mktemp("kinds"), images), images


def many_crops(description, count, **options):
    batches = make_train_batches(
        *(description, "train"),
        seed=3,
        batch_size=1,
        crop_size=(48, 65),
        scales=(0.5, 1.0, 1.7),
        random_crop=True,
        flip=True,
        **options,
    )
    return list(batches.take(count).as_numpy_iterator())


@pytest.mark.parametrize("longer", [80, 333])
@pytest.mark.parametrize("cache", [False, True])
def test_the_pipeline_resizes_every_image(of_all_kinds, longer, cache):
    # The images' longer sides are 64 to 160. The whole image, resized, and the middle of it.
    description, images = of_all_kinds
    batches = make_train_batches(
        *(description, "train"),
        seed=0,
        batch_size=1,
        crop_size=(21, 25),
        scales=(1.0,),
        random_crop=False,
        flip=False,
        resize_longer_side=longer,
        cache=cache,
    )
    expected = []
    for encoded in images:
        image = decode_image(tf.constant(encoded))
        size = fit_longer_side(tf.shape(image)[:2], longer).numpy().tolist()
        whole = resize_bilinear(tf.cast(image, tf.float32)[None], tuple(size))[0].numpy()
        top, left = (size[0] - 21) // 2, (size[1] - 25) // 2
        expected.append(whole[top : top + 21, left : left + 25])
    found = [batch["image"][0] for batch in batches.take(len(images)).as_numpy_iterator()]
    for crop in found:
        distances = [np.abs(crop - other).max() for other in expected]
        assert sorted(distances)[0] < 2e-3 < 1 < sorted(distances)[1]


def test_images_in_memory_give_the_same_batches(of_all_kinds):
    # Memory holds whole images; from files, only the window of a JPEG is decoded.
    description, _ = of_all_kinds
    for options in (
        *({}, {"records": np.array([4, 1, 5])}, {"start_step": 7}),
        *({"resize_longer_side": 70}, {"resize_longer_side": 200}),
    ):
        plain = many_crops(description, 100, **options)
        cached = many_crops(description, 100, cache=True, **options)
        for one, other in zip(plain, cached, strict=True):
            np.testing.assert_allclose(one["image"], other["image"], atol=1e-3)
            np.testing.assert_array_equal(one["label"], other["label"])
            assert one["number"] == other["number"]


def test_a_bad_record_is_named_when_images_are_kept_in_memory(of_all_kinds, tmp_path):
    _, images = of_all_kinds
    description = written(tmp_path, images[:1])
    bad = dataclasses.replace(description, class_names=description.class_names[:18])
    with pytest.raises(RunError, match=r"image 0: label 18 is neither 0\.\.17 nor 255"):
        many_crops(bad, 1, cache=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image 0: label 18 is neither"):
        many_crops(bad, 1)

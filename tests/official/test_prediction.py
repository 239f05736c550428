import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official.errors import RunError
from official.evaluation import compute_scores
from official.prediction import (
    Pictures,
    find_pictures,
    open_pictures,
    open_split,
    predict,
    read_picture,
)
from official.records import read_description
from official.sizes import Sizes
from tests.miniature import SIZE, change_records, write_cityscapes, write_pair
from tfrecords_tools.convert import convert

NAMES = ["sky", "road", "car"]
PALETTE = [(70, 130, 180), (128, 64, 128), (0, 0, 142)]


def stand_in(images: tf.Tensor) -> tf.Tensor:
    """The brightest channel in the place of a network's answer: class 0 = red, 1, 2 = blue."""
    return images / 255.0


def colours(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def run(inputs, output_dir):
    pictures = open_pictures(str(inputs), str(output_dir))
    return predict(stand_in, pictures, str(output_dir), class_names=NAMES, palette=PALETTE)


def names_in(directory) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def test_labels_are_indices_in_a_palette_file(tmp_path):
    image = colours(6, 9)
    Image.fromarray(image).save(tmp_path / "street.png")
    (written,) = run(tmp_path / "street.png", tmp_path / "out")
    assert names_in(tmp_path / "out") == ["legend.png", "street_labels.png", "street_overlay.png"]
    with Image.open(written) as labels:
        assert labels.mode == "P"
        np.testing.assert_array_equal(labels, np.argmax(image, -1))
        np.testing.assert_array_equal(labels.convert("RGB"), np.array(PALETTE)[np.asarray(labels)])
    with Image.open(tmp_path / "out" / "street_overlay.png") as overlay:
        assert (overlay.size, overlay.mode) == ((9, 6), "RGB")


def tells_left_from_right(images: tf.Tensor) -> tf.Tensor:
    """A fake network whose answer to a mirror image is no mirror image of its answer."""
    ramp = tf.linspace(0.0, 0.5, tf.shape(images)[2])[:, tf.newaxis]
    return stand_in(images) * 4 + ramp * [3.0, -3.0, 0.0]


def test_one_scale_is_the_argmax_of_the_logits_bit_for_bit(tmp_path):
    images = [colours(7, 9), colours(4, 12, seed=1)]
    pictures = Pictures(["a", "b"], ["a", "b"], iter(images))
    written = predict(
        *(tells_left_from_right, pictures, str(tmp_path)), class_names=NAMES, palette=PALETTE
    )
    for path, image in zip(written, images, strict=True):
        logits = tells_left_from_right(image[np.newaxis].astype(np.float32))
        np.testing.assert_array_equal(Image.open(path), np.argmax(logits[0], -1))


def test_scales_and_flip_are_those_of_the_evaluation(tmp_path):
    image = colours(9, 13)
    answers = []
    for options in (
        {},
        {"scales": (0.5, 1.0, 1.25)},
        {"flip": True},
        {"scales": (0.5, 1.0, 1.25), "flip": True},
    ):
        pictures = Pictures(["a"], ["a"], iter([image]))
        (written,) = predict(
            *(tells_left_from_right, pictures, str(tmp_path)),
            class_names=NAMES,
            palette=PALETTE,
            **options,
        )
        answers.append(np.asarray(Image.open(written)))
        wanted = {"scales": (1.0,), "flip": False, **options}
        scores = compute_scores(tells_left_from_right, image[np.newaxis], 3, **wanted)
        np.testing.assert_array_equal(answers[-1], np.argmax(scores[0], -1))
    assert len({answer.tobytes() for answer in answers}) == 4


def test_a_model_sees_pictures_at_its_datas_scale(tmp_path):
    # 9 x 13 becomes 4 x 6 (4.5 and 6.5, to even); the scales are factors of that.
    image, half = colours(9, 13), Sizes(0.5)
    seen = half.bring(image[np.newaxis])
    assert seen.shape == (1, 4, 6, 3)
    for options in ({}, {"scales": (0.5, 1.0, 1.25), "flip": True}):
        (written,) = predict(
            *(tells_left_from_right, Pictures(["a"], ["a"], iter([image])), str(tmp_path)),
            class_names=NAMES,
            palette=PALETTE,
            sizes=half,
            **options,
        )
        wanted = {"scales": (1.0,), "flip": False, **options}
        scores = compute_scores(tells_left_from_right, seen, 3, **wanted)
        expected = np.argmax(tf.image.resize(scores, (9, 13))[0], -1)
        np.testing.assert_array_equal(Image.open(written), expected)
        assert Image.open(tmp_path / "a_overlay.png").size == (13, 9)


def blurs(images: tf.Tensor) -> tf.Tensor:
    """A fake network that looks 6 pixels far: the mean of a square, in three mixed channels."""
    mixed = tf.linalg.matmul(images, tf.constant([[1.0, 0.2, 0], [0, 1, 0.2], [0.2, 0, 1]]))
    return tf.nn.avg_pool2d(mixed, 13, 1, "SAME")


@pytest.mark.parametrize("sizes", [Sizes(), Sizes(1.5)])
def test_batches_and_tiles_change_nothing(tmp_path, sizes):
    images = [colours(70, 130), colours(70, 130, 1), colours(33, 40, 2), colours(70, 130, 3)]
    answers = {}
    for name, options in {
        "alone": {},
        "batches": {"batch_size": 3},
        # Each pixel is kept 6 pixels inside its tile at least, as far as the network looks.
        "tiles": {"batch_size": 2, "tile": (45, 64), "overlap": 12},
        # Tiles that touch (at column 64): labels change there.
        "too near": {"tile": (45, 64), "overlap": 0},
    }.items():
        batches = []

        def network(pieces, batches=batches):
            tf.py_function(
                lambda shape: batches.append(tuple(shape.numpy())), [tf.shape(pieces)], []
            )
            return blurs(pieces)

        written = predict(
            *(network, Pictures(list("abcd"), list("abcd"), iter(images)), str(tmp_path / name)),
            class_names=NAMES,
            palette=PALETTE,
            sizes=sizes,
            save_probabilities=True,
            **options,
        )
        answers[name] = [np.asarray(Image.open(path)) for path in written]
        for letter, image in zip("abcd", images, strict=True):
            with np.load(tmp_path / name / f"{letter}_probabilities.npz") as held:
                assert list(held["class_names"]) == NAMES
                found = held["probabilities"]
            seen = tf.cast(sizes.bring(image[np.newaxis]), tf.float32)
            scores = tf.image.resize(blurs(seen), image.shape[:2])
            assert found.dtype == np.float16 and found.shape == (*image.shape[:2], 3)
            if name != "too near":
                np.testing.assert_allclose(found, tf.nn.softmax(scores)[0], atol=1e-3)
        if sizes == Sizes() and name == "batches":
            # The second and the third are not of one size, so they are in no batch together.
            assert batches == [(2, 70, 130, 3), (1, 33, 40, 3), (1, 70, 130, 3)]
        if name in ("batches", "tiles"):
            for one, other in zip(answers["alone"], answers[name], strict=True):
                np.testing.assert_array_equal(one, other)
    assert any(
        (one != other).any()
        for one, other in zip(answers["alone"], answers["too near"], strict=True)
    )


def test_probabilities_of_several_scales_are_their_mean(tmp_path):
    image, options = colours(9, 13), {"scales": (0.5, 1.0), "flip": True}
    predict(
        *(tells_left_from_right, Pictures(["a"], ["a"], iter([image])), str(tmp_path)),
        class_names=NAMES,
        palette=PALETTE,
        save_probabilities=True,
        **options,
    )
    with np.load(tmp_path / "a_probabilities.npz") as held:
        found = held["probabilities"]
    wanted = compute_scores(tells_left_from_right, image[np.newaxis], 3, **options)[0]
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Records: 4 training images, 2 for validation, 2 for the test, whose labels are all void."""
    root = tmp_path_factory.mktemp("records")
    write_cityscapes(root / "source")
    for number in range(2):
        void = np.zeros((5 + number, 8), np.uint8)
        name = f"{number:06d}_000007"
        write_pair(root / "source", "test", name, colours(5 + number, 8, seed=number), void)
    convert("cityscapes", str(root / "source"), str(root / "data"))
    return root / "data"


def test_a_split_whose_labels_are_all_void(data, tmp_path):
    pictures = open_split(read_description(str(data)), "test")
    predict(stand_in, pictures, str(tmp_path), class_names=NAMES, palette=PALETTE)
    folder = "leftImg8bit/test/town"
    assert names_in(tmp_path) == [
        *(f"{folder}/town_000000_000007_leftImg8bit_{kind}.png" for kind in ("labels", "overlay")),
        *(f"{folder}/town_000001_000007_leftImg8bit_{kind}.png" for kind in ("labels", "overlay")),
        "legend.png",
    ]
    for number in range(2):
        answer = tmp_path / folder / f"town_{number:06d}_000007_leftImg8bit_labels.png"
        expected = np.argmax(colours(5 + number, 8, seed=number), -1)
        np.testing.assert_array_equal(Image.open(answer), expected)


def rename(data, copy, names):
    """A copy of the data whose training records have other names."""
    shutil.copytree(data, copy)
    description = read_description(str(copy))

    def change(i, features):
        features["image/filename"].bytes_list.value[0] = names[i].encode()

    change_records(description.split("train").files[0], change)
    return description


@pytest.mark.parametrize(
    ("names", "saying"),
    [
        (["a", "b", "x/../../c", "d"], r"x/\.\./\.\./c' would not be below"),
        (["a", "b", "a", "c"], "a and a would both become a_labels.png"),
    ],
)
def test_names_of_records_that_cannot_be_files(data, tmp_path, names, saying):
    pictures = open_split(rename(data, tmp_path / "data", names), "train")
    with pytest.raises(RunError, match=saying):
        predict(stand_in, pictures, str(tmp_path / "out"), class_names=NAMES, palette=PALETTE)
    assert not (tmp_path / "out").exists()


def test_records_that_cannot_be_read(data, tmp_path):
    description = rename(data, tmp_path / "data", ["a", "b", "c", "d"])

    def cut(i, features):
        if i == 2:
            encoded = features["image/encoded"].bytes_list
            encoded.value[0] = encoded.value[0][:99]

    change_records(description.split("train").files[0], cut)
    pictures = open_split(description, "train")
    with pytest.raises(RunError, match=f"{tmp_path}.*tfrecords_tools.check"):
        predict(stand_in, pictures, str(tmp_path / "out"), class_names=NAMES, palette=PALETTE)
    with pytest.raises(RunError, match="no split 'tset'"):
        open_split(description, "tset")


def test_folder_keeps_sub_paths_and_its_earlier_answers_are_no_input(tmp_path):
    photos = tmp_path / "photos"
    (photos / "rome").mkdir(parents=True)
    Image.fromarray(colours(4, 5)).save(photos / "a.jpg")
    Image.fromarray(colours(3, 3)).save(photos / "rome" / "a.JPEG")
    (photos / "notes.txt").write_text("no picture")
    for _ in range(2):
        assert len(run(photos, photos / "out")) == 2
    assert names_in(photos / "out") == [
        *("a_labels.png", "a_overlay.png", "legend.png"),
        *("rome/a_labels.png", "rome/a_overlay.png"),
    ]


def test_pattern(tmp_path):
    photos = tmp_path / "photos [2024]"
    for city in ("rome", "oslo"):
        (photos / city).mkdir(parents=True)
        Image.fromarray(colours(2, 2)).save(photos / city / "x.png")
        Image.fromarray(colours(2, 2)).save(photos / city / "y.png")
    pattern = str(photos).replace("[", "[[]") + "/*/x.png"
    assert [name for _, name in find_pictures(str(photos), "out")] == [
        *("oslo/x", "oslo/y", "rome/x", "rome/y")
    ]
    # Its first wildcard is in the folder's own name.
    assert [name for _, name in find_pictures(pattern, "out")] == [
        *("photos [2024]/oslo/x", "photos [2024]/rome/x")
    ]
    # A folder that is there goes before what its name would match.
    assert [name for _, name in find_pictures(f"{photos}/*/x.png", "out")] == ["oslo/x", "rome/x"]
    assert [name for _, name in find_pictures(f"{tmp_path}/**/y.png", "out")] == [
        *("photos [2024]/oslo/y", "photos [2024]/rome/y")
    ]


def test_same_name_twice_is_an_error_before_anything_is_written(tmp_path):
    for name in ("a.png", "a.jpg"):
        Image.fromarray(colours(2, 2)).save(tmp_path / name)
    with pytest.raises(RunError, match=r"a\.jpg and .*a\.png"):
        run(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["legend.png", "a_labels.png", "b_overlay.png"])
def test_no_picture_is_written_over(tmp_path, name):
    stem = name.partition("_")[0].removesuffix(".png")
    folder, out = tmp_path / "photos", tmp_path / "out"
    for path in (folder / f"{stem}.png", out / name):
        path.parent.mkdir()
        Image.fromarray(colours(2, 2)).save(path)
    before = (out / name).read_bytes()
    # Under a link, its name is another one.
    (folder / "z.png").symlink_to(out / name)
    pictures = Pictures([stem], ["z"], iter(()), [folder / "z.png"])
    with pytest.raises(RunError, match=f"{name} is one of the pictures, and would be written over"):
        predict(stand_in, pictures, str(out), class_names=NAMES, palette=PALETTE)
    assert (out / name).read_bytes() == before and len(list(out.iterdir())) == 1


@pytest.mark.parametrize("inputs", ["nowhere", "*.gif", "empty"])
def test_no_match_names_the_pattern(tmp_path, inputs):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError) as caught:
        run(tmp_path / inputs, tmp_path / "out")
    assert str(tmp_path / inputs) in str(caught.value)


def test_a_truncated_picture_is_named_and_those_before_stay(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for name in "abc":
        Image.fromarray(colours(40, 40)).save(photos / f"{name}.png")
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"b\.png"):
        run(photos, out)
    assert names_in(out) == ["a_labels.png", "a_overlay.png", "legend.png"]
    Image.open(out / "a_labels.png").load()
    # Also those that wait for others of their batch.
    with pytest.raises(RunError, match=r"b\.png"):
        predict(
            *(stand_in, open_pictures(str(photos), ""), str(tmp_path / "other")),
            class_names=NAMES,
            palette=PALETTE,
            batch_size=3,
        )
    assert names_in(tmp_path / "other") == names_in(out)


def test_output_directory_that_is_a_file(tmp_path):
    Image.fromarray(colours(2, 2)).save(tmp_path / "a.png")
    (tmp_path / "out").write_text("")
    with pytest.raises(RunError, match="out"):
        run(tmp_path / "a.png", tmp_path / "out")


def test_classes_that_are_not_the_networks(tmp_path):
    Image.fromarray(colours(2, 2)).save(tmp_path / "a.png")
    options = {"class_names": NAMES[:2], "palette": PALETTE[:2]}
    with pytest.raises(RunError, match="has 3 classes, the data 2"):
        pictures = open_pictures(str(tmp_path / "a.png"), "")
        predict(stand_in, pictures, str(tmp_path / "out"), **options)


def test_a_name_that_is_no_text_is_kept(tmp_path):
    name = os.fsdecode(b"caf\xe9")  # Latin-1
    (tmp_path / "photos").mkdir()
    Image.fromarray(colours(3, 4)).save(tmp_path / "photos" / f"{name}.png")
    run(tmp_path / "photos", tmp_path / "out")
    assert b"caf\xe9_labels.png" in os.listdir(os.fsencode(tmp_path / "out"))


def test_linked_folders_are_searched_and_circles_end(tmp_path):
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    for folder in (photos, elsewhere):
        folder.mkdir()
        Image.fromarray(colours(3, 4)).save(folder / "a.png")
    (photos / "link").symlink_to(elsewhere)
    (elsewhere / "round").symlink_to(photos)
    (photos / "self").symlink_to(photos)
    for inputs in (photos, f"{photos}/**/*.png"):
        found = [name for _, name in find_pictures(str(inputs), str(tmp_path / "out"))]
        assert found == ["a", "link/a"]


def test_what_is_larger_than_the_limit_is_refused_before_it_is_decoded(tmp_path):
    # 144 Mpixel in 140 kB of PNG; its answer would take gigabytes.
    Image.new("1", (12_000, 12_000)).save(tmp_path / "huge.png")
    with pytest.raises(RunError, match=r"huge.png: 12000 x 12000 .* of 1000 .*--max_pixels$"):
        read_picture(tmp_path / "huge.png", 1000)
    Image.fromarray(colours(6, 9)).save(tmp_path / "street.png")
    assert read_picture(tmp_path / "street.png", 6 * 9).shape == (6, 9, 3)


def test_an_image_of_a_split_that_is_larger_than_the_limit(tmp_path):
    write_cityscapes(tmp_path / "source", train=1, val=1)
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    pixels = SIZE[0] * SIZE[1]
    assert [x.shape for x in open_split(description, "val", pixels).images] == [(*SIZE, 3)]
    with pytest.raises(RunError, match=r"town_000001_000019.*: 40 x 72 pixels .*--max_pixels$"):
        next(open_split(description, "val", pixels - 1).images)


@pytest.mark.parametrize(
    ("name", "saying"),
    [
        ("../a", "'../a' would not be below"),
        ("a/../../b", "would not be below"),
        ("/etc/a", "would not be below"),
        ("", "'' would not be below"),
        (".", "would not be below"),
        ("a\nb", r"'a\\nb' has a control character"),
        ("a\0b", "has a control character"),
        ("x" * 10**5 + "\n", "has a control character"),
    ],
)
def test_a_records_name_leads_nowhere_else(tmp_path, name, saying):
    pictures = Pictures([name], [name], iter([colours(4, 4)]))
    with pytest.raises(RunError, match=saying) as error:
        predict(*(stand_in, pictures, str(tmp_path / "out")), class_names=NAMES, palette=PALETTE)
    assert len(str(error.value)) < 400 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more", [{"scales": (1.0, 3000.0)}, {"sizes": Sizes(3000.0)}])
def test_a_picture_is_not_enlarged_beyond_all_reason(tmp_path, more):
    # 4 * 4 * 3000**2 = 1.44e8, more than 2**27 = 1.34e8
    pictures = Pictures(["a", "b"], ["a.png", "b.png"], iter([colours(1, 1), colours(4, 4)]))
    with pytest.raises(RunError, match=r"b\.png would be enlarged to 1.44e\+08 pixels.*--eval_sc"):
        predict(
            *(lambda images: images[:, :1, :1], pictures, str(tmp_path / "out")),
            class_names=NAMES,
            palette=PALETTE,
            **more,
        )
    assert (tmp_path / "out" / "a_labels.png").exists()


def test_what_never_ends_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zeros.png").symlink_to("/dev/zero")
    (tmp_path / "large.png").touch()
    os.truncate(tmp_path / "large.png", 2**30 + 1)  # which takes no space
    for name, saying in (
        ("pipe", "it is no file"),
        ("zeros", "it is no file"),
        ("large", "1024 MB"),
    ):
        with pytest.raises(RunError, match=rf"{name}\.png: .*{saying}"):
            read_picture(tmp_path / f"{name}.png")

import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from official.errors import RunError
from tfrecords_tools import toy_scenes, toy_street
from tfrecords_tools.toy_scenes import Plan, paint_scene, photograph, write_dataset
from tfrecords_tools.toy_street import CAR, EGO_VEHICLE, ROAD, SIDEWALK, STATIC, Street

CLASSES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    17: "pole",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    26: "car",
}
# Label id -> 0 .. 9; void -> 10.
COMPACT = np.full(256, len(CLASSES), np.int64)
COMPACT[list(CLASSES)] = range(len(CLASSES))


def a_street(seed: int = 0) -> Street:
    return Street(np.random.default_rng(seed), (128, 256))


@pytest.fixture(scope="module")
def scenes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    drawn = {
        split: [paint_scene(0, split, index) for index in range(count)]
        for split, count in (("train", 48), ("val", 24))
    }
    return {
        split: (np.stack([image for image, _ in pairs]), np.stack([label for _, label in pairs]))
        for split, pairs in drawn.items()
    }


# How difficult the scenes are ---------------------------------------------------------------------


def miou_present(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean IoU of the classes that have ground truth; void is ignored."""
    n, valid = len(CLASSES), truth < len(CLASSES)
    confusion = np.bincount(truth[valid] * n + predicted[valid], minlength=n * n).reshape(n, n)
    hit, present = np.diag(confusion), confusion.sum(1) > 0
    union = confusion.sum(0) + confusion.sum(1) - hit
    return float(np.mean(hit[present] / union[present]))


def bins(images: np.ndarray, bits: int, rows: int) -> np.ndarray:
    """The number of every pixel's bin: `bits` bits per colour channel, `rows` bands of rows."""
    colour = np.zeros(images.shape[:3], np.int64)
    for channel in range(3):
        colour = colour << bits | images[..., channel] >> (8 - bits)
    return colour * rows + (np.arange(images.shape[1]) * rows // images.shape[1])[:, None]


def colour_and_row_scores(
    train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray]
) -> dict[tuple[int, int, float], float]:
    """miou_present of histogram classifiers by (bits per channel, rows, power of the class prior).

    Every bin's histogram is smoothed by that of the bin with one bit less per channel, so a colour
    that training has not shown falls back to a coarser one. Dividing by a power of the class
    frequencies trades pixel accuracy for the mean over classes.
    """
    (images, truth), n = train, len(CLASSES)
    valid = truth < n
    prior = np.bincount(truth[valid], minlength=n) / valid.sum()
    scores = {}
    for rows in (1, 16, 32):
        posterior = np.tile(prior, (rows, 1))
        for bits in (0, 1, 2, 3, 4, 5):
            size = rows << 3 * bits
            seen = np.bincount(
                bins(images, bits, rows)[valid] * n + truth[valid], minlength=size * n
            )
            q, row = np.divmod(np.arange(size), rows)
            parent = np.zeros(size, np.int64)
            for shift in (2 * bits, bits, 0) if bits else ():
                channel = q >> shift & (1 << bits) - 1
                parent = parent << bits - 1 | channel >> 1
            posterior = seen.reshape(size, n) + 8 * posterior[parent * rows + row]
            posterior /= posterior.sum(1, keepdims=True)
            where = bins(val[0], bits, rows)
            for power in (0.0, 0.5, 0.75):
                choice = (posterior / prior**power).argmax(1)
                scores[bits, rows, power] = miou_present(val[1], choice[where])
    return scores


def test_colour_and_row_do_not_give_the_classes_away(scenes):
    train, val = ((images, COMPACT[labels]) for images, labels in scenes.values())
    frequent = np.bincount(train[1].ravel(), minlength=11)[:10].argmax()
    majority = miou_present(val[1], np.full_like(val[1], frequent))
    scores = colour_and_row_scores(train, val)
    row_only = max(score for (bits, _, _), score in scores.items() if bits == 0)
    colour_only = max(score for (_, rows, _), score in scores.items() if rows == 1)
    best = max(scores.values())
    print(
        f"\nmiou_present: majority class {majority:.3f}, row {row_only:.3f}, "
        f"colour {colour_only:.3f}, colour and row {best:.3f} {max(scores, key=scores.get)}"
    )
    # One class of ten is right, on about a third of the picture: 0.3 / 10.
    assert majority < 0.10
    assert best < 0.35
    # The reference is a real one: both sources together beat each alone, and all beat the majority.
    assert majority < min(row_only, colour_only) and max(row_only, colour_only) < best
    assert best > 0.2


def test_every_class_has_enough_pixels_to_be_learned(scenes):
    _, labels = scenes["train"]
    counts = np.bincount(labels.ravel(), minlength=256)
    assert set(np.flatnonzero(counts)) == {*CLASSES, EGO_VEHICLE, STATIC}
    share = {name: counts[label] / labels.size for label, name in CLASSES.items()}
    print({name: round(float(value), 4) for name, value in share.items()})
    assert min(share.values()) > 0.005 and max(share.values()) < 0.4
    assert 0 < (counts[EGO_VEHICLE] + counts[STATIC]) / labels.size < 0.1


# What is painted ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("car", {26}),
        ("person", {24}),
        ("pole", {17}),
        ("lamp", {17}),
        ("sign", {17, 20}),
        ("tree", {21}),
        ("foliage", {21}),
        ("building", {11}),
        ("bin", {STATIC}),
        ("bonnet", {EGO_VEHICLE}),
    ],
)
def test_label_covers_exactly_what_is_painted(kind, labels):
    street = a_street()
    u, z = street.lane, 12.0  # straight ahead
    arguments = {
        "car": (u, z, 0.4),
        "person": (u, z, 1.8),
        "pole": (u, z, 4.0, 0.2),
        "lamp": (u, z, 6.0),
        "tree": (u, z, 6.0, 4.0),
        "foliage": (u, z, 0.0, 2.0, 3.0, (90.0, 120.0, 60.0)),
        "building": (1, 5.0, 8.0, 20.0, 9.0),
        "sign": (u, z),
        "bin": (u, z),
        "bonnet": (),
    }[kind]
    getattr(street, f"paint_{kind}")(*arguments)
    canvas = np.asarray(street.canvas)
    # The canvas was black and unlabelled; haze and palette keep every ink above black.
    np.testing.assert_array_equal(canvas[..., :3].any(-1), canvas[..., 3] > 0)
    assert set(np.unique(canvas[..., 3])) == {0, *labels}
    assert all((canvas[..., 3] == label).sum() > 200 for label in labels)


def test_picture_and_labels_stay_aligned_when_the_canvas_is_halved():
    street = a_street()
    # 2 x 2 canvas pixels become one: rows 20 .. 39 -> 10 .. 19, columns 62 .. 101 -> 31 .. 50.
    street.draw.rectangle((62, 20, 101, 39), fill=(255, 255, 255, CAR))
    image, labels = photograph(street)
    expected = np.zeros((128, 256), bool)
    expected[10:20, 31:51] = True
    np.testing.assert_array_equal(labels == CAR, expected)
    np.testing.assert_array_equal(image.mean(-1) > 45, expected)


def test_things_stand_on_the_ground_where_the_ground_says_they_do():
    checked = 0
    for seed in range(8):
        street = a_street(seed)
        street.paint_sky()
        bands = {side: [(street.half, SIDEWALK)] for side in (-1, 1)}
        street.paint_ground(bands, np.zeros((street.height, street.width), np.float32))
        labels = np.asarray(street.canvas)[..., 3]
        for side in (-1, 1):
            for z in (6.0, 10.0, 20.0, 30.0):
                for beyond, label in ((-0.25, ROAD), (0.25, SIDEWALK)):
                    x, y = street.project((side * (street.half + beyond), 0, z)).round().astype(int)
                    if 0 <= x < street.width and 0 <= y < street.height:
                        assert labels[y, x] == label
                        checked += 1
    assert checked > 40


def test_camera_sees_its_own_height_at_the_horizon_and_halves_sizes_at_twice_the_distance():
    street = a_street()
    street.roll = street.bend = 0.0
    for z in (4.0, 40.0):
        assert math.isclose(street.project((1.0, street.eye, z))[1], street.horizon)
    near, far = (np.ptp(street.project([(0, 0, z), (0, 2, z)])[:, 1]) for z in (10.0, 20.0))
    assert math.isclose(near, 2 * far) and math.isclose(near, street.focal * 2 / 10)


def test_far_things_are_painted_first():
    plan, order = Plan(a_street(3)), []
    distances = [z for z, _ in plan.things]
    plan.things = [(z, partial(order.append, z)) for z in distances]
    plan.paint()
    assert len(order) > 5 and order == sorted(distances, reverse=True)


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (96, 97), (80, 40)])
def test_any_size_can_be_painted(size):
    image, labels = paint_scene(1, "val", 0, size)
    assert image.shape == (*size, 3) and labels.shape == size
    assert image.dtype == labels.dtype == np.uint8


def test_a_scene_depends_on_seed_split_and_index_only():
    size = (32, 64)
    wanted = paint_scene(5, "train", 3, size)
    paint_scene(5, "train", 9, size)  # what was painted before does not matter
    again = paint_scene(5, "train", 3, size)
    for one, other in zip(wanted, again, strict=True):
        np.testing.assert_array_equal(one, other)
    for key in ((6, "train", 3), (5, "val", 3), (5, "train", 4)):
        assert (paint_scene(*key, size)[0] != wanted[0]).mean() > 0.5


# What is written ----------------------------------------------------------------------------------


def files_of(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_layout_is_that_of_cityscapes(tmp_path):
    (tmp_path / "a").mkdir()  # an empty directory is as good as none
    for name in ("a", "b"):
        write_dataset(str(tmp_path / name), num_train=4, num_val=2, size=(32, 64), seed=7)
    files = files_of(tmp_path / "a")
    assert files == files_of(tmp_path / "b")
    pattern = re.compile(
        r"(leftImg8bit|gtFine)/(train|val)/(\w+)/\3_\d{6}_000019_(leftImg8bit|gtFine_labelIds)\.png"
    )
    assert len(files) == 2 * (4 + 2) and all(pattern.fullmatch(name) for name in files)
    cities = {
        split: {name.split("/")[2] for name in files if f"/{split}/" in name}
        for split in ("train", "val")
    }
    assert not cities["train"] & cities["val"]
    for split, index, stem in (
        ("train", 3, "toyford/toyford_000001"),
        ("val", 1, "toyville/toyville_000001"),
    ):
        image, labels = paint_scene(7, split, index, (32, 64))
        with Image.open(tmp_path / f"a/leftImg8bit/{split}/{stem}_000019_leftImg8bit.png") as found:
            np.testing.assert_array_equal(np.asarray(found), image)
        with Image.open(tmp_path / f"a/gtFine/{split}/{stem}_000019_gtFine_labelIds.png") as found:
            assert found.mode == "L"
            np.testing.assert_array_equal(np.asarray(found), labels)


def test_what_is_already_there_is_never_touched(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RunError, match=r"not an empty directory.*--output_dir"):
        write_dataset(str(tmp_path), num_train=1, num_val=1, size=(32, 64))
    assert files_of(tmp_path) == {"mine.txt": b"precious"}


def test_an_interrupted_run_leaves_nothing_and_a_killed_one_is_cleaned_up(tmp_path, monkeypatch):
    target = tmp_path / "toy"

    def paint_two(seed, split, index, size):
        if index == 2:
            raise KeyboardInterrupt
        return paint_scene(seed, split, index, size)

    with monkeypatch.context() as patch:
        patch.setattr(toy_scenes, "paint_scene", paint_two)
        with pytest.raises(KeyboardInterrupt):
            write_dataset(str(target), num_train=4, num_val=1, size=(32, 64))
    assert list(tmp_path.iterdir()) == []

    killed = tmp_path / ".toy.unfinished" / "gtFine" / "train" / "toyham"
    killed.mkdir(parents=True)
    (killed / "half.png").write_bytes(b"\x89PNG")
    write_dataset(str(target), num_train=1, num_val=1, size=(32, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert len(files_of(target)) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--size=48,64", "--num_train=1", "--num_val=1"], 0, ""),
        (["--size=48"], 2, "error: --size=48 must be height,width"),
        (["--size=16,64"], 2, "error: --size=16,64 must be"),
        (["--num_train=0"], 2, "error: .*num_train"),
    ],
)
def test_command_line(tmp_path, arguments, code, message):
    command = [
        sys.executable,
        "-m",
        "tfrecords_tools.toy_scenes",
        f"--output_dir={tmp_path / 'toy'}",
    ]
    root = Path(toy_street.__file__).parents[1]
    done = subprocess.run(
        [*command, *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert (tmp_path / "toy").exists() == (code == 0)
    if code:
        assert re.match(message, done.stderr) and done.stderr.count("\n") == 1

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from official.datasets import CITYSCAPES_CLASSES
from official.errors import RunError, UsageError
from official.parallel import map_in_order
from official.records import parse_example, read_description
from tests.miniature import SIZE, write_cityscapes, write_pair
from tfrecords_tools import cityscapes
from tfrecords_tools import convert as convert_module
from tfrecords_tools.convert import convert

IMAGE = "leftImg8bit/train/town/town_000001_000019_leftImg8bit.png"
LABEL = "gtFine/train/town/town_000001_000019_gtFine_labelIds.png"


@pytest.fixture
def source(tmp_path):
    return write_cityscapes(tmp_path / "source", train=4, val=2)


def read_records(data_dir, split="train"):
    files = read_description(str(data_dir)).split(split).files
    dataset = tf.data.TFRecordDataset(files).map(parse_example)
    return [{k: v.numpy() for k, v in record.items()} for record in dataset]


def decode(record):
    return tf.io.decode_image(record["image"]).numpy(), tf.io.decode_png(record["label"])[
        ..., 0
    ].numpy()


def test_cityscapes_train_ids_are_the_published_ones():
    # cityscapesScripts, labels.py: these label ids are the classes 0..18, all others are void.
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    expected = [ids.index(i) if i in ids else 255 for i in range(34)]
    assert cityscapes.make_train_id_table().tolist() == expected
    assert len({colour for _, _, colour in CITYSCAPES_CLASSES}) == 19
    assert CITYSCAPES_CLASSES[13] == (26, "car", (0, 0, 142))


def test_image_bytes_are_kept_and_label_ids_become_train_ids(source, tmp_path, capsys):
    convert("cityscapes", str(source), str(tmp_path / "data"))
    table = cityscapes.make_train_id_table()
    for split, count in (("train", 4), ("val", 2)):
        records = read_records(tmp_path / "data", split)
        names = [record["filename"].decode() for record in records]
        assert len(names) == count and names == sorted(names)
        for record, name in zip(records, names, strict=True):
            assert record["image"] == (source / f"{name}.png").read_bytes()
            label_ids = name.replace("leftImg8bit/", "gtFine/").replace(
                "_leftImg8bit", "_gtFine_labelIds.png"
            )
            expected = table[np.asarray(Image.open(source / label_ids))]
            assert np.array_equal(decode(record)[1], expected)
    out = capsys.readouterr().out
    assert "train: 4 images, 1 size(s), the largest 40 x 72" in out
    assert "test: skipped, no leftImg8bit/test/*/*_leftImg8bit.png" in out


def test_a_rerun_writes_the_same_records_in_the_same_order(source, tmp_path, monkeypatch):
    convert("cityscapes", str(source), str(tmp_path / "first"))
    monkeypatch.setattr(convert_module, "SHARD_BYTES", 1)
    monkeypatch.setattr(convert_module, "map_in_order", partial(map_in_order, ahead=3))
    convert("cityscapes", str(source), str(tmp_path / "second"))
    first, second = (read_description(str(tmp_path / name)) for name in ("first", "second"))
    assert len(first.split("train").files) == 1 and len(second.split("train").files) == 4
    assert read_records(tmp_path / "first") == read_records(tmp_path / "second")
    assert first.fingerprint() == second.fingerprint()


def test_void_test_split_is_converted(source, tmp_path):
    write_pair(
        source, "test", "000009_000019", np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), "u1")
    )
    convert("cityscapes", str(source), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    assert set(description.splits) == {"train", "val", "test"}
    assert description.split("test").sizes == ((4, 6, 1),)
    assert np.all(decode(read_records(tmp_path / "data", "test")[0])[1] == 255)


def test_resizing_is_antialiased_and_invents_no_label(tmp_path):
    # A checker of single pixels is grey on average; sampling single pixels would give 0 or 255.
    # Void (0) and bicycle (33) meet everywhere: an interpolated label would be another class.
    checker = (np.indices((41, 72)).sum(0) % 2).astype(np.uint8)
    write_pair(
        tmp_path / "source",
        "train",
        "000001_000019",
        np.repeat(checker[..., None] * np.uint8(255), 3, axis=-1),
        np.random.default_rng(0).choice(np.array([0, 7, 33], np.uint8), (41, 72)),
    )
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"), 0.5)
    description = read_description(str(tmp_path / "data"))
    assert description.options == {"resize_factor": 0.5}
    assert description.split("train").sizes == ((20, 36, 1),)  # 20.5 -> 20, half to even
    image, label = decode(read_records(tmp_path / "data")[0])
    assert image.shape == (20, 36, 3) and label.shape == (20, 36)
    assert np.all(np.abs(image[2:-2, 2:-2].astype(int) - 127) < 25)
    assert set(np.unique(label)) == {255, 0, 18}


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.75])
def test_resizing_keeps_image_and_label_aligned(tmp_path, factor):
    # Squares of 8 pixels, white where the label is road (7) and black where it is void (0). A pixel
    # whose image is nearly white or black lies clearly inside a square, and there the label must
    # agree.
    squares = (np.indices((48, 80)) // 8).sum(0) % 2
    write_pair(
        tmp_path / "source",
        "train",
        "000001_000019",
        np.repeat(squares[..., None] * 255, 3, axis=-1).astype(np.uint8),
        (squares * 7).astype(np.uint8),
    )
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"), factor)
    image, label = decode(read_records(tmp_path / "data")[0])
    clear = np.abs(image[..., 0] - 127.5) > 100
    assert clear.mean() > 0.3
    assert np.array_equal(image[..., 0][clear] > 127, label[clear] == 0)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def fill(path: Path, value: int, shape: tuple[int, ...] = SIZE) -> None:
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: cut(s / IMAGE), f"{IMAGE} cannot be read as an image"),
        (lambda s: cut(s / LABEL), f"{LABEL} cannot be read as an image"),
        (lambda s: (s / IMAGE).write_text("text"), f"{IMAGE} cannot be read as an image"),
        (lambda s: (s / IMAGE).write_bytes(b""), f"{IMAGE} cannot be read as an image"),
        (lambda s: shutil.rmtree(s / "gtFine"), "holds no split of Cityscapes"),
        (lambda s: fill(s / LABEL, 34), f"{LABEL} holds the value 34"),
        (lambda s: fill(s / LABEL, 255), f"{LABEL} holds the value 255"),
        (lambda s: fill(s / LABEL, 7, (40, 71)), f"{LABEL} is 40 x 71, but its image .* 40 x 72"),
        (lambda s: fill(s / LABEL, 7, (*SIZE, 3)), f"{LABEL} is no label map: .* mode is RGB"),
        (
            lambda s: Image.open(s / IMAGE).save(s / IMAGE, "GIF"),
            f"{IMAGE} cannot be read as an image: it is neither",
        ),
        (
            lambda s: (s / IMAGE).unlink() or (s / IMAGE).symlink_to("nowhere"),
            f"{IMAGE} cannot be read",
        ),
        (
            lambda s: shutil.rmtree(s / "leftImg8bit") or shutil.rmtree(s / "gtFine"),
            "holds no split of Cityscapes",
        ),
        (lambda s: shutil.rmtree(s), "is no directory"),
    ],
)
def test_bad_sources_are_named_and_leave_nothing(source, tmp_path, spoil, message):
    spoil(source)
    with pytest.raises(RunError, match=message):
        convert("cityscapes", str(source), str(tmp_path / "out" / "data"))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_bad_file_ends_the_conversion_and_the_way_out_is_said(source, tmp_path):
    cut(source / IMAGE)
    with pytest.raises(RunError, match=rf"{IMAGE} cannot .* \(--skip_bad_files=N leaves out up to"):
        convert("cityscapes", str(source), str(tmp_path / "data"))


def spoil_three(source):
    """A damaged image, a damaged label map and one of another size; what is said of them."""
    images, labels = (sorted(source.glob(f"{top}/train/*/*")) for top in ("leftImg8bit", "gtFine"))
    cut(images[1])
    labels[2].write_text("text")
    fill(labels[3], 7, (40, 71))
    return [
        f"{images[1]} cannot be read as an image",
        f"{labels[2]} cannot be read as an image",
        f"{labels[3]} is 40 x 71",
    ]


def test_bad_files_are_skipped_and_listed(tmp_path, capsys):
    source = write_cityscapes(tmp_path / "source", train=6, val=2)
    convert("cityscapes", str(source), str(tmp_path / "clean"))
    capsys.readouterr()
    said = spoil_three(source)
    convert("cityscapes", str(source), str(tmp_path / "data"), skip_bad_files=3)

    clean = read_records(tmp_path / "clean")
    assert read_records(tmp_path / "data") == [clean[i] for i in (0, 4, 5)]
    assert read_records(tmp_path / "data", "val") == read_records(tmp_path / "clean", "val")
    out, err = capsys.readouterr()
    assert "train: 3 images, 1 size(s)" in out
    listed = out[out.index("3 bad file(s) were skipped:\n") :].splitlines()[1:4]
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    for line, running, expected in zip(listed, skipped, said, strict=True):
        assert line.startswith(f"  {expected}") and running.startswith(f"skipped: {expected}")

    # The directory says so itself; one without bad files says nothing of them.
    names = [Path(record["filename"].decode()).name for record in clean[1:4]]
    described = json.loads((tmp_path / "data" / "metadata.json").read_text())
    assert [Path(name).name for name in described["skipped"]["train"]] == names
    assert set(described["skipped"]) == {"train"}
    assert "skipped" not in json.loads((tmp_path / "clean" / "metadata.json").read_text())
    first, second = (read_description(str(tmp_path / name)) for name in ("clean", "data"))
    assert second.split("train").num_examples == 3
    assert first.fingerprint() != second.fingerprint()


def test_one_bad_file_too_many(tmp_path):
    source = write_cityscapes(tmp_path / "source", train=6, val=2)
    said = spoil_three(source)
    with pytest.raises(
        RunError, match=f"^3 bad files are more than --skip_bad_files=2; the last: {said[2]}"
    ):
        convert("cityscapes", str(source), str(tmp_path / "data"), skip_bad_files=2)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_split_of_bad_files_only_is_an_error(source, tmp_path):
    for image in source.glob("leftImg8bit/val/*/*"):
        cut(image)
    with pytest.raises(RunError, match=r"^val: every image was left out"):
        convert("cityscapes", str(source), str(tmp_path / "data"), skip_bad_files=9)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_skipping_changes_nothing_where_all_is_good(source, tmp_path, monkeypatch):
    convert("cityscapes", str(source), str(tmp_path / "one"))
    # A shard for each image, one of them empty, does not change what is in the records.
    cut(source / IMAGE)
    monkeypatch.setattr(convert_module, "SHARD_BYTES", 1)
    convert("cityscapes", str(source), str(tmp_path / "two"), skip_bad_files=1)
    two = read_description(str(tmp_path / "two"))
    assert len(two.split("train").files) == 4 and two.split("train").num_examples == 3
    one = read_records(tmp_path / "one")
    assert read_records(tmp_path / "two") == [r for r in one if r["filename"].decode() not in IMAGE]


def test_files_that_no_record_can_hold_are_counted(source, tmp_path, capsys):
    images = [
        source / f"leftImg8bit/train/town/town_{i:06d}_000019_leftImg8bit.png" for i in (0, 2)
    ]
    for path in images:
        Image.open(path).convert("RGBA").save(path)
    convert("cityscapes", str(source), str(tmp_path / "data"))
    assert "train: 2 image(s) re-encoded as PNG: 2 transparency\n" in capsys.readouterr().out
    records = read_records(tmp_path / "data")
    assert np.array_equal(decode(records[0])[0], np.asarray(Image.open(images[0]))[..., :3])
    assert records[3]["image"] == Path(str(images[0]).replace("000000", "000003")).read_bytes()


def test_a_longest_side(tmp_path, capsys):
    # 60 x 100 -> 30 x 50 and 41 x 20 stays; 3 x 200 -> 0.75 x 50, rounded.
    for number, (size, kind) in enumerate([((60, 100), "RGB"), ((50, 20), "L"), ((3, 200), "RGB")]):
        image, label = write_pair(
            tmp_path / "source",
            "train",
            f"{number:06d}_000019",
            np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8),
            np.full(size, 7, np.uint8),
        )
        Image.open(image).convert(kind).save(image)
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "data"), max_side=50)
    description = read_description(str(tmp_path / "data"))
    assert description.options == {"resize_factor": 1.0, "max_side": 50}
    assert description.split("train").sizes == ((1, 50, 1), (30, 50, 1), (50, 20, 1))
    assert "train: 2 image(s) resized\n" in capsys.readouterr().out
    records = read_records(tmp_path / "data")
    small = next((tmp_path / "source").glob("leftImg8bit/train/*/*_000001_*"))
    assert records[1]["image"] == small.read_bytes()
    for record, size in zip(records, [(30, 50), (50, 20), (1, 50)], strict=True):
        image, label = decode(record)
        assert image.shape[:2] == label.shape == size and np.all(label == 0)
    # 30 x 50 is half of 60 x 100: the same as a factor of 0.5.
    convert("cityscapes", str(tmp_path / "source"), str(tmp_path / "half"), 0.5)
    assert read_records(tmp_path / "half")[0] == records[0]


def test_usage_errors(source, tmp_path):
    with pytest.raises(UsageError, match=r"--dataset=city is unknown: there is cityscapes"):
        convert("city", str(source), str(tmp_path / "data"))
    for factor in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(UsageError, match="--resize_factor"):
            convert("cityscapes", str(source), str(tmp_path / "data"), factor)
    for options, message in (
        ({"max_side": 0}, "--max_side=0 must be at least 1"),
        ({"max_side": 9, "resize_factor": 0.5}, "--max_side=9 and --resize_factor=0.5: give one"),
        ({"skip_bad_files": -1}, "--skip_bad_files=-1 must not be negative"),
    ):
        with pytest.raises(UsageError, match=message):
            convert("cityscapes", str(source), str(tmp_path / "data"), **options)


def test_nothing_that_exists_is_overwritten(source, tmp_path):
    data = tmp_path / "data"
    convert("cityscapes", str(source), str(data))
    before = {path.name: path.read_bytes() for path in data.iterdir()}
    with pytest.raises(RunError, match=r"already holds a dataset: remove it or choose another"):
        convert("cityscapes", str(source), str(data))
    assert {path.name: path.read_bytes() for path in data.iterdir()} == before

    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for target in (other, other / "notes.txt", tmp_path / "file"):
        with pytest.raises(RunError, match="is not an empty directory"):
            convert("cityscapes", str(source), str(target))
    with pytest.raises(RunError, match="cannot write"):
        convert("cityscapes", str(source), str(tmp_path / "file" / "data"))
    assert (other / "notes.txt").read_text() == "mine" and (tmp_path / "file").read_text() == "mine"


def test_an_empty_output_directory_is_used(source, tmp_path):
    (tmp_path / "data").mkdir()
    convert("cityscapes", str(source), str(tmp_path / "data"))
    assert read_description(str(tmp_path / "data")).split("val").num_examples == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "source"]


def test_command_line(source, tmp_path):
    def run(*flags):
        return subprocess.run(
            [sys.executable, "-m", "tfrecords_tools.convert", *flags],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=120,
        )

    flags = ["--dataset=cityscapes", f"--source_dir={source}", f"--output_dir={tmp_path / 'data'}"]
    cut(source / IMAGE)
    bad = run(*flags)
    assert bad.returncode == 1 and "Traceback" not in bad.stderr
    (line,) = [line for line in bad.stderr.splitlines() if line.startswith("error: ")]
    assert f"{IMAGE} cannot be read as an image" in line

    fill(source / IMAGE, 9, (*SIZE, 3))
    good = run(*flags)
    assert good.returncode == 0, good.stderr
    # Nothing but what we say: no word of tensorflow-datasets about downloads.
    assert good.stdout.splitlines() == [
        "test: skipped, no leftImg8bit/test/*/*_leftImg8bit.png",
        "train: 4 images, 1 size(s), the largest 40 x 72, 1 shard(s)",
        "val: 2 images, 1 size(s), the largest 40 x 72, 1 shard(s)",
        f"wrote {tmp_path / 'data'}",
    ]
    assert read_description(str(tmp_path / "data")).split("train").num_examples == 4

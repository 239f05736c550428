"""A user's own images and masks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from official.datasets import make_distinct_palette
from official.errors import RunError
from official.input_pipeline import read_eval_images
from official.records import read_description
from tests.contents import contents
from tfrecords_tools import folder
from tfrecords_tools.convert import convert

SIZE = (5, 7)
CLASSES = "ground\nroad way\t1, 2,3\n\ncar\n"


def mask_values(i):
    """0, 1, 2 and 255, differently for every i; with a 2 in it for sure."""
    values = np.random.default_rng(i).choice(np.array([0, 1, 2, 255], np.uint8), SIZE)
    values[0, 0] = 2
    return values


def save(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        # The colours say nothing: each is another value's grey.
        image = image.convert("P")
        image.putpalette([255 - i // 3 for i in range(768)])
        assert np.array_equal(image, values)
    image.save(path)


def photo(i):
    return np.full((*SIZE, 3), 20 * i, np.uint8)


@pytest.fixture
def source(tmp_path):
    """train: three pairs, one of them in a sub-folder; val: one pair; extra: an image alone."""
    root = tmp_path / "source"
    root.mkdir()
    (root / "classes.txt").write_text(CLASSES)
    for i, (name, suffix) in enumerate((("a", ".JPG"), ("b", ".png"), ("more/a", ".jpeg"))):
        save(root / "images" / "train" / f"{name}{suffix}", photo(i))
        save(root / "masks" / "train" / f"{name}.png", mask_values(i), palette=i == 1)
    save(root / "images" / "val" / "c.v2.jpg", photo(3))
    save(root / "masks" / "val" / "c.v2.PNG", mask_values(3))
    save(root / "images" / "extra" / "d.png", photo(4))
    return root


def test_conversion(source, tmp_path, capsys):
    convert("folder", str(source), str(tmp_path / "data"))
    description = read_description(str(tmp_path / "data"))
    assert set(description.splits) == {"train", "val", "extra"}
    assert description.class_names == ("ground", "road way", "car")
    colours = make_distinct_palette(3)
    assert description.palette == (colours[0], (1, 2, 3), colours[2])
    train = contents(tmp_path / "data", "train")
    # The order of the names; files keep their bytes.
    expected = {"a": ".JPG", "b": ".png", "more/a": ".jpeg"}
    assert list(train) == [f"images/train/{name}" for name in expected]
    for i, (name, suffix) in enumerate(expected.items()):
        encoded, label = train[f"images/train/{name}"]
        assert encoded == (source / "images" / "train" / f"{name}{suffix}").read_bytes()
        assert np.array_equal(label, mask_values(i))
    ((name, (_, label)),) = contents(tmp_path / "data", "val").items()
    assert name == "images/val/c.v2" and np.array_equal(label, mask_values(3))
    ((_, label),) = contents(tmp_path / "data", "extra").values()
    assert label.shape == SIZE and np.all(label == 255)
    out = capsys.readouterr().out
    assert "extra: has no labels, as there is no masks/extra" in out and "warning" not in out


def test_what_is_left_out_is_said(source, tmp_path, capsys):
    for file in ("images/train/notes.txt", "images/train/x.bmp", "images/val/.DS_Store"):
        (source / file).write_text("something")
    (source / "images" / "val" / "._c.v2.jpg").write_text("what a Mac leaves")
    save(source / "masks" / "other" / "e.png", mask_values(0))
    (source / "images" / "empty").mkdir()
    (source / "images" / ".hidden").mkdir()
    convert("folder", str(source), str(tmp_path / "data"))
    assert set(read_description(str(tmp_path / "data")).splits) == {"train", "val", "extra"}
    lines = capsys.readouterr().out.splitlines()
    assert "other: skipped, no images/other" in lines
    assert "empty: skipped, no image in images/empty" in lines
    said = [line for line in lines if "not converted" in line]
    assert said == [
        "train: 2 file(s) that are no .png, .jpg, .jpeg are not converted, the first: "
        "images/train/notes.txt"
    ]
    assert not any("hidden" in line for line in lines)


def write(text, encoding="utf-8"):
    return lambda s: (s / "classes.txt").write_text(text, encoding)


def test_255_classes_fit_and_a_byte_order_mark_is_no_name(source, tmp_path):
    write("\n".join(["первый", *map(str, range(254))]), "utf-8-sig")(source)
    values = np.arange(254, 219, -1, dtype=np.uint8).reshape(SIZE)
    save(source / "masks" / "val" / "c.v2.PNG", values)
    convert("folder", str(source), str(tmp_path / "data"))
    names = read_description(str(tmp_path / "data")).class_names
    assert len(names) == 255 and names[0] == "первый" and names[254] == "253"
    ((_, label),) = contents(tmp_path / "data", "val").values()
    assert np.array_equal(label, values)


def set_value(value, values=(0,)):
    def spoil(source):
        mask = mask_values(0)
        mask[1, 1 : 1 + len(values)] = values
        mask[3, 3] = value
        save(source / "masks" / "train" / "a.png", mask)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            set_value(3),
            r"masks/train/a.png holds the value 3, but classes.txt names 3 classes, 0..2: add the "
            r"class there, or write 255 \(void\)",
        ),
        (set_value(254, (9, 7)), r"a.png holds the value 7 \(and 2 other\(s\)\), but"),
        (
            lambda s: save(s / "masks/train/a.png", np.zeros((*SIZE, 3), np.uint8)),
            "masks/train/a.png is no label map: .* mode is RGB",
        ),
        (
            lambda s: save(s / "masks/train/a.png", np.zeros((5, 8), np.uint8)),
            "masks/train/a.png is 5 x 8, but its image .*/images/train/a.JPG is 5 x 7",
        ),
        (
            lambda s: [path.unlink() for path in (s / "masks/train").glob("**/*.png")],
            "images/train/a.JPG: this image has no label .*, and 2 more like it",
        ),
        (
            lambda s: save(s / "images/train/a.png", photo(0)),
            "images/train/a.JPG and .*/images/train/a.png differ in their suffix alone",
        ),
        (
            lambda s: save(s / "masks/val/c.v2.png", mask_values(0)),
            "masks/val/c.v2.PNG and .*/masks/val/c.v2.png differ in their suffix alone",
        ),
        (
            lambda s: (s / "images/val").rename(s / "images/my val"),
            "images/my val: a split cannot be called 'my val'",
        ),
        (lambda s: (s / "images/val").rename(s / "images/all"), "cannot be called 'all'"),
        (lambda s: shutil.rmtree(s / "images"), "images holds no folder with images: the folders"),
        (
            lambda s: (s / "classes.txt").unlink(),
            "classes.txt is missing: write the classes' names into it",
        ),
        (write(" \n\n"), "classes.txt is empty: it needs one class name a line"),
        (write("a\nb\na\n"), "classes.txt has the class 'a' twice"),
        (write("\n".join(map(str, range(256)))), "classes.txt has 256 classes: at most 255"),
        (write("a\t1,2\nb"), "classes.txt: '1,2' is no colour: write r,g,b"),
        (write("a\t1,2,256\nb"), "classes.txt: '1,2,256' is no colour"),
        (write("a\tred\nb"), "classes.txt: 'red' is no colour"),
        (write("ähnlich", "latin-1"), "classes.txt cannot be read as text"),
    ],
)
def test_mistakes_are_named(source, tmp_path, spoil, message):
    spoil(source)
    with pytest.raises(RunError, match=message):
        convert("folder", str(source), str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_what_has_no_partner_is_left_out(source, capsys):
    before = len(folder.open_source(source).splits["train"])
    (source / "masks/train/more/a.png").unlink()
    assert len(folder.open_source(source).splits["train"]) == before - 1
    out = capsys.readouterr().out
    assert "images/train/more/a.jpeg is left out: this image has no label (" in out
    (source / "images/train/b.png").unlink()
    assert len(folder.open_source(source).splits["train"]) == before - 2
    assert "masks/train/b.png is left out: this label has no image" in capsys.readouterr().out


def test_linked_folders_are_part_of_the_data(source, tmp_path, capsys):
    # more/ becomes a link in images and masks, and a link that runs in a circle is added.
    for kind in ("images", "masks"):
        (source / kind / "train" / "more").rename(tmp_path / kind)
        (source / kind / "train" / "more").symlink_to(tmp_path / kind)
        (source / kind / "train" / "circle").symlink_to(source / kind / "train")
    found = folder.open_source(source).splits["train"]
    assert [pair.name for pair in found] == [
        f"images/train/{name}" for name in ("a", "b", "more/a")
    ]
    said = capsys.readouterr()
    assert "left out" not in said.out and said.err.count("leads back") == 2


def test_a_name_that_is_no_text_is_kept(source, tmp_path):
    # In Latin-1; as bytes, since no text in UTF-8 can name it.
    name = os.fsdecode(b"caf\xe9")
    save(source / "images" / "train" / f"{name}.png", photo(5))
    save(source / "masks" / "train" / f"{name}.png", mask_values(5))
    save(source / "masks" / "train" / f"alone {name}.png", mask_values(5))
    flags = [f"--source_dir={source}", f"--output_dir={tmp_path / 'data'}"]
    done = subprocess.run(
        [sys.executable, "-m", "tfrecords_tools.convert", "--dataset=folder", *flags],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    # The name is printed with what stands for the byte 0xe9.
    assert r"masks/train/alone caf\udce9.png is left out" in done.stdout
    description = read_description(str(tmp_path / "data"))
    names = [element["filename"].numpy()[0] for element in read_eval_images(description, "train")]
    assert b"images/train/caf\xe9" in names


@pytest.mark.parametrize("line", ["sky 128 128 128", "sky 128,128,128", "sky, 1, 2, 3"])
def test_a_colour_without_a_tab_is_doubted(tmp_path, capsys, line):
    (tmp_path / "classes.txt").write_text(f"road 66\n{line}\ncar\t1,2,3\n")
    names, _ = folder.read_classes(tmp_path / "classes.txt")
    assert names == ("road 66", line, "car")
    (warning,) = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: ") and repr(line) in warning and "tab" in warning


def test_one_class_alone_is_warned_of(tmp_path, capsys):
    (tmp_path / "classes.txt").write_text("road\n")
    assert folder.read_classes(tmp_path / "classes.txt")[0] == ("road",)
    assert "names one class, road, so a network has nothing to tell" in capsys.readouterr().out


def test_a_background_is_black(tmp_path):
    (tmp_path / "classes.txt").write_text("Background\nroad\ncar\n")
    _, palette = folder.read_classes(tmp_path / "classes.txt")
    assert palette == ((0, 0, 0), *make_distinct_palette(2))

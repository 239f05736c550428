import numpy as np
import pytest
from PIL import Image

from official import datasets
from official.errors import RunError, UsageError
from official.prediction import Pictures, predict
from official.submission import make_submission

BERLIN = "leftImg8bit/test/berlin/berlin_000000_000019_leftImg8bit"


def every_class(class_names, height=3):
    """A picture whose column c is said to be of class c by `classifier`: uint8 [H, C, 3]."""
    columns = np.arange(len(class_names), dtype=np.uint8)
    return np.broadcast_to(columns[:, np.newaxis], (height, len(columns), 3)).copy()


def classifier(class_names):
    """A fake network: a pixel of the grey value c is of class c."""

    def logits(images):
        return -abs(images[..., :1] - np.arange(len(class_names), dtype=np.float32))

    return logits


def submit(form, output_dir, names, split="test"):
    class_names = datasets.VOC_NAMES if "voc" in form else datasets.CITYSCAPES_NAMES
    images = [every_class(class_names, height) for height in range(2, 2 + len(names))]
    return predict(
        classifier(class_names),
        Pictures(names, names, iter(images)),
        str(output_dir),
        class_names=class_names,
        palette=datasets.VOC_PALETTE[: len(class_names)],
        submission=make_submission(form, class_names, split),
    )


def files_in(directory) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def test_cityscapes_answers_are_grey_label_ids_in_one_folder(tmp_path):
    names = [BERLIN, "bonn_000001_000019", "x/bad-honnef_000002_000019_gtFine"]
    submit("cityscapes", tmp_path / "out", names)
    assert files_in(tmp_path / "out") == [
        "bad-honnef_000002_000019_pred_labelIds.png",
        "berlin_000000_000019_pred_labelIds.png",
        "bonn_000001_000019_pred_labelIds.png",
    ]
    # Typed from cityscapesScripts' table of labels: road, sidewalk, building, ..., bicycle.
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    for city, height in (("berlin_000000", 2), ("bonn_000001", 3), ("bad-honnef_000002", 4)):
        with Image.open(tmp_path / "out" / f"{city}_000019_pred_labelIds.png") as answer:
            assert (answer.format, answer.mode, answer.size) == ("PNG", "L", (19, height))
            assert np.asarray(answer).tolist() == [ids] * height
    header = (tmp_path / "out" / "bonn_000001_000019_pred_labelIds.png").read_bytes()
    assert header[24:26] == b"\x08\x00"  # 8 bits, grey


@pytest.mark.parametrize("form", ["voc2012_comp5", "voc2012_comp6"])
@pytest.mark.parametrize("split", ["test", "val"])
def test_voc_answers_are_palette_files_like_the_ground_truth(tmp_path, form, split):
    written = submit(form, tmp_path, ["JPEGImages/2008_000006", "2011_003256"], split)
    folder = f"results/VOC2012/Segmentation/{form.removeprefix('voc2012_')}_{split}_cls"
    assert files_in(tmp_path) == [f"{folder}/2008_000006.png", f"{folder}/2011_003256.png"]
    assert written == [tmp_path / name for name in files_in(tmp_path)]
    with Image.open(written[0]) as answer:
        assert (answer.format, answer.mode, answer.size) == ("PNG", "P", (21, 2))
        assert np.asarray(answer).tolist() == [list(range(21))] * 2
        colours = np.reshape(answer.getpalette(), (256, 3))
        # The development kit's: background, aeroplane, bicycle, ..., tv monitor; and void.
        assert colours[[0, 1, 2, 20, 255]].tolist() == [
            *([0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 64, 128], [224, 224, 192]),
        ]
        assert len(np.unique(colours, axis=0)) == 256
        shown = np.asarray(answer.convert("RGB"))
        np.testing.assert_array_equal(shown, colours[np.asarray(answer)])


@pytest.mark.parametrize(
    "name",
    [
        *("legend", "berlin", "berlin_000000", "berlin_00000_000019", "berlin_000000_0000190"),
        *("a_b_000000_000019", "berlin_000000_000019/x"),
    ],
)
def test_a_name_that_cityscapes_does_not_know(tmp_path, name):
    with pytest.raises(RunError, match=f"image {name} is not named"):
        submit("cityscapes", tmp_path / "out", [BERLIN, name])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("form", "other"),
    [("cityscapes", "x/berlin_000000_000019_rightImg8bit"), ("voc2012_comp5", "x/" + BERLIN)],
)
def test_two_pictures_for_one_answer(tmp_path, form, other):
    with pytest.raises(RunError) as caught:
        submit(form, tmp_path / "out", [BERLIN, other])
    assert BERLIN in str(caught.value) and other in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_answers_that_cityscapes_would_find_twice(tmp_path):
    for _ in range(2):  # an earlier submission is replaced
        submit("cityscapes", tmp_path, [BERLIN])
    (tmp_path / "notes").mkdir()
    Image.new("L", (1, 1)).save(tmp_path / "notes" / "rome_000000_000019_labels.png")
    Image.new("L", (1, 1)).save(tmp_path / "legend.png")
    submit("cityscapes", tmp_path, [BERLIN])
    old = tmp_path / "notes" / "berlin_000000_000019_leftImg8bit_labels.png"
    Image.new("L", (1, 1)).save(old)
    before = files_in(tmp_path)
    with pytest.raises(RunError, match="second answer") as caught:
        submit("cityscapes", tmp_path, ["bonn_000000_000019", BERLIN])
    assert str(old) in str(caught.value) and files_in(tmp_path) == before


@pytest.mark.parametrize("form", ["cityscapes", "voc2012_comp5", "voc2012_comp6"])
def test_a_network_of_other_classes(form):
    own = datasets.CITYSCAPES_NAMES if form == "cityscapes" else datasets.VOC_NAMES
    for names in (own[:-1], (*own[1:], own[0]), ("sky", "road"), [*own, "more"]):
        with pytest.raises(UsageError, match=f"--submission={form} needs"):
            make_submission(form, names, "test")
    make_submission(form, list(own), "test")

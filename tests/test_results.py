"""What eval and predict leave for people and for the benchmarks' servers, as a user asks for it."""

import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from auto_deeplab.runs.saved_network import load_network
from official import checkpoints, datasets
from official.input_pipeline import read_eval_images
from official.records import read_description
from tests.command import TINY_GENOTYPE, TINY_NETWORK, train_here
from tests.miniature import SIZE, write_cityscapes, write_pair
from tfrecords_tools.convert import convert

TOWN = "leftImg8bit/{split}/town/town_{number:06d}_000019_leftImg8bit"
MULTI = ("--eval_scales=0.75,1", "--eval_flip")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data: 4 training, 2 validation and 2 test images (void); run: a network of random answers."""
    root = tmp_path_factory.mktemp("results")
    write_cityscapes(root / "source")
    for number in range(2):
        image = np.random.default_rng(number).integers(0, 256, (40, 56 + number, 3), np.uint8)
        void = np.zeros(image.shape[:2], np.uint8)
        write_pair(root / "source", "test", f"{number:06d}_000019", image, void)
    convert("cityscapes", str(root / "source"), str(root / "data"))
    (root / "genotype.json").write_text(TINY_GENOTYPE)
    train(root, "data", "run")
    return root


def train(root, data, run):
    """A run of one step whose network then gets weights that tell images and classes apart."""
    done = train_here(
        *("--mode=train", f"--genotype={root / 'genotype.json'}", *TINY_NETWORK),
        *(f"--data_dir={root / data}", f"--model_dir={root / run}"),
        *("--train_steps=1", "--batch_norm_decay=0.1"),
    )
    assert done.code == 0, done.stderr
    network, _, _ = load_network(str(root / run))
    kernel, bias = network.decoder.logits.variables
    kernel.assign(np.random.default_rng(0).normal(size=kernel.shape))
    images = np.random.default_rng(1).integers(0, 256, (1, *SIZE, 3)).astype(np.float32)
    logits = network(images, training=False).numpy()
    bias.assign(bias - logits.mean((0, 1, 2)))
    checkpoints.Checkpoints(str(root / run / "checkpoints"), {"weights": network.variables}).save(1)


@pytest.fixture(scope="module")
def voc(root):
    """The same pictures as if of VOC, whose 21 classes hold the labels, and a network for them."""
    shutil.copytree(root / "data", root / "voc")
    metadata = json.loads((root / "voc" / "metadata.json").read_text())
    metadata |= {"class_names": datasets.VOC_NAMES, "palette": datasets.VOC_PALETTE}
    (root / "voc" / "metadata.json").write_text(json.dumps(metadata))
    train(root, "voc", "voc_run")
    return root


def files_in(directory) -> list[str]:
    return sorted(str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file())


def predict(root, output_dir, *arguments, run="run"):
    done = train_here(
        *("--mode=predict", f"--model_dir={root / run}", f"--output_dir={output_dir}", *arguments)
    )
    assert done.code == 0, done.stderr
    assert done.stdout == ""


def read(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def table(path):
    with open(path, newline="") as file:
        (_, *header), *rows = csv.reader(file)
    assert [row[0] for row in rows] == header
    return header, np.array([[int(count) for count in row[1:]] for row in rows])


@pytest.mark.parametrize("options", [(), MULTI])
def test_confusion_matrix_counts_what_predict_answers(root, tmp_path, options):
    run = shutil.copytree(root / "run", tmp_path / "run")
    done = train_here(
        *("--mode=eval", f"--model_dir={run}", f"--data_dir={root / 'data'}", *options)
    )
    assert done.code == 0, done.stderr
    suffix = "_scales_0.75_1_flip" if options else ""
    names, counts = table(run / f"confusion_matrix{suffix}.csv")
    assert names == list(datasets.CITYSCAPES_NAMES)

    # Another way to the same numbers: the label maps that predict writes of the same split.
    predict(root, tmp_path / "out", f"--data_dir={root / 'data'}", *options)
    expected = np.zeros((19, 19), int)
    for element in read_eval_images(read_description(str(root / "data")), "val"):
        name, label = element["filename"][0].numpy().decode(), element["label"][0].numpy()
        answer = read(tmp_path / "out" / f"{name}_labels.png")
        valid = label != 255
        np.add.at(expected, (label[valid], answer[valid]), 1)
    np.testing.assert_array_equal(counts, expected)
    assert np.count_nonzero(counts.sum(axis=0)) > 10  # the network does not say one thing only

    # The first rows are road, 2 x 72 pixels; of the rest 19 in 34 label ids are classes.
    assert counts[0].sum() > 2 * 72 and counts.sum() < 2 * 40 * 72
    metrics = json.loads((run / f"metrics{suffix}.json").read_text())
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    np.testing.assert_allclose(metrics["per_class_iou"], np.diag(counts) / union)
    both = (metrics["miou"] + metrics["pixel_accuracy"]) / 2
    assert metrics["miou_pixel_accuracy_mean"] == pytest.approx(both)
    with Image.open(run / "figures" / f"confusion_matrix{suffix}.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 1000


def evaluate(root, run, *arguments):
    done = train_here(
        "--mode=eval", f"--model_dir={run}", f"--data_dir={root / 'data'}", *arguments
    )
    assert done.code == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((), ""),
        (("--max_eval_images=2", "--eval_scales=1"), ""),  # val has two images
        (("--max_eval_images=1",), "_1_images"),
        (("--eval_split=train", "--eval_flip"), "_train_flip"),
        (("--checkpoint={run}/checkpoints/ckpt-1", "--eval_scales=1,0.5"), "_step_1_scales_1_0.5"),
        (("--data_dir={half}",), "_on_half"),
    ],
)
def test_only_the_plain_evaluation_has_the_plain_name(root, tmp_path, arguments, name):
    run, half = shutil.copytree(root / "run", tmp_path / "run"), tmp_path / "half"
    if "--data_dir={half}" in arguments:
        convert("cityscapes", str(root / "source"), str(half), 0.5)
    before = files_in(run)
    metrics = evaluate(root, run, *(text.format(run=run, half=half) for text in arguments))
    assert sorted(set(files_in(run)) - set(before)) == [
        f"confusion_matrix{name}.csv",
        f"figures/confusion_matrix{name}.png",
        f"metrics{name}.json",
    ]
    assert json.loads((run / f"metrics{name}.json").read_text()) == metrics


def test_eval_writes_elsewhere(root, tmp_path):
    before = files_in(root / "run")
    output = tmp_path / "new" / "mine.v1.json"
    metrics = evaluate(root, root / "run", "--max_eval_images=1", f"--output={output}")
    assert files_in(root / "run") == before
    assert json.loads(output.read_text()) == metrics
    assert files_in(output.parent) == [
        *("mine.v1.json", "mine.v1_confusion_matrix.csv", "mine.v1_confusion_matrix.png")
    ]
    done = train_here("--mode=eval", "--data_dir=no", "--model_dir=no", f"--output={tmp_path}")
    assert done.code == 2 and f"--output={tmp_path} is a directory: give a file" in done.error


def test_eval_writes_over_nothing_but_older_metrics(root, tmp_path):
    run = shutil.copytree(root / "run", tmp_path / "run")
    data = shutil.copytree(root / "data", tmp_path / "data")
    flagfile = tmp_path / "mine.cfg"
    flagfile.write_text(f"--model_dir={run}\n--data_dir={data}\n")
    common = ("--mode=eval", f"--flagfile={flagfile}")
    files = [path for path in (*run.rglob("*"), *data.rglob("*"), flagfile) if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    kinds = {path.suffix or path.name: path for path in files}  # one of each, to save time
    for path in (run / "run.json", run / "genotype.json", data / "metadata.json", *kinds.values()):
        done = train_here(*common, f"--output={path}")
        assert done.code == 2 and f"--output={path} is there already" in done.error, done.error
    assert before == {path: path.read_bytes() for path in files}
    for _ in range(2):
        assert train_here(*common, f"--output={tmp_path / 'metrics.json'}").code == 0


def test_scales_beyond_all_reason_are_one_line(root):
    common = ("--mode=eval", f"--model_dir={root / 'run'}", f"--data_dir={root / 'data'}")
    done = train_here(*common, "--eval_scales=1,60000")
    assert done.code == 1 and "the largest image of val would be enlarged to" in done.error
    assert "give smaller --eval_scales" in done.error


def test_scales_and_flip_change_the_answer(root, tmp_path):
    picture = root / "source" / f"{TOWN.format(split='test', number=1)}.png"
    for name, options in (("one", ()), ("same", ("--eval_scales=1",)), ("multi", MULTI)):
        predict(root, tmp_path / name, f"--input={picture}", *options)
    answers = {
        name: read(tmp_path / name / f"{picture.stem}_labels.png")
        for name in ("one", "same", "multi")
    }
    network, _, _ = load_network(str(root / "run"))
    logits = network(read(picture)[np.newaxis].astype(np.float32), training=False)
    assert np.mean(answers["one"] == np.argmax(logits[0], -1)) > 0.999  # but for ties by rounding
    np.testing.assert_array_equal(answers["one"], answers["same"])
    assert 0.1 < np.mean(answers["multi"] != answers["one"]) < 0.9


def test_cityscapes_submission_of_pictures_and_of_records(root, tmp_path):
    pictures = f"--input={root / 'source' / 'leftImg8bit' / 'test'}"
    records = (f"--data_dir={root / 'data'}", "--eval_split=test")
    predict(root, tmp_path / "plain", pictures)
    predict(root, tmp_path / "pictures", pictures, "--submission=cityscapes")
    predict(root, tmp_path / "records", *records, "--submission=cityscapes")
    names = [f"town_{number:06d}_000019_pred_labelIds.png" for number in range(2)]
    for number, name in enumerate(names):
        plain = tmp_path / "plain" / "town" / f"town_{number:06d}_000019_leftImg8bit_labels.png"
        expected = np.array(datasets.CITYSCAPES_LABEL_IDS)[read(plain)]
        for place in ("pictures", "records"):
            assert files_in(tmp_path / place) == names
            with Image.open(tmp_path / place / name) as answer:
                assert answer.mode == "L"
                np.testing.assert_array_equal(answer, expected)
        assert expected.shape == (40, 56 + number) and len(np.unique(expected)) > 5


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (("--input={source}", "--submission=voc2012_comp5"), "comp5_test_cls"),
        (("--data_dir={data}", "--eval_split=val", "--submission=voc2012_comp6"), "comp6_val_cls"),
    ],
)
def test_voc_submission(voc, tmp_path, arguments, folder):
    places = {"source": voc / "source" / "leftImg8bit" / "val", "data": voc / "voc"}
    predict(voc, tmp_path / "out", *(a.format(**places) for a in arguments), run="voc_run")
    predict(voc, tmp_path / "plain", f"--data_dir={voc / 'voc'}", run="voc_run")
    folder = f"results/VOC2012/Segmentation/{folder}"
    names = [TOWN.format(split="val", number=number) for number in (4, 5)]
    files = [f"{folder}/{name.rpartition('/')[2]}.png" for name in names]
    assert files_in(tmp_path / "out") == files
    for name, file in zip(names, files, strict=True):
        with Image.open(tmp_path / "out" / file) as answer:
            assert answer.mode == "P"
            plain = read(tmp_path / "plain" / f"{name}_labels.png")
            np.testing.assert_array_equal(answer, plain)
            shown = np.array(datasets.VOC_PALETTE)[plain]
            np.testing.assert_array_equal(answer.convert("RGB"), shown)


def test_pictures_go_before_data(voc, tmp_path):
    # A run's flags.cfg may be given, which names its data.
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "photos" / "photo.png")
    done = train_here(
        *("--mode=predict", f"--model_dir={voc / 'run'}", f"--data_dir={voc / 'nowhere'}"),
        *(f"--input={tmp_path / 'photos'}", f"--output_dir={tmp_path / 'out'}"),
    )
    assert done.code == 0, done.stderr
    assert (tmp_path / "out" / "photo_labels.png").exists()


@pytest.mark.parametrize(
    ("code", "arguments", "saying"),
    [
        (2, (), ["--input", "--data_dir"]),
        (2, ("--data_dir={voc}",), ["--data_dir={voc}", "aeroplane", "same classes"]),
        (2, ("--input={source}", "--submission=voc"), ["--submission=voc", "voc2012_comp5"]),
        (
            *(2, ("--input={source}", "--submission=voc2012_comp5")),
            ["--submission=voc2012_comp5", "21 classes", "aeroplane", "has 19", "road"],
        ),
        (
            *(2, ("--data_dir={half}", "--submission=cityscapes")),
            ["--submission=cityscapes", "--data_dir={half}", "--resize_factor=0.5"],
        ),
        (
            *(2, ("--data_dir={small}", "--submission=cityscapes")),
            ["--submission=cityscapes", "--data_dir={small}", "--max_side=50"],
        ),
        (1, ("--data_dir={data}", "--eval_split=tset"), ["no split 'tset'", "test, train, val"]),
        (
            *(1, ("--input={other}", "--submission=cityscapes")),
            ["--submission=cityscapes", "the image photo is not named", "<city>_123456_123456"],
        ),
    ],
)
def test_what_predict_refuses(voc, tmp_path, code, arguments, saying):
    places = {"source": voc / "source" / "leftImg8bit" / "test", "half": tmp_path / "half"}
    places["small"] = tmp_path / "small"
    places |= {"data": voc / "data", "voc": voc / "voc", "other": tmp_path / "photos"}
    if "--data_dir={half}" in arguments:
        convert("cityscapes", str(voc / "source"), str(places["half"]), 0.5)
    if "--data_dir={small}" in arguments:
        convert("cityscapes", str(voc / "source"), str(places["small"]), max_side=50)
    places["other"].mkdir()
    Image.new("RGB", (40, 40)).save(places["other"] / "photo.png")
    out = tmp_path / "out"
    common = ("--mode=predict", f"--model_dir={voc / 'run'}", f"--output_dir={out}")
    done = train_here(*common, *(argument.format(**places) for argument in arguments))
    assert done.code == code, done.stderr
    for words in saying:
        assert words.format(**places) in done.error, done.error
    assert done.stdout == "" and not out.exists()

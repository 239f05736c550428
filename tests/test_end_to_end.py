"""The whole road on toy street scenes, with the paper's flagfiles made small.

Search and training run as a user types them, from another directory. Whatever is no size keeps the
value that the flagfile or the default gives it.
"""

import json
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from auto_deeplab import quickstart
from auto_deeplab.report import quickstart_page
from auto_deeplab.space import genotype
from official.datasets import CITYSCAPES_PALETTE
from official.records import read_description
from tests.command import CONFIGS, ROOT, TINY_NETWORK, TINY_SEARCH, train_here, train_there
from tests.pages import check_page, pictures
from tfrecords_tools.check import check
from tfrecords_tools.convert import convert
from tfrecords_tools.toy_scenes import write_dataset

SIZE = (64, 96)
EPOCHS, TRAIN_STEPS = 2, 4


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    root = tmp_path_factory.mktemp("road")
    write_dataset(str(root / "scenes"), num_train=9, num_val=2, size=SIZE)
    convert("cityscapes", str(root / "scenes"), str(root / "data"))
    convert("cityscapes", str(root / "scenes"), str(root / "half"), 0.5)
    check(read_description(str(root / "half")))
    return root


@pytest.fixture(scope="module")
def search_dir(road):
    done = train_there(
        "--mode=search",
        f"--flagfile={CONFIGS / 'search_cityscapes.cfg'}",
        "--data_dir=half",
        "--model_dir=search",
        *TINY_SEARCH,
        f"--epochs={EPOCHS}",
        "--alpha_start_epoch=1",
        cwd=road,
    )
    assert done.code == 0, done.stderr
    assert done.stdout == ""
    check_words(done.stderr, "search")
    return road / "search"


@pytest.fixture(scope="module")
def train_dir(road, search_dir):
    done = train_there(
        "--mode=train",
        f"--flagfile={CONFIGS / 'train_cityscapes_s.cfg'}",
        "--genotype=search/genotype.json",
        "--data_dir=data",
        "--model_dir=train",
        *TINY_NETWORK,
        f"--train_steps={TRAIN_STEPS}",
        "--batch_norm_decay=0.4",
        "--eval_every=2",
        "--save_every=2",
        cwd=road,
    )
    assert done.code == 0, done.stderr
    check_words(done.stderr, "train")
    return road / "train"


def check_words(stderr, mode):
    """Ours alone: nothing of TensorFlow's start, of absl or of tensorflow-datasets."""
    lines = stderr.splitlines()
    assert lines[0] == f"{mode} on CPU:0"
    assert "path: 2 layers at strides" in stderr and "  block 1 = " in stderr
    assert f"\n{mode}: done in " in stderr and "\nval mIoU" in stderr and "\nnext, " in stderr
    ours = (mode, "evaluate: ", "path: ", "cell:", "  block ", "decoded at step ", "trained: ")
    ours += ("val mIoU", "alpha: ", "beta: ", "warning: the cell", "next, ", "(half ")
    assert [line for line in lines if not line.startswith(ours)] == []


def read_history(directory):
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def is_picture(path):
    with Image.open(path) as picture:
        return picture.format == "PNG" and min(picture.size) > 200


def test_search_leaves_what_the_contract_says(search_dir):
    assert {path.name for path in search_dir.iterdir()} == {
        *("checkpoints", "flags.cfg", "run.json", "history.jsonl", "summaries"),
        *("genotype.json", "figures", "report.html", "samples.json"),
    }
    for name in ("network", "cell", "history"):
        assert is_picture(search_dir / "figures" / f"{name}.png")
    found = genotype.load(search_dir / "genotype.json")
    assert (found.num_layers, found.num_blocks) == (2, 2)
    assert {"dataset", "seed", "step", "operations", "alpha", "beta"} <= found.meta.keys()

    # 9 images make halves of 4, which batches of 2 pass in 2 steps.
    rows = read_history(search_dir)
    assert [(row["step"], row["epoch"]) for row in rows] == [(2, 1.0), (4, 2.0)]
    assert [row["phase"] for row in rows] == ["weights", "weights and architecture"]
    for row in rows:
        assert {
            *("loss_w", "learning_rate", "images_per_s", "wait_share", "val_miou", "val_images"),
            *("alpha_entropy", "beta_entropy", "skip_connects", "none_edges", "path", "cell"),
        } <= row.keys()
        assert row["val_images"] == 2 and 0 <= row["wait_share"] <= 1
    assert "loss_arch" not in rows[0] and rows[1]["loss_arch"] > 0
    # alpha and beta move in the second phase only. All rates that the cosine gives lie between.
    assert rows[0]["alpha_entropy"] != rows[1]["alpha_entropy"]
    assert 0.025 > rows[0]["learning_rate"] > rows[1]["learning_rate"] > 0.001
    assert rows[-1]["path"] == list(found.path)


def test_decode_makes_the_same_genotype_again(search_dir):
    before = {path: path.read_bytes() for path in search_dir.rglob("*") if path.is_file()}
    made = ("genotype.json", "network.png", "cell.png", "alpha.png", "history.png", "report.html")
    for path in before:
        if path.name in made:
            path.unlink()
    done = train_here("--mode=decode", f"--model_dir={search_dir}")
    assert done.code == 0, done.stderr
    after = {path: path.read_bytes() for path in search_dir.rglob("*") if path.is_file()}
    assert after == before

    # From the first epoch's checkpoint, at which alpha and beta have their initial values.
    first = search_dir / "checkpoints" / "ckpt-2"
    assert (
        train_here("--mode=decode", f"--model_dir={search_dir}", f"--checkpoint={first}").code == 0
    )
    early = genotype.load(search_dir / "genotype.json").meta
    assert early["step"] == 2
    assert np.allclose(early["alpha"], 1 / 8, atol=2e-3)
    train_here("--mode=decode", f"--model_dir={search_dir}")


def test_train_leaves_what_the_contract_says(search_dir, train_dir):
    assert {path.name for path in train_dir.iterdir()} >= {
        *("checkpoints", "flags.cfg", "run.json", "history.jsonl", "genotype.json", "figures"),
        *("report.html", "samples.json"),
    }
    assert is_picture(train_dir / "figures" / "history.png")
    copied, found = (genotype.load(place / "genotype.json") for place in (train_dir, search_dir))
    assert copied == found and copied.meta == found.meta
    rows = read_history(train_dir)
    assert [row["step"] for row in rows] == [2, TRAIN_STEPS]
    for row in rows:
        assert {"loss_w", "learning_rate", "images_per_s", "wait_share", "val_miou"} <= row.keys()
    # Polynomial decay to 0: 0.05 * (1 - t / 4) ** 0.9 at t = 1 and t = 3 steps made before.
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [0.05 * 0.75**0.9, 0.05 * 0.25**0.9]
    )


@pytest.mark.parametrize("directory", ["search_dir", "train_dir"])
def test_flags_cfg_resumes_the_run_from_anywhere(request, directory):
    directory = request.getfixturevalue(directory)
    before = (directory / "history.jsonl").read_text(), (directory / "run.json").read_text()
    done = train_here(f"--flagfile={directory / 'flags.cfg'}")
    assert done.code == 0, done.stderr
    assert "goes on at step 4 of 4" in done.stderr
    assert before == (
        (directory / "history.jsonl").read_text(),
        (directory / "run.json").read_text(),
    )


def test_eval_prints_what_it_writes(road, train_dir):
    done = train_here("--mode=eval", f"--data_dir={road / 'data'}", f"--model_dir={train_dir}")
    assert done.code == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert metrics == json.loads((train_dir / "metrics.json").read_text())
    assert set(metrics) == {
        *("class_names", "per_class_iou", "miou", "miou_present", "pixel_accuracy"),
        *("mean_accuracy", "miou_pixel_accuracy_mean"),
        *("num_images", "split", "step", "checkpoint", "scales", "flip"),
    }
    assert len(metrics["class_names"]) == len(metrics["per_class_iou"]) == 19
    assert (metrics["num_images"], metrics["split"], metrics["step"]) == (2, "val", TRAIN_STEPS)
    assert metrics["checkpoint"] == str(train_dir / "checkpoints" / f"ckpt-{TRAIN_STEPS}")
    # The report at the end of the training was made of the same images by the same network.
    assert metrics["miou"] == pytest.approx(read_history(train_dir)[-1]["val_miou"])

    done = train_here(
        "--mode=eval",
        f"--data_dir={road / 'data'}",
        f"--model_dir={train_dir}",
        "--eval_scales=0.5,1",
        "--eval_flip",
        "--max_eval_images=1",
        f"--checkpoint={train_dir / 'checkpoints' / 'ckpt-2'}",
    )
    assert done.code == 0, done.stderr
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert (metrics["scales"], metrics["flip"], metrics["step"]) == ([0.5, 1.0], True, 2)
    assert metrics["num_images"] == 1


def test_predict_and_export_agree(road, train_dir):
    scenes, answers = road / "scenes" / "leftImg8bit" / "val", road / "answers"
    done = train_here(
        "--mode=predict",
        f"--model_dir={train_dir}",
        f"--input={scenes}",
        f"--output_dir={answers}",
    )
    assert done.code == 0, done.stderr
    pictures = sorted(scenes.rglob("*.png"))
    assert len(pictures) == 2 and (answers / "legend.png").exists()

    for number in (1, 2):
        done = train_here("--mode=export", f"--model_dir={train_dir}")
        assert done.code == 0, done.stderr
        assert (train_dir / "export" / str(number) / "saved_model.pb").exists()
    signatures = tf.saved_model.load(str(train_dir / "export" / "1")).signatures
    for picture in pictures:
        stem = answers / picture.relative_to(scenes).with_suffix("")
        labels = np.asarray(Image.open(f"{stem}_labels.png"))
        assert labels.shape == SIZE and Image.open(f"{stem}_overlay.png").size == SIZE[::-1]
        served = signatures["serving_default"](
            images=tf.constant(np.asarray(Image.open(picture))[None])
        )["labels"]
        assert served.dtype == tf.uint8
        assert np.mean(served[0].numpy() == labels) > 0.999  # but for ties in the last bit
        decoded = signatures["serve_bytes"](image_bytes=tf.constant([picture.read_bytes()]))
        assert np.array_equal(decoded["labels"], served)


def test_profile_prints_a_table_and_json(train_dir):
    done = train_here("--mode=profile", f"--model_dir={train_dir}", "--crop_size=40,64")
    assert done.code == 0, done.stderr
    *table, last = done.stdout.splitlines()
    cost = json.loads(last)
    assert table[0].startswith("part") and any(line.startswith("total") for line in table)
    assert (cost["crop_size"], cost["counted_size"]) == ([40, 64], [65, 65])
    assert list(cost["parts"]) == ["stem", "cell_0", "cell_1", "aspp", "decoder"]
    for key in ("params_millions", "multi_adds_billions"):
        assert cost[key] == pytest.approx(sum(part[key] for part in cost["parts"].values()))


@pytest.fixture(scope="module")
def quick_dir(road, search_dir, train_dir):
    """What `make quickstart` leaves, made of this road."""
    quick = road / "quick <&> start"
    quick.mkdir()
    for name in ("scenes", "search", "train"):
        (quick / name).symlink_to(road / name)
    check(read_description(str(road / "data")), figure=str(quick / "classes.png"))
    scenes = f"--input={road / 'scenes' / quickstart.HELD_OUT}"
    for flags in (
        ("--mode=eval", f"--data_dir={road / 'data'}"),
        ("--mode=predict", scenes, f"--output_dir={quick / 'predictions'}"),
    ):
        done = train_here(*flags, f"--model_dir={train_dir}")
        assert done.code == 0, done.stderr
    return quick


def test_the_quickstart_ends_with_a_page(quick_dir):
    commands = {stage.name: stage.shown for stage in quickstart.stages(quick_dir)}
    seconds = {"search": 65.0, "evaluate": 100.0}
    written = quickstart_page.write(quick_dir, quick_dir, commands, seconds, "answer: <uint8>")
    root = check_page(quick_dir / "index.html")
    assert written == quick_dir / "index.html"

    # Scenes and labels; curves, path and cell; predictions beside the truth.
    found = pictures(root)
    assert len(found["a street scene"]) == len(found["its labels"]) == 3
    assert len(found["scene"]) == len(found["true labels"]) == len(found["predicted labels"]) == 2
    for name in (
        *("a bar chart of the classes", "the path through the resolutions", "the cell as a graph"),
        *("curves of the search", "curves of the training"),
    ):
        assert len(found[name]) == 1

    # A row for each class that there is, the times, and each command as it can be typed.
    metrics = json.loads((quick_dir / "train" / "metrics.json").read_text())
    cells = ["".join(cell.itertext()) for cell in root.findall(".//td")]
    for name, iou in zip(metrics["class_names"], metrics["per_class_iou"], strict=True):
        assert (name in cells) == (iou is not None)
        assert iou is None or f"{iou:.1%}" in cells
    assert {"search", "1 min 5 s", "all", "2 min 45 s"} <= set(cells)
    blocks = "\n".join("".join(block.itertext()) for block in root.findall(".//pre"))
    typed = blocks.replace("\\\n", "").splitlines()
    typed = [shlex.split(line) for line in typed if line.startswith("python ")]
    for name in commands.keys() - {"serve"}:
        assert shlex.split(commands[name]) in typed, name
    assert "answer: <uint8>" in blocks and "auto_deeplab.load(" in blocks


def test_colours_on_the_page_are_those_of_the_labels(quick_dir):
    path = min((quick_dir / "scenes" / quickstart.HELD_OUT).glob("*.png"))
    truth = quickstart_page._read_truth(path)
    assert set(np.unique(truth)) <= {*range(19), 255} and len(np.unique(truth)) > 3
    commands = {stage.name: stage.shown for stage in quickstart.stages(quick_dir)}
    quickstart_page.write(quick_dir, quick_dir, commands, {}, "")
    shown = pictures(check_page(quick_dir / "index.html"))["true labels"][0].convert("RGB")
    scale = shown.width // truth.shape[1]
    colors = np.array([*CITYSCAPES_PALETTE, *[quickstart_page.VOID] * 237])
    np.testing.assert_array_equal(np.asarray(shown)[::scale, ::scale], colors[truth])


def test_six_lines_of_readme(quick_dir, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    statements = [line for line in code.splitlines() if line and "import" not in line]
    assert len(statements) == 6
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "quickstart").symlink_to(quick_dir)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    scene = min((quick_dir / "scenes" / quickstart.HELD_OUT).glob("*.png"))
    predicted = quick_dir / "predictions" / f"{scene.stem}_overlay.png"
    answer, expected = (
        np.asarray(Image.open(path)).astype(int) for path in ("overlay.png", predicted)
    )
    assert np.mean(np.abs(answer - expected) <= 1) > 0.999  # but for ties in the last bit

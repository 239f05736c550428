"""The page with which `make quickstart` ends: what was made, how long it took, how it was made.

It is drawn from the files that the stages leave, and shows the command of each.
"""

import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from auto_deeplab.report import page
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.search_space import stride
from official.datasets import CITYSCAPES_LABEL_IDS, CITYSCAPES_NAMES, CITYSCAPES_PALETTE
from official.drawing import draw_overlay
from official.progress import format_duration

SCENES, ANSWERS = 3, 4  # how many scenes, and how many predictions, are shown
VOID = (0, 0, 0)
SHOWN_WIDTH = 512  # small pictures are enlarged to it, so that lines stay sharp

PYTHON = """\
import numpy as np, auto_deeplab
from PIL import Image
model = auto_deeplab.load({model_dir!r})
image = np.asarray(Image.open({image!r}).convert("RGB"))
labels = np.argmax(model(image[None])[0], -1)  # one class for each pixel
"""

TRAIN = "python auto_deeplab/train.py"
OWN_DATA = (
    "python -m tfrecords_tools.convert --dataset=folder --source_dir=mine --output_dir=data/mine",
    "python -m tfrecords_tools.check --data_dir=data/mine",
    f"{TRAIN} --mode=search --flagfile=auto_deeplab/configs/search_small.cfg --data_dir=data/mine "
    "--model_dir=runs/search",
    f"{TRAIN} --mode=train --flagfile=auto_deeplab/configs/train_small.cfg "
    "--genotype=runs/search/genotype.json --data_dir=data/mine --model_dir=runs/train",
    f"{TRAIN} --mode=eval --data_dir=data/mine --model_dir=runs/train",
    f"{TRAIN} --mode=predict --model_dir=runs/train --input=photos --output_dir=predictions",
    f"{TRAIN} --mode=export --model_dir=runs/train",
)


def write(
    out: Path,
    root: Path,
    commands: Mapping[str, str],
    seconds: Mapping[str, float],
    answer: str,
) -> Path:
    """Writes index.html into `out`.

    Args:
        out: what the quickstart has made, as its commands say it.
        root: where they ran.
        commands: of the stages, by their names, in their order.
        seconds: what they took, as far as it is known.
        answer: what the served model said.

    Returns:
        the page's path, below `out`.

    Raises:
        RunError: it cannot be written.
        OSError: what a stage left is not there any more.
    """
    made = root / out
    metrics = json.loads((made / "train" / "metrics.json").read_text(encoding="utf-8"))
    found = genotypes.load(made / "search" / "genotype.json")
    strides = " ".join(str(stride(level)) for level in found.path)
    shown = [index for index, iou in enumerate(metrics["per_class_iou"]) if iou is not None]
    legend = page.classes(
        [*(CITYSCAPES_NAMES[index] for index in shown), "void: does not count"],
        [*(CITYSCAPES_PALETTE[index] for index in shown), VOID],
    )

    def time_of(*names: str) -> str:
        known = [seconds[name] for name in names if name in seconds]
        return format_duration(sum(known)) if known else ""

    def commands_of(*names: str) -> str:
        return page.commands(*(commands[name] for name in names))

    def chart(path: str, alt: str, caption: str = "") -> str:
        return page.picture((made / path).read_bytes(), alt, caption, chart=True)

    held_out = sorted((made / "scenes" / "leftImg8bit" / "val").rglob("*.png"))
    answers = [_show_answer(made, path) for path in _choose_evenly(held_out, ANSWERS)]
    parts = [
        page.element("h1", "A network for street scenes, found and trained here"),
        page.element(
            "p",
            "Painted scenes became records; a search found a network's cell and its path of "
            "resolutions; that network was trained, and labels every pixel of scenes that it has "
            "never seen. Each step below shows the command that made it; a click selects it.",
            "lead",
        ),
        page.numbers(
            [
                (f"{metrics['miou_present']:.2f}", f"mIoU, {metrics['num_images']} unseen scenes"),
                (f"{metrics['pixel_accuracy']:.0%}", "of their pixels are right"),
                (time_of(*commands) or "?", "for all of it"),
                (f"{found.num_layers} layers", f"with cells of {found.num_blocks} blocks, found"),
            ]
        ),
        page.section(
            "Predictions beside the truth",
            page.element("p", "Scenes that neither the search nor the training has seen."),
            *answers,
            legend,
            commands_of("predict"),
            took=time_of("predict"),
        ),
        page.section(
            "Scenes",
            page.element("p", "A painter makes streets, and knows what each pixel is."),
            commands_of("paint scenes"),
            *_show_scenes(made),
            step=1,
            took=time_of("paint scenes"),
        ),
        page.section(
            "Records",
            page.element(
                "p",
                "Images and labels become TFRecords, at full size for the training and at half "
                "size for the search; the check reads all of them and counts the classes.",
            ),
            commands_of("convert", "convert, half size", "check"),
            page.details(
                "How often each class occurs", chart("classes.png", "a bar chart of the classes")
            ),
            step=2,
            took=time_of("convert", "convert, half size", "check"),
        ),
        page.section(
            "Search",
            page.element(
                "p",
                "One large network holds all candidates; gradient descent learns its weights and, "
                f"in turn, which operations and resolutions to keep. This one chose the strides "
                f"{strides}. A search as short as this shows how it works; it is no judgement "
                "about the best network.",
            ),
            commands_of("search"),
            chart(
                "search/figures/network.png",
                "the path through the resolutions",
                "The path: each column is a layer, each row a resolution.",
            ),
            chart(
                "search/figures/cell.png",
                "the cell as a graph",
                "The cell that stands at every layer.",
            ),
            chart("search/figures/history.png", "curves of the search", "The search, by epoch."),
            step=3,
            took=time_of("search"),
        ),
        page.section(
            "Training",
            page.element("p", "The network that was found, alone and from new weights."),
            commands_of("train"),
            chart("train/figures/history.png", "curves of the training"),
            step=4,
            took=time_of("train"),
        ),
        page.section(
            "Evaluation",
            page.element(
                "p",
                "IoU: of the pixels that are a class or are taken for it, the share that is both.",
            ),
            commands_of("evaluate"),
            _show_classes(metrics),
            step=5,
            took=time_of("evaluate"),
        ),
        page.section(
            "A model to serve",
            page.element("p", "A SavedModel needs TensorFlow alone. Asked about one scene:"),
            commands_of("export"),
            *([page.code(answer)] if answer else []),
            page.element("p", "The same network in Python:"),
            page.code(
                PYTHON.format(
                    model_dir=str(out / "train"),
                    image=str(out / held_out[0].relative_to(made)),
                ).strip()
            ),
            step=6,
            took=time_of("export", "serve"),
        ),
        page.section(
            "The same with your own data",
            page.element(
                "p",
                "Lay it out as images and masks, mine/images/train/x.jpg beside "
                "mine/masks/train/x.png, with the splits train and val, and the names of the "
                "classes in mine/classes.txt. docs/search_your_own_data.md says more.",
            ),
            page.commands(*OWN_DATA),
        ),
        page.section("Times", _show_times(seconds, commands)),
        page.element("footer", f"Everything is below {out}."),
    ]
    page.write(made / "index.html", "Auto-DeepLab: quickstart", *parts)
    return out / "index.html"


def _choose_evenly(paths: Sequence[Path], count: int) -> list[Path]:
    """`count` of them, or all, evenly spaced."""
    count = min(count, len(paths))
    return [paths[index * len(paths) // count] for index in range(count)]


def _show_scenes(made: Path) -> list[str]:
    """A row of images, and below it their labels over them."""
    paths = _choose_evenly(
        sorted((made / "scenes" / "leftImg8bit" / "train").rglob("*.png")), SCENES
    )
    palette = np.array(CITYSCAPES_PALETTE, np.uint8)
    images, overlays = [], []
    for path in paths:
        image, labels = np.asarray(Image.open(path).convert("RGB")), _read_truth(path)
        images.append(page.picture(_enlarge_to_png(image), "a street scene"))
        large, under = _enlarge(image), _enlarge(labels, Image.Resampling.NEAREST)
        overlays.append(
            page.picture(_encode_small_png(draw_overlay(large, under, palette)), "its labels")
        )
    return [page.row(images), page.row(overlays)]


def _show_answer(made: Path, path: Path) -> str:
    """A scene, its true labels and the predicted ones."""
    labels = np.asarray(Image.open(made / "predictions" / f"{path.stem}_labels.png"))
    truth = _read_truth(path)
    counts = truth < len(CITYSCAPES_NAMES)
    right = np.mean(labels[counts] == truth[counts]) if counts.any() else 0.0
    return page.row(
        [
            page.picture(
                _enlarge_to_png(np.asarray(Image.open(path).convert("RGB"))), "scene", "scene"
            ),
            page.picture(_paint_labels(truth), "true labels", "truth"),
            page.picture(
                _paint_labels(labels),
                "predicted labels",
                f"prediction: {right:.0%} of pixels right",
            ),
        ]
    )


def _read_truth(path: Path) -> np.ndarray:
    """The labels of a scene, uint8 [H, W]: 0..18, and 255 for void."""
    name = path.name.replace("_leftImg8bit", "_gtFine_labelIds")
    ids = np.asarray(
        Image.open(path.parents[3] / "gtFine" / path.parts[-3] / path.parts[-2] / name)
    )
    table = np.full(256, 255, np.uint8)
    table[list(CITYSCAPES_LABEL_IDS)] = np.arange(len(CITYSCAPES_LABEL_IDS))
    return table[ids]


def _paint_labels(labels: np.ndarray) -> bytes:
    colours = np.full((256, 3), VOID, np.uint8)
    colours[: len(CITYSCAPES_PALETTE)] = CITYSCAPES_PALETTE
    return _encode_small_png(colours[_enlarge(labels, Image.Resampling.NEAREST)])


def _enlarge_to_png(image: np.ndarray) -> bytes:
    return _encode_small_png(_enlarge(image))


def _enlarge(pixels: np.ndarray, method: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """An image, or labels, as large as they are shown."""
    height, width = pixels.shape[:2]
    scale = max(1, round(SHOWN_WIDTH / width))
    return np.asarray(Image.fromarray(pixels).resize((scale * width, scale * height), method))


def _encode_small_png(image: np.ndarray) -> bytes:
    """A PNG of 256 colours: a third of the size, and nobody sees it in such a picture."""
    stream = io.BytesIO()
    Image.fromarray(image).quantize(256).save(stream, "png", optimize=True)
    return stream.getvalue()


def _show_classes(metrics: Mapping[str, Any]) -> str:
    rows = [
        [page.swatch(CITYSCAPES_PALETTE[index]) + html.escape(name), page.bar(iou), f"{iou:.1%}"]
        for index, (name, iou) in enumerate(
            zip(metrics["class_names"], metrics["per_class_iou"], strict=True)
        )
        if iou is not None
    ]
    mean = metrics["miou_present"]
    absent = [
        name
        for name, iou in zip(metrics["class_names"], metrics["per_class_iou"], strict=True)
        if iou is None
    ]
    lines = [
        page.table(
            ["class", "", "IoU"],
            rows,
            total=["mean of the classes present", page.bar(mean), f"{mean:.1%}"],
        )
    ]
    if absent:
        lines.append(page.element("p", f"These scenes have no {', '.join(absent)}."))
    return "\n".join(lines)


def _show_times(seconds: Mapping[str, float], commands: Mapping[str, str]) -> str:
    longest = max(seconds.values(), default=1) or 1
    rows = [
        [html.escape(name), page.bar(seconds[name] / longest), format_duration(seconds[name])]
        for name in commands
        if name in seconds
    ]
    return page.table(
        ["stage", "", "time"], rows, total=["all", "", format_duration(sum(seconds.values()))]
    )

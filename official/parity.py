"""How near an exported model's answers are to the network's, and how long both take."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from official.formats import Answer
from official.progress import Progress
from official.segmentation_metrics import summarize

RUNS = 5


def compare(
    reference: Answer,
    answer: Answer,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray] | None = None,
    *,
    class_names: Sequence[str],
    ignore_label: int = 255,
    name: str = "check",
) -> dict[str, Any]:
    """Runs both on the same images, one after the other.

    Args:
        reference: the network.
        answer: what was exported, in its engine.
        images: uint8 [1, H, W, 3] each; one at least.
        labels: the truth of each, integers [1, H, W]; None: it is not known.
        class_names: C names.
        ignore_label: of the truth's void pixels.
        name: of the progress.

    Returns:
        equal_labels, the share 0..1 of all pixels; max_logit_difference and largest_logit, None for
        an engine that gives no logits; num_images; median_ms and network_median_ms, of an image,
        after each has been run; miou and network_miou, where the truth is known.
    """
    equal = pixels = 0
    differences, sizes = [], []
    confusions = np.zeros([2, len(class_names), len(class_names)], np.int64)
    with Progress(name, len(images), unit="images") as progress:
        for number, image in enumerate(images):
            wanted, found = reference(image), answer(image)
            equal += int(np.sum(wanted["labels"] == found["labels"]))
            pixels += wanted["labels"].size
            if "logits" in wanted and "logits" in found:
                differences.append(float(np.max(np.abs(wanted["logits"] - found["logits"]))))
                sizes.append(float(np.max(np.abs(wanted["logits"]))))
            if labels is not None:
                for confusion, given in zip(confusions, (found, wanted), strict=True):
                    _count(confusion, labels[number], given["labels"], ignore_label)
            progress.advance(1)
    known: dict[str, Any] = {}
    if labels is not None:
        names = ("miou", "network_miou")
        scores = [summarize(one, class_names)["miou"] for one in confusions]
        known = dict(zip(names, scores, strict=True))
    return {
        "equal_labels": equal / pixels,
        "max_logit_difference": max(differences, default=None),
        "largest_logit": max(sizes, default=None),
        "num_images": len(images),
        "median_ms": _measure(answer, images[0]),
        "network_median_ms": _measure(reference, images[0]),
        **known,
    }


def _count(
    confusion: np.ndarray, truth: np.ndarray, predicted: np.ndarray, ignore_label: int
) -> None:
    counts = truth != ignore_label
    # A label that is no class, of a broken engine, is refused by its share of equal labels.
    answered = np.minimum(predicted[counts], len(confusion) - 1)
    np.add.at(confusion, (truth[counts].astype(int), answered.astype(int)), 1)


def _measure(answer: Answer, image: np.ndarray) -> float:
    """The median time of an image, in ms."""
    times = []
    for _ in range(RUNS + 1):
        began = time.perf_counter()
        answer(image)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[1:])

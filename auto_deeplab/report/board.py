"""What TensorBoard shows of a search or a training: its reports, alpha and beta, pictures."""

import base64
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from auto_deeplab.report import figures, pages
from auto_deeplab.space import search_space
from auto_deeplab.space.genotype import Genotype
from official.history import Row, is_number
from official.summaries import Shown, Summaries

PathLike = str | os.PathLike[str]

GROUPS = {
    "loss": ("loss_w", "loss_arch"),
    "validation": ("val_miou", "val_miou_present", "val_pixel_accuracy"),
    "architecture": (
        *("alpha_entropy", "beta_entropy", "edge_entropy", "skip_connects", "none_edges"),
        "alpha_hessian",
    ),
    "cost": ("expected_cost", "params_millions", "multi_adds_billions"),
}
"""The groups in which TensorBoard shows a report's numbers; all others are in `run`."""

HIDDEN = ("step", "saved")
WIDEST = 1600
"""Of a picture, in pixels."""


def make_board(
    model_dir: str, record: Mapping[str, Any], genotype: Genotype | None = None
) -> Summaries:
    """What shows a run in TensorBoard.

    Args:
        model_dir: of the run.
        record: its run.json.
        genotype: what it trains; None: it searches.
    """
    return Summaries(
        model_dir,
        partial(describe, class_names=record["class_names"]),
        Pictures(model_dir, record["identity"], genotype).draw,
        list_hparams(record["identity"], genotype),
    )


def describe(row: Row, class_names: Sequence[str]) -> Shown:
    """A report's numbers, the IoU of each class, and the probabilities of alpha and beta.

    Beta's are those of the edges that exist. What is not as a report has it is left out.
    """
    group_of = {key: group for group, keys in GROUPS.items() for key in keys}
    shown: dict[str, Any] = {
        f"{group_of.get(key, 'run')}/{key}": float(value)
        for key, value in row.items()
        if key not in HIDDEN and is_number(value)
    }
    with contextlib.suppress(KeyError, TypeError, ValueError):
        for name, value in list(zip(class_names, row["val_per_class_iou"], strict=True)):
            if is_number(value):
                shown[f"iou/{name}"] = float(value)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        shown["architecture/alpha"] = _check(np.ravel(row["alpha"]))
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        beta = np.asarray(row["beta"], float)
        shown["architecture/beta"] = _check(
            np.array(
                [
                    beta[layer - 1, source, search_space.direction(source, level)]
                    for layer, source, level in search_space.edges(len(beta))
                ]
            )
        )
    return shown


class Pictures:
    """The network as it would be decoded now, alpha's heat map, predictions beside the truth.

    What cannot be drawn is warned of.

    Args:
        model_dir: of the run; samples.json in it has the predictions.
        identity: of the run.
        genotype: what it trains; None: it searches.
    """

    def __init__(
        self, model_dir: PathLike, identity: Mapping[str, Any], genotype: Genotype | None = None
    ) -> None:
        self._model_dir, self._identity, self._genotype = model_dir, identity, genotype
        self._drawn: Genotype | None = None

    def draw(self, row: Row) -> Shown:
        """The pictures of a report that was just made; of the network where it has changed."""
        shown: dict[str, np.ndarray] = {}

        def take(name: str, make: Callable[..., np.ndarray], *arguments: Any) -> None:
            with pages.only_warned_of(f"the picture {name} for TensorBoard"):
                shown[name] = make(*arguments)

        found = self._genotype
        if found is None:
            with pages.only_warned_of("the network for TensorBoard"):
                found = pages.decode_row(row, self._identity)
        if found is not None and found != self._drawn:
            self._drawn = found
            take("architecture/network", _render, figures.draw_architecture, found)
            if {"alpha", "operations", "alpha_sharing"} <= found.meta.keys():
                # Under a name of two kinds TensorBoard shows one: alpha is the histogram.
                take("architecture/alpha_map", _render, figures.draw_alpha, found)
        with pages.only_warned_of("the predictions for TensorBoard"):
            for number, sample in enumerate(pages.read_samples(self._model_dir)):
                take(f"predictions/{number}", _place_side_by_side, sample)
        return shown


def list_hparams(
    identity: Mapping[str, Any], genotype: Genotype | None = None
) -> dict[str, bool | int | float | str]:
    """The flags that make a run what it is, as HParams takes them; lists are written as in JSON.

    Of the genotype of a training only the path is short enough.
    """
    path = {"path": " ".join(map(str, genotype.path))} if genotype else {}
    return path | {
        name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for name, value in identity.items()
        if value is not None and name not in ("data_dir", "genotype")
    }


def _check(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if not (values.size and np.isfinite(values).all()):
        raise ValueError("no numbers")
    return values


def _render(draw: Callable[[Genotype, PathLike], None], genotype: Genotype) -> np.ndarray:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "picture.png")
        draw(genotype, path)
        return _read(path.read_bytes())


def _read(content: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.thumbnail((WIDEST, WIDEST * 2))
    return np.asarray(picture)


def _place_side_by_side(sample: Mapping[str, str]) -> np.ndarray:
    """Image, truth and prediction, from left to right."""
    uris = (sample[name] for name in ("image", "truth", "prediction"))
    return np.concatenate([_read(base64.b64decode(uri.partition(",")[2])) for uri in uris], 1)

"""report.html: a run, or a comparison of runs, to look at in a browser; it needs no other file.

A search and a training write theirs at each report, from what stands in model_dir. Templates draw,
from what charts.py has laid out; text is escaped by jinja2.
"""

import base64
import contextlib
import io
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from auto_deeplab.report import charts, page, summary
from auto_deeplab.report.figures import operation_label
from auto_deeplab.space import decoding, search_space
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype
from official.errors import explain
from official.files import write_atomically
from official.progress import say

FILE, SAMPLES = "report.html", "samples.json"
SHOWN_WIDTH = 480  # of an image on the page, at most
VOID = (0, 0, 0)
DECODED = ("alpha", "beta", "edge_weights")
"""What a report of a search and a decoded genotype both hold, as probabilities."""

Row = Mapping[str, Any]
GROUP_NUMBERS = ("miou_mean", "miou_std", "params_millions", "multi_adds_billions")
RUN_NUMBERS = {
    **{"seed": "seed", "mIoU": "miou", "mIoU, classes present": "miou_present"},
    **{"in the super-net": "super_net_miou", "parameters, M": "params_millions"},
    **{"multiply-adds, B": "multi_adds_billions", "latency, ms": "latency_ms"},
    **{"steps": "train_steps", "seconds": "train_seconds"},
}
"""Columns of the table of runs, and the comparison's key of each."""

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def only_warned_of(what: str) -> Iterator[None]:
    """Turns a failure into a warning: no page is worth a run."""
    try:
        yield
    except Exception as error:
        say(f"warning: {what} is not written: {type(error).__name__}: {explain(error)}")


def write_run(model_dir: PathLike, record: Row, rows: Sequence[Row]) -> None:
    """Writes report.html of a search or a training into model_dir, whole or not at all.

    Args:
        model_dir: of the run.
        record: its run.json.
        rows: of its history.jsonl; older ones without alpha, beta and IoU of the classes do too.

    Raises:
        RunError: the page cannot be written.
        OSError: a file of the run cannot be read.
    """
    folder, mode, identity = Path(model_dir), record["mode"], record["identity"]
    clock = "epoch" if all(_is_number(row.get("epoch")) for row in rows) else "step"
    found = _find_architectures(folder, mode, identity, rows, clock)
    names, palette = record["class_names"], record["palette"]
    flags = folder.resolve() / "flags.cfg"
    name = folder.resolve().name
    text = page.TEMPLATES.get_template("run.html").render(
        title=f"{'Search' if mode == 'search' else 'Training'}: {name}",
        lead=_describe(record, rows),
        mode=mode,
        numbers=_list_numbers(rows, identity, mode),
        architecture=found,
        curves=_draw_curves(rows, identity, mode, clock),
        samples=read_samples(folder),
        legend=[*zip(names, palette, strict=True), ("void: does not count", VOID)],
        classes=_draw_classes(rows, names, palette, clock),
        command=shlex.join([*summary.COMMAND, f"--flagfile={flags}"]),
        flags=flags.read_text(encoding="utf-8") if flags.exists() else "",
    )
    write_atomically(folder / FILE, text)


def write_comparison(path: PathLike, comparison: Row) -> None:
    """Writes the page of a comparison, whole or not at all.

    Beside what the comparison says, the page has the curves of the searches that lie beside the
    runs as search_SEED, and the images that the runs segmented, where these are still there.

    Args:
        path: the file.
        comparison: what --mode=compare prints as JSON: runs, groups, permutation_test and kendall.

    Raises:
        RunError: the page cannot be written.
        KeyError: it is no comparison.
    """
    runs = comparison["runs"]
    tests = [comparison.get(name) for name in ("permutation_test", "kendall")]
    names: dict[str, list[tuple[float, float, str]]] = {}
    for run in runs:
        if _is_number(run["multi_adds_billions"]) and _is_number(run["miou"]):
            point = (run["multi_adds_billions"], run["miou"], run["name"])
            names.setdefault(run["group"], []).append(point)
    curves = [
        charts.lay_out_lines(
            "the searches: val mIoU of the super-net (paper, Fig. 4)",
            _read_searches(runs),
            x_label="epoch",
            right=390,
        ),
        charts.lay_out_lines(
            "the trainings: val mIoU",
            {run["name"]: run["curve"] for run in runs},
            x_label="step",
            right=390,
        ),
    ]
    text = page.TEMPLATES.get_template("comparison.html").render(
        title=f"Comparison: {Path(path).resolve().parent.name}",
        lead=f"{len(runs)} retrained networks in {len(comparison['groups'])} groups",
        sentences=[test["sentence"] for test in tests if test],
        groups=[
            [group["group"], group["count"], *(_format(group.get(key)) for key in GROUP_NUMBERS)]
            for group in comparison["groups"]
        ],
        scatter=charts.lay_out_scatter(names, x_label="multiply-adds, billions", y_label="mIoU"),
        curves=[chart for chart in curves if chart],
        columns=["run", "group", *RUN_NUMBERS],
        table=[
            [
                *(run["name"], run["group"]),
                *(_format(run.get(key)) for key in RUN_NUMBERS.values()),
            ]
            for run in runs
        ],
        images=_gather_images(runs),
        networks=[
            (
                *(run["name"], run["group"]),
                draw_architecture(Genotype(run["path"], run["cells"], run["cell_of_layer"])),
            )
            for run in runs
        ],
    )
    write_atomically(path, text)


def _read_searches(runs: Sequence[Row]) -> dict[str, charts.Points]:
    """The curves of the searches that the runs' networks come from; TensorFlow is not needed."""
    folders = {
        f"search_{run['search']}": Path(run["model_dir"]).parent / f"search_{run['search']}"
        for run in runs
        if run.get("search") is not None
    }
    curves: dict[str, charts.Points] = {}
    for name, folder in sorted(folders.items()):
        with contextlib.suppress(OSError, ValueError):
            lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            curves[name] = [
                (row["epoch"], row["val_miou"]) for row in rows if _is_number(row.get("val_miou"))
            ]
    return curves


def _format(value: Any) -> str:
    if not _is_number(value):
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _gather_images(runs: Sequence[Row]) -> list[dict[str, Any]]:
    """For each image that a run keeps, what each of them makes of it."""
    images: dict[str, dict[str, Any]] = {}
    for run in runs:
        for sample in read_samples(run["model_dir"]):
            image = images.setdefault(sample["name"], sample | {"runs": []})
            image["runs"].append((run["name"], sample["prediction"], sample["right"]))
    return list(images.values())


def keep_samples(
    model_dir: PathLike, palette: Sequence[Sequence[int]], samples: Sequence[Any]
) -> None:
    """Writes samples.json: images with their truth and prediction, as a page takes them.

    Args:
        model_dir: of the run.
        palette: C colours (red, green, blue), of which a pixel of another class is void.
        samples: of official.evaluation.

    Raises:
        RunError: the file cannot be written.
    """
    kept = []
    for sample in samples:
        counts = sample.truth < len(palette)
        right = f"{np.mean(sample.prediction[counts] == sample.truth[counts]):.0%}"
        kept.append(
            {
                "name": sample.name,
                "image": _encode(sample.image, "jpeg"),
                "truth": _encode(_paint(sample.truth, palette), "png"),
                "prediction": _encode(_paint(sample.prediction, palette), "png"),
                "right": right if counts.any() else "none",
            }
        )
    write_atomically(Path(model_dir) / SAMPLES, json.dumps(kept))


def read_samples(model_dir: PathLike) -> list[dict[str, str]]:
    """Reads samples.json; [] if there is none."""
    with contextlib.suppress(FileNotFoundError):
        kept: list[dict[str, str]] = json.loads((Path(model_dir) / SAMPLES).read_text("utf-8"))
        return kept
    return []


def _paint(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    colours = np.array([*palette, VOID], np.uint8)
    return colours[np.minimum(labels, len(palette))]


def _encode(pixels: np.ndarray, form: str) -> str:
    """A picture of at most SHOWN_WIDTH as a data URI."""
    picture = Image.fromarray(pixels)
    if picture.width > SHOWN_WIDTH:
        size = SHOWN_WIDTH, max(1, round(picture.height * SHOWN_WIDTH / picture.width))
        smooth = Image.Resampling.BICUBIC if form == "jpeg" else Image.Resampling.NEAREST
        picture = picture.resize(size, smooth)
    if form == "png" and len(picture.getcolors(2**24) or ()) <= 256:
        picture = picture.quantize(256)
    stream = io.BytesIO()
    picture.save(stream, form)
    return f"data:image/{form};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _describe(record: Row, rows: Sequence[Row]) -> str:
    parts = [f"{record.get('dataset', 'data')}, seed {record['identity'].get('seed')}"]
    if rows:
        parts.append(f"step {rows[-1]['step']}")
        if _is_number(rows[-1].get("epoch")):
            parts.append(f"epoch {rows[-1]['epoch']:.4g}")
    return ", ".join(parts)


def _list_numbers(rows: Sequence[Row], identity: Row, mode: str) -> list[tuple[str, str]]:
    """The newest numbers, large."""
    if not rows:
        return []
    last, numbers = rows[-1], []
    measured = [row for row in rows if _is_number(row.get("val_miou"))]
    if measured:
        best = max(measured, key=lambda row: row["val_miou"])
        what = "val mIoU of the super-net" if mode == "search" else "val mIoU"
        numbers = [
            (f"{measured[-1]['val_miou']:.3f}", f"{what}, last"),
            (f"{best['val_miou']:.3f}", f"the best, at step {best['step']}"),
        ]
    for name, share in _entropy_shares(last, identity).items():
        numbers.append((f"{share:.1%}", f"of uniform: the entropy of {name}"))
    if _is_number(last.get("skip_connects")):
        most = 2 * identity.get("num_blocks", 5)
        numbers.append((f"{last['skip_connects']} of {most}", "operations are skip-connections"))
    if _is_number(last.get("params_millions")):
        numbers.append((f"{last['params_millions']:.2f} M", "parameters when decoded now"))
        numbers.append((f"{last['multi_adds_billions']:.2f} B", "multiply-adds of a crop"))
    return numbers


def _entropy_shares(row: Row, identity: Row) -> dict[str, float]:
    """The entropies of alpha, beta and edge weights as shares of what uniform ones have."""
    if "operations" not in identity:
        return {}
    uniform = decoding.uniform_entropies(
        len(identity["operations"]), identity["num_layers"], identity.get("num_blocks", 5)
    )
    return {
        name: row[f"{key}_entropy"] / uniform[f"{key}_entropy"]
        for name, key in (("alpha", "alpha"), ("beta", "beta"), ("the edge weights", "edge"))
        if _is_number(row.get(f"{key}_entropy"))
    }


def _draw_curves(rows: Sequence[Row], identity: Row, mode: str, clock: str) -> list[charts.Layout]:
    def curve(key: str) -> charts.Points:
        return [(row[clock], row[key]) for row in rows if _is_number(row.get(key))]

    shares: dict[str, charts.Points] = {
        name: [
            (row[clock], _entropy_shares(row, identity)[name])
            for row in rows
            if name in _entropy_shares(row, identity)
        ]
        for name in ("alpha", "beta", "the edge weights")
    }
    uniform = {"uniform": 1.0} if any(shares.values()) else {}
    changes = [
        before[clock]
        for before, after in pairwise(rows)
        if (before.get("phase"), after.get("phase")) == ("weights", "weights and architecture")
    ]
    drawn: tuple[tuple[str, dict[str, charts.Points], dict[str, float]], ...] = (
        ("training loss", {"weights": curve("loss_w"), "alpha, beta": curve("loss_arch")}, {}),
        (
            "validation mIoU",
            {"all classes": curve("val_miou"), "those present": curve("val_miou_present")},
            {},
        ),
        ("entropy as a share of uniform", shares, uniform),
        ("skip-connections of the cell", {"skips": curve("skip_connects")}, {}),
        ("multiply-adds when decoded, billions", {"crop": curve("multi_adds_billions")}, {}),
        ("parameters when decoded, millions", {"parameters": curve("params_millions")}, {}),
        ("learning rate of the weights", {"rate": curve("learning_rate")}, {}),
        ("images a second", {"images": curve("images_per_s")}, {}),
    )
    change = changes[0] if mode == "search" and changes else None
    laid_out = [
        charts.lay_out_lines(title, series, x_label=clock, levels=levels, change=change)
        for title, series, levels in drawn
    ]
    return [chart for chart in laid_out if chart]


def _draw_classes(
    rows: Sequence[Row], names: Sequence[str], palette: Sequence[Sequence[int]], clock: str
) -> list[dict[str, Any]]:
    """A line of the table for each class that was ever seen, the best one first."""
    rows = [row for row in rows if row.get("val_per_class_iou")]
    curves = {
        index: [
            (row[clock], row["val_per_class_iou"][index])
            for row in rows
            if _is_number(row["val_per_class_iou"][index])
        ]
        for index in range(len(names))
    }
    curves = {index: points for index, points in curves.items() if points}
    highest = max((y for points in curves.values() for _, y in points), default=1.0)
    return [
        {
            "name": names[index],
            "colour": palette[index],
            "points": charts.lay_out_spark(points, rows[-1][clock], highest),
            "last": f"{points[-1][1]:.1%}",
            "best": f"{max(y for _, y in points):.1%}",
        }
        for index, points in sorted(curves.items(), key=lambda item: -item[1][-1][1])
    ]


def _find_architectures(
    folder: Path, mode: str, identity: Row, rows: Sequence[Row], clock: str
) -> charts.Layout | None:
    """What the slider goes through: the decoding of each report, or the one network trained."""
    if mode != "search":
        with contextlib.suppress(OSError, ValueError):
            return draw_architecture(genotypes.load(folder / "genotype.json"))
        return None
    reports = []
    for row in rows:
        # A row by another hand may hold anything; its report is left out of the slider.
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, IndexError):
            found = decode_row(row, identity)
            _describe_report(found, identity["operations"])  # only to see that it can
            reports.append((found, row[clock], _say(row, identity)))
    return _draw_architectures(reports) if reports else None


def decode_row(row: Row, identity: Row) -> Genotype:
    """What a report of a search says would have been decoded then, with alpha and beta.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: it does not say so.
    """
    cells: Any = row["cells"] if row.get("cell_of_layer") else [row["cell"]]
    meta = {
        "operations": identity["operations"],
        "alpha_sharing": identity.get("alpha_sharing", "global"),
        **{"seed": identity.get("seed"), "step": row.get("step")},
        **{name: row[name] for name in DECODED if row.get(name)},
    }
    return Genotype(row["path"], cells, row.get("cell_of_layer"), meta)


def _say(row: Row, identity: Row) -> str:
    """A report in a line, beside the slider."""
    parts = [f"epoch {row['epoch']:.4g}"] if _is_number(row.get("epoch")) else []
    parts.append(f"step {row['step']}")
    if _is_number(row.get("val_miou")):
        parts.append(f"val mIoU {row['val_miou']:.3f}")
    parts += [
        f"entropy of {name} {share:.1%} of uniform"
        for name, share in _entropy_shares(row, identity).items()
    ]
    if _is_number(row.get("skip_connects")):
        parts.append(f"{row['skip_connects']} skip-connections")
    if _is_number(row.get("multi_adds_billions")):
        parts.append(
            f"{row['params_millions']:.2f} M parameters, "
            f"{row['multi_adds_billions']:.2f} B multiply-adds"
        )
    return " · ".join(parts)


def draw_architecture(genotype: Genotype) -> charts.Layout:
    """One network; alpha and beta are drawn where its meta, which decoding writes, holds them."""
    return _draw_architectures([(genotype, 0.0, "")])


def _draw_architectures(reports: Sequence[tuple[Genotype, float, str]]) -> charts.Layout:
    """Networks of one search space, in the order of the slider.

    Args:
        reports: of each the network, its place on the curves' x axis, and what is said of it.
    """
    last = reports[-1][0]
    num_blocks, num_layers = last.num_blocks, last.num_layers
    operations = last.meta.get("operations") or sorted(
        {name for cell in last.cells for block in cell for _, name in block}
    )
    sharing = _find_sharing(last)
    tensors = ["H l-1", "H l-2", *(f"block {number}" for number in range(num_blocks))]
    edges = search_space.cell_edges(num_blocks)
    drawn = [
        _describe_report(genotype, operations) | {"clock": clock, "said": said}
        for genotype, clock, said in reports
        if (genotype.num_blocks, genotype.num_layers) == (num_blocks, num_layers)
    ]
    numbers = range(len(drawn[-1]["kept"]))
    whose = {"global": "", "level": "The cell of stride {}", "layer": "The cell of layer {}"}
    return {
        "reports": drawn,
        **charts.lay_out_trellis(num_layers),
        "has_beta": any(report["beta"] for report in drawn),
        "has_alpha": any(report["alpha"] for report in drawn),
        "has_edge_weights": any(report["edge_weights"] for report in drawn),
        "heat": charts.lay_out_heat(
            [f"block {block} · {tensors[source]}" for block, source in edges],
            [operation_label(name) for name in operations],
        ),
        "arcs": charts.lay_out_cell(num_blocks, tensors),
        "cells": [
            {
                "title": whose[sharing].format(
                    search_space.stride(number) if sharing == "level" else number + 1
                )
            }
            for number in numbers
        ],
    }


def _find_sharing(genotype: Genotype) -> str:
    """Which layers have a cell of their own: one of search_space.ALPHA_SHARING."""
    if genotype.cell_of_layer is None:
        return "global"
    return str(genotype.meta.get("alpha_sharing", "layer"))


def _describe_report(genotype: Genotype, operations: Sequence[str]) -> dict[str, Any]:
    """What script.js draws: shares of alpha and beta by place, what is kept, words for branches."""
    nodes = [(0, 0), *search_space.nodes(genotype.num_layers)]
    path = [(0, 0), *enumerate(genotype.path, 1)]
    sharing = _find_sharing(genotype)
    count = search_space.num_alphas(sharing, genotype.num_layers)
    cells: list[genotypes.Cell | None] = [None] * count
    for layer, level in path[1:]:
        index = search_space.alpha_index(sharing, layer, level)
        cells[index] = genotype.cell(layer)
    alpha = beta = edge_weights = None
    if "alpha" in genotype.meta:
        alpha = np.asarray(genotype.meta["alpha"], float).reshape(count, -1)
        if alpha.shape[1] != len(search_space.cell_edges(genotype.num_blocks)) * len(operations):
            raise ValueError("alpha has another number of edges")
    if "edge_weights" in genotype.meta:
        edge_weights = np.asarray(genotype.meta["edge_weights"], float).reshape(count, -1)
        if edge_weights.shape[1] != len(search_space.cell_edges(genotype.num_blocks)):
            raise ValueError("edge_weights has another number of edges")
    if "beta" in genotype.meta:
        shares = decoding.check_beta(genotype.meta["beta"])
        beta = [
            round(float(shares[layer - 1, source, search_space.direction(source, level)]), 4)
            for layer, source, level in search_space.edges(genotype.num_layers)
        ]
    return {
        "nodes": [nodes.index(node) for node in path],
        "beta": beta,
        "alpha": alpha.round(4).tolist() if alpha is not None else None,
        "edge_weights": edge_weights.round(4).tolist() if edge_weights is not None else None,
        "kept": [_list_kept(cell, operations) for cell in cells],
        "branches": [_list_branches(cell) for cell in cells],
    }


def _list_kept(cell: genotypes.Cell | None, operations: Sequence[str]) -> dict[str, list[int]]:
    """Which places of the heat map, and which rows, a cell keeps; none of one that is not used."""
    if cell is None:
        return {"places": [], "rows": []}
    rows = {edge: row for row, edge in enumerate(search_space.cell_edges(len(cell)))}
    kept = [
        (rows[number, source], operations.index(name) if name in operations else 0)
        for number, block in enumerate(cell)
        for source, name in block
    ]
    places = [row * len(operations) + column for row, column in kept]
    return {"places": places, "rows": [row for row, _ in kept]}


def _list_branches(cell: genotypes.Cell | None) -> list[str]:
    if cell is None:
        return ["not on the path"]
    names = ["H l-1", "H l-2", *(f"block {number}" for number in range(len(cell)))]
    return [
        f"{operation_label(name)} of {names[source]}" for block in cell for source, name in block
    ]

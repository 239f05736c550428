"""--mode=profile: what a network costs, or the pieces of all networks of a search space."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from auto_deeplab.budget import cost_table as cost_tables
from auto_deeplab.budget import expected_cost
from auto_deeplab.modes.data import Devices, PathLike, check_choice
from auto_deeplab.modes.model_dir import list_defaults, load_genotype, read_training
from auto_deeplab.modes.train import NetworkOptions
from auto_deeplab.network.network import Network
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import make_network
from auto_deeplab.space.genotype import Genotype
from official import latency as latencies
from official import model_cost
from official.errors import UsageError
from official.export import make_answer
from official.files import check_replaceable
from official.progress import say


def profile(
    genotype: Genotype | PathLike | None = None,
    model_dir: PathLike | None = None,
    *,
    network: Mapping[str, Any] | None = None,
    num_classes: int | None = None,
    crop_size: tuple[int, int] | None = None,
    latency: bool = False,
    devices: Devices = Devices(),
) -> dict[str, Any]:
    """Prints parameters and multiply-adds per part as a table, and how long an image takes.

    Args:
        genotype: what to count, a preset's name or a file; may be None if model_dir is given.
        model_dir: of a training, whose network is counted.
        network: the widths that are given, by name: filter_multiplier, stem_filters, head_filters.
            With model_dir, they must be the network's own; without, the others have their defaults.
        num_classes: likewise; default 19.
        crop_size: height and width of the image; None: those of most of the images that the run in
            model_dir was trained on, else 1025 x 2049.
        latency: whether the exported function, from an image's pixels to its labels, is timed.
        devices: where that is done.

    Returns:
        the same as plain data; see model_cost.summarize and latency.summarize.

    Raises:
        UsageError, RunError: something is missing, damaged or of another kind.
    """
    given = dict(network or {})
    model_dir = os.fspath(model_dir) if model_dir else None
    if model_dir:
        record = read_training(model_dir, num_classes)
        architecture = run_record.read_genotype(model_dir)
        run_record.compare(record, given, model_dir, list_defaults(NetworkOptions))
        if genotype and load_genotype(genotype) != architecture:
            raise UsageError(
                f"--genotype={genotype} is not the architecture of the network in "
                f"--model_dir={model_dir}: leave the flag away"
            )
        options, num_classes = record["identity"], len(record["class_names"])
        crop_size = crop_size or record.get(run_record.IMAGE_SIZE)
    elif genotype:
        architecture = load_genotype(genotype)
        options, num_classes = vars(NetworkOptions(**given)), num_classes or 19
    else:
        raise UsageError("--genotype is needed by --mode=profile")
    say(architecture.describe())
    height, width = crop_size or IMAGE_SIZE
    size = height, width
    if latency:
        devices.start("profile")
    made = make_network(architecture, options, num_classes)
    parts, costs = measure(made, num_classes, size, latency=latency)
    print(model_cost.format_table(parts, size))
    if latency:
        times = costs["latency"]
        print(
            f"an image of {height} x {width}: {times['median_ms']:.1f} ms in the median of "
            f"{times['runs']} runs, {times['fastest_ms']:.1f} to {times['slowest_ms']:.1f} "
            f"({times['device']}, {times['threads']} threads)"
        )
    return costs


def measure(
    network: Network, num_classes: int, size: tuple[int, int], *, latency: bool
) -> tuple[list[model_cost.Part], dict[str, Any]]:
    """What a built network costs for an image of (height, width): its parts, and plain data.

    With `latency` the exported function, from an image's pixels to its labels, is timed.
    """
    parts = model_cost.count(network, size)
    costs = model_cost.summarize(parts, size)
    if latency:
        image = tf.TensorSpec([1, *size, 3], tf.uint8)
        answer = make_answer(network, num_classes)
        costs["latency"] = latencies.summarize(latencies.measure(answer, [image]))
    return parts, costs


IMAGE_SIZE = (1025, 2049)
"""Of Cityscapes' images, as the network pads them."""


@dataclass(frozen=True)
class Pieces:
    """Which networks' pieces a cost table holds: cost_table.SETTINGS."""

    operations: tuple[str, ...]
    num_blocks: int
    filter_multiplier: int
    stem_filters: tuple[int, ...]
    head_filters: int
    crop_size: tuple[int, int]
    num_classes: int


def measure_costs(
    cost_table: PathLike,
    pieces: Pieces,
    *,
    num_layers: int,
    cost_metric: str,
    devices: Devices = Devices(),
) -> dict[str, Any]:
    """Measures what the pieces of all networks of a search space cost, and writes a cost table.

    Args:
        cost_table: the path of the JSON file, new or of an older table.
        pieces: what is measured.
        num_layers: L, for the bounds.
        cost_metric: a key of cost_table.UNITS.
        devices: where it is measured.

    Returns:
        what was measured, and the bounds of what networks cost, as plain data.

    Raises:
        UsageError: the path is that of another file or a directory, or there is no such metric.
        RunError: the file cannot be written.
    """
    check_choice("cost_metric", cost_metric, tuple(cost_tables.UNITS))
    path = os.fspath(cost_table)
    check_replaceable(path, "--cost_table", '"pieces"')
    devices.start("profile")
    began = time.monotonic()
    table = cost_tables.measure(vars(pieces), cost_metric)
    table.save(path)
    cheapest, dearest = expected_cost.compute_bounds(table, pieces.operations, num_layers)
    return {
        "cost_table": path,
        "metric": table.metric,
        "unit": cost_tables.UNITS[table.metric],
        "pieces": len(table.pieces),
        "seconds": round(time.monotonic() - began, 1),
        "num_layers": num_layers,
        "cheapest": cheapest,
        "dearest": dearest,
    }

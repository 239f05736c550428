"""--mode=compare: which of several trained networks are better, and whether that is chance."""

import glob
import itertools
import json
import math
import os
from collections.abc import Sequence
from typing import Any

from auto_deeplab.modes import profile
from auto_deeplab.modes.data import Batches, Devices, PathLike
from auto_deeplab.modes.model_dir import list_defaults
from auto_deeplab.modes.train import NetworkOptions, PixelWeights, TrainSchedule
from auto_deeplab.report import comparison, pages
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import make_network
from auto_deeplab.space.genotype import Genotype
from official import history
from official.errors import RunError, UsageError, shorten
from official.files import check_replaceable, make_directory, read_small, write_atomically
from official.progress import Progress, say

METRICS = "metrics.json"

RANKING = os.path.join("ranking", "front.json")
"""Where a study has what the super-net says of architectures, beside its runs."""

EVALUATED = ("split", "num_images", "scales", "flip", "step")
"""What makes two evaluations different ones."""


def compare(
    runs: Sequence[str],
    *,
    output: PathLike | None = None,
    latency: bool = False,
    ranking: PathLike | None = None,
) -> dict[str, Any]:
    """Prints a table of trained and evaluated networks, and tests found against random ones.

    Args:
        runs: model_dirs of trainings, or patterns. What a pattern finds beside trainings is passed
            over.
        output: the JSON file to write, new or of an older comparison.
        latency: whether it is measured how long each network takes for an image.
        ranking: the front.json of --mode=sample with --data_dir, for the mIoU in the super-net;
            None: `ranking/front.json` beside the runs, where there is one.

    Returns:
        see comparison.compare_rows.

    Raises:
        UsageError: there are not two trainings, or their classes are not the same.
        RunError: one of their files is missing or damaged, or `output` cannot be written.
    """
    output = os.fspath(output) if output else None
    if output:
        check_replaceable(output, "--output", '"permutation_test"')
    model_dirs = find_trainings(runs)
    records = [run_record.read(model_dir, "train") for model_dir in model_dirs]
    metrics = [read_metrics(model_dir) for model_dir in model_dirs]
    check_classes(model_dirs, records)
    fronts = [os.fspath(ranking)] if ranking else find_rankings(model_dirs)
    in_super_net = {key: miou for path in fronts for key, miou in read_ranking(path).items()}
    if latency:
        Devices().start("compare")
    genotypes = [run_record.read_genotype(model_dir) for model_dir in model_dirs]
    costs = measure_costs(genotypes, records, latency)
    rows = [
        describe_run(model_dir, record, own, genotype)
        | cost
        | {"super_net_miou": in_super_net.get(run_record.describe_architecture(genotype))}
        for model_dir, record, own, genotype, cost in zip(
            model_dirs, records, metrics, genotypes, costs, strict=True
        )
    ]
    warnings = find_differences(model_dirs, records, metrics)
    found = comparison.compare_rows(rows, warnings)
    print(comparison.format_table(found))
    for line in (*found["sentences"], *(f"warning: {line}" for line in warnings)):
        print(line)
    whole: dict[str, Any] = json.loads(json.dumps(found, allow_nan=False))
    if output:
        make_directory(os.path.dirname(os.path.abspath(output)))
        write_atomically(output, json.dumps(whole, indent=1) + "\n")
        page = os.path.join(os.path.dirname(output), "report.html")
        pages.write_comparison(page, whole)
        say(f"written: {output}, {page}")
    return whole


def find_trainings(runs: Sequence[str]) -> list[str]:
    """The model_dirs of trainings that are named or found by patterns, each one once.

    Raises:
        UsageError: a name or a pattern stands for none, or there are not two in all.
    """
    found: dict[str, str] = {}
    for name in runs:
        named = os.path.exists(name)
        paths = [name] if named else sorted(glob.glob(name))
        trainings = [path for path in paths if is_training(path)]
        if not trainings:
            what = "is no training's model_dir" if named else "stands for no training's model_dir"
            raise UsageError(f"--runs: {shorten(name)} {what}: give what --mode=train wrote")
        found |= {os.path.abspath(path): os.path.normpath(path) for path in trainings}
        others = [os.path.basename(path) for path in paths if path not in trainings]
        if others:
            say(f"passed over, as no trainings: {shorten(', '.join(others), 400)}")
    if len(found) < 2:
        raise UsageError(
            f"--runs: {', '.join(found.values())} alone is nothing to compare: give two or more"
        )
    return list(found.values())


def is_training(path: str) -> bool:
    """Whether a directory is that of a training; RunError if its run.json is damaged."""
    return os.path.isdir(path) and run_record.read_if_there(path).get("mode") == "train"


def read_metrics(model_dir: str) -> dict[str, Any]:
    """What --mode=eval found.

    Raises:
        RunError: the file is missing or damaged.
    """
    path = os.path.join(model_dir, METRICS)
    if not os.path.exists(path):
        raise RunError(
            f"{model_dir} has no {METRICS}: evaluate it first (--mode=eval --model_dir={model_dir})"
        )
    content = _read_json(path)
    if isinstance(content, dict) and _is_share(content.get("miou")):
        return content
    raise RunError(f"{path} is damaged: --mode=eval --model_dir={model_dir} writes it again")


def check_classes(model_dirs: Sequence[str], records: Sequence[run_record.Record]) -> None:
    """Raises UsageError if networks have different numbers of classes: mIoU says nothing then."""
    counts = [len(record["class_names"]) for record in records]
    for model_dir, count in zip(model_dirs, counts, strict=True):
        if count != counts[0]:
            raise UsageError(
                f"--runs: {model_dirs[0]} has {counts[0]} classes and {model_dir} {count}: mIoU "
                "over different classes cannot be compared, leave one away"
            )


def find_rankings(model_dirs: Sequence[str]) -> list[str]:
    """The front.json beside runs, where there is one."""
    parents = dict.fromkeys(os.path.dirname(os.path.abspath(path)) for path in model_dirs)
    paths = [os.path.join(parent, RANKING) for parent in parents]
    return [path for path in paths if os.path.exists(path)]


def read_ranking(path: str) -> dict[str, float]:
    """Architecture, as of run_record.describe_architecture -> its mIoU in the super-net.

    Raises:
        RunError: there is no such file, or it is another kind of file.
    """
    try:
        return {
            run_record.describe_architecture(
                Genotype(one["path"], one["cells"], one.get("cell_of_layer"))
            ): float(one["miou"])
            for one in _read_json(path)["samples"]
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        raise RunError(
            f"--ranking: {path} is missing or no front.json of --mode=sample: make it again, or "
            "give another one"
        ) from None


def describe_run(
    model_dir: str, record: run_record.Record, metrics: dict[str, Any], genotype: Genotype
) -> dict[str, Any]:
    """What a run's own files tell of it, as plain data."""
    identity, group = record["identity"], comparison.name_group(genotype)
    rows = history.read(model_dir)
    content = json.loads(genotype.to_json())
    # Of a drawn one, "seed" is that of the draws.
    searched = "search_seed" if "drawn" in genotype.meta else "seed"
    return {
        "model_dir": model_dir,
        "name": os.path.basename(os.path.abspath(model_dir)),
        "group": group,
        "search": genotype.meta.get(searched),
        "seed": identity.get("seed"),
        "miou": metrics["miou"],
        "miou_present": present if _is_share(present := metrics.get("miou_present")) else None,
        "train_seconds": sum_seconds(rows, identity.get("batch_size")),
        "train_steps": identity.get("train_steps", metrics.get("step")),
        **{key: content[key] for key in ("path", "cells", "cell_of_layer")},
        "curve": [[row["step"], row["val_miou"]] for row in rows if _is_share(row.get("val_miou"))],
    }


def sum_seconds(rows: Sequence[history.Row], batch_size: int | None) -> float | None:
    """The time of a training's steps, without validation: of each report, steps by their rate.

    So an interruption costs nothing, and neither does building graphs. Steps whose rate is not
    known, as a process ended after them, have the mean of the others. None: no rate is known.
    """
    known, seconds, before = 0, 0.0, 0
    for row in rows:
        if row.get("images_per_s") and batch_size:
            known += row["step"] - before
            seconds += (row["step"] - before) * batch_size / row["images_per_s"]
        before = row["step"]
    return seconds * before / known if known else None


def measure_costs(
    genotypes: Sequence[Genotype], records: Sequence[run_record.Record], latency: bool
) -> list[dict[str, Any]]:
    """What each run's network costs for an image of the run; equal networks are measured once."""
    known: dict[str, dict[str, Any]] = {}
    costs = []
    with Progress("compare", len(records), unit="runs") as progress:
        for genotype, record in zip(genotypes, records, strict=True):
            identity, num_classes = record["identity"], len(record["class_names"])
            size = tuple(record.get(run_record.IMAGE_SIZE) or profile.IMAGE_SIZE)
            widths = [identity[name] for name in run_record.NETWORK_SHAPE]
            key = json.dumps([run_record.describe_architecture(genotype), widths, size])
            if key not in known:
                network = make_network(genotype, identity, num_classes)
                _, known[key] = profile.measure(network, num_classes, size, latency=latency)
            own = known[key]
            costs.append(
                {name: own[name] for name in ("params_millions", "multi_adds_billions")}
                | {"latency_ms": own["latency"]["median_ms"] if latency else None}
            )
            progress.advance(1)
    return costs


def find_differences(
    model_dirs: Sequence[str],
    records: Sequence[run_record.Record],
    metrics: Sequence[dict[str, Any]],
) -> list[str]:
    """Where runs differ beside architecture and seed: how they were trained, how evaluated."""
    defaults = json.loads(
        json.dumps(list_defaults(NetworkOptions, TrainSchedule, PixelWeights, Batches))
    )
    trained = [defaults | record["identity"] for record in records]
    lines = []
    for what, names, runs in (
        ("trained with --", sorted({*itertools.chain(*trained)} - {"genotype", "seed"}), trained),
        ("evaluated with ", EVALUATED, metrics),
    ):
        for name in names:
            values = [json.dumps(run.get(name)) for run in runs]
            first = next((i for i, value in enumerate(values) if value != values[0]), None)
            if first is not None:
                one, other = (shorten(values[i], 60) for i in (0, first))
                lines.append(
                    f"not equals: {what}{name}, {one} in {model_dirs[0]}, {other} in "
                    f"{model_dirs[first]}"
                )
    return lines


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value <= 1


def _read_json(path: str) -> Any:
    """The content of a JSON file; None if it cannot be read."""
    try:
        return json.loads(read_small(path))
    except (OSError, ValueError, RecursionError):
        return None

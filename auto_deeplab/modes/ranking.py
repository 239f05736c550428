"""Architectures ranked in a search's super-net, for --mode=sample: what each is worth there."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from auto_deeplab.budget.front import find_front
from auto_deeplab.modes.data import Batches, Compilation, Data, Devices, PathLike, check_positive
from auto_deeplab.modes.model_dir import add_loss_scale, identify_data, restore
from auto_deeplab.modes.search import SearchSchedule, SearchSpace, make_supernet
from auto_deeplab.modes.train import NetworkOptions
from auto_deeplab.report import figures
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import make_network
from auto_deeplab.search.ranking import Candidate, SinglePaths
from auto_deeplab.space import sampling, search_space
from auto_deeplab.space.encoding import encode
from auto_deeplab.space.genotype import Genotype
from official import checkpoints, input_pipeline, model_cost, optimizers, schedules
from official.errors import RunError, UsageError
from official.evaluation import make_split_evaluator
from official.files import own_directory, read_small, write_atomically
from official.progress import Progress, say
from official.records import Description
from official.training_loop import run

FRONT = "front.json"
Code = tuple[np.ndarray, np.ndarray]
RANKED = "ranked.json"
"""What is ranked so far, to go on from."""

SUPERNET = "supernet"
"""The folder of the super-net whose weights were trained for single architectures."""

SAVE_EVERY = 100
"""So many of those steps apart are its reports and checkpoints."""


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How architectures are tried in a super-net.

    Attributes:
        data: of the search; the mIoU is on its eval_split.
        batch_norm_batches: on so many batches of the search's training split, as the search makes
            them, each architecture's BN statistics are estimated.
        steps: before, so many steps train the super-net's weights for one architecture each, drawn
            uniformly; 0: they stay those of the mixture.
        max_eval_images: so many images, spread evenly over the split; None: all.
        devices: where it runs.
    """

    data: Data
    batch_norm_batches: int = 8
    steps: int = 0
    max_eval_images: int | None = None
    devices: Devices = Devices()


def encode_all(model_dir: str, genotypes: Mapping[str, Genotype]) -> dict[str, Code]:
    """Each architecture as alpha and beta of the super-net in model_dir.

    Raises:
        UsageError: the super-net does not hold one of them.
    """
    space = _read(SearchSpace, run_record.read(model_dir, "search")["identity"])
    codes = {}
    for name, genotype in genotypes.items():
        try:
            codes[name] = _encode(genotype, space)
        except ValueError as error:
            raise UsageError(f"{name} is not in the super-net of {model_dir}: {error}") from None
    return codes


def rank(
    output_dir: PathLike,
    model_dir: str,
    checkpoint: str,
    genotypes: Mapping[str, Genotype],
    codes: Mapping[str, Code],
    rows: Sequence[Mapping[str, Any]],
    ranking: Ranking,
) -> list[dict[str, Any]]:
    """Writes front.json, front.png and front/000/genotype.json, 001, ..., the best of them first.

    It goes on where a process before it ended.

    Args:
        output_dir: holds the architectures, each in a folder of its name.
        model_dir: of the search.
        checkpoint: of it; see checkpoints.restore_newest.
        genotypes: the architectures, by name.
        codes: of them, as `encode_all` gives them.
        rows: what samples.json lists of each, in the same order.
        ranking: how each is tried.

    Returns:
        the rows, the best first, with "cells", "miou", "cost" and its "unit", "on_front", and
        "genotype", the file's name within output_dir.

    Raises:
        UsageError: the data is not the search's.
        RunError: the checkpoint or the data is damaged, or output_dir holds another ranking.
    """
    check_positive(ranking, "batch_norm_batches", "max_eval_images")
    identity = run_record.read(model_dir, "search")["identity"]
    space = _read(SearchSpace, identity)
    strategy = ranking.devices.start("search", identity["seed"])
    description = ranking.data.read()
    if identify_data(description) != identity["data_dir"]:
        raise UsageError(
            f"--data_dir={description.data_dir} is not the data of the search in "
            f"--model_dir={model_dir}: give that"
        )
    with strategy.scope():
        supernet = make_supernet(space, description, Compilation(), "cell")
        alpha, beta = next(iter(codes.values()))
        candidate = Candidate(supernet, alpha.shape, beta.shape, strategy)
    _, step = checkpoints.restore_newest(checkpoint, {"weights": supernet.variables})
    evaluate = make_split_evaluator(
        candidate.logits,
        description,
        ranking.data.eval_split,
        strategy=strategy,
        max_images=ranking.max_eval_images,
    )
    how = {
        "super_net": os.path.abspath(model_dir),
        "step": step,
        "split": ranking.data.eval_split,
        "max_eval_images": ranking.max_eval_images,
        "batch_norm_batches": ranking.batch_norm_batches,
        "ranking_steps": ranking.steps,
    }
    batches = _read(Batches, identity)
    path = Path(output_dir, RANKED)
    ranked = _read_ranked(path, how)
    if ranking.steps:
        _write_ranked(path, how, ranked)
        _train_single_paths(candidate, Path(output_dir, SUPERNET), description, identity, ranking)
    say(f"{len(codes)} architectures are ranked in the super-net of {model_dir} at step {step}")
    with Progress("rank", len(codes), start=len(ranked), unit="architectures") as progress:
        for name, code in codes.items():
            if name in ranked:
                continue
            stream = input_pipeline.distribute_batches(
                *(strategy, description, batches.train_split),
                seed=identity["seed"],
                **batches.options(),
            )
            candidate.become(*code, islice(stream, ranking.batch_norm_batches))
            with progress.pause():
                ranked[name] = evaluate()[0]["miou"]
            _write_ranked(path, how, ranked)
            progress.advance(1, lambda name=name: f"{name}: mIoU {ranked[name]:.3f}")  # type: ignore[misc]

    size = description.most_frequent_size()
    result: list[dict[str, Any]] = []
    for row in rows:
        name, genotype = row["name"], genotypes[row["name"]]
        cells = {"cells": genotype.cells, "cell_of_layer": genotype.cell_of_layer}
        worth = {"miou": ranked[name], "genotype": f"{name}/{run_record.GENOTYPE}"}
        cost = {} if "cost" in row else _count(genotype, size, description.num_classes)
        result.append({**row, **cells, **worth, **cost})
    on_front = find_front([(row["miou"], row["cost"]) for row in result])
    for row, is_on in zip(result, on_front, strict=True):
        row["on_front"] = is_on
    result.sort(key=lambda row: -row["miou"])
    front = {**how, "samples": result}
    write_atomically(Path(output_dir, FRONT), json.dumps(front, indent=1) + "\n")
    figures.draw_front(result, Path(output_dir, "front.png"))
    best = [row for row in result if row["on_front"]]
    for number, row in enumerate(best):
        copy = Path(output_dir, "front", f"{number:03d}", run_record.GENOTYPE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        genotypes[row["name"]].save(copy)
    say(f"{len(best)} of {len(result)} are on the front: {output_dir}/{FRONT}, front.png")
    return result


def _train_single_paths(
    candidate: Candidate,
    directory: Path,
    description: Description,
    identity: Mapping[str, Any],
    ranking: Ranking,
) -> None:
    """Trains the super-net's weights for architectures drawn uniformly, one for each step.

    The rates fall as the search's did. It goes on where a process before it ended.
    """
    space, schedule = _read(SearchSpace, identity), _read(SearchSchedule, identity)
    batches = _read(Batches, identity)
    strategy, supernet = candidate.strategy, candidate.supernet
    rate = schedules.cosine(schedule.learning_rate, schedule.min_learning_rate, ranking.steps)
    with strategy.scope():
        optimizer = optimizers.sgd(
            rate, l2=schedule.weight_decay, gradient_clip_norm=schedule.gradient_clip_norm
        )
        training = SinglePaths(
            candidate,
            optimizer=add_loss_scale(optimizer, ranking.devices.precision),
            ignore_label=description.ignore_label,
            class_weights=identity.get("class_weights"),
        )

    def draw_all(start_step: int) -> Iterator[tuple[np.ndarray, np.ndarray, Any]]:
        uniform, beta = sampling.make_uniform(space.num_layers, space.num_blocks, space.operations)
        count = search_space.num_alphas(space.alpha_sharing, space.num_layers)
        alpha = uniform if count == 1 else np.stack([uniform] * count)
        stream = input_pipeline.distribute_batches(
            *(strategy, description, batches.train_split),
            start_step=start_step,
            seed=identity["seed"],
            **batches.options(),
        )
        for step, batch in enumerate(stream, start_step):
            genotype = sampling.draw(
                *(alpha, beta, space.operations, space.num_blocks),
                np.random.default_rng((identity["seed"], step)),
                alpha_sharing=space.alpha_sharing,
            )
            yield *_encode(genotype, space), batch

    examples = description.split(batches.train_split).num_examples
    with own_directory(str(directory), "--output_dir"):
        groups = {"weights": (supernet.variables, optimizer)}
        start = restore(str(directory), None, strategy, groups, {}, keep=2)
        run(
            "single paths",
            training.steps,
            draw_all(start.step),
            lambda done: {"learning_rate": float(rate(done - 1))},
            model_dir=str(directory),
            start_step=start.step,
            total_steps=ranking.steps,
            epoch_steps=input_pipeline.steps_per_epoch(examples, batches.batch_size),
            batch_size=batches.batch_size,
            store=start.store,
            save_every=SAVE_EVERY,
            report_every=SAVE_EVERY,
        )


def _encode(genotype: Genotype, space: SearchSpace) -> Code:
    return encode(
        *(genotype, space.operations, space.num_layers, space.num_blocks),
        alpha_sharing=space.alpha_sharing,
    )


def _write_ranked(path: Path, how: Mapping[str, Any], ranked: Mapping[str, float]) -> None:
    write_atomically(path, json.dumps({**how, "miou": ranked}, indent=1) + "\n")


def _read(kind: type[Any], identity: Mapping[str, Any]) -> Any:
    """A dataclass from the values that a run's identity has of its fields."""
    names = [field.name for field in dataclasses.fields(kind)]
    return kind(**{name: identity[name] for name in names if name in identity})


def _read_ranked(path: Path, how: Mapping[str, Any]) -> dict[str, float]:
    """The mIoU of each architecture that is ranked already.

    Raises:
        RunError: it was ranked otherwise, or the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(read_small(path))
        ranked = dict(content.pop("miou"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{path} is damaged: remove it to rank anew") from None
    for name, value in how.items():
        # Earlier versions trained no single paths, and did not say so.
        if content.get(name, 0) != value:
            raise RunError(
                f"{path} was ranked with {name} {content.get(name)}, not {value}: choose another "
                "--output_dir, or remove the file to rank anew"
            )
    return ranked


def _count(genotype: Genotype, size: tuple[int, int], num_classes: int) -> dict[str, Any]:
    """The multiply-adds of the network that training makes by default, where no table tells."""
    network = make_network(genotype, vars(NetworkOptions()), num_classes)
    costs = model_cost.summarize(model_cost.count(network, size), size)
    return {"cost": costs["multi_adds_billions"], "unit": "billions of multiply-adds"}

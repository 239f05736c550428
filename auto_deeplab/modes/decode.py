"""--mode=decode: genotype.json and the figures again, from any checkpoint of a search."""

import os
from collections.abc import Mapping
from typing import Any

from auto_deeplab.modes.data import PathLike
from auto_deeplab.modes.model_dir import write_page
from auto_deeplab.report import figures
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import locate_checkpoint
from auto_deeplab.search import bilevel
from auto_deeplab.search.architecture import Architecture
from auto_deeplab.space import decoding
from auto_deeplab.space.genotype import Genotype
from official import checkpoints, history
from official.progress import say


def decode(model_dir: PathLike, *, checkpoint: PathLike | None = None) -> Genotype:
    """Decodes alpha and beta (paper, Sec. 4.3) and writes what they stand for into model_dir.

    Args:
        model_dir: of a search.
        checkpoint: a path up to the step, a directory of checkpoints, or "best"; None: the newest.

    Raises:
        UsageError: model_dir holds no search.
        RunError: it has no checkpoint, or that is damaged.
    """
    model_dir = os.fspath(model_dir)
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    record = run_record.read(model_dir, "search")
    architecture = make_architecture(record["identity"])
    _, step = checkpoints.restore_newest(
        locate_checkpoint(model_dir, checkpoint), {"architecture": architecture.variables}
    )
    seed = record["identity"]["seed"]
    return write_architecture(model_dir, architecture, step, record["dataset"], seed)


def make_architecture(identity: Mapping[str, Any]) -> Architecture:
    """alpha and beta of a search, from what makes it what it is (run.json's identity)."""
    return Architecture(
        num_layers=identity["num_layers"],
        num_blocks=identity["num_blocks"],
        operations=tuple(identity["operations"]),
        seed=identity["seed"],
        alpha_sharing=identity.get("alpha_sharing", "global"),
        partial_channels=identity.get("partial_channels", 1),
    )


def write_architecture(
    model_dir: str, architecture: Architecture, step: int, dataset: str, seed: int
) -> Genotype:
    """Writes genotype.json and the figures of what alpha and beta stand for; returns the first.

    Args:
        model_dir: exists.
        architecture: of the search.
        step: how many steps were made.
        dataset, seed: of the search.
    """
    meta = {"dataset": dataset, "seed": seed, "step": step}
    genotype, beta = bilevel.decode(architecture, meta)
    genotype.save(os.path.join(model_dir, run_record.GENOTYPE))
    figures.draw_network(genotype, run_record.make_figure_path(model_dir, "network"), beta=beta)
    figures.draw_cell(genotype, run_record.make_figure_path(model_dir, "cell"))
    figures.draw_alpha(genotype, run_record.make_figure_path(model_dir, "alpha"))
    rows = history.read(model_dir)
    if rows:
        uniform = decoding.uniform_entropies(
            len(architecture.operations), genotype.num_layers, genotype.num_blocks
        )
        figures.draw_history(rows, run_record.make_figure_path(model_dir, "history"), uniform)
    write_page(model_dir)
    say(genotype.describe())
    say(f"decoded at step {step}: {model_dir}/{run_record.GENOTYPE}, pictures in figures/")
    return genotype

"""--mode=sample: architectures at random, of the whole space or by a search, or its best ones."""

import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from auto_deeplab.budget import cost_table as cost_tables
from auto_deeplab.budget import expected_cost
from auto_deeplab.budget.cost_table import CostTable
from auto_deeplab.modes.data import PathLike
from auto_deeplab.modes.decode import make_architecture
from auto_deeplab.modes.model_dir import load_genotype
from auto_deeplab.modes.ranking import Ranking, encode_all, rank
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import locate_checkpoint
from auto_deeplab.space import decoding, sampling, search_space
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype
from official import checkpoints
from official.errors import RunError, UsageError
from official.files import write_atomically, write_directory_atomically
from official.progress import say

LIST = "samples.json"
"""What was drawn, in a file beside the architectures."""

TRIES = 1000
"""So many architectures are drawn for each that is wanted, before too few fit."""

MOST_PROBABLE = 5000
"""So many of a search's best are looked at, before too few fit."""


@dataclass(frozen=True)
class Space:
    """What is drawn from: architectures of some operations, L layers and cells of B blocks."""

    operations: tuple[str, ...] = search_space.OPERATIONS
    num_layers: int = 12
    num_blocks: int = 5


def sample(
    output_dir: PathLike,
    *,
    num_samples: int = 10,
    seed: int = 0,
    space: Space | None = None,
    model_dir: PathLike | None = None,
    checkpoint: PathLike | None = None,
    sample_best: bool = False,
    candidates: Sequence[str] = (),
    cost_table: PathLike | None = None,
    cost_budget: float | None = None,
    ranking: Ranking | None = None,
) -> list[dict[str, Any]]:
    """Writes output_dir/000/genotype.json, 001, ... and samples.json, which lists them.

    No architecture is drawn twice. With `ranking`, front.json, which tells what each is worth in
    the super-net and which are on the front of (mIoU, cost), and front.png are written too.

    Args:
        output_dir: is made, all of it or nothing; or, to go on with a ranking, holds the same
            architectures.
        num_samples: how many are drawn; 0 if there are candidates.
        seed: of the draws.
        space: what is drawn from, all architectures alike; None: the paper's. Not with model_dir.
        model_dir: of a search, by whose alpha and beta is drawn.
        checkpoint: of the search: a path up to the step, a directory of checkpoints, or "best";
            None: the newest.
        sample_best: the search's most probable architectures, the first of them what it decodes.
        candidates: genotype files, patterns of such, and presets, which come before what is drawn.
        cost_table: tells what an architecture costs.
        cost_budget: what costs more is not drawn, in the table's unit.
        ranking: with model_dir: how each is tried in the search's super-net.

    Returns:
        what samples.json lists; with ranking, what front.json lists, the best first.

    Raises:
        UsageError: flags that do not go together, or a table that does not fit.
        RunError: there are not so many architectures, or not so many within the budget.
    """
    if sample_best and not model_dir:
        raise UsageError("--sample_best takes the best of a search: give its --model_dir too")
    if ranking and not model_dir:
        raise UsageError("--data_dir ranks in the super-net of a search: give its --model_dir too")
    if not num_samples and not candidates:
        raise UsageError("--num_samples=0 leaves nothing: give --candidates, or a larger number")
    if cost_budget is not None and not cost_table:
        raise UsageError("--cost_table is needed by --cost_budget")
    if model_dir and space:
        raise UsageError(
            "--operations, --num_layers and --num_blocks are those of the search in --model_dir: "
            "leave them away"
        )
    given = load_candidates(candidates)
    origin: dict[str, Any] = {"drawn": "uniformly", "seed": seed}
    sharing, where = "global", ""
    if model_dir:
        model_dir = os.fspath(model_dir)
        record = run_record.read(model_dir, "search")
        architecture = make_architecture(record["identity"])
        where = locate_checkpoint(model_dir, os.fspath(checkpoint) if checkpoint else None)
        _, step = checkpoints.restore_newest(where, {"architecture": architecture.variables})
        alpha, beta = (part.numpy() for part in architecture(None))
        edge_weights = architecture.edge_weights()
        if edge_weights is not None:
            alpha = decoding.weigh(alpha, edge_weights.numpy())
        space = Space(architecture.operations, architecture.num_layers, architecture.num_blocks)
        sharing = architecture.alpha_sharing
        origin = {"dataset": record["dataset"], "search_seed": record["identity"]["seed"]}
        origin |= {"step": step, "drawn": "by its probability", "seed": seed}
        if sample_best:
            del origin["seed"]
            origin["drawn"] = "as one of the most probable"
    else:
        space = space or Space()
        try:
            alpha, beta = sampling.make_uniform(
                space.num_layers, space.num_blocks, space.operations
            )
        except ValueError as error:
            raise UsageError(f"--operations: {error}") from None
    table = _load_table(cost_table, space) if cost_table else None

    of = (alpha, beta, space.operations, space.num_blocks)
    if sample_best:
        best = partial(sampling.find_best, *of, alpha_sharing=sharing)
        draws = _iterate_best(best, num_samples)
    else:
        rng = np.random.default_rng(seed)
        draws = (sampling.draw(*of, rng, alpha_sharing=sharing) for _ in range(TRIES * num_samples))
    rows = [
        {"name": name, "path": list(genotype.path)} | _tell_cost(table, genotype)
        for name, genotype in given.items()
    ]
    files = dict(given)
    for genotype, _ in islice(_choose(draws, table, cost_budget), num_samples):
        number = len(files) - len(given)
        name = f"{number:03d}"
        meta = {**origin, "number": number}
        files[name] = Genotype(genotype.path, genotype.cells, genotype.cell_of_layer, meta)
        rows.append({"name": name, "path": list(genotype.path)} | _tell_cost(table, genotype))
    if len(files) - len(given) < num_samples:
        within = f" within --cost_budget={cost_budget:g}" if cost_budget is not None else ""
        raise RunError(
            f"only {len(files) - len(given)} different architectures{within} were found: give a "
            f"smaller --num_samples{' or a larger budget' if within else ''}"
        )
    codes = encode_all(os.fspath(model_dir), files) if ranking and model_dir else {}
    listed = json.dumps({**origin, "samples": rows}, indent=1) + "\n"
    if not (ranking and _is_there(output_dir, listed)):
        with write_directory_atomically(output_dir, "--output_dir") as directory:
            for name, genotype in files.items():
                genotype.save(directory / name / run_record.GENOTYPE)
            write_atomically(directory / LIST, listed)
    drawn = f", {num_samples} drawn {origin['drawn']}" if num_samples else ""
    say(f"{len(files)} architectures{drawn}: {output_dir}/*/{run_record.GENOTYPE}")
    if ranking:
        return rank(output_dir, os.fspath(model_dir or ""), where, files, codes, rows, ranking)
    return rows


def load_candidates(names: Sequence[str]) -> dict[str, Genotype]:
    """Architectures by name: a preset's, or the folder's that the file lies in.

    Args:
        names: presets, files, and patterns of files.

    Raises:
        UsageError: there is no such file, or two have one name.
    """
    found: dict[str, Genotype] = {}
    for name in names:
        paths = [name] if name in genotypes.PRESET_PATHS else sorted(glob.glob(name)) or [name]
        for path in paths:
            genotype = load_genotype(path)
            is_file = path not in genotypes.PRESET_PATHS
            title = os.path.basename(os.path.dirname(os.path.abspath(path))) if is_file else path
            if is_file and title.isdecimal():  # such as a sample's, whose folder says where from
                title = f"{Path(path).absolute().parent.parent.name}_{title}"
            if title in found:
                raise UsageError(f"--candidates: two are called {title}: leave one of them away")
            found[title] = genotype
    return found


def _is_there(output_dir: PathLike, listed: str) -> bool:
    """Whether these very architectures were written before, and a ranking of them may go on."""
    path = Path(output_dir, LIST)
    return path.is_file() and path.read_text() == listed


def _tell_cost(table: CostTable | None, genotype: Genotype) -> dict[str, Any]:
    if not table:
        return {}
    cost = expected_cost.cost_of(table, genotype)
    return {"cost": cost, "unit": cost_tables.UNITS[table.metric]}


def _iterate_best(find: Callable[[int], list[Genotype]], count: int) -> Iterator[Genotype]:
    """The best, the second best, ...: found `count` at first, and more when they are asked for."""
    done = 0
    while True:
        found = find(count)
        yield from found[done:]
        if len(found) < count or count >= MOST_PROBABLE:
            return
        done, count = count, min(4 * count, MOST_PROBABLE)


def _choose(
    candidates: Iterator[Genotype], table: CostTable | None, budget: float | None
) -> Iterator[tuple[Genotype, float]]:
    """Those that are new and cost no more than the budget, with their costs."""
    seen = set()
    for genotype in candidates:
        key = genotype.path, genotype.cells, genotype.cell_of_layer
        cost = expected_cost.cost_of(table, genotype) if table else 0.0
        if key not in seen and (budget is None or cost <= budget):
            yield genotype, cost
        seen.add(key)


def _load_table(path: PathLike, space: Space) -> CostTable:
    try:
        table = cost_tables.load(path)
    except ValueError as error:
        raise UsageError(f"--cost_table: {error}") from None
    try:
        expected_cost.check(table, space.operations, space.num_blocks)
    except ValueError as error:
        raise UsageError(f"--cost_table={os.fspath(path)}: {error}") from None
    return table

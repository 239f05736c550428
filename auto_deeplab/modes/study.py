"""--mode=study: several searches and random architectures, all trained and evaluated alike.

Every part is a command that a user could type, in a directory of its own. Here they run one after
another; --print_commands gives them to whatever runs commands on many machines.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from auto_deeplab.modes.data import PathLike
from auto_deeplab.modes.flag_definitions import CONFIGS
from auto_deeplab.runs.run_record import GENOTYPE
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space import search_space
from auto_deeplab.space.encoding import encode
from official import flagfiles, interrupts
from official.errors import RunError, UsageError
from official.files import own_directory, read_small, write_atomically
from official.progress import say

FINISHED = "finished.json"
"""The parts that are done, with their arguments, so that they are not run again."""

FRONT_SAMPLES = 4
"""So many architectures are ranked for each that is wanted of the front."""


@dataclass(frozen=True)
class Part:
    """One command of a study.

    Attributes:
        name: what the study calls it.
        arguments: of train.py.
        needs: the names of the parts that must be done before.
        genotype: the file without which there is nothing to do, as the front may be short; or None.
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    genotype: str | None = None


@dataclass(frozen=True)
class Plan:
    """What a study is made of.

    Attributes:
        data_dir: of all searches and trainings.
        search_flagfile, train_flagfile: the flags of each of them.
        num_searches: with the seeds 0, 1, ...
        num_random: architectures drawn uniformly from the searches' space.
        presets: architectures that are trained beside.
        front: so many of the Pareto front of the first search are trained too.
        ranking_steps: of --mode=sample, wherever it ranks.
    """

    data_dir: str
    search_flagfile: str
    train_flagfile: str
    num_searches: int = 3
    num_random: int = 3
    presets: Sequence[str] = ()
    front: int = 0
    ranking_steps: int = 0


def study(
    model_dir: PathLike, plan: Plan, *, print_commands: bool = False, command: Sequence[str] = ()
) -> None:
    """Runs what is not finished of a study, and compares its networks.

    Args:
        model_dir: of the study; each part has a directory in it.
        plan: the study.
        print_commands: print the parts instead: stage, name, what it needs, command, divided by
            tabs. What is of one stage can run at the same time.
        command: what runs train.py; None: this Python, this file.

    Raises:
        UsageError: a preset or a flagfile is none.
        RunError: a part has failed, or another process runs this study.
    """
    model_dir = os.fspath(model_dir)
    parts = make_parts(model_dir, plan)
    own = Path(__file__).resolve().parent.parent / "train.py"
    command = command or (sys.executable, str(own))
    if print_commands:
        stages: dict[str, int] = {}
        for part in parts:
            stages[part.name] = 1 + max((stages[name] for name in part.needs), default=-1)
            words = shlex.join((*command, *part.arguments))
            print(stages[part.name], part.name, ",".join(part.needs) or "-", words, sep="\t")
        return
    with own_directory(model_dir, "--model_dir"):
        finished = _read_finished(model_dir)
        for number, part in enumerate(parts, 1):
            where = f"study: part {number} of {len(parts)}, {part.name}"
            # What is compared are all trainings that are there, which other plans may have made.
            is_last = part.name == "compare"
            if not is_last and finished.get(part.name) == list(part.arguments):
                say(f"{where}: finished before")
                continue
            if part.genotype and not os.path.exists(part.genotype):
                say(f"{where}: left out, as the front has no architecture {part.genotype}")
                continue
            say(f"{where}: {shlex.join((*command, *part.arguments))}")
            _run(part, command)
            finished[part.name] = list(part.arguments)
            content = json.dumps(finished, indent=1) + "\n"
            write_atomically(os.path.join(model_dir, FINISHED), content)


def make_parts(model_dir: str, plan: Plan) -> list[Part]:
    """The commands of a study, each after those that it needs.

    Raises:
        UsageError: see `study`.
    """
    if not plan.num_searches and not (plan.num_random or plan.presets):
        raise UsageError("--num_searches=0 and --num_random=0 leave nothing to study")
    if plan.front and not plan.num_searches:
        raise UsageError(f"--front={plan.front} is of a search: give --num_searches=1 or more")
    for name in plan.presets:
        if name not in genotypes.PRESET_PATHS:
            known = ", ".join(genotypes.PRESET_PATHS)
            raise UsageError(f"--presets: {name} is no preset: they are {known}")
    operations, num_layers, num_blocks = read_space(plan.search_flagfile)
    read_space(plan.train_flagfile)  # whether it is there
    data = f"--data_dir={plan.data_dir}"

    def at(*names: str) -> str:
        return os.path.join(model_dir, *names)

    searches = [f"search_{number}" for number in range(plan.num_searches)]
    parts = [
        Part(
            name,
            (
                *("--mode=search", f"--flagfile={plan.search_flagfile}", data),
                *(f"--model_dir={at(name)}", f"--seed={seed}"),
            ),
        )
        for seed, name in enumerate(searches)
    ]
    trained = [(f"found_{seed}", at(name, GENOTYPE), name) for seed, name in enumerate(searches)]
    if plan.num_random:
        space = (
            f"--operations={','.join(operations)}",
            *(f"--num_layers={num_layers}", f"--num_blocks={num_blocks}"),
        )
        sampled = f"--num_samples={plan.num_random}"
        arguments = ("--mode=sample", f"--output_dir={at('random')}", sampled, *space)
        parts.append(Part("random", arguments))
        trained += [
            (f"random_{number}", at("random", f"{number:03d}", GENOTYPE), "random")
            for number in range(plan.num_random)
        ]
    trained += [(name, name, "") for name in plan.presets]
    if searches:
        candidates = [genotype for _, genotype, needed in trained if needed]
        candidates += [
            name
            for name in plan.presets
            if _is_in(genotypes.load(name), operations, num_layers, num_blocks)
        ]
        of_first: tuple[str, ...] = ("--mode=sample", f"--model_dir={at(searches[0])}", data)
        if plan.ranking_steps:
            of_first += (f"--ranking_steps={plan.ranking_steps}",)
        needed = tuple(dict.fromkeys(part.name for part in parts))
        ranked = (
            *(f"--output_dir={at('ranking')}", "--num_samples=0"),
            f"--candidates={','.join(candidates)}",
        )
        parts.append(Part("ranking", (*of_first, *ranked), needed))
        if plan.front:
            count = f"--num_samples={FRONT_SAMPLES * plan.front}"
            family = (*of_first, f"--output_dir={at('family')}", count)
            parts.append(Part("family", family, (searches[0],)))
            trained += [
                (f"front_{number}", at("family", "front", f"{number:03d}", GENOTYPE), "family")
                for number in range(plan.front)
            ]
    for name, genotype, needs in trained:
        run = f"train_{name}"
        own = f"--model_dir={at(run)}"
        flags = ("--mode=train", f"--flagfile={plan.train_flagfile}", data, own)
        may_lack = genotype if needs == "family" else None
        needed = (needs,) if needs else ()
        parts.append(Part(run, (*flags, f"--genotype={genotype}"), needed, may_lack))
        evaluation = ("--mode=eval", data, own)
        parts.append(Part(f"eval_{name}", evaluation, (run,), may_lack))
    before = tuple(part.name for part in parts if part.name.startswith(("eval_", "ranking")))
    compared = (f"--runs={at('train_*')}", f"--output={at('comparison.json')}")
    if len(trained) > 1:
        parts.append(Part("compare", ("--mode=compare", *compared), before))
    return parts


def read_space(flagfile: str) -> tuple[tuple[str, ...], int, int]:
    """Operations, L and B of the searches that a flagfile describes.

    Raises:
        UsageError: there is no such file.
    """
    values = {"operations": "", "num_layers": "12", "num_blocks": "5"}
    for argument, _ in flagfiles.locate([f"--flagfile={flagfile}"], also=CONFIGS):
        name, _, value = argument.lstrip("-").partition("=")
        if name in values:
            values[name] = value
    operations = tuple(filter(None, values["operations"].split(",")))
    try:
        numbers = int(values["num_layers"]), int(values["num_blocks"])
        known = search_space.validate_operations(operations or search_space.OPERATIONS)
    except ValueError as error:
        raise UsageError(f"{flagfile}: {error}") from None
    return known, *numbers


def _is_in(
    genotype: genotypes.Genotype, operations: Sequence[str], num_layers: int, num_blocks: int
) -> bool:
    try:
        encode(genotype, operations, num_layers, num_blocks)
    except ValueError:
        return False
    return True


def _read_finished(model_dir: str) -> dict[str, list[str]]:
    path = Path(model_dir, FINISHED)
    try:
        content = json.loads(read_small(path)) if path.exists() else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: remove it; what is finished is then found to be so")
    return content


def _run(part: Part, command: Sequence[str]) -> None:
    """Runs a part to its end; a signal is passed on to it, which saves and ends.

    Raises:
        RunError: it has failed.
        SystemExit: a signal came.
    """
    with interrupts.Interrupts() as signals:
        # In a session of its own: a terminal's Ctrl-C comes to it once, from here.
        process = subprocess.Popen([*command, *part.arguments], start_new_session=True)
        while (code := process.poll()) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
            if signals.received is not None:
                process.send_signal(signals.received)
                process.wait()
                raise SystemExit(128 + signals.received)
    if code:
        raise RunError(
            f"--mode=study: {part.name} has failed, for the reason above; the same command goes on "
            "from here"
        )

"""What the flags of train.py are to its modes: which a mode takes, and what --help says of them."""

import os
import shlex
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from auto_deeplab.modes import flag_definitions
from auto_deeplab.modes.flag_definitions import CONFIGS, DEFAULTS, MODES, NEEDED, USED
from auto_deeplab.runs.run_record import FLAGS_FILE, GENOTYPE, OtherRunError
from auto_deeplab.space.genotype import PRESET_PATHS
from official import command_help
from official.command_line import TRACEBACK
from official.errors import UsageError
from official.flagfiles import Located

COMMAND = "python auto_deeplab/train.py"

ONLY_FOR_COST_TABLE = (
    *("cost_metric", "operations", "num_layers", "num_blocks"),
    *("precision", "distribution_strategy", "deterministic"),
)
"""Flags that profile takes with --cost_table alone."""

PATHS = ("data_dir", "model_dir", "genotype", "init_checkpoint", "cost_table")
"""Flags whose values are paths that flags.cfg has from the root on, to be read from anywhere."""

FOR_LATENCY = ("precision", "distribution_strategy", "deterministic")
"""Those of them that it takes with --latency too."""

Kind = TypeVar("Kind")

GROUPS = (("search", "train"), *((mode,) for mode in MODES), ("eval", "predict"))
"""Modes whose flags --help shows together; what other modes share comes first."""


def check(arguments: Sequence[Located], values: flags.FlagValues) -> None:
    """Checks that the mode uses all flags that are given, and has all that it needs.

    Args:
        arguments: the command line, as of flagfiles.locate.
        values: the flags, parsed from it; --mode is given.

    Raises:
        UsageError: a flag is not the mode's, a flagfile is another mode's, or a flag is missing.
    """
    mode = values.mode
    check_given(arguments, values)
    for name in NEEDED[mode]:
        if values[name].value is None:
            raise UsageError(f"--{name} is needed by --mode={mode}")
    if mode == "profile":
        _check_profile(values)


def check_given(arguments: Sequence[Located], values: flags.FlagValues) -> None:
    """Checks that the mode uses all flags that are given; arguments and errors as of `check`.

    The flags.cfg that a run writes resumes that run and is for no other mode. Earlier versions
    wrote the flags of all modes into it: such a flag may stand there with its default.
    """
    mode = values.mode
    given = list(_iterate_given(arguments, values))
    said = [(value, file) for name, value, file in given if name == "mode"]
    for of_file, file in said:
        for other, _ in said:
            if file and of_file != other:
                raise UsageError(
                    f"--mode={other}, but {file} is of --mode={of_file}: leave it away and give "
                    f"the flags of --mode={other} ({COMMAND} --mode={other} --help)"
                )
    for name, _, file in given:
        if mode in USED.get(name, (mode,)):
            continue
        if file and file.name == FLAGS_FILE and values[name].value == values[name].default:
            continue
        raise UsageError(
            f"--{name}{f' in {file}' if file else ''} is not used by --mode={mode}, only by "
            f"{_join(USED[name])}: leave it away"
        )
    if mode in ("train", "profile") and len(values.stem_filters or range(3)) != 3:
        numbers = ",".join(map(str, values.stem_filters))
        raise UsageError(f"--stem_filters={numbers}: --mode={mode} takes three numbers")


def _check_profile(values: flags.FlagValues) -> None:
    """Raises UsageError if flags for one network and for all networks meet."""
    if values.cost_table is None:
        for name in ONLY_FOR_COST_TABLE:
            if values[name].present and not (values.latency and name in FOR_LATENCY):
                raise UsageError(
                    f"--{name} says how --cost_table is measured, which is not given: give that too"
                )
        return
    for name in ("model_dir", "genotype", "latency"):
        if values[name].value:
            raise UsageError(
                f"--{name}={values[name].value}: --cost_table is for all networks of the search "
                "space, not for one: leave one of the two flags away"
            )


def read(kind: type[Kind], values: flags.FlagValues) -> Kind:
    """A dataclass, each of whose fields has the value of the flag of its name."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: values[name].value for name in names})


def read_given(names: Sequence[str], values: flags.FlagValues) -> dict[str, Any]:
    """The values of those flags that were given."""
    return {name: values[name].value for name in names if values[name].present}


def format_flagfile(mode: str, values: flags.FlagValues) -> str:
    """The content of flags.cfg, a flagfile that resumes a run from anywhere.

    Flags without a value are left out, and --checkpoint, which says where one process started.
    """
    lines = []
    for flag in list_flags(mode, values):
        if flag.name in PATHS and flag.value and flag.value not in PRESET_PATHS:
            lines.append(f"--{flag.name}={os.path.abspath(flag.value)}")
        elif flag.value is not None and flag.name != "checkpoint":
            lines.append(flag.serialize())
    return "\n".join(lines) + "\n"


def explain_other_run(
    error: OtherRunError, values: flags.FlagValues, arguments: Sequence[str]
) -> UsageError:
    """The error as a user of the command needs it.

    A run cannot be made longer: then it says why, and the command of what can be done instead.

    Args:
        error: of a search or a training that found another run in its model_dir.
        values: the flags.
        arguments: the command line, with the command itself first.
    """
    longer = error.flag in ("epochs", "train_steps") and error.value > error.recorded
    if not longer:
        return error
    old = values.model_dir
    replaced = ("--model_dir=", "--init_checkpoint=", "--checkpoint=")
    kept = [argument for argument in arguments[1:] if not argument.startswith(replaced)]
    command = ["python", arguments[0], *kept, f"--model_dir={old.rstrip('/')}_{error.value}"]
    why = (
        f"--{error.flag} is {error.value}, but {error.recorded} in the run that --model_dir={old} "
        "holds, and its schedule was made for those"
    )
    if values.mode == "search":
        return UsageError(
            f"{why}: a longer search begins anew: {shlex.join(command)} (a search takes no weights "
            f"of another; --mode=train can train what this one found, {old}/{GENOTYPE})"
        )
    if values.genotype is None:
        command.append(f"--genotype={os.path.join(old, GENOTYPE)}")
    command.append(f"--init_checkpoint={values.checkpoint or old}")
    return UsageError(f"{why}: to go on from its weights, begin another run: {shlex.join(command)}")


def _iterate_given(
    arguments: Sequence[Located], values: flags.FlagValues
) -> Iterator[tuple[str, str, Path | None]]:
    """Name, value and flagfile of each flag."""
    for number, (argument, file) in enumerate(arguments):
        if argument == "--":
            return
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            if name not in values and name.startswith("no"):
                name = name.removeprefix("no")
            if not equals and number + 1 < len(arguments):
                value = arguments[number + 1][0]
            yield name, value, file


def list_flags(mode: str, values: flags.FlagValues) -> list[flags.Flag]:
    """The flags that a mode uses, in the order of their definition."""
    return [flag for flag in _list_all(values) if mode in USED[flag.name]]


def _list_all(values: flags.FlagValues) -> list[flags.Flag]:
    return list(values.get_key_flags_for_module(flag_definitions))


def explain_flags(values: flags.FlagValues, arguments: Sequence[str]) -> str:
    """What --help answers: the flags of the mode that is given with it, or of all modes."""
    modes = [
        v for name, v, _ in _iterate_given([(a, None) for a in arguments], values) if name == "mode"
    ]
    known = bool(modes) and modes[-1] in MODES
    answer = _explain_mode(modes[-1], values) if known else _explain_all(values)
    return (
        f"{answer}\n"
        "--flagfile=FILE reads flags from a file, one a line; flags after it win. The files in\n"
        f"{CONFIGS[0]} are found by their names alone.\n"
        f"{TRACEBACK}=1 in the environment shows the traceback of an error.\n"
    )


def _explain_mode(mode: str, values: flags.FlagValues) -> str:
    needed = "".join(
        f" --{name}={'FILE' if 'flagfile' in name else 'DIR'}" for name in NEEDED[mode]
    )
    command = f"{COMMAND} --mode={mode}{needed} [--flag=...]"
    lines = textwrap.wrap(command, 92, subsequent_indent="    ", break_on_hyphens=False)
    words = f"--mode={mode} {MODES[mode]}.\n\n    " + " \\\n    ".join(lines)
    groups: dict[str, list[str]] = {"Needed": [], f"Of {mode} alone": [], "Of other modes too": []}
    for flag in list_flags(mode, values):
        if flag.name == "mode":
            continue
        heading = f"Of {mode} alone" if USED[flag.name] == (mode,) else "Of other modes too"
        if flag.name in NEEDED[mode]:
            heading = "Needed"
        decided = DEFAULTS.get(mode, {}).get(flag.name)
        default = None if decided is None else command_help.format_value(decided)
        groups[heading].append(command_help.describe_flag(flag, default))
    return command_help.format_help(words, groups)


def _explain_all(values: flags.FlagValues) -> str:
    words = "Searches, trains and uses networks for semantic segmentation.\n\n"
    words += f"    {COMMAND} --mode=MODE --data_dir=DATA --model_dir=RUN [--flag=...]\n\nModes:\n\n"
    words += "\n".join(f"  {mode:<9}{what}" for mode, what in MODES.items())
    words += "\n\n--mode=MODE --help shows the flags of one mode, with its own defaults."
    several = "Of several modes"
    groups: dict[str, list[str]] = {several: []}
    groups |= {f"Of {_join(modes)}": [] for modes in GROUPS}
    for flag in _list_all(values):
        if flag.name == "mode":
            continue
        modes = USED[flag.name]
        heading = f"Of {_join(modes)}" if modes in GROUPS else several
        used_by = "all modes" if modes == tuple(MODES) else _join(modes)
        default = ", ".join(
            f"{command_help.format_value(decided[flag.name])} ({mode})"
            for mode, decided in DEFAULTS.items()
            if flag.name in decided
        )
        more = f"Used by {used_by}." if heading == several else ""
        groups[heading].append(command_help.describe_flag(flag, default or None, more))
    return command_help.format_help(words, groups)


def _join(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))

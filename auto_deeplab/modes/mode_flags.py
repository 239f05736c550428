"""What the flags of train.py are to its modes: which a mode takes, and what --help says of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from auto_deeplab.modes import flag_definitions
from auto_deeplab.modes.flag_definitions import CONFIGS, DEFAULTS, MODES, NEEDED, USED
from auto_deeplab.runs.run_record import FLAGS_FILE
from official import command_help
from official.errors import TRACEBACK, UsageError
from official.flagfiles import Located

COMMAND = "python auto_deeplab/train.py"

GROUPS = (("search", "train"), *((mode,) for mode in MODES), ("eval", "predict"))
"""Modes whose flags --help shows together; what other modes share comes first."""


def check(arguments: Sequence[Located], values: flags.FlagValues) -> None:
    """Checks that the mode uses all flags that are given.

    The flags.cfg that a run writes resumes that run and is for no other mode. Earlier versions
    wrote the flags of all modes into it: such a flag may stand there with its default.

    Args:
        arguments: the command line, as of flagfiles.located.
        values: the flags, parsed from it; --mode is given.

    Raises:
        UsageError: a flag is not the mode's, or a flagfile is another mode's.
    """
    mode = values.mode
    given = list(_given(arguments, values))
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
            f"{_listed(USED[name])}: leave it away"
        )
    if mode in ("train", "profile") and len(values.stem_filters or range(3)) != 3:
        numbers = ",".join(map(str, values.stem_filters))
        raise UsageError(f"--stem_filters={numbers}: --mode={mode} takes three positive numbers")


def _given(
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


def of_mode(mode: str, values: flags.FlagValues) -> list[flags.Flag]:
    """The flags that a mode uses, in the order of their definition."""
    return [flag for flag in _all(values) if mode in USED[flag.name]]


def _all(values: flags.FlagValues) -> list[flags.Flag]:
    return list(values.get_key_flags_for_module(flag_definitions))


def help_text(values: flags.FlagValues, arguments: Sequence[str]) -> str:
    """What --help answers: the flags of the mode that is given with it, or of all modes."""
    modes = [v for name, v, _ in _given([(a, None) for a in arguments], values) if name == "mode"]
    known = bool(modes) and modes[-1] in MODES
    answer = _help_of_mode(modes[-1], values) if known else _help_of_all(values)
    return (
        f"{answer}\n"
        "--flagfile=FILE reads flags from a file, one a line; flags after it win. The files in\n"
        f"{CONFIGS[0]} are found by their names alone.\n"
        f"{TRACEBACK}=1 in the environment shows the traceback of an error.\n"
    )


def _help_of_mode(mode: str, values: flags.FlagValues) -> str:
    needed = "".join(f" --{name}=DIR" for name in NEEDED[mode])
    words = f"--mode={mode} {MODES[mode]}.\n\n    {COMMAND} --mode={mode}{needed} [--flag=...]"
    groups: dict[str, list[str]] = {"Needed": [], f"Of {mode} alone": [], "Of other modes too": []}
    for flag in of_mode(mode, values):
        if flag.name == "mode":
            continue
        heading = f"Of {mode} alone" if USED[flag.name] == (mode,) else "Of other modes too"
        if flag.name in NEEDED[mode]:
            heading = "Needed"
        decided = DEFAULTS.get(mode, {}).get(flag.name)
        default = None if decided is None else command_help.value_text(decided)
        groups[heading].append(command_help.described(flag, default))
    return command_help.text(words, groups)


def _help_of_all(values: flags.FlagValues) -> str:
    words = "Searches, trains and uses networks for semantic segmentation.\n\n"
    words += f"    {COMMAND} --mode=MODE --data_dir=DATA --model_dir=RUN [--flag=...]\n\nModes:\n\n"
    words += "\n".join(f"  {mode:<9}{what}" for mode, what in MODES.items())
    words += "\n\n--mode=MODE --help shows the flags of one mode, with its own defaults."
    several = "Of several modes"
    groups: dict[str, list[str]] = {several: []}
    groups |= {f"Of {_listed(modes)}": [] for modes in GROUPS}
    for flag in _all(values):
        if flag.name == "mode":
            continue
        modes = USED[flag.name]
        heading = f"Of {_listed(modes)}" if modes in GROUPS else several
        used_by = "all modes" if modes == tuple(MODES) else _listed(modes)
        default = ", ".join(
            f"{command_help.value_text(decided[flag.name])} ({mode})"
            for mode, decided in DEFAULTS.items()
            if flag.name in decided
        )
        more = f"Used by {used_by}." if heading == several else ""
        groups[heading].append(command_help.described(flag, default or None, more))
    return command_help.text(words, groups)


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))

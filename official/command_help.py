"""What `--help` prints: what the command is for, and its flags in groups."""

import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from absl import flags

WANTED = ("help", "helpshort", "h", "?")
LIBRARIES = ("absl", "tensorflow", "tensorflow_datasets", "keras")
"""Packages whose flags are not the command's; `--helpfull` lists them."""


def is_wanted(arguments: Sequence[str]) -> bool:
    """Whether the command line asks for help."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return any(argument in (f"-{name}", f"--{name}") for argument in own for name in WANTED)


def describe_main_module(values: flags.FlagValues) -> str:
    """Makes the help of a command: its docstring, and all flags that no library has defined."""
    own = [
        flag
        for module, defined in values.flags_by_module_dict().items()
        if module.split(".")[0] not in LIBRARIES
        for flag in defined
    ]
    words = sys.modules["__main__"].__doc__ or ""
    return format_help(words, {"Flags": [describe_flag(flag) for flag in own]})


def format_help(words: str, groups: Mapping[str, Iterable[str]]) -> str:
    """Puts a help text together.

    Args:
        words: what the command is for.
        groups: heading -> descriptions of flags, as of `describe_flag`. Empty groups are left out.
    """
    parts = [words.strip()]
    for heading, descriptions in groups.items():
        flags_of_group = "\n".join(descriptions)
        if flags_of_group:
            parts.append(f"{heading}:\n\n{flags_of_group}")
    return "\n\n".join(parts) + "\n"


def describe_flag(flag: flags.Flag, default: str | None = None, more: str = "") -> str:
    """Describes a flag: its name and values on a line; below it what it means, and its default.

    Args:
        flag: any.
        default: the default in words, where it is not the flag's own.
        more: a sentence to add.
    """
    meaning = flag.help or ""
    if _list_choices(flag):  # absl puts them before the words
        meaning = meaning.removeprefix(f"<{'|'.join(_list_choices(flag))}>: ")
    meaning = " ".join(meaning.split())
    meaning = meaning[:1].upper() + meaning[1:] + ("" if meaning.endswith(".") else ".")
    if default is None and flag.default is not None:
        default = format_value(flag.default)
    if default is not None:
        default = default.replace(",", ", ") if len(default) > 80 else default
        meaning += f" Default:\N{NO-BREAK SPACE}{default}."
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    lines = textwrap.fill(
        f"{meaning} {more}".strip(),
        max(40, width),
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
        break_on_hyphens=False,
        break_long_words=False,
    )
    return f"  {_format_usage(flag)}\n{lines}".replace("\N{NO-BREAK SPACE}", " ")


def format_value(value: Any) -> str:
    """Writes a flag's value as one would type it; a small number as 0.0003, not 3e-04."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(format_value(part) for part in value)
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0").rstrip(".")
    return str(value) if value != "" else "none"


def _format_usage(flag: flags.Flag) -> str:
    if flag.boolean:
        return f"--[no]{flag.name}"
    if _list_choices(flag):
        return f"--{flag.name}={'|'.join(_list_choices(flag))}"
    kinds = {"int": "N", "float": "X"}
    value = kinds.get(flag.parser.flag_type(), "DIR" if flag.name.endswith("_dir") else "VALUE")
    return f"--{flag.name}={getattr(flag.parser, 'placeholder', value)}"


def _list_choices(flag: flags.Flag) -> list[str]:
    return list(getattr(flag.parser, "enum_values", None) or [])

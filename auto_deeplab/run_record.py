"""What a model_dir remembers of its run: run.json, for resuming and for the modes that come after."""

import json
import os
from typing import Any

from official.errors import RunError, UsageError
from official.files import make_directory, write_atomically

FILE = "run.json"

Record = dict[str, Any]


def claim(model_dir: str, mode: str, identity: Record, facts: Record) -> bool:
    """Makes model_dir the home of a run, or finds that it already is that of the same run.

    Args:
        model_dir: made if it is not there.
        mode: "search" or "train".
        identity: flag -> value, plain JSON, of everything that makes two runs different runs.
        facts: more that later modes need to know: class names, palette, ...

    Returns:
        whether the directory already held this run.

    Raises:
        UsageError: it holds another run; the first flag that differs is named with both values.
    """
    path = os.path.join(model_dir, FILE)
    identity = json.loads(json.dumps(identity))
    if not os.path.exists(path):
        if os.path.isdir(os.path.join(model_dir, "checkpoints")):
            raise UsageError(
                f"--model_dir={model_dir} holds checkpoints but no {FILE}: choose another directory"
            )
        make_directory(model_dir)
        record = {"mode": mode, "identity": identity, **facts}
        write_atomically(path, json.dumps(record, indent=1) + "\n")
        return False
    record = _read(path)
    if record["mode"] != mode:
        raise UsageError(
            f"--model_dir={model_dir} holds a run of --mode={record['mode']}, not {mode}: "
            "choose another directory"
        )
    compare(record, identity, model_dir)
    return True


def compare(record: Record, identity: Record, model_dir: str) -> None:
    """Raises UsageError if a value of `identity` differs from the recorded one."""
    recorded = record["identity"]
    for flag, value in identity.items():
        if recorded.get(flag) != value:
            raise UsageError(
                f"--{flag}={_short(value)} differs from the run in --model_dir={model_dir}, which "
                f"has {_short(recorded.get(flag))}: give the same value, or another directory"
            )


def read(model_dir: str, mode: str) -> Record:
    """The record of a finished or interrupted run.

    Raises:
        UsageError: model_dir holds no run, or one of another mode.
    """
    path = os.path.join(model_dir, FILE)
    if not os.path.exists(path):
        raise UsageError(
            f"--model_dir={model_dir} holds no run (no {FILE}): give the directory that "
            f"--mode={mode} wrote"
        )
    record = _read(path)
    if record["mode"] != mode:
        raise UsageError(
            f"--model_dir={model_dir} holds a run of --mode={record['mode']}: this mode needs one "
            f"of --mode={mode}"
        )
    return record


def _read(path: str) -> Record:
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        if isinstance(record, dict) and {"mode", "identity"} <= record.keys():
            return record
    except (OSError, ValueError):
        pass
    raise RunError(f"{path} is damaged: restore it, or choose another --model_dir")


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."

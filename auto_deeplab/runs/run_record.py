"""What a model_dir remembers of its run, for resuming and for the modes that come after.

run.json: the mode; under "identity" everything that makes two runs different runs; the data's
classes and colours; of a training, what its network is made from.
genotype.json: what a search found, or what a network was built from.
flags.cfg: the mode's flags, as a flagfile.
"""

import glob
import json
import os
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space import search_space
from auto_deeplab.space.genotype import Genotype
from official.errors import RunError, UsageError, shorten
from official.files import make_directory, read_small, write_atomically

FILE = "run.json"
GENOTYPE = "genotype.json"
FLAGS_FILE = "flags.cfg"

NETWORK_SHAPE = ("filter_multiplier", "stem_filters", "head_filters")
NETWORK = (*NETWORK_SHAPE, "batch_norm_decay", "fine_tune_batch_norm", "drop_path_keep_prob")
"""What the identity of a training says of its network, beside the genotype."""

IMPORTED, GUESSED = "imported", "class_names_guessed"
"""Keys of a network that was not trained here: what it came from; whether its names are a guess."""

CONFIG = "network"
"""Key of a training's `Network.get_config()`; a run that is older than the key has none."""

SCALE = "scale"
"""Key of what the conversion of the training data did to the sizes of images, in the words of the
data's description; a run that is older than the key, or an imported network, has none."""

IMAGE_SIZE = "image_size"
"""Key of the height and width that most images of the data have; an older run has none."""

BRANCHES = "branches"
"""Key of where --checkpoint led the run back to an earlier step: the flag, the step, and what
changed there, each flag with its value before and after."""

STEERING = (
    *("learning_rate", "min_learning_rate", "arch_learning_rate", "gradient_clip_norm"),
    *("last_layer_learning_rate_multiplier", "precision"),
)
"""Flags of the identity that may change where --checkpoint says from which step on."""

LARGEST = 65_535
"""Of sides, channels and scales."""

_LONGEST_NAME = 200
_NEEDED = {
    "search": ("num_layers", "num_blocks", "operations", "seed"),
    "train": NETWORK,
}
"""What the identity of a run always has."""

Record = dict[str, Any]


class OtherRunError(UsageError):
    """model_dir holds another run: `flag` is `value` now, and was `recorded` there."""

    def __init__(self, message: str, flag: str, value: Any, recorded: Any) -> None:
        super().__init__(message)
        self.flag, self.value, self.recorded = flag, value, recorded


def check(
    model_dir: str, mode: str, identity: Record, defaults: Record, free: Collection[str] = ()
) -> None:
    """Checks that model_dir is free, or holds this very run. Writes nothing.

    Args:
        model_dir: need not exist.
        mode: "search" or "train".
        identity: flag -> value, plain JSON, of everything that makes two runs different runs.
        defaults, free: as in `compare`.

    Raises:
        UsageError: it holds an imported network, or a run of another mode.
        OtherRunError: it holds another run; the first flag that differs is named with both values.
    """
    if os.path.exists(os.path.join(model_dir, FILE)):
        record = _read(model_dir)
        if record["mode"] != mode:
            raise UsageError(
                f"--model_dir={model_dir} holds a run of --mode={record['mode']}, not {mode}: "
                "choose another directory"
            )
        if IMPORTED in record:
            raise UsageError(
                f"--model_dir={model_dir} holds an imported network, which cannot be trained in "
                f"place: choose another --model_dir and give --init_checkpoint={model_dir}"
            )
        compare(record, identity, model_dir, defaults, free)
    elif _has_checkpoint(model_dir):
        raise UsageError(
            f"--model_dir={model_dir} holds checkpoints but no {FILE}: choose another directory"
        )


def write(model_dir: str, mode: str, identity: Record, facts: Record) -> None:
    """Makes model_dir the home of a run that `check` has let pass.

    Args:
        model_dir: made if it is not there.
        mode: "search" or "train".
        identity: as in `check`.
        facts: more that later modes need to know, by name: class_names, palette, CONFIG, ...
    """
    make_directory(model_dir)
    record = {"mode": mode, "identity": identity, **facts}
    write_atomically(os.path.join(model_dir, FILE), json.dumps(record, indent=1) + "\n")


def make_figure_path(model_dir: str, name: str) -> str:
    """The path of a figure of the run; its directory is made if it is not there."""
    return str(make_directory(os.path.join(model_dir, "figures")) / f"{name}.png")


def read(model_dir: str, mode: str) -> Record:
    """The record of a finished or interrupted run.

    Raises:
        UsageError: model_dir holds no run, or one of another mode.
        RunError: the record is damaged.
    """
    if not os.path.exists(os.path.join(model_dir, FILE)):
        raise UsageError(
            f"--model_dir={model_dir} holds no run (no {FILE}): give the directory that "
            f"--mode={mode} wrote"
        )
    record = _read(model_dir)
    if record["mode"] != mode:
        raise UsageError(
            f"--model_dir={model_dir} holds a run of --mode={record['mode']}: this mode needs one "
            f"of --mode={mode}"
        )
    return record


def read_if_there(model_dir: str) -> Record:
    """The record of the run in model_dir; {} if it holds none.

    Raises:
        RunError: the record is damaged.
    """
    return _read(model_dir) if os.path.exists(os.path.join(model_dir, FILE)) else {}


def recall(model_dir: str, flag: str, otherwise: Any) -> Any:
    """The value of a flag in the run that model_dir holds; `otherwise` if it holds none.

    For a flag that is not given: a run that goes on keeps what it began with, although what is
    decided by default may be something else by now.

    Raises:
        RunError: the record is damaged.
    """
    record = read_if_there(model_dir)
    return record["identity"].get(flag, otherwise) if record else otherwise


def compare(
    record: Record,
    identity: Record,
    model_dir: str,
    defaults: Record,
    free: Collection[str] = (),
) -> None:
    """Raises OtherRunError if a value of `identity` differs from the recorded one.

    Args:
        record: what `read` returned.
        identity: flag -> value, plain JSON.
        model_dir: the record's.
        defaults: flag -> value of what is not recorded, because the flag is newer than the run.
            What has no default could have had any value.
        free: flags that may differ.
    """
    for flag, (before, value) in differences(record, identity, defaults).items():
        if flag not in free:
            remedy = "give the same value, or another directory"
            if not _has_checkpoint(model_dir):
                remedy += ", or remove this one: it holds no checkpoint yet"
            raise OtherRunError(
                f"--{flag} is {shorten(value)}, but {shorten(before)} in the run that "
                f"--model_dir={model_dir} holds: {remedy}",
                *(flag, value, before),
            )


def differences(record: Record, identity: Record, defaults: Record) -> dict[str, tuple[Any, Any]]:
    """Flag -> (recorded value, value now) where these differ; arguments as of `compare`."""
    recorded = json.loads(json.dumps(defaults)) | record["identity"]
    return {
        flag: (recorded[flag], value)
        for flag, value in json.loads(json.dumps(identity)).items()
        if flag in recorded and recorded[flag] != value
    }


def read_genotype(model_dir: str) -> Genotype:
    """The genotype.json of model_dir.

    Raises:
        RunError: it is missing or damaged.
    """
    try:
        return genotypes.load(os.path.join(model_dir, GENOTYPE))
    except ValueError as error:
        raise RunError(f"{error}: restore it, or choose another --model_dir") from None


def read_beside(prefix: str) -> Record | None:
    """The record of the run whose checkpoint this is; None if there is none.

    Raises:
        RunError: it is damaged.
    """
    model_dir = os.path.dirname(os.path.dirname(os.path.abspath(prefix)))
    return _read(model_dir) if os.path.exists(os.path.join(model_dir, FILE)) else None


def read_class_names_beside(prefix: str) -> list[str] | None:
    """The class names of the run whose checkpoint this is; None if they are not known."""
    record = read_beside(prefix)
    return None if record is None or record.get(GUESSED) else record.get("class_names")


def describe_architecture(genotype: Genotype) -> str:
    """A genotype as one line, which is another for each other network; without its `meta`."""
    content = json.loads(genotype.to_json())
    return json.dumps([content[key] for key in ("path", "cells", "cell_of_layer")])


def _has_checkpoint(model_dir: str) -> bool:
    return bool(glob.glob(os.path.join(glob.escape(model_dir), "checkpoints", "*.index")))


def _read(model_dir: str) -> Record:
    path = os.path.join(model_dir, FILE)
    try:
        record = json.loads(read_small(path))
        if _is_record(record):
            return record  # type: ignore[no-any-return]
    except (OSError, ValueError, RecursionError):
        pass
    raise RunError(f"{path} is damaged: restore it, or choose another --model_dir")


def _is_record(content: Any) -> bool:
    """Whether the content of run.json has what later modes take from it, all of the right kind."""
    if not isinstance(content, dict) or content.get("mode") not in list(_NEEDED):
        return False
    names, palette = (content.get(key) for key in ("class_names", "palette"))
    branches = content.get(BRANCHES, [])
    return (
        _has(content.get("identity"), _NEEDED[content["mode"]])
        and _has(content.get(CONFIG), ())
        and _is_scale(content.get(SCALE, {}))
        and (content.get(IMAGE_SIZE) is None or _is_size(content[IMAGE_SIZE]))
        and (isinstance(content.get("dataset"), str) or content["mode"] == "train")
        and (names is None or (_is_list(names) and all(map(_is_name, names))))
        and (palette is None or (_is_list(palette) and all(map(_is_colour, palette))))
        and (bool(names) or content["mode"] == "search")
        and (not palette or len(palette) == len(names or ()))
        and _is_list(branches)
        and all(isinstance(x, dict) and isinstance(x.get("checkpoint"), str) for x in branches)
    )


def _has(values: Any, needed: Collection[str]) -> bool:
    """Whether values of flags, or of a network's config, are of their kinds."""
    if values is None:
        return not needed
    return (
        isinstance(values, dict)
        and all(values.get(name) is not None for name in needed)
        and all(fits(values[name]) for name, fits in _KINDS.items() if name in values)
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME


def _is_colour(value: Any) -> bool:
    return _is_list(value) and len(value) == 3 and all(_is_whole(x, 0, 255) for x in value)


def _are_widths(value: Any) -> bool:
    return _is_list(value) and len(value) in (2, 3) and all(map(_is_width, value))


def _is_size(value: Any) -> bool:
    return _is_list(value) and len(value) == 2 and all(map(_is_width, value))


def _are_operations(value: Any) -> bool:
    try:
        return _is_list(value) and bool(search_space.validate_operations(value))
    except (TypeError, ValueError):
        return False


def _is_scale(value: Any) -> bool:
    """Whether official.sizes makes a rule of it."""
    return isinstance(value, dict) and (
        _is_number(value.get("resize_factor", 1.0), 1e-30, LARGEST)
        and (value.get("max_side") is None or _is_whole(value["max_side"], 1, 2**31 - 1))
    )


_is_count = partial(_is_whole, least=1, most=2**31 - 1)
_is_width = partial(_is_whole, least=1, most=LARGEST)
_is_depth = partial(_is_whole, least=1, most=genotypes.MOST)
_is_share = partial(_is_number, least=0, most=1)

_KINDS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("epochs", "train_steps"), _is_count),
    **dict.fromkeys(("filter_multiplier", "head_filters", "low_level_filters"), _is_width),
    **dict.fromkeys(("num_layers", "num_blocks"), _is_depth),
    **dict.fromkeys(("batch_norm_decay", "drop_path_keep_prob", "ema_decay"), _is_share),
    "num_classes": partial(_is_whole, least=1, most=256),
    "seed": lambda value: value is None or _is_whole(value, 0, 2**31 - 1),
    "stem_filters": lambda value: value is None or _are_widths(value),
    "operations": _are_operations,
    "partial_channels": partial(_is_whole, least=1, most=LARGEST),
    "alpha_sharing": lambda value: value in search_space.ALPHA_SHARING,
    "fine_tune_batch_norm": lambda value: isinstance(value, bool),
    "sizes": _is_scale,
}
"""What later modes take from the identity and from CONFIG, and whether it can be that."""

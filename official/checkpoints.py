"""Checkpoints of explicit variable maps: what is saved is named, what is restored is checked.

A checkpoint holds named groups of variables ("weights", "weights_optimizer", ...) and the step.
Each variable is known by its group and its path, so the paths must be the same in every process:
give layers names. tf.train.Checkpoint(model=...) would be shorter, but it silently skips the layers
that a Keras 3 model keeps in lists.

Reading is all or nothing: names, shapes, types and check sums first, then the assignments.
"""

import glob
import os
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from official.errors import RunError, explain
from official.paths import check_plain

Groups = Mapping[str, Sequence[Any]]

_PREFIX = "ckpt"
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"  # What tf.train.Checkpoint adds to every variable's name.
_STEP = "step" + _SUFFIX


class Checkpoints:
    """The checkpoints that one training run writes: directory/ckpt-<step>.*, the newest few.

    Args:
        directory: where they are; made when the first one is saved.
        groups: group name -> Keras or tf variables, their paths unique within the group. Make all
            variables (optimizer.build!) before.
        keep: how many of the newest to keep.
        save_to: where this process saves, if not in `directory`: under several workers each saves
            in a directory of its own, and all read the chief's (distribution.worker_directory).
        optional: as in `restore`.

    Raises:
        RunError: the directory has a name in which TensorFlow would not find them again.
        ValueError: two variables of a group have the same path, or one is in two groups.
    """

    def __init__(
        self,
        directory: str,
        groups: Groups,
        keep: int = 3,
        *,
        save_to: str | None = None,
        optional: Collection[str] = (),
    ) -> None:
        check_plain(directory, "the directory of checkpoints")
        self._directory = directory
        self._groups = groups
        self._optional = optional
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._on_disk: str | None = None  # path prefix of what was last saved or restored
        self._save_to = save_to or directory
        maps = {group: _by_name(group, variables) for group, variables in groups.items()}
        if len({id(v) for m in maps.values() for v in m.values()}) < sum(map(len, maps.values())):
            # It would be saved under one of its names only.
            raise ValueError("a variable is in several groups")
        names_newest = os.path.join(self._save_to, "checkpoint")
        if os.path.isfile(names_newest) and not os.path.getsize(names_newest):
            os.remove(names_newest)  # A crash of the machine empties it; the manager would fail.
        self._manager = tf.train.CheckpointManager(
            tf.train.Checkpoint(step=self._step, **maps),
            self._save_to,
            max_to_keep=keep,
            checkpoint_name=_PREFIX,
        )
        # What a kill during a save leaves behind. Only the one process that writes here comes here.
        for leftover in glob.glob(os.path.join(glob.escape(self._save_to), f"{_PREFIX}-*_temp")):
            shutil.rmtree(leftover, ignore_errors=True)

    def save(self, step: int) -> str:
        """Saves all groups and the step; returns the checkpoint's path prefix.

        A kill at any moment leaves the previous checkpoint good and the newest. Nothing is written
        if this step is the one that was last saved or restored here.

        Raises:
            RunError: a variable holds NaN or infinity, or the checkpoint cannot be written.
        """
        path = os.path.join(self._save_to, f"{_PREFIX}-{step}")
        if path == self._on_disk:
            return path
        for group, variables in self._groups.items():
            for name, variable in _by_name(group, variables).items():
                if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable)):
                    raise RunError(
                        f"{group}: {name} is not finite after step {step}; the checkpoints saved "
                        "before are kept: try a smaller --learning_rate, or --precision=float32"
                    )
        self._step.assign(step)
        try:
            self._on_disk = self._manager.save(checkpoint_number=step)
            return path
        except (OSError, tf.errors.OpError) as error:
            raise RunError(
                f"cannot save the checkpoint of step {step} in {self._save_to}: {error}"
            ) from None

    def latest(self) -> str | None:
        """Path prefix of the newest checkpoint in the directory, or None."""
        return _newest(self._directory)

    def restore(self, path: str | None = None) -> int:
        """Restores all groups from `path` (prefix or directory; None: the newest here).

        Returns:
            The step that the checkpoint was saved at; 0 if path is None and there is no checkpoint.

        Raises:
            RunError: see `restore`.
        """
        path = path or self.latest()
        if path is None:
            return 0
        self._on_disk = find(path)
        return restore(path, self._groups, optional=self._optional)


def find(path: str) -> str:
    """The path prefix of a checkpoint: of the newest one if `path` is a directory.

    Raises:
        RunError: there is none, or it has a name under which TensorFlow would not find it.
    """
    check_plain(path, "the checkpoint")
    if os.path.isdir(path):
        prefix = _newest(path)
        if prefix is None:
            raise RunError(f"there is no checkpoint in {path}")
        return prefix
    prefix = path.removesuffix(".index")
    if not os.path.isfile(prefix + ".index"):
        raise RunError(
            f"there is no checkpoint {path}: give its path up to the step, such as "
            f"checkpoints/{_PREFIX}-100, or its directory"
        )
    return prefix


def read_shapes(path: str, group: str) -> dict[str, tuple[int, ...]]:
    """Path -> shape of the variables of a group in a checkpoint; {} if it has no such group.

    Args:
        path: path prefix of a checkpoint, or a directory: its newest.
        group: its name.

    Raises:
        RunError: the checkpoint is missing or damaged.
    """
    with open_reader(path) as (_, reader):
        return {
            _unescape(key.removeprefix(f"{group}/")): tuple(shape)
            for key, shape in reader.get_variable_to_shape_map().items()
            if _is_of(key, group)
        }


def restore(
    path: str,
    groups: Groups,
    *,
    optional: Collection[str] = (),
    untouched: Collection[Any] = (),
) -> int:
    """Gives the variables of the groups the values they have in a checkpoint.

    Works inside and outside a strategy's scope, and whatever strategy saved it. Groups that the
    checkpoint has and `groups` has not are left alone: evaluation asks for the weights only.

    Args:
        path: path prefix of a checkpoint, or a directory: its newest.
        groups: group name -> Keras or tf variables.
        optional: names of groups that the checkpoint or this run may lack as a whole; such
            variables stay as they are.
        untouched: variables of the groups that stay as they are, whatever the checkpoint has for
            them.

    Returns:
        The step that it was saved at.

    Raises:
        RunError: the checkpoint is missing or damaged, or its variables and those of the groups are
            not the same in names, shapes and types. No variable has been changed then.
    """
    with open_reader(path) as (prefix, reader):
        wanted = _match(prefix, reader, groups, optional, untouched)
        values = [(variable, reader.get_tensor(key)) for key, variable in wanted.items()]
        step = int(reader.get_tensor(_STEP))
    for variable, value in values:
        variable.assign(value)
    return step


@contextmanager
def open_reader(path: str) -> Iterator[tuple[str, Any]]:
    """Path prefix and reader of a checkpoint; what goes wrong with its files becomes RunError."""
    prefix = find(path)
    try:
        yield prefix, tf.train.load_checkpoint(prefix)
    # The reader turns unreadable files into errors of several kinds.
    except (OSError, RuntimeError, ValueError, IndexError, tf.errors.OpError) as error:
        raise RunError(
            f"the checkpoint {prefix} is damaged or incomplete ({explain(error)}): "
            "use another one of its directory"
        ) from None


def _newest(directory: str) -> str | None:
    """Path prefix of the newest checkpoint of a directory, or None."""
    try:
        prefix = tf.train.latest_checkpoint(directory)
    except ValueError:  # for an empty file
        prefix = None
    if prefix is None:
        # The file that names the newest is lost, but what it named need not be.
        files = glob.glob(os.path.join(glob.escape(directory), f"{_PREFIX}-*.index"))
        found = [file.removesuffix(".index") for file in files]
        return max(found, key=lambda path: int(path.rsplit("-", 1)[1]), default=None)
    return prefix


def _match(
    prefix: str,
    reader: Any,
    groups: Groups,
    optional: Collection[str],
    untouched: Collection[Any],
) -> dict[str, Any]:
    """Key in the checkpoint -> variable to restore; RunError unless both sides are the same."""
    shapes = reader.get_variable_to_shape_map()
    types = reader.get_variable_to_dtype_map()
    left_alone = {id(_value(variable)) for variable in untouched}
    if _STEP not in shapes:
        raise RunError(f"the checkpoint {prefix} was not written by this project: it has no step")
    wanted: dict[str, Any] = {}
    missing, left_over, wrong = [], [], []
    for group, variables in groups.items():
        saved = {key for key in shapes if _is_of(key, group)}
        if group in optional and not (saved and variables):
            continue
        for name, variable in _by_name(group, variables).items():
            key = f"{group}/{_escape(name)}{_SUFFIX}"
            if id(variable) in left_alone:
                saved.discard(key)
                continue
            wanted[key] = variable
            if key not in saved:
                missing.append(f"{group}: {name}")
            elif tuple(shapes[key]) != tuple(variable.shape):
                shape, saved_shape = tuple(variable.shape), tuple(shapes[key])
                wrong.append(f"{group}: {name} {saved_shape}, not {shape}")
            elif types[key] != variable.dtype:
                wrong.append(f"{group}: {name} {types[key].name}, not {variable.dtype.name}")
        for key in sorted(saved - wanted.keys()):
            left_over.append(f"{group}: {_unescape(key.removeprefix(f'{group}/'))}")
    problems = describe_differences(missing, left_over, wrong)
    if problems:
        raise RunError(f"the checkpoint {prefix} belongs to another network: {problems}")
    return wanted


def describe_differences(
    missing: Sequence[str], left_over: Sequence[str], wrong: Sequence[str]
) -> str:
    """How a checkpoint differs from a network, with the first few names; "" if it does not."""
    return "; ".join(
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for names, what in (
            (missing, "variable(s) that it lacks"),
            (left_over, "variable(s) that only it has"),
            (wrong, "variable(s) of another shape or type in it"),
        )
        if names
    )


def _by_name(group: str, variables: Sequence[Any]) -> dict[str, tf.Variable]:
    """Path (Keras) or name (tf.Variable) -> the tf.Variable, which may be a distributed one."""
    names = [v.path if isinstance(v, keras.Variable) else v.name.split(":")[0] for v in variables]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"group {group!r} has several variables of the same path: {twice}")
    return dict(zip(names, map(_value, variables), strict=True))


def _value(variable: Any) -> tf.Variable:
    return variable.value if isinstance(variable, keras.Variable) else variable


def _is_of(key: str, group: str) -> bool:
    """Whether a key of a checkpoint is that of a variable of the group."""
    return key.startswith(f"{group}/") and key.endswith(_SUFFIX)


def _escape(name: str) -> str:
    """How tf.train.Checkpoint writes a dictionary's key into a variable's name."""
    return name.replace(".", "..").replace("/", ".S")


def _unescape(key: str) -> str:
    name = key.removesuffix(_SUFFIX)
    return name.replace("..", "\0").replace(".S", "/").replace("\0", ".")

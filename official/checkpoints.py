"""Checkpoints of explicit variable maps: what is saved is named, what is restored is checked.

A checkpoint holds named groups of variables ("weights", "weights_optimizer", ...) and the step.
Each variable is known by its group and its path, so the paths must be the same in every process:
give layers names. tf.train.Checkpoint(model=...) would be shorter, but it silently skips the layers
that a Keras 3 model keeps in lists.

A checkpoint is two files, PREFIX.index and PREFIX.data-00000-of-00001, and is there if its index
is. Writing: both under another name, read back, brought to the disk, then renamed, the index last.
Reading is all or nothing: names, shapes, types and check sums first, then the assignments; of a
directory, the newest checkpoint that is whole.
"""

import glob
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import keras
import tensorflow as tf

from official import checkpoint_index
from official.errors import RunError, explain, shorten
from official.files import make_directory, read_small, sync, write_atomically
from official.paths import check_plain
from official.progress import say

Groups = Mapping[str, Sequence[Any]]

BEST = "best"
"""How the checkpoint of the best validation is called for, in its directory."""

SET_ASIDE = "set_aside"
"""Where a directory of checkpoints keeps those that its run no longer goes on from."""

_NAMES = re.compile(r"(ckpt|best)-(\d+)")
_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"  # What tf.train.Checkpoint adds to every variable's name.
_STEP, _NOTE = "step" + _SUFFIX, "note" + _SUFFIX
_UNFINISHED = ".unfinished"
_LEFTOVERS = (_UNFINISHED, "ckpt-*_temp", "checkpoint.tmp*")  # two of them of earlier versions


class DamagedError(RunError):
    """A checkpoint's files are not as they were written; another checkpoint may be."""


class Checkpoints:
    """The checkpoints that one training run writes: directory/ckpt-<step>.*, the newest few.

    Only one process may have them; files.own_directory sees to that.

    Args:
        directory: where they are; made when the first one is saved.
        groups: group name -> Keras or tf variables, their paths unique within the group. Make all
            variables (optimizer.build!) before.
        keep: how many of the newest to keep.
        save_to: where this process saves, if not in `directory`: under several workers each saves
            in a directory of its own, and all read the chief's (distribution.worker_directory).
        optional: as in `restore`.

    Attributes:
        step: of what was last saved or restored; 0 before.
        note: the text that the restored checkpoint was saved with.

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
        self._keep = keep
        self._optional = optional
        self.step, self.note = 0, ""
        self._on_disk: str | None = None  # path prefix of what was last saved or restored
        self._save_to = save_to or directory
        maps = {group: _by_name(group, variables) for group, variables in groups.items()}
        if len({id(v) for m in maps.values() for v in m.values()}) < sum(map(len, maps.values())):
            # It would be saved under one of its names only.
            raise ValueError("a variable is in several groups")
        self._saved_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        with tf.device("CPU:0"):
            self._saved_note = tf.Variable("", dtype=tf.string, trainable=False)
        self._checkpoint = tf.train.Checkpoint(step=self._saved_step, note=self._saved_note, **maps)
        # What a kill during a save leaves behind. Only the one process that writes here comes here.
        for pattern in _LEFTOVERS:
            for leftover in glob.glob(os.path.join(glob.escape(self._save_to), pattern)):
                shutil.rmtree(leftover, ignore_errors=True)
                with suppress(OSError):
                    os.remove(leftover)

    def save(self, step: int, note: str = "") -> str:
        """Saves all groups, the step and a note; returns the checkpoint's path prefix.

        A kill at any moment leaves the previous checkpoint good and the newest. Nothing is written
        if this step is the one that was last saved or restored here.

        Raises:
            RunError: a variable holds NaN or infinity, or the checkpoint cannot be written.
        """
        path = os.path.join(self._save_to, f"ckpt-{step}")
        if path != self._on_disk:
            self._write(path, step, note)
            self._on_disk, self.step = path, step
            older = [prefix for at, prefix in _list(self._save_to) if at <= step]
            for prefix in older[self._keep :]:
                _remove(prefix)
        return path

    def save_best(self, step: int) -> str:
        """Saves all groups as the best ones so far, best-<step>, instead of the best before.

        It is not among the newest that are kept, and nothing goes on from it unless it is named.
        """
        path = os.path.join(self._save_to, f"best-{step}")
        self._write(path, step, "")
        for _, prefix in _list(self._save_to, "best"):
            if prefix != path:
                _remove(prefix)
        return path

    def best_step(self) -> int | None:
        """The step at which the best ones so far were saved; None: there are none."""
        return next((step for step, _ in _list(self._directory, "best")), None)

    def set_aside(self, after: int, names: Sequence[str] = ("ckpt",)) -> list[str]:
        """Moves the checkpoints of steps above `after` where no run goes on from.

        Args:
            after: the step.
            names: which ones: "ckpt", "best".

        Returns:
            their new path prefixes.

        Raises:
            RunError: they cannot be moved.
        """
        moved = []
        for step, prefix in (found for name in names for found in _list(self._save_to, name)):
            if step > after:
                target = make_directory(os.path.join(self._save_to, SET_ASIDE))
                moved.append(str(target / os.path.basename(prefix)))
                try:
                    _move(prefix, moved[-1])
                except OSError as error:
                    raise RunError(f"cannot move {prefix} to {target}: {error.strerror}") from None
        return moved

    def latest(self) -> str | None:
        """Path prefix of the newest checkpoint in the directory, or None."""
        return next((prefix for _, prefix in _list(self._directory)), None)

    def restore(self, path: str | None = None) -> int:
        """Restores all groups from `path` (prefix or directory; None: the newest here).

        Returns:
            The step that the checkpoint was saved at; 0 if path is None and there is no checkpoint
            that can be read, of which is warned.

        Raises:
            RunError: see `restore`.
        """
        if path is None and not _list(self._directory):
            return 0
        try:
            prefix, step = restore_newest(
                path or self._directory, self._groups, optional=self._optional
            )
        except DamagedError as error:
            if path is not None:
                raise
            say(f"warning: {error}: starting at step 0")
            return 0
        self._on_disk, self.step = prefix, step
        with open_reader(prefix) as (_, reader):
            if reader.has_tensor(_NOTE):
                self.note = reader.get_tensor(_NOTE).decode()
        return step

    def _write(self, path: str, step: int, note: str) -> None:
        for group, variables in self._groups.items():
            for name, variable in _by_name(group, variables).items():
                if variable.dtype.is_floating and not tf.reduce_all(tf.math.is_finite(variable)):
                    raise RunError(
                        f"{group}: {name} is not finite after step {step}; the checkpoints saved "
                        "before are kept: try a smaller --learning_rate, or --precision=float32"
                    )
        self._saved_step.assign(step)
        self._saved_note.assign(note)
        unfinished = os.path.join(self._save_to, _UNFINISHED)
        try:
            make_directory(unfinished)
            written = self._checkpoint.write(os.path.join(unfinished, os.path.basename(path)))
            verify(written)
            for file in _files(written):
                sync(file)
            _move(written, path)
            os.rmdir(unfinished)
            sync(self._save_to)
            # For tf.train.latest_checkpoint; nothing here reads it.
            newest = os.path.basename(path)
            if newest.startswith("ckpt"):
                state = f'model_checkpoint_path: "{newest}"\n'
                write_atomically(os.path.join(self._save_to, "checkpoint"), state)
        except (OSError, RunError, tf.errors.OpError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise RunError(
                f"cannot save the checkpoint of step {step} in {self._save_to}: {error}"
            ) from None


def find(path: str) -> str:
    """The path prefix of a checkpoint: of the newest whole one if `path` is a directory.

    Args:
        path: a prefix, a directory, or DIRECTORY/best, the one of the best validation.

    Raises:
        RunError: there is none, or it has a name under which TensorFlow would not find it.
    """
    if os.path.isdir(path):
        return _try_newest(path, verify)[0]
    return _find_named(path)


def restore_newest(path: str, groups: Groups, **options: Any) -> tuple[str, int]:
    """Restores as `restore` does, from the newest whole checkpoint of a directory.

    A run beside may be saving, and removing its oldest: what has gone is not missed.

    Args:
        path: a directory, or what `find` takes.
        groups, options: as in `restore`.

    Returns:
        the path prefix of what was restored, and its step.

    Raises:
        RunError: as in `restore`; a DamagedError if checkpoints are there and none is whole.
    """
    if not os.path.isdir(path):
        prefix = _find_named(path)
        return prefix, restore(prefix, groups, **options)
    return _try_newest(path, lambda prefix: restore(prefix, groups, **options))


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
        _check_claims(prefix)
        yield prefix, tf.train.load_checkpoint(prefix)
    # The reader turns unreadable files into errors of several kinds.
    except (OSError, RuntimeError, ValueError, IndexError, tf.errors.OpError) as error:
        for file in _files(prefix):
            if os.path.exists(file) and not os.access(file, os.R_OK):
                raise RunError(f"{file} may not be read: change its permissions") from None
        raise DamagedError(
            f"the checkpoint {prefix} is damaged or incomplete ({explain(error)}): "
            "use another one of its directory"
        ) from None


def _check_claims(prefix: str) -> None:
    """Raises ValueError if the index tells of more than the data can hold: a huge tensor."""
    claimed = checkpoint_index.count_bytes(read_small(f"{prefix}.index"))
    held = sum(map(os.path.getsize, glob.glob(f"{glob.escape(prefix)}.data-*")))
    if claimed > held:
        raise ValueError(f"it tells of {claimed} bytes and has {held}")


def verify(prefix: str) -> None:
    """Reads all that a checkpoint holds, whose check sums TensorFlow compares.

    Raises:
        DamagedError: it is not as it was written.
    """
    with open_reader(prefix) as (_, reader):
        for key in reader.get_variable_to_shape_map():
            reader.get_tensor(key)


def _try_newest(directory: str, use: Callable[[str], Any]) -> tuple[str, Any]:
    """The newest checkpoint in which `use` finds nothing damaged, and what that returned.

    Raises:
        RunError: there is no checkpoint in the directory; DamagedError: only damaged ones.
    """
    check_plain(directory, "the checkpoint")
    tried: set[str] = set()
    damaged = False
    # What has come or gone meanwhile is seen in the next turn.
    while left := [prefix for _, prefix in _list(directory) if prefix not in tried]:
        try:
            return left[0], use(left[0])
        except DamagedError as error:
            tried.add(left[0])
            if os.path.exists(f"{left[0]}.index"):
                damaged = True
                say(f"warning: {error}: left out")
    if damaged:
        raise DamagedError(f"no checkpoint in {directory} is whole")
    raise RunError(f"there is no checkpoint in {directory}")


def _find_named(path: str) -> str:
    """The path prefix of the checkpoint of that name, or of DIRECTORY/best."""
    check_plain(path, "the checkpoint")
    prefix = path.removesuffix(".index")
    directory, name = os.path.split(prefix)
    if name == BEST and (best := _list(directory, BEST)):
        return best[0][1]
    if not os.path.isfile(f"{prefix}.index"):
        raise RunError(
            f"there is no checkpoint {path}: give its path up to the step, such as "
            "checkpoints/ckpt-100, or its directory"
        )
    return prefix


def _list(directory: str, name: str = "ckpt") -> list[tuple[int, str]]:
    """Step and path prefix of each checkpoint of that name, whole or not; the newest first."""
    found = []
    with suppress(FileNotFoundError, NotADirectoryError):
        for file in os.listdir(directory):
            prefix, extension = os.path.splitext(file)
            match = _NAMES.fullmatch(prefix)
            if extension == ".index" and match and match[1] == name:
                found.append((int(match[2]), os.path.join(directory, prefix)))
    return sorted(found, reverse=True)


def _files(prefix: str) -> list[str]:
    """The files of a checkpoint, the index last."""
    data = sorted(glob.glob(f"{glob.escape(prefix)}.data-*"))
    return [*data, f"{prefix}.index"]


def _move(prefix: str, target: str) -> None:
    """Renames a checkpoint's files, the index last; what is at the target goes."""
    if os.path.exists(f"{target}.index"):
        _remove(target)
    for file in _files(prefix):
        os.replace(file, target + file.removeprefix(prefix))


def _remove(prefix: str) -> None:
    """Removes a checkpoint, its index first: without it there is none."""
    for file in reversed(_files(prefix)):
        os.remove(file)


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
        f"{len(names)} {what} ({', '.join(map(shorten, names[:3]))}"
        f"{', ...' if len(names) > 3 else ''})"
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

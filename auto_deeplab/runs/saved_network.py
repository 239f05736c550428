"""A trained network, made again from the directory of its run, or the start of another training."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from auto_deeplab.network.network import Network
from auto_deeplab.runs import run_record
from auto_deeplab.space.genotype import Genotype
from official import checkpoints
from official.errors import RunError, shorten
from official.sizes import OWN_SIZE, Sizes


def make_network(
    genotype: Genotype, identity: Mapping[str, Any], num_classes: int, **options: Any
) -> Network:
    """Makes the network of a training, built, with initial weights.

    Args:
        genotype: path and cells.
        identity: has the values of run_record.NETWORK.
        num_classes: channels of the logits.
        options: further arguments of `Network`: class_names, palette, sizes, sync_batch_norm.
    """
    widths = {name: identity[name] for name in run_record.NETWORK}
    network = Network(genotype, num_classes=num_classes, **widths, **options)
    network.build((None, None, None, 3))
    return network


def locate_checkpoint(model_dir: str, checkpoint: str | None = None) -> str:
    """Where a run's checkpoint is, for checkpoints.restore_newest; see `load_network`."""
    directory = os.path.join(model_dir, "checkpoints")
    if checkpoint == checkpoints.BEST:
        return os.path.join(directory, checkpoint)
    return checkpoint or directory


def check_genotype(genotype: Genotype, prefix: str) -> None:
    """Compares a network's genotype with the one beside a checkpoint, if there is one.

    Other cells can have variables of the same names and shapes.

    Raises:
        RunError: they are not the same.
    """
    model_dir = os.path.dirname(os.path.dirname(os.path.abspath(prefix)))
    if not os.path.exists(os.path.join(model_dir, run_record.GENOTYPE)):
        return
    there = run_record.read_genotype(model_dir)
    for part in ("path", "cells", "cell_of_layer"):
        values = getattr(there, part), getattr(genotype, part)
        if values[0] != values[1]:
            raise RunError(
                f"the checkpoint {prefix} is that of another genotype: its {part} is "
                f"{shorten(values[0])}, not {shorten(values[1])}"
            )


def load_network(model_dir: str, checkpoint: str | None = None) -> tuple[Network, int, str]:
    """Loads the network of a training with a checkpoint's weights: the averages, if it has some.

    Args:
        model_dir: of --mode=train, or the --output_dir of import_tf1.
        checkpoint: a path up to the step, a directory of checkpoints, or "best", the one of the
            best validation. Default: the run's newest.

    Returns:
        The network, which knows its classes' names and colours and the scale of its training data
        (`Network.sizes`); the step at which its weights were saved; the checkpoint's path prefix.

    Raises:
        UsageError: model_dir holds no training.
        RunError: one of its files is missing or damaged, or the checkpoint is another network's.
    """
    record = run_record.read(model_dir, "train")
    genotype = run_record.read_genotype(model_dir)
    path = locate_checkpoint(model_dir, checkpoint)
    network = _make_recorded(record, genotype, model_dir)
    group = "average" if record["identity"].get("ema_decay") else "weights"
    check_genotype(genotype, os.path.join(path, "any") if os.path.isdir(path) else path)
    prefix, step = checkpoints.restore_newest(path, {group: network.variables})
    return network, step, prefix


def _make_recorded(record: run_record.Record, genotype: Genotype, model_dir: str) -> Network:
    """The network that run.json describes, built; `genotype` is read beside it."""
    config = record.get(run_record.CONFIG)
    if config is None:  # an older run
        return make_network(
            genotype,
            record["identity"],
            len(record["class_names"]),
            class_names=record["class_names"],
            palette=record.get("palette"),
            sizes=read_scale(record) or OWN_SIZE,
        )
    try:
        network = Network.from_config(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        path = os.path.join(model_dir, run_record.FILE)
        raise RunError(
            f'{path} is damaged: "{run_record.CONFIG}" describes no network '
            f"({shorten(str(error))}); restore it"
        ) from None
    network.build((None, None, None, 3))
    return network


def read_scale(record: run_record.Record) -> Sizes | None:
    """The scale of the data that a run was trained on; None if it is too old to know it."""
    return Sizes.from_options(record[run_record.SCALE]) if run_record.SCALE in record else None


def find_weights(path: str) -> str:
    """The path prefix of the checkpoint that `initialize` would read.

    Raises:
        RunError: there is none.
    """
    inside = os.path.join(path, "checkpoints")
    return checkpoints.find(inside if os.path.isdir(inside) else path)


def initialize(network: Network, path: str, class_names: Sequence[str]) -> str | None:
    """Gives a network the weights of another training, averaged ones where it has them.

    Only the classes may be others; the last layer stays as it is then.

    Args:
        network: built.
        path: path prefix of a checkpoint, a directory of checkpoints (its newest), or a model_dir.
        class_names: the network's. They are compared with the other's where those are known.

    Returns:
        in words how the classes differ; None if they do not.

    Raises:
        RunError: there is no such checkpoint, or it is not of this very network. No variable has
            been changed then.
    """
    prefix = find_weights(path)
    check_genotype(network.genotype, prefix)
    group = "average" if checkpoints.read_shapes(prefix, "average") else "weights"
    shapes = checkpoints.read_shapes(prefix, group)
    if not shapes:
        raise RunError(
            f"the checkpoint {prefix} was not written by this project: if it is one of the TF1 "
            "release, python -m auto_deeplab.import_tf1 makes one of it that can be used"
        )
    last = network.decoder.logits
    (here,) = last.bias.shape
    (there,) = shapes.get(last.bias.path, (here,))
    names = run_record.read_class_names_beside(prefix)
    difference = None
    if there != here:
        difference = f"{there} classes there, {here} here"
    elif names is not None and names != list(class_names):
        other = next(pair for pair in zip(names, class_names, strict=True) if pair[0] != pair[1])
        difference = f"other classes there ({other[0]}, here {other[1]})"
    untouched = last.variables if difference else []
    try:
        checkpoints.restore(prefix, {group: network.variables}, untouched=untouched)
    except RunError as error:
        widths = " ".join(f"--{name}" for name in run_record.NETWORK_SHAPE)
        raise RunError(f"{error}; the widths must be its own ({widths})") from None
    return difference

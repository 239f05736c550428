"""A trained network, made again from the directory of its run, or the start of another training."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from auto_deeplab.network.network import Network
from auto_deeplab.runs import run_record
from auto_deeplab.space.genotype import Genotype
from official import checkpoints
from official.errors import RunError
from official.sizes import Sizes


def new_network(
    genotype: Genotype,
    identity: Mapping[str, Any],
    num_classes: int,
    sync_batch_norm: bool = True,
) -> Network:
    """A built network.

    Args:
      genotype: path and cells.
      identity: has the values of run_record.NETWORK.
      num_classes: channels of the logits.
      sync_batch_norm: see `Network`; matters in training only.
    """
    network = Network(
        genotype,
        num_classes=num_classes,
        sync_batch_norm=sync_batch_norm,
        **{name: identity[name] for name in run_record.NETWORK},
    )
    network.build((None, None, None, 3))
    return network


def find_checkpoint(model_dir: str, checkpoint: str | None = None) -> str:
    """The path prefix of a run's checkpoint; see `trained_network`."""
    return checkpoints.find(checkpoint or os.path.join(model_dir, "checkpoints"))


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
                f"{run_record.short(values[0])}, not {run_record.short(values[1])}"
            )


def trained_network(model_dir: str, checkpoint: str | None = None) -> tuple[Network, int, str]:
    """The network of a training with a checkpoint's weights: averaged ones, if the run averaged.

    Args:
      model_dir: of --mode=train, or the --output_dir of import_tf1.
      checkpoint: a path up to the step, or a directory of checkpoints. Default: the run's newest.

    Returns:
      The network, which knows the scale of its training data (`Network.sizes`), the step at which
      its weights were saved, and the checkpoint's path prefix.

    Raises:
      UsageError: model_dir holds no training.
      RunError: one of its files is missing or damaged, or the checkpoint is another network's.
    """
    record = run_record.read(model_dir, "train")
    genotype = run_record.read_genotype(model_dir)
    path = find_checkpoint(model_dir, checkpoint)
    check_genotype(genotype, path)
    identity = record["identity"]
    network = new_network(genotype, identity, len(record["class_names"]))
    network.sizes = Sizes.from_options(record.get(run_record.SCALE, {}))
    group = "average" if identity.get("ema_decay") else "weights"
    return network, checkpoints.restore(path, {group: network.variables}), path


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
    group = "average" if checkpoints.shapes(prefix, "average") else "weights"
    shapes = checkpoints.shapes(prefix, group)
    if not shapes:
        raise RunError(
            f"the checkpoint {prefix} was not written by this project: if it is one of the TF1 "
            "release, python -m auto_deeplab.import_tf1 makes one of it that can be used"
        )
    last = network.decoder.logits
    (here,) = last.bias.shape
    (there,) = shapes.get(last.bias.path, (here,))
    names = run_record.class_names_beside(prefix)
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

"""Makes runs of TF1 checkpoints of the authors' network (DeepLab's model variant `nas_hnasnet`).

Every variable of the network is in the checkpoint, in the same shape, and the checkpoint has no
others, or nothing is written.
"""

import contextlib
import glob
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from auto_deeplab.network.network import Network
from auto_deeplab.runs import run_record
from auto_deeplab.runs.saved_network import make_network
from auto_deeplab.runs.tf1_names import find_tf1_name
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype
from official import datasets
from official.checkpoints import Checkpoints, describe_differences, open_reader
from official.errors import RunError, UsageError, shorten
from official.files import read_small, write_directory_atomically
from official.records import Description

STEP = "global_step"
SLOTS = ("Momentum", "Adam", "Adam_1", "RMSProp", "RMSProp_1", "Adagrad")
"""What TF1's optimizers append to a variable's name for a variable of their own."""
POWERS = ("beta1_power", "beta2_power")
"""Adam's other variables."""
AVERAGE = "ExponentialMovingAverage"
"""What tf.train.ExponentialMovingAverage appends. The release makes none, but users do."""

Shapes = Mapping[str, Sequence[int]]


class Classes(NamedTuple):
    """What a network's classes are called.

    Attributes:
        dataset: the data's name.
        names, palette: one name and one (red, green, blue) in 0..255 per class.
        guessed: whether all this goes by the number of classes alone.
    """

    dataset: str
    names: Sequence[str]
    palette: Sequence[datasets.Colour]
    guessed: bool


def import_checkpoint(
    checkpoint: str, output_dir: str, description: Description | None = None
) -> str:
    """Writes output_dir, whole or not at all: a --model_dir as of a finished training.

    Args:
        checkpoint: path prefix of a TF1 checkpoint, one of its files, or its directory.
        output_dir: does not exist, or is empty.
        description: of the data that the network was trained on; gives the classes' names, which
            are not in a checkpoint.

    Returns:
        what was found and written, in lines for people.

    Raises:
        UsageError: there is something in output_dir.
        RunError: the checkpoint is missing or damaged or belongs to another network, the data has
            another number of classes, or output_dir cannot be written.
    """
    target = Path(os.path.abspath(output_dir))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise UsageError(f"--output_dir={output_dir} is there already: choose a new directory")
    prefix = find(checkpoint)
    with open_reader(prefix) as (_, reader):
        shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    genotype = genotypes.load("published")
    identity, num_classes = infer_identity(prefix, shapes)
    with tf.Graph().as_default():  # where variables take no memory: widths may be anything
        planned = make_network(genotype, identity, num_classes)
    names, slots = match_variables(prefix, planned, shapes, types)
    classes = name_classes(num_classes, description)
    network = make_network(genotype, identity, num_classes)
    with open_reader(prefix) as (_, reader):
        values = {path: reader.get_tensor(name) for path, name in names.items()}
        step = int(reader.get_tensor(STEP)) if STEP in shapes else read_step(prefix)
    for path, name in names.items():
        if not np.isfinite(values[path]).all():
            raise RunError(f"the checkpoint {prefix} cannot be used: {name} is not finite")
    for variable in network.variables:
        variable.assign(values[variable.path])
    network.class_names, network.palette = classes.names, classes.palette
    with write_directory_atomically(target, "--output_dir") as unfinished:
        write_run(unfinished, prefix, network, genotype, identity, classes, step)

    averages = sum(name.endswith(f"/{AVERAGE}") for name in names.values())
    skipped = [f"{len(slots)} optimizer slots"] * bool(slots) + [STEP] * (STEP in shapes)
    mapped = (
        f"{prefix}: {len(names)} variables mapped"
        + (f" ({averages} of them moving averages)" if averages else "")
        + (f", {' and '.join(skipped)} skipped" if skipped else "")
    )
    return "\n".join(
        [
            mapped,
            f"network: {describe_network(network, identity, num_classes)}",
            genotype.describe(),
            f"classes: {describe_classes(classes)}",
            f"imported at step {step}: {output_dir}, a --model_dir for eval, predict, export, "
            "profile",
        ]
    )


def find(path: str) -> str:
    """The path prefix of a TF1 checkpoint, from the prefix, one of its files, or its directory.

    Raises:
        RunError: there is none.
    """
    if os.path.isdir(path):
        files = glob.glob(os.path.join(glob.escape(path), "*.index"))
        prefixes = [file.removesuffix(".index") for file in files]
        if not prefixes:
            raise RunError(f"--checkpoint={path}: there is no checkpoint in this directory")
        # The file that names the newest one holds paths of where it was trained: a copy of it may
        # name files that are not in this directory.
        state = None
        with contextlib.suppress(Exception):  # of many kinds, if that file is damaged
            read_small(os.path.join(path, "checkpoint"))  # which ends
            state = tf.train.get_checkpoint_state(path)
        newest = os.path.join(path, os.path.basename(state.model_checkpoint_path if state else ""))
        return newest if newest in prefixes else max(prefixes, key=read_step)
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path)
    if not os.path.isfile(f"{prefix}.index"):
        raise RunError(
            f"--checkpoint={path}: there is no {prefix}.index; give the path of a checkpoint up to "
            "its step, such as train/model.ckpt-1500000"
        )
    return prefix


def read_step(prefix: str) -> int:
    """The number at the end of a checkpoint's path, 0 if there is none."""
    number = re.search(r"-(\d+)$", prefix)
    return int(number[1]) if number else 0


def infer_identity(prefix: str, shapes: Shapes) -> tuple[run_record.Record, int]:
    """Reads from variables' shapes the identity of the network's run, and its number of classes.

    A variable that is missing counts as as wide as the release's; `match_variables` reports it.

    Args:
        prefix: of the checkpoint.
        shapes: of its variables, by name.

    Raises:
        RunError: a width is none that a network can have.
    """

    def channels(name: str, usual: int, most: int = run_record.LARGEST) -> int:
        shape = shapes.get(name)
        if shape and not 0 < shape[-1] <= most:
            raise RunError(
                f"the checkpoint {prefix} does not hold a nas_hnasnet: {name} has {shape[-1]} "
                f"channels, not 1 to {most}"
            )
        return shape[-1] if shape else usual

    identity = {
        "filter_multiplier": channels("hnasnet/cell_0/1x1/weights", 20),
        "stem_filters": [
            channels(f"hnasnet/conv{number}/weights", usual)
            for number, usual in enumerate((64, 64, 128))
        ],
        "head_filters": channels("concat_projection/weights", 256),
        # The release's.
        "batch_norm_decay": 0.9997,
        "fine_tune_batch_norm": True,
        "drop_path_keep_prob": 1.0,
    }
    return identity, channels("logits/semantic/weights", 19, 256)


def match_variables(
    prefix: str, network: Network, shapes: Shapes, types: Mapping[str, Any]
) -> tuple[dict[str, str], list[str]]:
    """Compares the network with the checkpoint.

    Args:
        prefix: of the checkpoint.
        network: built, if only in a graph.
        shapes, types: of the checkpoint's variables, by name.

    Returns:
        The path of each variable of the network -> the name in the checkpoint of what it gets, its
        moving average if that is there; and the names of optimizers' variables.

    Raises:
        RunError: the two are not the same in names, shapes and types.
    """
    plain = {variable.path: find_tf1_name(variable.path) for variable in network.variables}
    averages = {name for name in shapes if name.endswith(f"/{AVERAGE}")}
    names, missing, wrong = {}, [], []
    for variable in network.variables:
        name = plain[variable.path]
        average = f"{name}/{AVERAGE}"
        # Those of moving statistics need not be there: they are averages already.
        if average in averages or (averages and variable.trainable):
            name = average
        names[variable.path] = name
        if name not in shapes:
            missing.append(name)
        elif tuple(shapes[name]) != tuple(variable.shape):
            wrong.append(f"{name} {tuple(shapes[name])}, not {tuple(variable.shape)}")
        elif types[name] != tf.float32:
            wrong.append(f"{name} {types[name].name}, not float32")
    slots = [name for name in shapes if name.rpartition("/")[2] in (*SLOTS, *POWERS)]
    left_over = sorted(shapes.keys() - {*plain.values(), *names.values(), *slots, STEP})
    problems = describe_differences(missing, left_over, wrong)
    if problems:
        for kind, all_names in (("missing", missing), ("left over", left_over), ("wrong", wrong)):
            for name in all_names:
                print(f"{kind}: {shorten(name)}", file=sys.stderr)
        if any("_depthwise/" in name for name in left_over):
            problems += (
                "; read are networks as the paper's, trained with aspp_with_separable_conv=false "
                "and decoder_use_separable_conv=false"
            )
        raise RunError(
            f"the checkpoint {prefix} does not hold a nas_hnasnet of F = "
            f"{network.cells[0].filters}: {problems}"
        )
    return names, slots


def name_classes(num_classes: int, description: Description | None) -> Classes:
    """The classes, from the data's description or else from their number.

    Raises:
        RunError: the data has another number of classes.
    """
    if description:
        if description.num_classes != num_classes:
            raise RunError(
                f"--data_dir={description.data_dir} has {description.num_classes} classes, the "
                f"network in the checkpoint {num_classes}: give the data that it was trained on"
            )
        return Classes(description.name, description.class_names, description.palette, False)
    if num_classes == len(datasets.CITYSCAPES_NAMES):
        return Classes(
            "cityscapes", datasets.CITYSCAPES_NAMES, datasets.CITYSCAPES_PALETTE, guessed=True
        )
    if num_classes == len(datasets.VOC_NAMES):
        return Classes("voc2012", datasets.VOC_NAMES, datasets.VOC_PALETTE, guessed=True)
    names = [f"class {number}" for number in range(num_classes)]
    return Classes("unknown", names, datasets.make_distinct_palette(num_classes), guessed=True)


def write_run(
    directory: Path,
    prefix: str,
    network: Network,
    genotype: Genotype,
    identity: run_record.Record,
    classes: Classes,
    step: int,
) -> None:
    """Writes what a training would have left."""
    source = os.path.abspath(prefix)
    Checkpoints(str(directory / "checkpoints"), {"weights": network.variables}).save(step)
    published = Genotype(genotype.path, genotype.cells, meta={**genotype.meta, "imported": source})
    published.save(directory / run_record.GENOTYPE)
    facts = {
        "dataset": classes.dataset,
        "class_names": classes.names,
        "palette": classes.palette,
        run_record.GUESSED: classes.guessed,
        run_record.IMPORTED: source,
        run_record.CONFIG: network.get_config(),
    }
    identity = {"genotype": run_record.describe_architecture(genotype), **identity}
    run_record.write(str(directory), "train", identity, facts)


def describe_network(network: Network, identity: run_record.Record, num_classes: int) -> str:
    """The network's size in words."""
    parameters = sum(variable.shape.num_elements() for variable in network.trainable_variables)
    stem = ", ".join(map(str, identity["stem_filters"]))
    return (
        f"nas_hnasnet, F = {identity['filter_multiplier']}, {num_classes} classes, "
        f"{parameters:,} parameters; stem {stem}, ASPP and decoder {identity['head_filters']}"
    )


def describe_classes(classes: Classes) -> str:
    """The first few classes, and where their names are from."""
    names = ", ".join(classes.names[:3]) + (", ..." if len(classes.names) > 3 else "")
    if classes.guessed:
        return f"{names} (guessed from their number; --data_dir would tell)"
    return f"{names} ({classes.dataset})"

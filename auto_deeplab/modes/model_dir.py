"""What modes share of model_dir: whether a run may begin or go on there, and what it holds."""

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from auto_deeplab.modes.data import PathLike
from auto_deeplab.network.network import Network
from auto_deeplab.report import pages
from auto_deeplab.runs import run_record
from auto_deeplab.runs.run_record import Record
from auto_deeplab.runs.saved_network import load_network as load_saved_network
from auto_deeplab.runs.saved_network import locate_checkpoint, read_scale
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype
from official import checkpoints, distribution, history, optimizers
from official.errors import RunError, UsageError, shorten
from official.evaluation import Logits, Sample, Show
from official.files import own_directory, remove_leftovers, write_atomically
from official.progress import say
from official.records import Description
from official.sizes import OWN_SIZE, Sizes


def make_identity(names: Sequence[str], *groups: Any, **values: Any) -> Record:
    """The values that must be equal for a run to go on, by their flags' names.

    Args:
        names: which ones, as run_record.check needs them.
        groups: dataclasses whose fields have flags' names.
        values: further ones.
    """
    for group in groups:
        values |= {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
    return {name: values[name] for name in names}


def identify_data(description: Description) -> str:
    """Which data a run is of, wherever they lie."""
    return f"{description.name} {description.fingerprint()}"


def list_defaults(*kinds: type) -> Record:
    """The defaults of dataclasses' fields; see run_record.compare."""
    return {
        field.name: field.default
        for kind in kinds
        for field in dataclasses.fields(kind)
        if field.default is not dataclasses.MISSING
    }


def check_model_dir(
    model_dir: str, mode: str, identity: Record, defaults: Record, checkpoint: str | None
) -> None:
    """Checks that a run can begin, or go on, in model_dir.

    Args:
        model_dir: need not exist.
        mode: "search" or "train".
        identity, defaults: as in run_record.check.
        checkpoint: from which to go on; None: the newest.

    Raises:
        UsageError: it cannot; OtherRunError if because another run is there.
    """
    free = run_record.STEERING if checkpoint else ()
    run_record.check(model_dir, mode, identity, defaults, free)
    own = Path(model_dir, "checkpoints")
    given = Path(locate_checkpoint(model_dir, checkpoint))
    if not given.resolve().is_relative_to(own.resolve()):
        raise UsageError(
            f"--checkpoint={checkpoint} is not in {own}: --mode={mode} goes on from "
            "its own checkpoints only; --init_checkpoint starts a training from another's"
        )


@contextlib.contextmanager
def own_model_dir(model_dir: str, strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Makes model_dir and keeps other runs out of it; the chief does so for all workers.

    Raises:
        RunError: another process has it, or it cannot be written.
    """
    workers = distribution.interrupts_of(strategy)
    if not distribution.is_chief(strategy):
        workers.meet()
        yield
        return
    with own_directory(model_dir, "--model_dir"):
        for directory in (model_dir, os.path.join(model_dir, "figures")):
            remove_leftovers(directory)
        workers.meet()  # Only now may the others touch what is theirs below it.
        yield


def write_record(
    model_dir: str,
    mode: str,
    identity: Record,
    description: Description,
    flagfile: str | None,
    facts: Record | None = None,
    branches: Sequence[Record] = (),
) -> None:
    """Writes run.json, and flags.cfg, with which the run can be resumed.

    Args:
        model_dir, mode, identity: as in check_model_dir.
        description: of the data.
        flagfile: the content of flags.cfg; None: none is written.
        facts: more that run.json is to hold.
        branches: where the run was led back, if it was.
    """
    own: Record = {
        "dataset": description.name,
        "class_names": description.class_names,
        "palette": description.palette,
        run_record.SCALE: Sizes.from_options(description.options).to_options(),
        run_record.IMAGE_SIZE: description.most_frequent_size(),
    }
    if branches:
        own[run_record.BRANCHES] = list(branches)
    run_record.write(model_dir, mode, identity, own | (facts or {}))
    if flagfile is not None:
        write_atomically(os.path.join(model_dir, run_record.FLAGS_FILE), flagfile)


def write_page(model_dir: str) -> None:
    """Writes report.html from what stands in model_dir; a failure is only warned of."""
    with pages.only_warned_of(os.path.join(model_dir, pages.FILE)):
        pages.write_run(model_dir, run_record.read_if_there(model_dir), history.read(model_dir))


def keep_samples(model_dir: str, description: Description) -> Show:
    """What keeps the samples of an evaluation for the page; a failure is only warned of."""

    def keep(samples: list[Sample]) -> None:
        with pages.only_warned_of(os.path.join(model_dir, pages.SAMPLES)):
            pages.keep_samples(model_dir, description.palette, samples)

    return keep


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins or goes on.

    Attributes:
        store: its checkpoints, restored.
        step: how many steps are made.
        branches: for write_record.
    """

    store: checkpoints.Checkpoints
    step: int
    branches: Sequence[Record]


def restore(
    model_dir: str,
    checkpoint: str | None,
    strategy: tf.distribute.Strategy,
    groups: Mapping[str, tuple[Any, keras.optimizers.Optimizer | None]],
    identity: Record,
    keep: int,
) -> Start:
    """Restores the newest checkpoint that is whole, or the one that is asked for.

    One that is asked for leads the run back, once: what came after it is set aside. When the same
    command is given again, as after a kill, the run goes on from its newest.

    Args:
        model_dir: the run's.
        checkpoint: which one; None: the newest.
        strategy: the run's.
        groups: name -> (variables, their optimizer or None).
        identity: the run's; flags of run_record.STEERING may have changed.
        keep: how many checkpoints are kept.

    Raises:
        RunError: the run has reports and no checkpoint, or the one asked for cannot be used.
    """
    directory = os.path.join(model_dir, "checkpoints")
    saved, optional = {}, []
    for name, (variables, optimizer) in groups.items():
        saved[name] = variables
        if optimizer is None:
            continue
        saved[f"{name}_optimizer"] = optimizers.rule_variables(optimizer)
        saved[f"{name}_loss_scale"] = optimizers.loss_scale_variables(optimizer)
        optional.append(f"{name}_loss_scale")
    store = checkpoints.Checkpoints(
        directory,
        saved,
        keep,
        save_to=distribution.worker_directory(directory, strategy),
        optional=optional,
    )
    record = run_record.read_if_there(model_dir)
    branches = record.get(run_record.BRANCHES, [])
    changed = run_record.differences(record, identity, {}) if record else {}
    if checkpoint and not changed and branches and branches[-1]["checkpoint"] == checkpoint:
        say(f"--checkpoint={checkpoint} led back there before: going on from the newest")
        checkpoint = None
    if checkpoint is None:
        check_not_lost(model_dir, store.latest())
        step = store.restore()
        moved = store.set_aside(step)  # those that are damaged
    else:
        step = store.restore(locate_checkpoint(model_dir, checkpoint))
        moved = store.set_aside(step, ("ckpt", "best"))
        branches = [*branches, {"checkpoint": checkpoint, "step": step, "changed": changed}]
    if moved:
        say(f"{', '.join(map(os.path.basename, moved))} kept apart in {os.path.dirname(moved[0])}")
    return Start(store, step, branches)


def check_not_lost(model_dir: str, newest: str | None) -> None:
    """Raises RunError if a run that has saved has no checkpoint any more."""
    rows = [] if newest else history.read(model_dir)
    # Earlier versions do not tell whether they had saved.
    if rows and rows[-1].get("saved", rows[-1]["step"]):
        raise RunError(
            f"{os.path.join(model_dir, history.FILE)} tells of {rows[-1]['step']} steps, but "
            f"{os.path.join(model_dir, 'checkpoints')} holds no checkpoint: restore it, or begin "
            "anew in another --model_dir"
        )


def explain_bad_loss(
    model_dir: str,
    images: Sequence[str],
    rates: Mapping[str, float],
    prefix: str | None,
    command: Sequence[str],
) -> str:
    """What a user does about a loss that is not good, in the words that end the error's line.

    Args:
        model_dir: the run's.
        images: the names of those that gave the loss.
        rates: flag -> the value to try.
        prefix: of the newest checkpoint from before; None: there is none.
        command: with which the command line begins.
    """
    flags = [f"--flagfile={os.path.join(model_dir, run_record.FLAGS_FILE)}"]
    flags += [f"--{name}={value:.3g}" for name, value in rates.items()]
    if prefix:
        flags.append(f"--checkpoint={prefix}")
    else:  # what is there cannot be gone on from
        flags.append(f"--model_dir={model_dir.rstrip('/')}_2")
    shown = ", ".join(shorten(name) for name in images[:2])
    return (
        f" (images {shown}{', ...' if len(images) > 2 else ''}); to go on at a lower rate: "
        f"{shlex.join([*command, *flags])}"
    )


def add_loss_scale(
    optimizer: keras.optimizers.Optimizer, precision: str
) -> keras.optimizers.Optimizer:
    """The optimizer, with loss scaling if the precision needs it."""
    return optimizers.with_loss_scale(optimizer) if precision == "float16" else optimizer


def load_genotype(genotype: Genotype | PathLike) -> Genotype:
    """The preset or file of that name, as --genotype gives it; a Genotype is one already.

    Raises:
        UsageError: there is none, or it is no architecture.
    """
    if isinstance(genotype, Genotype):
        return genotype
    try:
        return genotypes.load(genotype)
    except ValueError as error:
        raise UsageError(f"--genotype: {error}") from None


def read_training(model_dir: str, num_classes: int | None = None) -> Record:
    """What the model_dir of a training remembers.

    Args:
        model_dir: the training's.
        num_classes: the number of classes that is expected, or None.

    Raises:
        UsageError: there is no training, or its network has another number of classes.
    """
    record = run_record.read(model_dir, "train")
    count = len(record["class_names"])
    if num_classes is not None and num_classes != count:
        raise UsageError(
            f"--num_classes={num_classes}, but the network in --model_dir={model_dir} "
            f"has {count} classes: leave the flag away"
        )
    return record


def load_network(
    model_dir: str, checkpoint: str | None, strategy: tf.distribute.Strategy
) -> tuple[Network, int, str]:
    """The network of model_dir with a checkpoint's weights, its step, and the checkpoint's path."""
    say(run_record.read_genotype(model_dir).describe())
    with strategy.scope():
        return load_saved_network(model_dir, checkpoint)


def as_logits(network: Network) -> Logits:
    """The network as a function of images alone."""
    return lambda images: network(images, training=False)


def check_classes(record: Record, model_dir: str, description: Description) -> None:
    """Raises UsageError if the data's classes are not those of the network in model_dir."""
    guessed = record.get(run_record.GUESSED)
    if guessed and len(record["class_names"]) == description.num_classes:
        return  # a TF1 checkpoint has no names: the data's are as good
    if record["class_names"] != list(description.class_names):
        classes = f"{len(record['class_names'])} classes"
        raise UsageError(
            f"--data_dir={description.data_dir} has the classes "
            f"{', '.join(description.class_names)}, the network in --model_dir={model_dir} was "
            f"trained on {classes if guessed else ', '.join(record['class_names'])}: give data of "
            "the same classes"
        )


def choose_scale(
    record: Record,
    model_dir: str,
    predict_scale: float | None,
    description: Description | None = None,
) -> Sizes:
    """What is done to images before the network sees them, which is said too.

    Args:
        record: of the training. One that is too old to know its data's scale leaves images alone.
        model_dir: the training's.
        predict_scale: a factor that the user wants; None: images come to the training data's scale.
        description: of the data that the images are from; None for a user's own pictures.

    Raises:
        UsageError: nobody can tell how the data's scale becomes the network's.
    """
    data = Sizes.from_options(description.options if description else {})
    known = read_scale(record) or data
    sizes = Sizes(predict_scale) if predict_scale else known.compute_rest(data)
    if sizes is None:
        assert description  # a user's own pictures come to any scale
        raise UsageError(
            f"--data_dir={description.data_dir} has {data}, the network in --model_dir={model_dir} "
            f"was trained on {known}: give the factor between them as --predict_scale, or 1 to "
            "take the images as they are"
        )
    to_own_size = "" if sizes == OWN_SIZE else " for the network, answers as large as the images"
    say(f"scale: {sizes}{to_own_size}")
    return sizes

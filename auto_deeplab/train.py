"""The command: search, decode, train, eval, predict, export and profile.

    python auto_deeplab/train.py --mode=search --flagfile=auto_deeplab/configs/search_cityscapes.cfg

Flags (see flag_definitions.py) are read here and nowhere else.
"""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    if not __package__:
        # Python puts this file's folder first; modules are found from the repository's root.
        sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from absl import flags

    from auto_deeplab.modes import mode_flags
    from official.errors import answer_help, errors_in_one_line
    from official.quiet import import_tensorflow

    with errors_in_one_line():  # before TensorFlow takes its seconds
        answer_help(partial(mode_flags.help_text, flags.FLAGS))
    import_tensorflow()

import keras
import tensorflow as tf
from absl import flags

from auto_deeplab.budget import cost_table, expected_cost
from auto_deeplab.modes import flag_definitions, mode_flags
from auto_deeplab.modes.flag_definitions import (
    CONFIGS,
    DEFAULTS,
    NEEDED,
    SEARCH_IDENTITY,
    TRAIN_IDENTITY,
)
from auto_deeplab.network.network import Network
from auto_deeplab.network.retrain import Retrain
from auto_deeplab.report import figures, summary
from auto_deeplab.runs import run_record, saved_network
from auto_deeplab.runs.run_record import NETWORK, NETWORK_SHAPE
from auto_deeplab.runs.saved_network import (
    check_genotype,
    find_checkpoint,
    new_network,
    trained_network,
)
from auto_deeplab.search import bilevel
from auto_deeplab.search.architecture import Architecture
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.search.trellis import default_stem_filters
from auto_deeplab.space import decoding
from auto_deeplab.space import genotype as genotypes
from auto_deeplab.space.genotype import Genotype
from official import (
    checkpoints,
    confusion_matrix,
    distribution,
    input_pipeline,
    model_cost,
    optimizers,
    preprocessing,
    schedules,
)
from official.errors import RunError, UsageError, run_app
from official.evaluation import Logits, class_table, split_evaluator, write_metrics
from official.export import export
from official.files import make_directory
from official.flagfiles import located
from official.prediction import picture_files, predict, split_images
from official.records import Description, explain, read_description
from official.sizes import OWN_SIZE, Sizes
from official.submission import Submission, new_submission
from official.training_loop import Row, read_history, run

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(flag_definitions)

DEVICES = ("precision", "distribution_strategy", "deterministic")
"""What `start` sets."""

MEMORY_REMEDY = dict.fromkeys(NEEDED, "the images are too large for this device") | dict.fromkeys(
    ("search", "train"),
    "give a smaller --batch_size or --crop_size (evaluation takes whole images, whatever the crop)",
)


def start_app() -> None:
    """Runs the command line: see errors.run_app."""
    run_app(main, help_text=partial(mode_flags.help_text, FLAGS), flagfile_directories=CONFIGS)


def main() -> None:
    """Runs the mode."""
    modes = {
        "search": search_mode,
        "decode": decode_mode,
        "train": train_mode,
        "eval": eval_mode,
        "predict": predict_mode,
        "export": export_mode,
        "profile": profile_mode,
    }
    if FLAGS.mode is None:
        raise UsageError(f"--mode is needed: one of {', '.join(modes)}")
    for name, value in DEFAULTS.get(FLAGS.mode, {}).items():
        FLAGS.set_default(name, value)
    mode_flags.check(located(sys.argv[1:], also=CONFIGS), FLAGS)
    needed(*NEEDED[FLAGS.mode])
    try:
        modes[FLAGS.mode]()
    except tf.errors.ResourceExhaustedError as error:
        if "No space left" in error.message:  # a full disk
            raise RunError(explain(error)) from None
        raise RunError(f"out of memory: {MEMORY_REMEDY[FLAGS.mode]}") from None
    except Exception as error:
        error.add_note(f"--mode={FLAGS.mode}")
        raise


def search_mode() -> None:
    """Searches: weights alone first, then weights and architecture in turn."""
    began = time.monotonic()
    if FLAGS.alpha_start_epoch >= FLAGS.epochs:
        raise UsageError(
            f"--alpha_start_epoch={FLAGS.alpha_start_epoch} is not below --epochs={FLAGS.epochs}: "
            "alpha and beta would never move"
        )
    if FLAGS.min_learning_rate > FLAGS.learning_rate:
        raise UsageError(
            f"--min_learning_rate={FLAGS.min_learning_rate} is above "
            f"--learning_rate={FLAGS.learning_rate}: the rate falls from the second to the first"
        )
    table = checked_cost_table()
    FLAGS.stem_filters = FLAGS.stem_filters or run_record.recall(
        *(FLAGS.model_dir, "stem_filters"),
        list(default_stem_filters(FLAGS.num_blocks, FLAGS.filter_multiplier)),
    )
    identity = flags_identity(SEARCH_IDENTITY)
    identity["cost_table"] = table.digest() if table else None
    check_model_dir(identity)

    strategy, description = start(), read_data()
    halves = input_pipeline.split_halves(
        description.split(FLAGS.train_split).num_examples, FLAGS.seed
    )
    check_training_data(description, strategy, len(halves[0]))
    identity["data_dir"] = data_identity(description)
    check_model_dir(identity)
    epoch_steps = input_pipeline.steps_per_epoch(len(halves[0]), FLAGS.batch_size)
    total_steps = FLAGS.epochs * epoch_steps
    first_search_step = FLAGS.alpha_start_epoch * epoch_steps

    rate = schedules.cosine(FLAGS.learning_rate, FLAGS.min_learning_rate, total_steps)
    with strategy.scope():
        searching = new_search(rate, description, strategy, table)
    architecture, weights = searching.architecture, searching.supernet.variables
    store, start_step = restored(
        strategy,
        weights=(weights, searching.weight_optimizer),
        architecture=(architecture.variables, searching.architecture_optimizer),
    )
    if distribution.is_chief(strategy):
        write_record(identity, description)

    evaluate = validation(searching.logits, description, strategy)

    def report(done: int) -> Row:
        in_phase_one = done <= first_search_step
        return {
            "phase": "weights" if in_phase_one else "weights and architecture",
            "learning_rate": float(rate(done - 1)),
            **evaluate(),
            **bilevel.report(architecture, searching.expected_cost()),
        }

    def stream(number: int, first_step: int) -> Iterator[Any]:
        return input_pipeline.distributed_batches(
            *(strategy, description, FLAGS.train_split),
            start_step=max(0, start_step - first_step),
            records=halves[number],
            stream=number,
            **stream_options(),
        )

    stream_a, stream_b = stream(0, 0), stream(1, first_search_step)
    report_every = FLAGS.eval_every or epoch_steps
    rows = run(
        "search",
        searching.steps,
        bilevel.batches(stream_a, stream_b, start_step, first_search_step),
        report,
        model_dir=FLAGS.model_dir,
        start_step=start_step,
        total_steps=total_steps,
        epoch_steps=epoch_steps,
        batch_size=FLAGS.batch_size,
        save=store.save,
        save_every=FLAGS.save_every or report_every,
        report_every=report_every,
        steps_per_loop=FLAGS.steps_per_loop,
        passes=bilevel.passes(first_search_step, FLAGS.second_order),
        writes=distribution.is_chief(strategy),
    )
    if distribution.is_chief(strategy):
        say(
            summary.of_search(
                rows,
                write_architecture(architecture, total_steps, description.name, FLAGS.seed),
                seconds=time.monotonic() - began,
                learning_rate=FLAGS.arch_learning_rate,
                updates=total_steps - first_search_step,
                model_dir=FLAGS.model_dir,
                data_dir=FLAGS.data_dir,
                crop_size=FLAGS.crop_size,
                resize_factor=description.options.get("resize_factor", 1.0),
            )
        )


def decode_mode() -> None:
    """Makes genotype.json and the figures again, from any checkpoint of a search."""
    record = run_record.read(FLAGS.model_dir, "search")
    architecture = new_architecture(record["identity"])
    path = find_checkpoint(FLAGS.model_dir, FLAGS.checkpoint)
    step = checkpoints.restore(path, {"architecture": architecture.variables})
    write_architecture(architecture, step, record["dataset"], record["identity"]["seed"])


def train_mode() -> None:
    """Trains the network of a genotype."""
    began = time.monotonic()
    genotype = genotype_to_train()
    check_batch_norm()
    check_mining()
    identity = {
        "genotype": run_record.architecture(genotype),
        **flags_identity(TRAIN_IDENTITY),
    }
    check_model_dir(identity)
    check_init_checkpoint(genotype)

    strategy, description = start(), read_data()
    num_records = description.split(FLAGS.train_split).num_examples
    check_training_data(description, strategy, num_records)
    identity["data_dir"] = data_identity(description)
    check_model_dir(identity)
    say(genotype.describe())

    rate = schedules.polynomial(FLAGS.learning_rate, FLAGS.train_steps)
    with strategy.scope():
        training = new_training(genotype, identity, rate, description, strategy)
    network, averaged = training.network, training.averaged
    averages = {"average": (averaged.variables, None)} if averaged else {}
    store, start_step = restored(
        strategy, weights=(network.variables, training.optimizer), **averages
    )
    if start_step == 0 and FLAGS.init_checkpoint:
        start_from_init_checkpoint(network, description)
        training.start_averages()
    if distribution.is_chief(strategy):
        genotype.save(os.path.join(FLAGS.model_dir, run_record.GENOTYPE))
        write_record(identity, description)

    evaluate = validation(answers(averaged or network), description, strategy)
    stream = input_pipeline.distributed_batches(
        *(strategy, description, FLAGS.train_split), start_step=start_step, **stream_options()
    )
    report_every = FLAGS.eval_every or max(1, FLAGS.train_steps // 20)
    rows = run(
        "train",
        training.steps,
        ((batch,) for batch in stream),
        lambda done: {"phase": "train", "learning_rate": float(rate(done - 1)), **evaluate()},
        model_dir=FLAGS.model_dir,
        start_step=start_step,
        total_steps=FLAGS.train_steps,
        epoch_steps=input_pipeline.steps_per_epoch(num_records, FLAGS.batch_size),
        batch_size=FLAGS.batch_size,
        save=store.save,
        save_every=FLAGS.save_every or report_every,
        report_every=report_every,
        steps_per_loop=FLAGS.steps_per_loop,
        writes=distribution.is_chief(strategy),
    )
    if distribution.is_chief(strategy):
        figures.history(rows, run_record.figure(FLAGS.model_dir, "history"))
        say(f"trained: {store.latest()}")
        places = {"model_dir": FLAGS.model_dir, "data_dir": FLAGS.data_dir}
        say(summary.of_training(rows, seconds=time.monotonic() - began, **places))


def eval_mode() -> None:
    """Evaluates a trained network on whole images; the metrics are the last line on stdout."""
    if FLAGS.output and os.path.isdir(FLAGS.output):
        raise UsageError(f"--output={FLAGS.output} is a directory: give a file")
    record = trained_record()
    strategy, description = start(), read_data()
    check_classes(record, description)
    warn_of_scale(record, description)
    description.split(FLAGS.eval_split)
    network, step, path = trained(strategy)
    evaluate = split_evaluator(
        answers(network),
        description,
        FLAGS.eval_split,
        strategy=strategy,
        max_images=FLAGS.max_eval_images,
        scales=FLAGS.eval_scales,
        flip=FLAGS.eval_flip,
    )
    metrics, counts = evaluate()
    say(class_table(metrics))
    written, table, picture = evaluation_files(evaluation_name(record, description, step))
    confusion_matrix.write(table, counts, metrics["class_names"])
    confusion_matrix.draw(picture, counts, metrics, split=FLAGS.eval_split, step=step)
    line = write_metrics(written, metrics, split=FLAGS.eval_split, step=step, checkpoint=path)
    say(f"written: {written}, {table}, {picture}")
    print(line)


def evaluation_name(record: run_record.Record, description: Description, step: int) -> str:
    """What tells this evaluation from the plain one, which is all of val, once, at scale 1."""
    parts = []
    if FLAGS.eval_split != FLAGS["eval_split"].default:
        parts.append(FLAGS.eval_split)
    if record["identity"].get("data_dir", data_identity(description)) != data_identity(description):
        parts.append(f"on_{os.path.basename(os.path.abspath(FLAGS.data_dir))}")
    if (FLAGS.max_eval_images or math.inf) < description.split(FLAGS.eval_split).num_examples:
        parts.append(f"{FLAGS.max_eval_images}_images")
    if FLAGS.checkpoint:
        parts.append(f"step_{step}")
    if FLAGS.eval_scales != [1.0]:
        parts.append("_".join(("scales", *(f"{scale:g}" for scale in FLAGS.eval_scales))))
    if FLAGS.eval_flip:
        parts.append("flip")
    return "".join(f"_{part}" for part in parts)


def evaluation_files(name: str) -> tuple[str, str, str]:
    """Where metrics, confusion matrix and its picture go: into model_dir, or beside --output."""
    if FLAGS.output:
        make_directory(os.path.dirname(os.path.abspath(FLAGS.output)))
        matrix = os.path.splitext(FLAGS.output)[0] + "_confusion_matrix"
        return FLAGS.output, f"{matrix}.csv", f"{matrix}.png"
    return (
        os.path.join(FLAGS.model_dir, f"metrics{name}.json"),
        os.path.join(FLAGS.model_dir, f"confusion_matrix{name}.csv"),
        run_record.figure(FLAGS.model_dir, f"confusion_matrix{name}"),
    )


def predict_mode() -> None:
    """Segments pictures, or the images of a split."""
    if FLAGS.input is None and FLAGS.data_dir is None:
        raise UsageError(
            "--mode=predict needs --input (pictures) or --data_dir (the images of its split "
            "--eval_split)"
        )
    strategy, record = start(), trained_record()
    class_names, palette = record["class_names"], record["palette"]
    # A flagfile may name the data: --input says that other pictures are meant.
    description = None if FLAGS.input else read_data()
    if description:
        check_classes(record, description)
        class_names, palette = description.class_names, description.palette
    submission = submission_form(class_names, description)
    sizes = scale_of_images(record, description)
    if description:
        pictures = split_images(description, FLAGS.eval_split)
    else:
        pictures = picture_files(FLAGS.input, FLAGS.output_dir)
    network, _, _ = trained(strategy)
    done = predict(
        answers(network),
        pictures,
        FLAGS.output_dir,
        class_names=class_names,
        palette=palette,
        scales=FLAGS.eval_scales,
        flip=FLAGS.eval_flip,
        sizes=sizes,
        submission=submission,
    )
    say(f"{len(done)} images segmented: {FLAGS.output_dir}")


def export_mode() -> None:
    """Writes a SavedModel."""
    strategy, record = start(), trained_record()
    sizes = scale_of_images(record)
    network, _, _ = trained(strategy)
    path = export(
        network,
        FLAGS.export_dir or os.path.join(FLAGS.model_dir, "export"),
        class_names=record["class_names"],
        palette=record["palette"],
        probabilities=FLAGS.export_probabilities,
        sizes=sizes,
    )
    say(f"exported: {path}")


def profile_mode() -> None:
    """Prints parameters and multiply-adds per part: a table, then JSON on the last line.

    With --cost_table: writes what all pieces of all networks cost, then prints JSON.
    """
    if FLAGS.cost_table:
        return write_cost_table()
    for name in ("cost_metric", "operations", "num_layers", "num_blocks", *DEVICES):
        if FLAGS[name].present:
            raise UsageError(
                f"--{name} says how --cost_table is measured, which is not given: give that too"
            )
    if FLAGS.model_dir:
        record, genotype = trained_record(), run_record.read_genotype(FLAGS.model_dir)
        check_network_flags(record, genotype)
        identity = record["identity"]
        num_classes = len(record["class_names"])
    else:
        needed("genotype")
        genotype, num_classes = named_genotype(), FLAGS.num_classes
        identity = flag_defaults(NETWORK) | {name: FLAGS[name].value for name in NETWORK_SHAPE}
    say(genotype.describe())
    network = new_network(genotype, identity, num_classes)
    parts = model_cost.count(network, tuple(FLAGS.crop_size))
    print(model_cost.format_table(parts, tuple(FLAGS.crop_size)))
    print(json.dumps(model_cost.summary(parts, tuple(FLAGS.crop_size))))


def write_cost_table() -> None:
    """Measures the pieces of all networks that a search can find, and writes --cost_table."""
    for name in ("model_dir", "genotype"):
        if FLAGS[name].value is not None:
            raise UsageError(
                f"--{name}={FLAGS[name].value}: --cost_table is for all networks of the search "
                "space, not for one: leave one of the two flags away"
            )
    if os.path.isdir(FLAGS.cost_table):
        raise UsageError(f"--cost_table={FLAGS.cost_table} is a directory: give a file")
    start()
    began = time.monotonic()
    settings = {name: FLAGS[name].value for name in cost_table.SETTINGS}
    table = cost_table.measure(settings, FLAGS.cost_metric)
    table.save(FLAGS.cost_table)
    cheapest, dearest = expected_cost.bounds(table, FLAGS.operations, FLAGS.num_layers)
    summary = {
        "cost_table": FLAGS.cost_table,
        "metric": table.metric,
        "unit": cost_table.UNITS[table.metric],
        "pieces": len(table.pieces),
        "seconds": round(time.monotonic() - began, 1),
        "num_layers": FLAGS.num_layers,
        "cheapest": cheapest,
        "dearest": dearest,
    }
    print(json.dumps(summary))


# What the modes share. First, what they need to know.


def say(text: str) -> None:
    """Words for people go to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def needed(*names: str) -> None:
    """Raises UsageError if a flag that this mode needs is not given."""
    for name in names:
        if FLAGS[name].value is None:
            raise UsageError(f"--{name} is needed by --mode={FLAGS.mode}")


def start() -> tf.distribute.Strategy:
    """Sets precision, seeds and devices; must come before any other use of TensorFlow."""
    training = FLAGS.mode in ("search", "train")
    seed = FLAGS.seed if training else 0  # nothing else is random
    if FLAGS.deterministic:
        distribution.make_deterministic(seed)
    keras.utils.set_random_seed(seed)
    if FLAGS.mode == "search":
        distribution.expect_many_operations()
    strategy = distribution.make_strategy(FLAGS.distribution_strategy)
    if distribution.set_precision(FLAGS.precision) != FLAGS.precision:
        say(
            f"warning: --precision={FLAGS.precision} brings nothing on this processor, which has "
            "no instructions for it: computing in float32"
        )
    replicas = strategy.num_replicas_in_sync
    if training and FLAGS.jit_compile and FLAGS.sync_batch_norm and replicas > 1:
        raise UsageError(
            f"--jit_compile=true needs --sync_batch_norm=false on {replicas} replicas, as "
            "synchronised batch normalisation cannot be compiled; or use "
            "--distribution_strategy=one_device"
        )
    if training and FLAGS.precision == "float16" and not tf.config.list_physical_devices("GPU"):
        raise UsageError(
            f"--precision=float16: --mode={FLAGS.mode} needs a GPU for it, as TensorFlow lacks "
            "gradients in float16 elsewhere; use bfloat16 or float32"
        )
    devices = [name.rpartition("device:")[2] for name in strategy.extended.worker_devices]
    say(f"{FLAGS.mode} on {', '.join(devices)}")
    return strategy


def read_data() -> Description:
    """The data's description, checked against the flags that may repeat it or stand in for it."""
    description = read_description(FLAGS.data_dir, FLAGS.num_classes, FLAGS.ignore_label)
    for name in ("num_classes", "ignore_label"):
        value = FLAGS[name].value
        if value is not None and value != getattr(description, name):
            raise UsageError(
                f"--{name}={value}, but the data in --data_dir={FLAGS.data_dir} has "
                f"{getattr(description, name)}: leave the flag away"
            )
    return description


def check_training_data(
    description: Description, strategy: tf.distribute.Strategy, num_records: int
) -> None:
    """Raises UsageError if batch, crop or weights do not fit the devices or the data."""
    if len({*range(description.num_classes)} - {description.ignore_label}) == 1:
        raise UsageError(
            f"--data_dir={FLAGS.data_dir} has one class beside void, so there is nothing to tell "
            "apart: name a class for the rest too, such as background, instead of void"
        )
    distribution.check_batch_size(FLAGS.batch_size, strategy)
    if FLAGS.batch_size > num_records:
        raise UsageError(
            f"--batch_size={FLAGS.batch_size} is larger than the {num_records} images to train on: "
            "give a smaller one"
        )
    if FLAGS.class_weights and len(FLAGS.class_weights) != description.num_classes:
        raise UsageError(
            f"--class_weights has {len(FLAGS.class_weights)} numbers, but the data in "
            f"--data_dir={FLAGS.data_dir} has {description.num_classes} classes: give one for each"
        )
    options = stream_options()
    input_pipeline.check_crop_size(
        description, FLAGS.train_split, options["crop_size"], options["scales"]
    )
    description.split(FLAGS.eval_split)


def checked_cost_table() -> cost_table.CostTable | None:
    """The table that --cost_table names, for a search with --cost_weight; None without one.

    Raises:
        UsageError: it is needed and not there, or is not one for this search.
    """
    if not FLAGS.cost_weight:
        if FLAGS.cost_table or FLAGS.cost_budget:
            say("warning: --cost_weight=0: the search goes without --cost_table and --cost_budget")
        return None
    for name in ("cost_table", "cost_budget"):
        if FLAGS[name].value is None:
            raise UsageError(f"--{name} is needed by --cost_weight={FLAGS.cost_weight}")
    try:
        table = cost_table.load(FLAGS.cost_table)
        expected_cost.check(table, FLAGS.operations, FLAGS.num_blocks)
    except ValueError as error:
        raise UsageError(f"--cost_table: {error}") from None
    cheapest, dearest = expected_cost.bounds(table, FLAGS.operations, FLAGS.num_layers)
    if not cheapest < FLAGS.cost_budget < dearest:
        say(
            f"warning: --cost_budget={FLAGS.cost_budget} {cost_table.UNITS[table.metric]}: all "
            f"networks of this search are expected to cost {cheapest:.4g} to {dearest:.4g}, so it "
            + ("can never be kept" if FLAGS.cost_budget <= cheapest else "changes nothing")
        )
    return table


def cost_term(table: cost_table.CostTable | None) -> bilevel.CostTerm | None:
    """What a search with that table adds to the architecture's loss; None without one."""
    if table is None:
        return None
    return expected_cost.budget_term(
        table, FLAGS.operations, budget=FLAGS.cost_budget, weight=FLAGS.cost_weight
    )


def check_batch_norm() -> None:
    """Raises UsageError for a batch of one; warns of moving statistics that cannot follow."""
    decay, steps = FLAGS.batch_norm_decay, FLAGS.train_steps
    if FLAGS.fine_tune_batch_norm and FLAGS.batch_size < 2:
        raise UsageError(
            "--batch_size=1 gives batch normalisation nothing to average over: use a larger batch, "
            "or --fine_tune_batch_norm=false"
        )
    if FLAGS.fine_tune_batch_norm and decay**steps > 0.05 and not FLAGS.init_checkpoint:
        say(
            f"warning: after {steps} steps of --batch_norm_decay={decay} the moving statistics are "
            f"still {decay**steps:.0%} their initial values, which ruins evaluation: use 0.9 to "
            "0.99 for short training"
        )


def check_mining() -> None:
    """Raises UsageError for a schedule of nothing."""
    if FLAGS.hard_mining_steps and FLAGS.top_k_pixels == 1:
        raise UsageError(
            f"--hard_mining_steps={FLAGS.hard_mining_steps} has nothing to do at --top_k_pixels=1: "
            "give a smaller share too"
        )


# model_dir: what it holds, and what is written to it.


def flags_identity(names: tuple[str, ...]) -> run_record.Record:
    """What of the command line makes this run what it is; see run_record.check."""
    identity = {name: FLAGS[name].value for name in names}
    if identity.get("init_checkpoint"):
        identity["init_checkpoint"] = os.path.abspath(FLAGS.init_checkpoint)
    return identity


def data_identity(description: Description) -> str:
    """Which data a run is of, wherever they lie."""
    return f"{description.name} {description.fingerprint()}"


def flag_defaults(names: Iterable[str]) -> run_record.Record:
    """What flags are that are not given; see run_record.compare."""
    return {name: FLAGS[name].default for name in names}


def check_model_dir(identity: run_record.Record) -> None:
    """Raises UsageError if this run cannot begin, or go on, in model_dir."""
    try:
        run_record.check(FLAGS.model_dir, FLAGS.mode, identity, flag_defaults(identity))
    except run_record.OtherRunError as error:
        if error.flag in ("epochs", "train_steps") and error.value > error.recorded:
            raise UsageError(longer_run(error.flag, error.recorded, error.value)) from None
        raise
    own = Path(FLAGS.model_dir, "checkpoints")
    if FLAGS.checkpoint and not Path(FLAGS.checkpoint).resolve().is_relative_to(own.resolve()):
        raise UsageError(
            f"--checkpoint={FLAGS.checkpoint} is not in {own}: --mode={FLAGS.mode} goes on from "
            "its own checkpoints only; --init_checkpoint starts a training from another's"
        )


def longer_run(flag: str, recorded: int, value: int) -> str:
    """Why a run cannot be made longer, and the command of what can be done instead."""
    old = FLAGS.model_dir
    replaced = ("--model_dir=", "--init_checkpoint=", "--checkpoint=")
    kept = [argument for argument in sys.argv[1:] if not argument.startswith(replaced)]
    command = ["python", sys.argv[0], *kept, f"--model_dir={old.rstrip('/')}_{value}"]
    why = (
        f"--{flag} is {value}, but {recorded} in the run that --model_dir={old} holds, and its "
        "schedule was made for those"
    )
    if FLAGS.mode == "search":
        return (
            f"{why}: a longer search begins anew: {shlex.join(command)} (a search takes no weights "
            f"of another; --mode=train can train what this one found, {old}/{run_record.GENOTYPE})"
        )
    if FLAGS.genotype is None:
        command.append(f"--genotype={os.path.join(old, run_record.GENOTYPE)}")
    command.append(f"--init_checkpoint={FLAGS.checkpoint or old}")
    return f"{why}: to go on from its weights, begin another run: {shlex.join(command)}"


def check_init_checkpoint(genotype: Genotype) -> None:
    """Raises UsageError if --init_checkpoint is known to be of another network than the flags say.

    A run that goes on reads it no more.
    """
    if not FLAGS.init_checkpoint or os.path.exists(os.path.join(FLAGS.model_dir, run_record.FILE)):
        return
    flag = f"--init_checkpoint={FLAGS.init_checkpoint}"
    try:
        prefix = saved_network.find_weights(FLAGS.init_checkpoint)
        record = run_record.beside(prefix)
    except RunError as error:
        raise RunError(f"{flag}: {error}") from None
    if record and record["mode"] != "train":
        raise UsageError(
            f"{flag} is a run of --mode={record['mode']}, whose weights are no network's: give a "
            "training, or leave the flag away"
        )
    try:
        check_genotype(genotype, prefix)
    except RunError as error:
        beside = os.path.join(os.path.dirname(os.path.dirname(prefix)), run_record.GENOTYPE)
        raise UsageError(f"{flag}: {error}; give --genotype={beside}") from None
    there = {name: record["identity"][name] for name in NETWORK_SHAPE} if record else {}
    wanted = [
        f"--{name}={run_record.short(value)}".replace("[", "").replace("]", "").replace(" ", "")
        for name, value in there.items()
        if value != FLAGS[name].value
    ]
    if wanted:
        raise UsageError(f"{flag} is a network of other widths: give {' '.join(wanted)}")


def write_record(identity: run_record.Record, description: Description) -> None:
    """Writes run.json, and flags.cfg, with which the run can be resumed."""
    facts = {
        "dataset": description.name,
        "class_names": description.class_names,
        "palette": description.palette,
        run_record.SCALE: Sizes.of(description.options).options(),
    }
    run_record.write(FLAGS.model_dir, FLAGS.mode, identity, facts)
    run_record.write_flags(FLAGS.model_dir, mode_flags.of_mode(FLAGS.mode, FLAGS))


def trained_record() -> run_record.Record:
    """What the model_dir of a training remembers; --num_classes given again must say the same."""
    record = run_record.read(FLAGS.model_dir, "train")
    count = len(record["class_names"])
    if FLAGS["num_classes"].present and FLAGS.num_classes != count:
        raise UsageError(
            f"--num_classes={FLAGS.num_classes}, but the network in --model_dir={FLAGS.model_dir} "
            f"has {count} classes: leave the flag away"
        )
    return record


def check_network_flags(record: run_record.Record, genotype: Genotype) -> None:
    """Raises UsageError if flags describe another network than the one in model_dir."""
    given = {name: FLAGS[name].value for name in NETWORK_SHAPE if FLAGS[name].present}
    run_record.compare(record, given, FLAGS.model_dir, flag_defaults(given))
    if FLAGS.genotype and named_genotype() != genotype:
        raise UsageError(
            f"--genotype={FLAGS.genotype} is not the architecture of the network in "
            f"--model_dir={FLAGS.model_dir}: leave the flag away"
        )


def check_classes(record: run_record.Record, description: Description) -> None:
    """Raises UsageError if the data's classes are not those of the network in model_dir."""
    guessed = record.get(run_record.GUESSED)
    if guessed and len(record["class_names"]) == description.num_classes:
        return  # a TF1 checkpoint has no names: the data's are as good
    if record["class_names"] != list(description.class_names):
        classes = f"{len(record['class_names'])} classes"
        raise UsageError(
            f"--data_dir={FLAGS.data_dir} has the classes {', '.join(description.class_names)}, "
            f"the network in --model_dir={FLAGS.model_dir} was trained on "
            f"{classes if guessed else ', '.join(record['class_names'])}: give data of the same "
            "classes"
        )


def scale_of_images(record: run_record.Record, description: Description | None = None) -> Sizes:
    """What is done to images before the network sees them, which is said too.

    Args:
        record: of the training. One that is too old to know its data's scale leaves images alone.
        description: of the data that the images are from; None for a user's own pictures.

    Raises:
        UsageError: nobody can tell how the data's scale becomes the network's.
    """
    data = Sizes.of(description.options if description else {})
    known = Sizes.of(record[run_record.SCALE]) if run_record.SCALE in record else data
    sizes = Sizes(FLAGS.predict_scale) if FLAGS.predict_scale else known.after(data)
    if sizes is None:
        raise UsageError(
            f"--data_dir={FLAGS.data_dir} has {data}, the network in --model_dir={FLAGS.model_dir} "
            f"was trained on {known}: give the factor between them as --predict_scale, or 1 to "
            "take the images as they are"
        )
    to_own_size = "" if sizes == OWN_SIZE else " for the network, answers as large as the images"
    say(f"scale: {sizes}{to_own_size}")
    return sizes


def warn_of_scale(record: run_record.Record, description: Description) -> None:
    """Says so if the data to evaluate on have another scale than those of the training."""
    scale, own = record.get(run_record.SCALE), Sizes.of(description.options)
    if scale is not None and Sizes.of(scale) != own:
        say(
            f"warning: --data_dir={FLAGS.data_dir} has {own}, the network was trained on "
            f"{Sizes.of(scale)}: evaluated as they are, things have another size than it knows"
        )


def submission_form(
    class_names: Sequence[str], description: Description | None
) -> Submission | None:
    """The form that --submission names.

    Raises UsageError if networks of these classes, or the images of this data, do not suit it.
    """
    if FLAGS.submission is None:
        return None
    options = description.options if description else {}
    for name, unchanged in (("resize_factor", 1.0), ("max_side", None)):
        value = options.get(name, unchanged)
        if value != unchanged:
            raise UsageError(
                f"--submission={FLAGS.submission} needs images of their own size, but those in "
                f"--data_dir={FLAGS.data_dir} were converted with --{name}={value}"
            )
    split = FLAGS.eval_split if description else "test"
    return new_submission(FLAGS.submission, class_names, split)


def restored(
    strategy: tf.distribute.Strategy, **groups: tuple[Any, keras.optimizers.Optimizer | None]
) -> tuple[checkpoints.Checkpoints, int]:
    """The run's checkpoints, and the step of the newest one, which has been restored.

    Args:
        strategy: the run's.
        groups: name=(variables, their optimizer or None).
    """
    directory = os.path.join(FLAGS.model_dir, "checkpoints")
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
        save_to=distribution.worker_directory(directory, strategy),
        optional=optional,
    )
    return store, store.restore(FLAGS.checkpoint)


def start_from_init_checkpoint(network: Network, description: Description) -> None:
    """Gives the network the weights that --init_checkpoint names."""
    flag = f"--init_checkpoint={FLAGS.init_checkpoint}"
    try:
        other = saved_network.initialize(network, FLAGS.init_checkpoint, description.class_names)
    except RunError as error:
        raise RunError(f"{flag}: {error}") from None
    if other:
        say(f"{flag}: {other}: decoder/logits starts anew")


def write_architecture(architecture: Architecture, step: int, dataset: str, seed: int) -> Genotype:
    """Writes genotype.json and the figures of what alpha and beta stand for; returns the first."""
    meta = {"dataset": dataset, "seed": seed, "step": step}
    genotype, beta = bilevel.decode(architecture, meta)
    directory = FLAGS.model_dir
    genotype.save(os.path.join(directory, run_record.GENOTYPE))
    figures.network(genotype, run_record.figure(directory, "network"), beta=beta)
    figures.cell(genotype, run_record.figure(directory, "cell"))
    rows = read_history(directory)
    if rows:
        uniform = decoding.uniform_entropies(len(architecture.operations), genotype.num_layers)
        figures.history(rows, run_record.figure(directory, "history"), uniform)
    say(genotype.describe())
    say(f"decoded at step {step}: {directory}/{run_record.GENOTYPE}, pictures in figures/")
    return genotype


# Genotypes and networks.


def named_genotype() -> Genotype:
    """The preset or file that --genotype names."""
    try:
        return genotypes.load(FLAGS.genotype)
    except ValueError as error:
        raise UsageError(f"--genotype: {error}") from None


def genotype_to_train() -> Genotype:
    """The genotype that --genotype names; a run that goes on has its own copy."""
    if FLAGS.genotype is None and os.path.exists(os.path.join(FLAGS.model_dir, run_record.FILE)):
        run_record.read(FLAGS.model_dir, "train")
        return run_record.read_genotype(FLAGS.model_dir)
    needed("genotype")
    return named_genotype()


def new_architecture(identity: Mapping[str, Any]) -> Architecture:
    """alpha and beta of a search."""
    return Architecture(
        num_layers=identity["num_layers"],
        num_blocks=identity["num_blocks"],
        operations=tuple(identity["operations"]),
        seed=identity["seed"],
        alpha_sharing=identity.get("alpha_sharing", "global"),
    )


def new_search(
    rate: Any,
    description: Description,
    strategy: tf.distribute.Strategy,
    table: cost_table.CostTable | None,
) -> bilevel.Search:
    """Super-net, architecture and their optimizers; call it in the strategy's scope."""
    supernet = SuperNet(
        num_classes=description.num_classes,
        num_layers=FLAGS.num_layers,
        num_blocks=FLAGS.num_blocks,
        operations=tuple(FLAGS.operations),
        filter_multiplier=FLAGS.filter_multiplier,
        stem_filters=tuple(FLAGS.stem_filters),
        alpha_sharing=FLAGS.alpha_sharing,
        recompute=FLAGS.recompute,
        sync_batch_norm=FLAGS.sync_batch_norm,
        jit_compile=FLAGS.jit_compile,
    )
    return bilevel.Search(
        supernet,
        new_architecture({name: FLAGS[name].value for name in SEARCH_IDENTITY}),
        weight_optimizer=scaled(optimizers.sgd(rate, l2=FLAGS.weight_decay)),
        architecture_optimizer=scaled(
            optimizers.adam(FLAGS.arch_learning_rate, l2=FLAGS.arch_weight_decay)
        ),
        ignore_label=description.ignore_label,
        strategy=strategy,
        class_weights=FLAGS.class_weights,
        cost_term=cost_term(table),
        second_order=FLAGS.second_order,
        jit_compile=FLAGS.jit_compile,
    )


def new_training(
    genotype: Genotype,
    identity: Mapping[str, Any],
    rate: Any,
    description: Description,
    strategy: tf.distribute.Strategy,
) -> Retrain:
    """Network, optimizer and, if wanted, averages; call it in the strategy's scope."""
    arguments = (genotype, identity, description.num_classes, FLAGS.sync_batch_norm)
    network = new_network(*arguments)
    averaged = new_network(*arguments) if FLAGS.ema_decay else None
    last_layer = {id(variable) for variable in network.decoder.logits.variables}
    multiplier = FLAGS.last_layer_learning_rate_multiplier
    optimizer = optimizers.sgd(
        rate,
        l2=FLAGS.weight_decay,
        decays=optimizers.is_kernel,
        rate_factor=lambda variable: multiplier if id(variable) in last_layer else 1.0,
    )
    return Retrain(
        network,
        optimizer=scaled(optimizer),
        ignore_label=description.ignore_label,
        seed=FLAGS.seed,
        total_steps=FLAGS.train_steps,
        strategy=strategy,
        class_weights=FLAGS.class_weights,
        top_k_pixels=FLAGS.top_k_pixels,
        hard_mining_steps=FLAGS.hard_mining_steps,
        averaged=averaged,
        ema_decay=FLAGS.ema_decay,
        jit_compile=FLAGS.jit_compile,
    )


def scaled(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """With loss scaling if the precision needs it."""
    return optimizers.with_loss_scale(optimizer) if FLAGS.precision == "float16" else optimizer


def trained(strategy: tf.distribute.Strategy) -> tuple[Network, int, str]:
    """The network of model_dir with a checkpoint's weights, its step, and the checkpoint's path."""
    say(run_record.read_genotype(FLAGS.model_dir).describe())
    with strategy.scope():
        return trained_network(FLAGS.model_dir, FLAGS.checkpoint)


def stream_options() -> dict[str, Any]:
    """What all streams of training batches have in common."""
    return {
        "seed": FLAGS.seed,
        "batch_size": FLAGS.batch_size,
        "crop_size": tuple(FLAGS.crop_size),
        "scales": preprocessing.RANDOM_SCALES if FLAGS.random_scale else (1.0,),
        "random_crop": FLAGS.random_crop,
        "flip": FLAGS.random_flip,
        "cache": FLAGS.cache_data,
    }


def validation(model: Logits, description: Description, strategy: Any) -> Callable[[], Row]:
    """A function that evaluates the model as it is now, in the words of history.jsonl."""
    evaluate = split_evaluator(
        model,
        description,
        FLAGS.eval_split,
        strategy=strategy,
        max_images=FLAGS.max_eval_images,
    )

    def row() -> Row:
        metrics, _ = evaluate()
        return {
            "val_miou": metrics["miou"],
            "val_miou_present": metrics["miou_present"],
            "val_images": metrics["num_images"],
        }

    return row


def answers(network: Network) -> Logits:
    """The network as a function of images alone."""
    return lambda images: network(images, training=False)


if __name__ == "__main__":
    start_app()

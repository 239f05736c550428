"""The command: search, decode, train, eval, predict, export and profile.

    python auto_deeplab/train.py --mode=search --flagfile=auto_deeplab/configs/search_cityscapes.cfg

Flags are read here and nowhere else.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:
    # Python puts this file's folder first; modules are found from the repository's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from auto_deeplab import cost, figures, retrain, run_record, search, search_space
from auto_deeplab import genotype as genotypes
from auto_deeplab.architecture import Architecture
from auto_deeplab.evaluation import Evaluator, class_table, write_metrics
from auto_deeplab.export import export
from auto_deeplab.genotype import Genotype
from auto_deeplab.network import Network
from auto_deeplab.prediction import predict
from auto_deeplab.supernet import SuperNet
from official import checkpoints, distribution, input_pipeline, optimizers, schedules
from official.errors import UsageError, run_app
from official.files import make_directory, write_atomically
from official.records import Description, read_description
from official.training_loop import History, Row, read_history, run

MODES = ("search", "decode", "train", "eval", "predict", "export", "profile")

# What --mode decides when the flag is not given; the sources are in docs/paper.md.
DEFAULTS: dict[str, dict[str, Any]] = {
    "search": {
        "crop_size": [321, 321],
        "batch_size": 2,
        "learning_rate": 0.025,
        "weight_decay": 3e-4,
        "filter_multiplier": 8,
    },
    "train": {
        "crop_size": [769, 769],
        "batch_size": 16,
        "learning_rate": 0.05,
        "weight_decay": 4e-5,
        "filter_multiplier": 20,
    },
    "profile": {"crop_size": [1025, 2049], "filter_multiplier": 20, "num_classes": 19},
}

flags.DEFINE_enum("mode", None, MODES, "What to do.", required=True)
flags.DEFINE_string("data_dir", None, "The --output_dir of tfrecords_tools.convert.")
flags.DEFINE_string("model_dir", None, "Directory of the run; search and train use separate ones.")
flags.DEFINE_integer("seed", 0, "Of everything random.", lower_bound=0)
flags.DEFINE_list("crop_size", None, "Training crop: one number, or height,width.")
flags.DEFINE_integer("batch_size", None, "Global batch size.", lower_bound=1)
flags.DEFINE_integer("num_classes", None, "Checked against the data; needed by profile alone.")
flags.DEFINE_integer("ignore_label", None, "Checked against the data: the label of void pixels.")
flags.DEFINE_string("train_split", "train", "Split to train on; search halves it.")
flags.DEFINE_string("eval_split", "val", "Split to evaluate on.")
flags.DEFINE_integer(
    "eval_every",
    None,
    "Steps between reports; default an epoch (search), or a twentieth of the steps (train).",
    lower_bound=1,
)
flags.DEFINE_integer(
    "save_every", None, "Steps between checkpoints; default as --eval_every.", lower_bound=1
)
flags.DEFINE_integer(
    "max_eval_images",
    None,
    "Evaluate on this many evenly spaced images; default all.",
    lower_bound=1,
)
flags.DEFINE_string(
    "checkpoint", None, "Path up to the step, or directory; default the newest of model_dir."
)
flags.DEFINE_enum("distribution_strategy", "one_device", distribution.STRATEGIES, "Where to run.")
flags.DEFINE_enum("precision", "float32", distribution.PRECISIONS, "What layers compute in.")
flags.DEFINE_bool(
    "jit_compile", False, "Compile the training step with XLA; one replica only, meant for GPUs."
)
flags.DEFINE_bool("deterministic", False, "Equal runs give equal bits; slower, one thread.")

flags.DEFINE_bool("random_scale", True, "Augmentation: scale by 0.5, 0.75, ..., 2.")
flags.DEFINE_bool("random_crop", True, "Augmentation: crop anywhere; else the middle.")
flags.DEFINE_bool("random_flip", True, "Augmentation: mirror left and right.")

flags.DEFINE_float(
    "learning_rate",
    None,
    "Initial rate: 0.025 (search, cosine), 0.05 (train, polynomial).",
    lower_bound=0.0,
)
flags.DEFINE_float(
    "weight_decay",
    None,
    "Coupled L2: 3e-4 on every weight (search), 4e-5 on kernels (train).",
    lower_bound=0.0,
)
flags.DEFINE_integer(
    "filter_multiplier", None, "F: 8 in the search; 20, 32, 48 for S, M, L.", lower_bound=1
)
flags.DEFINE_list("stem_filters", ["64", "64", "128"], "Channels of the stem's three convolutions.")

flags.DEFINE_integer("epochs", 40, "search: passes over trainA.", lower_bound=1)
flags.DEFINE_integer(
    "alpha_start_epoch", 20, "search: first epoch that moves alpha and beta.", lower_bound=0
)
flags.DEFINE_float("min_learning_rate", 0.001, "search: where the cosine ends.", lower_bound=0.0)
flags.DEFINE_float(
    "arch_learning_rate", 0.003, "search: Adam's rate for alpha and beta.", lower_bound=0.0
)
flags.DEFINE_float(
    "arch_weight_decay", 0.001, "search: coupled L2 on alpha and beta.", lower_bound=0.0
)
flags.DEFINE_list("operations", list(search_space.OPERATIONS), "search: the cell's operations.")
flags.DEFINE_integer("num_layers", 12, "search: L.", lower_bound=1)
flags.DEFINE_integer("num_blocks", 5, "search: B.", lower_bound=1)

flags.DEFINE_string(
    "genotype",
    None,
    f"train, profile: a genotype.json, or one of {', '.join(genotypes.PRESET_PATHS)}.",
)
flags.DEFINE_integer("train_steps", 1_500_000, "train: number of steps.", lower_bound=1)
flags.DEFINE_string("init_checkpoint", None, "train: weights to start from.")
flags.DEFINE_float(
    "drop_path_keep_prob",
    1.0,
    "train: scheduled drop path's final keep probability.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_float(
    "batch_norm_decay",
    0.9997,
    "train: BN's moving average; 0.9 to 0.99 for a few thousand steps.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_bool("fine_tune_batch_norm", True, "train: false freezes BN's statistics.")
flags.DEFINE_integer("head_filters", 256, "train: channels of ASPP and decoder.", lower_bound=1)

flags.DEFINE_list("eval_scales", ["1.0"], "eval: scales whose probabilities are averaged.")
flags.DEFINE_bool("eval_flip", False, "eval: average over the mirror image too.")
flags.DEFINE_string("input", None, "predict: an image, a folder, or a glob.")
flags.DEFINE_string("output_dir", None, "predict: where the pictures go.")
flags.DEFINE_string("export_dir", None, "export: default model_dir/export.")
flags.DEFINE_bool("export_probabilities", False, "export: signatures answer probabilities too.")

FLAGS = flags.FLAGS

AUGMENTATION = ("crop_size", "random_scale", "random_crop", "random_flip")
SEARCH_IDENTITY = (
    *("seed", "train_split", "batch_size", *AUGMENTATION, "epochs", "alpha_start_epoch"),
    *("learning_rate", "min_learning_rate", "weight_decay"),
    *("arch_learning_rate", "arch_weight_decay"),
    *("operations", "num_layers", "num_blocks", "filter_multiplier", "stem_filters"),
)
NETWORK_IDENTITY = ("filter_multiplier", "stem_filters", "head_filters")
TRAIN_IDENTITY = (
    *("seed", "train_split", "batch_size", *AUGMENTATION, "train_steps"),
    *("learning_rate", "weight_decay", "batch_norm_decay", "fine_tune_batch_norm"),
    *("drop_path_keep_prob", "init_checkpoint", *NETWORK_IDENTITY),
)


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
    modes[FLAGS.mode]()


def search_mode() -> None:
    """Searches: weights alone first, then weights and architecture in turn."""
    strategy, description = start(), read_data()
    seed, batch_size, operations = FLAGS.seed, setting("batch_size"), setting("operations")
    num_records = description.split(FLAGS.train_split).num_examples
    halves = input_pipeline.split_halves(num_records, seed)
    epoch_steps = input_pipeline.steps_per_epoch(len(halves[0]), batch_size)
    check_training_data(description, strategy, len(halves[0]))
    total_steps = FLAGS.epochs * epoch_steps
    first_search_step = FLAGS.alpha_start_epoch * epoch_steps
    identity = {name: setting(name) for name in SEARCH_IDENTITY}
    resumes = claim(identity, description)

    with strategy.scope():
        supernet = SuperNet(
            num_classes=description.num_classes,
            num_layers=FLAGS.num_layers,
            num_blocks=FLAGS.num_blocks,
            operations=operations,
            filter_multiplier=setting("filter_multiplier"),
            stem_filters=setting("stem_filters"),
        )
        architecture = new_architecture(identity)
        rate = schedules.cosine(setting("learning_rate"), FLAGS.min_learning_rate, total_steps)
        searching = search.Search(
            supernet,
            architecture,
            weight_optimizer=scaled(optimizers.sgd(rate, l2=setting("weight_decay"))),
            architecture_optimizer=scaled(
                optimizers.adam(FLAGS.arch_learning_rate, l2=FLAGS.arch_weight_decay)
            ),
            ignore_label=description.ignore_label,
            strategy=strategy,
            jit_compile=FLAGS.jit_compile,
        )
    optimizers_by_name = {
        "weights": searching.weight_optimizer,
        "architecture": searching.architecture_optimizer,
    }
    variables = {"weights": supernet.variables, "architecture": architecture.variables}
    store, start_step = restored(strategy, variables, optimizers_by_name)
    history = History(FLAGS.model_dir, start_step, distribution.is_chief(strategy))
    say_start("search", resumes, start_step, total_steps, len(halves[0]))

    evaluate = evaluator(searching.logits, description, strategy)

    def report(done: int, measured: Row) -> str:
        row = {
            "step": done,
            "epoch": done / epoch_steps,
            "phase": "weights" if done <= first_search_step else "weights and architecture",
            "learning_rate": float(rate(done - 1)),
            **measured,
            **evaluate(),
            **search.report(architecture),
        }
        history.append(row)
        return f"val mIoU {row['val_miou']:.3f}"

    streams = [
        train_stream(description, strategy, records, stream, first_step)
        for stream, (records, first_step) in enumerate(
            zip(halves, (start_step, max(0, start_step - first_search_step)), strict=True)
        )
    ]
    report_every = FLAGS.eval_every or epoch_steps
    run(
        "search",
        searching.step,
        search.batches(*streams, start_step, first_search_step),
        start_step=start_step,
        total_steps=total_steps,
        batch_size=batch_size,
        save=store.save,
        save_every=FLAGS.save_every or report_every,
        report=report,
        report_every=report_every,
    )
    if distribution.is_chief(strategy):
        write_architecture(architecture, total_steps, description.name)


def decode_mode() -> None:
    """Makes genotype.json and the figures again, from any checkpoint of a search."""
    record = recorded("search", SEARCH_IDENTITY)
    architecture = new_architecture(record["identity"])
    step = checkpoints.restore(checkpoint(), {"architecture": architecture.variables})
    write_architecture(architecture, step, record["dataset"])


def train_mode() -> None:
    """Trains the network of a genotype."""
    strategy, description = start(), read_data()
    genotype = genotype_to_train()
    batch_size, total_steps, decay = (
        setting("batch_size"),
        FLAGS.train_steps,
        FLAGS.batch_norm_decay,
    )
    num_records = description.split(FLAGS.train_split).num_examples
    check_training_data(description, strategy, num_records)
    if FLAGS.fine_tune_batch_norm and batch_size < 2:
        raise UsageError(
            "--batch_size=1 gives batch normalisation nothing to average over: use a larger batch, "
            "or --fine_tune_batch_norm=false"
        )
    if FLAGS.fine_tune_batch_norm and decay**total_steps > 0.05:
        say(
            f"warning: after {total_steps} steps of --batch_norm_decay={decay} the moving "
            f"statistics are still {decay**total_steps:.0%} their initial values, which ruins "
            "evaluation: use 0.9 to 0.99 for short training"
        )
    identity = {name: setting(name) for name in TRAIN_IDENTITY}
    resumes = claim({"genotype": described(genotype), **identity}, description)
    if distribution.is_chief(strategy):
        genotype.save(os.path.join(FLAGS.model_dir, "genotype.json"))

    with strategy.scope():
        network = new_network(genotype, identity, description.num_classes)
        rate = schedules.polynomial(setting("learning_rate"), total_steps)
        optimizer = optimizers.sgd(rate, l2=setting("weight_decay"), decays=optimizers.is_kernel)
        training = retrain.Retrain(
            network,
            optimizer=scaled(optimizer),
            ignore_label=description.ignore_label,
            seed=FLAGS.seed,
            total_steps=total_steps,
            strategy=strategy,
            jit_compile=FLAGS.jit_compile,
        )
    if FLAGS.init_checkpoint and not resumes:
        checkpoints.restore(FLAGS.init_checkpoint, {"weights": network.variables})
    store, start_step = restored(
        strategy, {"weights": network.variables}, {"weights": training.optimizer}
    )
    history = History(FLAGS.model_dir, start_step, distribution.is_chief(strategy))
    say_start("train", resumes, start_step, total_steps, num_records)

    evaluate = evaluator(lambda images: network(images, training=False), description, strategy)
    epoch_steps = input_pipeline.steps_per_epoch(num_records, batch_size)

    def report(done: int, measured: Row) -> str:
        row = {
            "step": done,
            "epoch": done / epoch_steps,
            "phase": "train",
            "learning_rate": float(rate(done - 1)),
            **measured,
            **evaluate(),
        }
        history.append(row)
        return f"val mIoU {row['val_miou']:.3f}"

    report_every = FLAGS.eval_every or max(1, total_steps // 20)
    stream = train_stream(description, strategy, None, 0, start_step)
    run(
        "train",
        training.step,
        ((batch,) for batch in stream),
        start_step=start_step,
        total_steps=total_steps,
        batch_size=batch_size,
        save=store.save,
        save_every=FLAGS.save_every or report_every,
        report=report,
        report_every=report_every,
    )
    if distribution.is_chief(strategy):
        figures.history(history.rows, figure_path("history"))
        say(f"trained: {store.latest()}")


def eval_mode() -> None:
    """Evaluates a trained network on whole images; the metrics are the last line on stdout."""
    strategy = start()
    record = recorded("train", NETWORK_IDENTITY)
    description = read_data()
    if list(description.class_names) != record["class_names"]:
        raise UsageError(
            f"--data_dir={FLAGS.data_dir} has the classes {', '.join(description.class_names)}, "
            f"the network in --model_dir={FLAGS.model_dir} was trained on "
            f"{', '.join(record['class_names'])}: give data of the same classes"
        )
    network, step, path = trained(strategy, record)
    evaluate = Evaluator(
        lambda images: network(images, training=False),
        class_names=description.class_names,
        ignore_label=description.ignore_label,
        strategy=strategy,
        scales=setting("eval_scales"),
        flip=FLAGS.eval_flip,
    )
    metrics = evaluate(eval_data(description, strategy))
    say(class_table(metrics))
    line = write_metrics(
        os.path.join(FLAGS.model_dir, "metrics.json"),
        metrics,
        split=FLAGS.eval_split,
        step=step,
        checkpoint=path,
    )
    print(line)


def predict_mode() -> None:
    """Segments pictures."""
    needed("input", "output_dir")
    strategy = start()
    record = recorded("train", NETWORK_IDENTITY)
    network, _, _ = trained(strategy, record)
    done = predict(
        lambda images: network(images, training=False),
        FLAGS.input,
        FLAGS.output_dir,
        class_names=record["class_names"],
        palette=record["palette"],
    )
    say(f"{len(done)} images segmented: {FLAGS.output_dir}")


def export_mode() -> None:
    """Writes a SavedModel."""
    strategy = start()
    record = recorded("train", NETWORK_IDENTITY)
    network, _, _ = trained(strategy, record)
    path = export(
        network,
        FLAGS.export_dir or os.path.join(FLAGS.model_dir, "export"),
        class_names=record["class_names"],
        palette=record["palette"],
        probabilities=FLAGS.export_probabilities,
    )
    say(f"exported: {path}")


def profile_mode() -> None:
    """Prints parameters and multiply-adds per part: a table, then JSON on the last line."""
    if FLAGS.model_dir:
        record = recorded("train", NETWORK_IDENTITY)
        genotype, identity = recorded_genotype(), record["identity"]
        num_classes = len(record["class_names"])
    else:
        needed("genotype")
        genotype, num_classes = loaded(FLAGS.genotype), setting("num_classes")
        identity = {name: setting(name) for name in TRAIN_IDENTITY}
    say(genotype.describe())
    network = new_network(genotype, identity, num_classes)
    crop_size = setting("crop_size")
    parts = cost.count(network, crop_size)
    print(cost.format_table(parts, crop_size))
    print(json.dumps(cost.summary(parts, crop_size)))


# What the modes share, from the command line inwards.


def say(text: str) -> None:
    """Words for people go to stderr; stdout is for results."""
    print(text, file=sys.stderr, flush=True)


def needed(*names: str) -> None:
    """Raises UsageError if a flag that this mode needs is not given."""
    for name in names:
        if FLAGS[name].value is None:
            raise UsageError(f"--{name} is needed by --mode={FLAGS.mode}")


def setting(name: str) -> Any:
    """A flag's value, or what the mode decides; lists of numbers are parsed."""
    value = FLAGS[name].value
    if value is None:
        value = DEFAULTS.get(FLAGS.mode, {}).get(name)
    try:
        if name == "operations":
            return search_space.validate_operations(value)
        if name == "crop_size":
            sides = [int(side) for side in value]
            assert len(sides) in (1, 2) and min(sides) > 0
            return sides[0], sides[-1]
        if name == "stem_filters":
            filters = tuple(int(number) for number in value)
            assert len(filters) == 3 and min(filters) > 0
            return filters
        if name == "eval_scales":
            scales = [float(scale) for scale in value]
            assert scales and min(scales) > 0
            return scales
    except (AssertionError, ValueError) as error:
        hints = {
            "operations": str(error),
            "crop_size": "give one positive number, or height,width",
            "stem_filters": "give three positive numbers",
            "eval_scales": "give one or more positive factors",
        }
        raise UsageError(f"--{name}={','.join(map(str, value))}: {hints[name]}") from None
    return value


def start() -> tf.distribute.Strategy:
    """Sets precision, seeds and devices; must come before any other use of TensorFlow."""
    if FLAGS.deterministic:
        distribution.make_deterministic(FLAGS.seed)
    keras.utils.set_random_seed(FLAGS.seed)
    # Folding constants in the super-net's graph takes longer than it ever saves.
    tf.config.optimizer.set_experimental_options({"constant_folding": False})
    distribution.set_precision(FLAGS.precision)
    strategy = distribution.make_strategy(FLAGS.distribution_strategy)
    if FLAGS.jit_compile and strategy.num_replicas_in_sync > 1:
        raise UsageError(
            "--jit_compile=true works with one replica only: synchronised batch normalisation "
            "cannot be compiled; use --distribution_strategy=one_device"
        )
    return strategy


def read_data() -> Description:
    """The data's description, checked against the flags that may repeat it."""
    needed("data_dir", "model_dir")
    description = read_description(FLAGS.data_dir)
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
    """Raises UsageError if batch or crop does not fit the devices or the data."""
    batch_size = setting("batch_size")
    distribution.check_batch_size(batch_size, strategy)
    if batch_size > num_records:
        raise UsageError(
            f"--batch_size={batch_size} is larger than the {num_records} images to train on"
        )
    input_pipeline.check_crop_size(
        description, FLAGS.train_split, setting("crop_size"), scale_factors()
    )
    description.split(FLAGS.eval_split)


def scale_factors() -> tuple[float, ...]:
    """The training scales (recipe of DeepLabv3+)."""
    return tuple(np.arange(0.5, 2.01, 0.25).tolist()) if FLAGS.random_scale else (1.0,)


def train_stream(
    description: Description,
    strategy: tf.distribute.Strategy,
    records: np.ndarray | None,
    stream: int,
    start_step: int,
) -> Any:
    """An endless iterator of distributed training batches."""

    def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return input_pipeline.train_batches(
            description,
            FLAGS.train_split,
            seed=FLAGS.seed,
            batch_size=setting("batch_size"),
            crop_size=setting("crop_size"),
            scales=scale_factors(),
            flip=FLAGS.random_flip,
            records=records,
            stream=stream,
            start_step=start_step,
            input_context=context,
        )

    return iter(strategy.distribute_datasets_from_function(batches))


def eval_data(description: Description, strategy: tf.distribute.Strategy) -> tf.data.Dataset:
    """The images to evaluate on."""
    return input_pipeline.eval_images(
        description,
        FLAGS.eval_split,
        max_images=FLAGS.max_eval_images,
        multiple_of=strategy.num_replicas_in_sync,
    )


def evaluator(model: Any, description: Description, strategy: tf.distribute.Strategy) -> Any:
    """A function that evaluates the model now and says it in a history row's words."""
    evaluate = Evaluator(
        model,
        class_names=description.class_names,
        ignore_label=description.ignore_label,
        strategy=strategy,
    )

    def row() -> Row:
        metrics = evaluate(eval_data(description, strategy))
        return {
            "val_miou": metrics["miou"],
            "val_miou_present": metrics["miou_present"],
            "val_images": metrics["num_images"],
        }

    return row


def scaled(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """With loss scaling if the precision needs it."""
    return optimizers.with_loss_scale(optimizer) if FLAGS.precision == "float16" else optimizer


def claim(identity: run_record.Record, description: Description) -> bool:
    """Makes model_dir this run's; says whether it was before."""
    identity = {**identity, "data_dir": f"{description.name} {description.fingerprint()}"}
    facts = {
        "dataset": description.name,
        "class_names": description.class_names,
        "palette": description.palette,
    }
    resumes = run_record.claim(FLAGS.model_dir, FLAGS.mode, identity, facts)
    lines = [
        f"--{flag.name}={','.join(map(str, flag.value)) if isinstance(flag.value, list) else flag.value}"
        for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])
        if flag.value is not None
    ]
    write_atomically(os.path.join(FLAGS.model_dir, "flags.cfg"), "\n".join(lines) + "\n")
    return resumes


def recorded(mode: str, names: tuple[str, ...]) -> run_record.Record:
    """What model_dir remembers; flags given again must say the same."""
    needed("model_dir")
    record = run_record.read(FLAGS.model_dir, mode)
    given = [name for name in names if FLAGS[name].present]
    identity = json.loads(json.dumps({name: setting(name) for name in given}))
    run_record.compare(record, identity, FLAGS.model_dir)
    return record


def restored(
    strategy: tf.distribute.Strategy, variables: dict[str, Any], by_name: dict[str, Any]
) -> tuple[checkpoints.Checkpoints, int]:
    """The run's checkpoints, and the step of the newest one, which has been restored."""
    directory = os.path.join(FLAGS.model_dir, "checkpoints")
    groups, optional = dict(variables), []
    for name, optimizer in by_name.items():
        groups[f"{name}_optimizer"] = optimizers.rule_variables(optimizer)
        groups[f"{name}_loss_scale"] = optimizers.loss_scale_variables(optimizer)
        optional.append(f"{name}_loss_scale")
    store = checkpoints.Checkpoints(
        directory,
        groups,
        save_to=distribution.worker_directory(directory, strategy),
        optional=optional,
    )
    return store, store.restore(FLAGS.checkpoint)


def checkpoint() -> str:
    """The checkpoint that the flags name."""
    return checkpoints.find(FLAGS.checkpoint or os.path.join(FLAGS.model_dir, "checkpoints"))


def say_start(name: str, resumes: bool, start_step: int, total_steps: int, images: int) -> None:
    """One line about what begins."""
    how = "goes on" if resumes and start_step else "starts"
    say(
        f"{name} {how} at step {start_step} of {total_steps}, "
        f"{images} images an epoch: {FLAGS.model_dir}"
    )


def new_architecture(identity: run_record.Record) -> Architecture:
    """alpha and beta of a search."""
    return Architecture(
        num_layers=identity["num_layers"],
        num_blocks=identity["num_blocks"],
        operations=tuple(identity["operations"]),
        seed=identity["seed"],
    )


def write_architecture(architecture: Architecture, step: int, dataset: str) -> None:
    """Writes genotype.json and the figures of what alpha and beta stand for."""
    genotype, beta = search.decoded(architecture, {"dataset": dataset, "step": step})
    path = os.path.join(FLAGS.model_dir, "genotype.json")
    genotype.save(path)
    figures.network(genotype, figure_path("network"), beta=beta)
    figures.cell(genotype, figure_path("cell"))
    rows = read_history(os.path.join(FLAGS.model_dir, "history.jsonl"))
    if rows:
        figures.history(rows, figure_path("history"))
    say(genotype.describe())
    say(f"decoded at step {step}: {path}; pictures in {os.path.dirname(figure_path('cell'))}")


def figure_path(name: str) -> str:
    """Where a figure goes."""
    return os.path.join(make_directory(os.path.join(FLAGS.model_dir, "figures")), f"{name}.png")


def loaded(name_or_path: str) -> Genotype:
    """A preset or a genotype file."""
    try:
        return genotypes.load(name_or_path)
    except ValueError as error:
        raise UsageError(f"--genotype: {error}") from None


def recorded_genotype() -> Genotype:
    """The copy in model_dir; a --genotype given again must be the same."""
    genotype = loaded(os.path.join(FLAGS.model_dir, "genotype.json"))
    if FLAGS.genotype and loaded(FLAGS.genotype) != genotype:
        raise UsageError(
            f"--genotype={FLAGS.genotype} is {described(loaded(FLAGS.genotype))}, but the network "
            f"in --model_dir={FLAGS.model_dir} is {described(genotype)}: leave the flag away"
        )
    return genotype


def genotype_to_train() -> Genotype:
    """The genotype that --genotype names; a resumed run has its own copy."""
    if FLAGS.genotype is None and os.path.exists(os.path.join(FLAGS.model_dir, run_record.FILE)):
        run_record.read(FLAGS.model_dir, "train")
        genotype = recorded_genotype()
    else:
        needed("genotype")
        genotype = loaded(FLAGS.genotype)
    say(genotype.describe())
    return genotype


def described(genotype: Genotype) -> str:
    """A genotype in one line, for comparing."""
    content = json.loads(genotype.to_json())
    return json.dumps([content[key] for key in ("path", "cells", "cell_of_layer")])


def new_network(genotype: Genotype, identity: run_record.Record, num_classes: int) -> Network:
    """A built network."""
    network = Network(
        genotype,
        num_classes=num_classes,
        filter_multiplier=identity["filter_multiplier"],
        stem_filters=tuple(identity["stem_filters"]),
        head_filters=identity["head_filters"],
        batch_norm_decay=identity["batch_norm_decay"],
        fine_tune_batch_norm=identity["fine_tune_batch_norm"],
        drop_path_keep_prob=identity["drop_path_keep_prob"],
    )
    network.build((None, None, None, 3))
    return network


def trained(
    strategy: tf.distribute.Strategy, record: run_record.Record
) -> tuple[Network, int, str]:
    """The network of model_dir with a checkpoint's weights, its step, and the checkpoint's path."""
    genotype = recorded_genotype()
    say(genotype.describe())
    with strategy.scope():
        network = new_network(genotype, record["identity"], len(record["class_names"]))
    path = checkpoint()
    return network, checkpoints.restore(path, {"weights": network.variables}), path


if __name__ == "__main__":
    run_app(main)

"""--mode=train: trains the network of a genotype (paper, Sec. 5.2)."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras

from auto_deeplab.modes.data import (
    Batches,
    Compilation,
    Data,
    Devices,
    PathLike,
    Reports,
    check_positive,
    check_training_data,
    make_validation,
    worst_loss,
)
from auto_deeplab.modes.flag_definitions import TRAIN_IDENTITY
from auto_deeplab.modes.model_dir import (
    add_loss_scale,
    as_logits,
    check_model_dir,
    explain_bad_loss,
    identify_data,
    keep_samples,
    list_defaults,
    load_genotype,
    make_identity,
    own_model_dir,
    restore,
    write_page,
    write_record,
)
from auto_deeplab.network.network import Network
from auto_deeplab.network.retrain import Retrain
from auto_deeplab.report import figures, summary
from auto_deeplab.report.board import make_board
from auto_deeplab.runs import run_record, saved_network
from auto_deeplab.runs.run_record import NETWORK_SHAPE
from auto_deeplab.space.genotype import Genotype
from official import distribution, input_pipeline, optimizers, schedules
from official.errors import RunError, UsageError, shorten
from official.progress import say
from official.records import Description
from official.sizes import Sizes
from official.training_loop import run


@dataclass(frozen=True)
class NetworkOptions:
    """The network's widths, and how it behaves in training; see `Network`."""

    filter_multiplier: int = 20
    stem_filters: tuple[int, ...] = (64, 64, 128)
    head_filters: int = 256
    batch_norm_decay: float = 0.9997
    fine_tune_batch_norm: bool = True
    drop_path_keep_prob: float = 1.0

    def check(self) -> None:
        """Raises UsageError if there is no such network."""
        if len(self.stem_filters) != 3:
            numbers = ",".join(map(str, self.stem_filters))
            raise UsageError(f"--stem_filters={numbers}: --mode=train takes three numbers")
        if not 0 < self.drop_path_keep_prob <= 1:
            raise UsageError(
                f"--drop_path_keep_prob={self.drop_path_keep_prob} must be above 0 and at most 1"
            )


@dataclass(frozen=True)
class TrainSchedule:
    """How long the network learns, at which rates, and from which weights on.

    Attributes:
        train_steps: the rate is 0 after them.
        learning_rate: the first one; it falls along a polynomial.
        weight_decay: the factor of the coupled L2 penalty on convolutions' kernels.
        gradient_clip_norm: the largest norm of the weights' gradient; None: no limit.
        last_layer_learning_rate_multiplier: the factor of the rate of decoder/logits.
        ema_decay: of moving averages of the weights; 0: none.
        init_checkpoint: another training, whose weights come first; None: random ones do.
    """

    train_steps: int = 1_500_000
    learning_rate: float = 0.05
    weight_decay: float = 4e-5
    gradient_clip_norm: float | None = None
    last_layer_learning_rate_multiplier: float = 1.0
    ema_decay: float = 0.0
    init_checkpoint: str | None = None

    def check(self) -> None:
        """Raises UsageError if a rate is 0, or averages would never move."""
        check_positive(self, "train_steps", "learning_rate", "gradient_clip_norm")
        check_positive(self, "last_layer_learning_rate_multiplier")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"--ema_decay={self.ema_decay} must be from 0 on and below 1")


@dataclass(frozen=True)
class PixelWeights:
    """How much pixels count in the loss.

    Attributes:
        class_weights: factors by class; None: all 1.
        top_k_pixels: the share of each image's pixels, those of the largest losses, that count.
        hard_mining_steps: steps over which the share falls to that from 1; 0: at once.
    """

    class_weights: list[float] | None = None
    top_k_pixels: float = 1.0
    hard_mining_steps: int = 0

    def check(self) -> None:
        """Raises UsageError for a schedule of nothing."""
        if self.hard_mining_steps and self.top_k_pixels == 1:
            raise UsageError(
                f"--hard_mining_steps={self.hard_mining_steps} has nothing to do at "
                "--top_k_pixels=1: give a smaller share too"
            )


def train(
    model_dir: PathLike,
    data: Data,
    batches: Batches,
    genotype: Genotype | PathLike | None = None,
    *,
    network: NetworkOptions = NetworkOptions(),
    schedule: TrainSchedule = TrainSchedule(),
    pixel_weights: PixelWeights = PixelWeights(),
    devices: Devices = Devices(),
    compilation: Compilation = Compilation(),
    reports: Reports = Reports(),
    seed: int = 0,
    checkpoint: PathLike | None = None,
    flagfile: str | None = None,
    command: Sequence[str] = summary.COMMAND,
) -> None:
    """Trains a network, or goes on with the training that model_dir holds.

    Args:
        model_dir: everything is written there; need not exist.
        data, batches: what is trained on.
        genotype: what to train, a preset's name or a file; None if model_dir holds the run already.
        network, schedule, pixel_weights: what is trained, for how long, and by which loss.
        devices, compilation: where and how the steps run.
        reports: without eval_every there are 20.
        seed: of everything random.
        checkpoint: one of this run's, or "best", to which it is led back; None: the newest.
        flagfile: the content of flags.cfg, with which the command line resumes the run.
        command: with which the command line begins, for the one that is proposed at the end.

    Raises:
        UsageError: the arguments contradict each other, the data, the devices or model_dir.
        RunError: the data cannot be read, a file not be written, another process has model_dir, or
            a loss is not good (training_loop.run).
        SystemExit: SIGINT, SIGTERM or SIGHUP came; the state is saved.
    """
    model_dir = os.fspath(model_dir)
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    began = time.monotonic()
    architecture = choose_genotype(model_dir, genotype)
    network.check()
    schedule.check()
    batches.check()
    reports.check()
    pixel_weights.check()
    check_batch_norm(network, schedule, batches.batch_size)
    identity = {
        "genotype": run_record.describe_architecture(architecture),
        **make_identity(
            *(TRAIN_IDENTITY, data, batches, network, schedule, pixel_weights),
            *(devices, compilation),
            seed=seed,
        ),
    }
    if schedule.init_checkpoint:
        identity["init_checkpoint"] = os.path.abspath(schedule.init_checkpoint)
    defaults = list_defaults(NetworkOptions, TrainSchedule, PixelWeights, Batches)
    check_model_dir(model_dir, "train", identity, defaults, checkpoint)
    check_init_checkpoint(model_dir, schedule.init_checkpoint, architecture, network)

    strategy, description = devices.start("train", seed), data.read()
    compilation.check(strategy)
    num_records = description.split(batches.train_split).num_examples
    check_training_data(
        *(data, description, batches, strategy, num_records, pixel_weights.class_weights)
    )
    identity["data_dir"] = identify_data(description)
    check_model_dir(model_dir, "train", identity, defaults, checkpoint)
    say(architecture.describe())

    rate = schedules.polynomial(schedule.learning_rate, schedule.train_steps)
    with strategy.scope():
        options = asdict(network)
        trained = make_network(architecture, options, description, compilation)
        averaged = (
            make_network(architecture, options, description, compilation)
            if schedule.ema_decay
            else None
        )
        training = Retrain(
            trained,
            optimizer=add_loss_scale(make_optimizer(rate, schedule, trained), devices.precision),
            ignore_label=description.ignore_label,
            seed=seed,
            total_steps=schedule.train_steps,
            strategy=strategy,
            class_weights=pixel_weights.class_weights,
            top_k_pixels=pixel_weights.top_k_pixels,
            hard_mining_steps=pixel_weights.hard_mining_steps,
            averaged=averaged,
            ema_decay=schedule.ema_decay,
            jit_compile=compilation.jit_compile,
            undoes_bad_steps=reports.max_bad_steps > 0,
        )
    groups = {"weights": (trained.variables, training.optimizer)}
    if averaged:
        groups["average"] = (averaged.variables, None)
    with own_model_dir(model_dir, strategy):
        check_model_dir(model_dir, "train", identity, defaults, checkpoint)
        start = restore(model_dir, checkpoint, strategy, groups, identity, reports.keep_checkpoints)
        if start.step == 0 and schedule.init_checkpoint:
            start_from(schedule.init_checkpoint, trained, description)
            training.start_averages()
        is_chief = distribution.is_chief(strategy)
        if is_chief:
            architecture.save(os.path.join(model_dir, run_record.GENOTYPE))
            facts = {run_record.CONFIG: trained.get_config()}
            write_record(
                *(model_dir, "train", identity, description, flagfile, facts),
                branches=start.branches,
            )

        evaluate = make_validation(
            *(as_logits(averaged or trained), description, data.eval_split),
            *(strategy, reports.max_eval_images),
            show=keep_samples(model_dir, description) if is_chief else None,
        )

        def explain(loss: str, step: int, prefix: str | None) -> str:
            names = input_pipeline.name_images(
                *(description, batches.train_split, step - 1),
                seed=seed,
                batch_size=batches.batch_size,
            )
            rates = {"learning_rate": schedule.learning_rate / 10}
            return explain_bad_loss(model_dir, names, rates, prefix, command)

        stream = input_pipeline.distribute_batches(
            *(strategy, description, batches.train_split),
            start_step=start.step,
            seed=seed,
            **batches.options(),
        )
        report_every = reports.eval_every or max(1, schedule.train_steps // 20)
        rows = run(
            "train",
            training.steps,
            ((batch,) for batch in stream),
            lambda done: {"phase": "train", "learning_rate": float(rate(done - 1)), **evaluate()},
            model_dir=model_dir,
            start_step=start.step,
            total_steps=schedule.train_steps,
            epoch_steps=input_pipeline.steps_per_epoch(num_records, batches.batch_size),
            batch_size=batches.batch_size,
            store=start.store,
            save_every=reports.save_every or report_every,
            report_every=report_every,
            worst_loss=worst_loss(description.num_classes, pixel_weights.class_weights),
            max_bad_steps=reports.max_bad_steps,
            explain=explain,
            steps_per_loop=compilation.steps_per_loop,
            writes=is_chief,
            summaries=make_board(model_dir, run_record.read(model_dir, "train"), architecture)
            if is_chief
            else None,
            reported=lambda: write_page(model_dir),
            interrupts=distribution.interrupts_of(strategy),
        )
        if is_chief:
            figures.draw_history(rows, run_record.make_figure_path(model_dir, "history"))
            write_page(model_dir)
            say(f"trained: {start.store.latest()}")
            say(
                summary.summarize_training(
                    rows,
                    seconds=time.monotonic() - began,
                    model_dir=model_dir,
                    data_dir=description.data_dir,
                    command=command,
                )
            )


def choose_genotype(model_dir: str, genotype: Genotype | PathLike | None) -> Genotype:
    """The architecture to train; a run that goes on has its own copy.

    Raises:
        UsageError: none is given, or that is none.
    """
    if genotype is not None:
        return load_genotype(genotype)
    if os.path.exists(os.path.join(model_dir, run_record.FILE)):
        run_record.read(model_dir, "train")
        return run_record.read_genotype(model_dir)
    raise UsageError("--genotype is needed by --mode=train")


def check_batch_norm(network: NetworkOptions, schedule: TrainSchedule, batch_size: int) -> None:
    """Raises UsageError for a batch of one; warns of moving statistics that cannot follow."""
    decay, steps = network.batch_norm_decay, schedule.train_steps
    if network.fine_tune_batch_norm and batch_size < 2:
        raise UsageError(
            "--batch_size=1 gives batch normalisation nothing to average over: use a larger batch, "
            "or --fine_tune_batch_norm=false"
        )
    if network.fine_tune_batch_norm and decay**steps > 0.05 and not schedule.init_checkpoint:
        say(
            f"warning: after {steps} steps of --batch_norm_decay={decay} the moving statistics are "
            f"still {decay**steps:.0%} their initial values, which ruins evaluation: use 0.9 to "
            "0.99 for short training"
        )


def check_init_checkpoint(
    model_dir: str, path: str | None, genotype: Genotype, network: NetworkOptions
) -> None:
    """Raises UsageError if --init_checkpoint is known to be of another network.

    A run that goes on reads it no more.
    """
    if not path or os.path.exists(os.path.join(model_dir, run_record.FILE)):
        return
    flag = f"--init_checkpoint={path}"
    try:
        prefix = saved_network.find_weights(path)
        record = run_record.read_beside(prefix)
    except RunError as error:
        raise RunError(f"{flag}: {error}") from None
    if record and record["mode"] != "train":
        raise UsageError(
            f"{flag} is a run of --mode={record['mode']}, whose weights are no network's: give a "
            "training, or leave the flag away"
        )
    try:
        saved_network.check_genotype(genotype, prefix)
    except RunError as error:
        beside = os.path.join(os.path.dirname(os.path.dirname(prefix)), run_record.GENOTYPE)
        raise UsageError(f"{flag}: {error}; give --genotype={beside}") from None
    there = {name: record["identity"][name] for name in NETWORK_SHAPE} if record else {}
    own = make_identity(NETWORK_SHAPE, network)
    wanted = [
        f"--{name}={shorten(value)}".replace("[", "").replace("]", "").replace(" ", "")
        for name, value in there.items()
        if value != (list(own[name]) if isinstance(value, list) else own[name])
    ]
    if wanted:
        raise UsageError(f"{flag} is a network of other widths: give {' '.join(wanted)}")


def make_network(
    genotype: Genotype,
    options: Mapping[str, Any],
    description: Description,
    compilation: Compilation,
) -> Network:
    """The network for the data's classes; call it in the strategy's scope."""
    return saved_network.make_network(
        *(genotype, options, description.num_classes),
        sync_batch_norm=compilation.sync_batch_norm,
        class_names=description.class_names,
        palette=description.palette,
        sizes=Sizes.from_options(description.options),
    )


def make_optimizer(
    rate: Any, schedule: TrainSchedule, network: Network
) -> keras.optimizers.Optimizer:
    """SGD that decays kernels alone, and moves the last layer at a rate of its own."""
    last_layer = {id(variable) for variable in network.decoder.logits.variables}
    multiplier = schedule.last_layer_learning_rate_multiplier
    return optimizers.sgd(
        rate,
        l2=schedule.weight_decay,
        gradient_clip_norm=schedule.gradient_clip_norm,
        decays=optimizers.is_kernel,
        rate_factor=lambda variable: multiplier if id(variable) in last_layer else 1.0,
    )


def start_from(path: str, network: Network, description: Description) -> None:
    """Gives the network the weights that --init_checkpoint names."""
    flag = f"--init_checkpoint={path}"
    try:
        other = saved_network.initialize(network, path, description.class_names)
    except RunError as error:
        raise RunError(f"{flag}: {error}") from None
    if other:
        say(f"{flag}: {other}: decoder/logits starts anew")

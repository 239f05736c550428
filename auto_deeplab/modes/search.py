"""--mode=search: weights alone first, then weights and architecture in turn (paper, Sec. 4.2)."""

import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from auto_deeplab.budget import cost_table as cost_tables
from auto_deeplab.budget import expected_cost
from auto_deeplab.budget.cost_table import CostTable
from auto_deeplab.modes.data import (
    Batches,
    Compilation,
    Data,
    Devices,
    PathLike,
    Reports,
    check_choice,
    check_positive,
    check_training_data,
    make_validation,
    worst_loss,
)
from auto_deeplab.modes.decode import make_architecture, write_architecture
from auto_deeplab.modes.flag_definitions import SEARCH_IDENTITY
from auto_deeplab.modes.model_dir import (
    add_loss_scale,
    check_model_dir,
    explain_bad_loss,
    identify_data,
    keep_samples,
    list_defaults,
    make_identity,
    own_model_dir,
    restore,
    write_page,
    write_record,
)
from auto_deeplab.modes.train import NetworkOptions
from auto_deeplab.report import summary
from auto_deeplab.report.board import make_board
from auto_deeplab.runs import run_record, saved_network
from auto_deeplab.search import bilevel
from auto_deeplab.search.bilevel import CostTerm, Search
from auto_deeplab.search.execution import RECOMPUTE
from auto_deeplab.search.supernet import SuperNet
from auto_deeplab.search.trellis import STEM_STRIDES, default_stem_filters
from auto_deeplab.space import search_space
from auto_deeplab.space.genotype import Genotype
from official import distribution, input_pipeline, model_cost, optimizers, schedules
from official.errors import UsageError
from official.progress import say
from official.records import Description
from official.training_loop import Row, run


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, and how wide the super-net is.

    Attributes:
        operations: among which the cell's edges choose; alpha's columns.
        num_layers, num_blocks: L and B.
        filter_multiplier: F; a cell at stride 4 * 2^k has blocks of F * 2^k channels.
        stem_filters: channels of the stem's two or three convolutions; None: those that the run
            in model_dir began with, or trellis.default_stem_filters.
        alpha_sharing: which cells share an alpha, one of search_space.ALPHA_SHARING.
        partial_channels: K: the operations of a cell see 1/K of the channels, and edges have
            weights; 1: all of them.
    """

    operations: tuple[str, ...] = search_space.OPERATIONS
    num_layers: int = 12
    num_blocks: int = 5
    filter_multiplier: int = 8
    stem_filters: tuple[int, ...] | None = None
    alpha_sharing: str = "global"
    partial_channels: int = 1

    def check(self) -> None:
        """Raises UsageError if that is no search space."""
        try:
            search_space.validate_operations(self.operations)
        except ValueError as error:
            raise UsageError(f"--operations: {error}") from None
        check_choice("alpha_sharing", self.alpha_sharing, search_space.ALPHA_SHARING)
        check_positive(self, "partial_channels")
        if self.filter_multiplier % self.partial_channels:
            raise UsageError(
                f"--partial_channels={self.partial_channels} does not divide "
                f"--filter_multiplier={self.filter_multiplier}: operations see a whole part of the "
                "channels; choose one that does"
            )
        if self.stem_filters is not None and len(self.stem_filters) not in STEM_STRIDES:
            raise UsageError(
                f"--stem_filters={','.join(map(str, self.stem_filters))}: give two or three numbers"
            )


@dataclass(frozen=True)
class SearchSchedule:
    """How long the search learns, and at which rates.

    Attributes:
        epochs: passes over trainA, half of the images.
        alpha_start_epoch: the first epoch, from 0 on, in which alpha and beta move.
        learning_rate, min_learning_rate: of the weights, at the begin and the end of a cosine.
        weight_decay: the factor of the weights' coupled L2 penalty.
        gradient_clip_norm: the largest norm of the weights' gradient; None: no limit.
        arch_learning_rate, arch_weight_decay: of alpha and beta, constant.
        arch_betas: Adam's for alpha and beta: the decays of its two averages.
        second_order: whether the gradient of alpha and beta goes through a step of the weights.
        stop_at_skip_connects: the search ends with the first report in which alpha and beta have
            moved and a cell has so many skip-connections; 0: it makes all its epochs.
    """

    epochs: int = 40
    alpha_start_epoch: int = 20
    learning_rate: float = 0.025
    min_learning_rate: float = 0.001
    weight_decay: float = 3e-4
    gradient_clip_norm: float | None = None
    arch_learning_rate: float = 0.003
    arch_weight_decay: float = 0.001
    arch_betas: tuple[float, float] = (0.9, 0.999)
    second_order: bool = False
    stop_at_skip_connects: int = 0

    def check(self) -> None:
        """Raises UsageError if nothing would be searched, or a rate is 0 or would rise."""
        check_positive(self, "learning_rate", "arch_learning_rate", "gradient_clip_norm")
        if len(self.arch_betas) != 2 or not all(0 <= beta < 1 for beta in self.arch_betas):
            raise UsageError(f"--arch_betas={self.arch_betas}: give two numbers from 0 on below 1")
        if self.alpha_start_epoch >= self.epochs:
            raise UsageError(
                f"--alpha_start_epoch={self.alpha_start_epoch} is not below "
                f"--epochs={self.epochs}: alpha and beta would never move"
            )
        if self.min_learning_rate > self.learning_rate:
            raise UsageError(
                f"--min_learning_rate={self.min_learning_rate} is above "
                f"--learning_rate={self.learning_rate}: the rate falls from the second to the first"
            )


@dataclass(frozen=True)
class CostLimit:
    """What the network that is found shall cost.

    Attributes:
        cost_table: the file of what its pieces cost; see budget.cost_table.
        cost_budget: the cost that is free, in the table's unit.
        cost_weight: of what is above it in the architecture's loss; 0: no limit.
    """

    cost_table: str | None = None
    cost_budget: float | None = None
    cost_weight: float = 0.0

    def load(self, space: SearchSpace) -> CostTable | None:
        """The table; None without a limit.

        Raises:
            UsageError: it is needed and not there, or is not one for this search.
        """
        if not self.cost_weight:
            if self.cost_table or self.cost_budget:
                say(
                    "warning: --cost_weight=0: the search goes without --cost_table and "
                    "--cost_budget"
                )
            return None
        for name in ("cost_table", "cost_budget"):
            if getattr(self, name) is None:
                raise UsageError(f"--{name} is needed by --cost_weight={self.cost_weight}")
        assert self.cost_table is not None and self.cost_budget is not None
        try:
            table = cost_tables.load(self.cost_table)
            expected_cost.check(table, space.operations, space.num_blocks)
        except ValueError as error:
            raise UsageError(f"--cost_table: {error}") from None
        cheapest, dearest = expected_cost.compute_bounds(table, space.operations, space.num_layers)
        if not cheapest < self.cost_budget < dearest:
            say(
                f"warning: --cost_budget={self.cost_budget} {cost_tables.UNITS[table.metric]}: all "
                f"networks of this search are expected to cost {cheapest:.4g} to {dearest:.4g}, so "
                "it " + ("can never be kept" if self.cost_budget <= cheapest else "changes nothing")
            )
        return table

    def make_term(self, table: CostTable | None, space: SearchSpace) -> CostTerm | None:
        """What is added to the architecture's loss, made from the answer of `load`."""
        if table is None:
            return None
        assert self.cost_budget is not None
        return expected_cost.make_budget_term(
            table, space.operations, budget=self.cost_budget, weight=self.cost_weight
        )


def search(
    model_dir: PathLike,
    data: Data,
    batches: Batches,
    *,
    space: SearchSpace = SearchSpace(),
    schedule: SearchSchedule = SearchSchedule(),
    cost_limit: CostLimit = CostLimit(),
    class_weights: list[float] | None = None,
    devices: Devices = Devices(),
    compilation: Compilation = Compilation(),
    recompute: str = "cell",
    reports: Reports = Reports(),
    alpha_hessian_batches: int = 0,
    seed: int = 0,
    checkpoint: PathLike | None = None,
    flagfile: str | None = None,
    command: Sequence[str] = summary.COMMAND,
) -> Genotype | None:
    """Searches an architecture, or goes on with the search that model_dir holds.

    Args:
        model_dir: everything is written there; need not exist.
        data: what is searched on; a search halves its training split.
        batches: of trainA and trainB.
        space, schedule, cost_limit: what is searched, for how long, and at which cost.
        class_weights: factors of the classes' losses; None: all 1.
        devices, compilation: where and how the steps run.
        recompute: what the backward pass computes again, one of execution.RECOMPUTE.
        reports: without eval_every there is one after each epoch.
        alpha_hessian_batches: of so many batches of trainB each report measures the largest
            eigenvalue of the loss's Hessian by alpha; 0: none does.
        seed: of everything random.
        checkpoint: one of this run's, or "best", to which it is led back; None: the newest.
        flagfile: the content of flags.cfg, with which the command line resumes the run.
        command: with which the command line begins, for the one that is proposed at the end.

    Returns:
        what was found; None on workers that are not the chief.

    Raises:
        UsageError: the arguments contradict each other, the data, the devices or model_dir.
        RunError: the data cannot be read, a file not be written, another process has model_dir, or
            a loss is not good (training_loop.run).
        SystemExit: SIGINT, SIGTERM or SIGHUP came; the state is saved.
    """
    model_dir = os.fspath(model_dir)
    checkpoint = os.fspath(checkpoint) if checkpoint else None
    began = time.monotonic()
    space.check()
    schedule.check()
    batches.check()
    reports.check()
    check_choice("recompute", recompute, RECOMPUTE)
    check_stop(schedule, space)
    if space.stem_filters is None:
        default = default_stem_filters(space.num_blocks, space.filter_multiplier)
        filters = run_record.recall(model_dir, "stem_filters", default)
        space = replace(space, stem_filters=tuple(filters))
    table = cost_limit.load(space)
    identity = make_identity(
        *(SEARCH_IDENTITY, data, batches, space, schedule, cost_limit, devices, compilation),
        class_weights=class_weights,
        seed=seed,
    )
    identity["cost_table"] = table.digest() if table else None
    defaults = list_defaults(SearchSpace, SearchSchedule, CostLimit, Batches)
    check_model_dir(model_dir, "search", identity, defaults, checkpoint)

    if alpha_hessian_batches and devices.precision != "float32":
        say(
            f"warning: --alpha_hessian_batches={alpha_hessian_batches}: the gradients of "
            f"--precision={devices.precision} are too coarse for what is measured: read it as noise"
        )
    strategy, description = devices.start("search", seed), data.read()
    compilation.check(strategy)
    halves = input_pipeline.split_halves(description.split(batches.train_split).num_examples, seed)
    check_training_data(data, description, batches, strategy, len(halves[0]), class_weights)
    identity["data_dir"] = identify_data(description)
    check_model_dir(model_dir, "search", identity, defaults, checkpoint)
    epoch_steps = input_pipeline.steps_per_epoch(len(halves[0]), batches.batch_size)
    total_steps = schedule.epochs * epoch_steps
    first_search_step = schedule.alpha_start_epoch * epoch_steps

    rate = schedules.cosine(schedule.learning_rate, schedule.min_learning_rate, total_steps)
    with strategy.scope():
        searching = Search(
            make_supernet(space, description, compilation, recompute),
            make_architecture(identity),
            weight_optimizer=add_loss_scale(
                optimizers.sgd(
                    rate,
                    l2=schedule.weight_decay,
                    gradient_clip_norm=schedule.gradient_clip_norm,
                ),
                devices.precision,
            ),
            architecture_optimizer=add_loss_scale(
                optimizers.adam(
                    schedule.arch_learning_rate,
                    schedule.arch_betas,
                    l2=schedule.arch_weight_decay,
                ),
                devices.precision,
            ),
            ignore_label=description.ignore_label,
            strategy=strategy,
            class_weights=class_weights,
            cost_term=cost_limit.make_term(table, space),
            second_order=schedule.second_order,
            jit_compile=compilation.jit_compile,
            undoes_bad_steps=reports.max_bad_steps > 0,
        )
    architecture, weights = searching.architecture, searching.supernet.variables
    groups = {
        "weights": (weights, searching.weight_optimizer),
        "architecture": (architecture.variables, searching.architecture_optimizer),
    }
    with own_model_dir(model_dir, strategy):
        is_chief = distribution.is_chief(strategy)
        check_model_dir(model_dir, "search", identity, defaults, checkpoint)
        start = restore(model_dir, checkpoint, strategy, groups, identity, reports.keep_checkpoints)
        # A constant rate is a variable, which came from the checkpoint.
        searching.architecture_optimizer.learning_rate = schedule.arch_learning_rate
        if is_chief:
            write_record(
                *(model_dir, "search", identity, description, flagfile), branches=start.branches
            )

        evaluate = make_validation(
            *(searching.logits, description, data.eval_split, strategy, reports.max_eval_images),
            show=keep_samples(model_dir, description) if is_chief else None,
        )
        count_cost = make_cost_counter(description.num_classes, batches.crop_size)

        def report(done: int) -> Row:
            in_phase_one = done <= first_search_step
            found = bilevel.report(architecture, searching.expected_cost())
            return {
                "phase": "weights" if in_phase_one else "weights and architecture",
                "learning_rate": float(rate(done - 1)),
                **evaluate(),
                **found,
                **({"alpha_hessian": searching.measure_curvature(probe)} if probe else {}),
                **(count_cost(bilevel.decode(architecture, {})[0]) if is_chief else {}),
            }

        def collapsed(row: Row) -> bool:
            limit = schedule.stop_at_skip_connects
            found = row.get("skip_connects") or 0  # a row that was read may lack it
            return 0 < limit <= found and row["step"] > first_search_step

        def stream(number: int, start_step: int) -> Iterator[Any]:
            return input_pipeline.distribute_batches(
                *(strategy, description, batches.train_split),
                start_step=start_step,
                records=halves[number],
                seed=seed,
                stream=number,
                **batches.options(),
            )

        def explain(loss: str, step: int, prefix: str | None) -> str:
            number, first_step = (1, first_search_step) if loss == "loss_arch" else (0, 0)
            steered = ("learning_rate", "min_learning_rate", "arch_learning_rate")[: 2 + number]
            rates = {name: getattr(schedule, name) / 10 for name in steered}
            names = input_pipeline.name_images(
                *(description, batches.train_split, step - 1 - first_step),
                records=halves[number],
                seed=seed,
                stream=number,
                batch_size=batches.batch_size,
            )
            return explain_bad_loss(model_dir, names, rates, prefix, command)

        stream_a = stream(0, start.step)
        stream_b = stream(1, max(0, start.step - first_search_step))
        probe = list(islice(stream(1, 0), alpha_hessian_batches)) if alpha_hessian_batches else []
        report_every = reports.eval_every or epoch_steps
        rows = run(
            "search",
            searching.steps,
            bilevel.pair_batches(stream_a, stream_b, start.step, first_search_step),
            report,
            model_dir=model_dir,
            start_step=start.step,
            total_steps=total_steps,
            epoch_steps=epoch_steps,
            batch_size=batches.batch_size,
            store=start.store,
            save_every=reports.save_every or report_every,
            report_every=report_every,
            worst_loss=worst_loss(description.num_classes, class_weights),
            max_bad_steps=reports.max_bad_steps,
            explain=explain,
            steps_per_loop=compilation.steps_per_loop,
            passes=bilevel.count_passes(first_search_step, schedule.second_order),
            writes=is_chief,
            summaries=make_board(model_dir, run_record.read(model_dir, "search"))
            if is_chief
            else None,
            reported=lambda: write_page(model_dir),
            is_enough=collapsed,
            interrupts=distribution.interrupts_of(strategy),
        )
        if not is_chief:
            return None
        steps = rows[-1]["step"]
        if steps < total_steps:
            say(
                f"search: ends at step {steps} of {total_steps} with {rows[-1]['skip_connects']} "
                f"skip-connections in a cell (--stop_at_skip_connects="
                f"{schedule.stop_at_skip_connects})"
            )
        genotype = write_architecture(model_dir, architecture, steps, description.name, seed)
        say(
            summary.summarize_search(
                rows,
                genotype,
                seconds=time.monotonic() - began,
                learning_rate=schedule.arch_learning_rate,
                updates=steps - first_search_step,
                model_dir=model_dir,
                data_dir=description.data_dir,
                crop_size=batches.crop_size,
                resize_factor=description.options.get("resize_factor", 1.0),
                command=command,
            )
        )
        return genotype


def check_stop(schedule: SearchSchedule, space: SearchSpace) -> None:
    """Raises UsageError if no cell can have the skip-connections that end the search."""
    limit, most = schedule.stop_at_skip_connects, 2 * space.num_blocks
    if limit and search_space.SKIP_CONNECT not in space.operations:
        raise UsageError(
            f"--stop_at_skip_connects={limit}: {search_space.SKIP_CONNECT} is not among "
            "--operations"
        )
    if limit > most:
        raise UsageError(
            f"--stop_at_skip_connects={limit}: a cell of --num_blocks={space.num_blocks} has "
            f"{most} operations; give fewer"
        )


def make_cost_counter(
    num_classes: int, crop_size: tuple[int, int]
) -> Callable[[Genotype], dict[str, float]]:
    """A function that counts what a network would cost for a crop, with the widths of
    NetworkOptions; a network that did not change is not counted again.
    """

    @functools.lru_cache(maxsize=1)
    def count(genotype: Genotype) -> dict[str, float]:
        network = saved_network.make_network(genotype, vars(NetworkOptions()), num_classes)
        costs = model_cost.summarize(model_cost.count(network, crop_size), crop_size)
        return {name: costs[name] for name in ("params_millions", "multi_adds_billions")}

    return count


def make_supernet(
    space: SearchSpace, description: Description, compilation: Compilation, recompute: str
) -> SuperNet:
    """The super-net of a search space for the data's classes; call it in the strategy's scope."""
    return SuperNet(
        num_classes=description.num_classes,
        num_layers=space.num_layers,
        num_blocks=space.num_blocks,
        operations=tuple(space.operations),
        filter_multiplier=space.filter_multiplier,
        stem_filters=space.stem_filters,
        alpha_sharing=space.alpha_sharing,
        partial_channels=space.partial_channels,
        recompute=recompute,
        sync_batch_norm=compilation.sync_batch_norm,
        jit_compile=compilation.jit_compile,
    )

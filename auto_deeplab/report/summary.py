"""What is said at the end of a search and of a training: results, and what to run next."""

import math
import os
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from auto_deeplab.space.genotype import Genotype
from official.progress import format_duration

COMMAND = ("python", "auto_deeplab/train.py")

CLEARLY = 1.5
"""An architecture is called close to random while the spread of its logits is below CLEARLY times
what chance alone gives (`chance_spread`). At 1.5 times, noise may still be 1 / 1.5^2 = 44 % of
their variance; the spread of pure noise itself varies by a tenth from one search to the next."""


def summarize_search(
    rows: Sequence[Mapping[str, Any]],
    genotype: Genotype,
    *,
    seconds: float,
    learning_rate: float,
    updates: int,
    model_dir: str,
    data_dir: str,
    crop_size: Sequence[int],
    resize_factor: float = 1.0,
    command: Sequence[str] = COMMAND,
) -> str:
    """Says the best and last mIoU, how decided alpha and beta are, and what to run next.

    A warning is added where alpha or beta are so little decided that chance could have done it.

    Args:
        rows: of history.jsonl.
        genotype: what was decoded, with alpha and beta in its meta.
        seconds: what this part of the search took.
        learning_rate: of alpha and beta.
        updates: how many of them were made.
        model_dir, data_dir, crop_size: of the search, for the command that comes next.
        resize_factor: of the data.
        command: as which train.py was called.
    """
    alpha, beta = (np.asarray(genotype.meta[name]) for name in ("alpha", "beta"))
    edges, nodes = alpha.reshape(-1, alpha.shape[-1]), _rows_of_beta(beta)
    lines = [
        f"search: done in {format_duration(seconds)}",
        *_describe_miou(rows, "val mIoU of the super-net"),
        f"alpha: {_describe_certainty(edges, 'an edge', 'operation')}",
        f"beta: {_describe_certainty(nodes, 'a node', 'outgoing edge')}",
        *_warn_of_chance({"alpha": edges, "beta": nodes}, learning_rate, updates),
        "next, train what was found: "
        + _next_command(
            command,
            *("--mode=train", "--flagfile=train_small.cfg"),
            f"--genotype={os.path.join(model_dir, 'genotype.json')}",
            *(f"--data_dir={data_dir}", f"--model_dir={model_dir.rstrip('/')}_train"),
            f"--crop_size={','.join(map(str, crop_size))}",
        ),
    ]
    if resize_factor != 1:
        lines.append(
            f"({data_dir} has its images at {resize_factor:g} of their size: better train on full "
            "ones, with a larger --crop_size)"
        )
    return "\n".join(lines)


def summarize_training(
    rows: Sequence[Mapping[str, Any]],
    *,
    seconds: float,
    model_dir: str,
    data_dir: str,
    command: Sequence[str] = COMMAND,
) -> str:
    """Says the time, the best and last mIoU, and the command that evaluates.

    Args:
        rows: of history.jsonl.
        seconds: what this part of the training took.
        model_dir, data_dir: of the training.
        command: as which train.py was called.
    """
    flags = ("--mode=eval", f"--data_dir={data_dir}", f"--model_dir={model_dir}")
    lines = [
        f"train: done in {format_duration(seconds)}",
        *_describe_miou(rows, "val mIoU"),
        f"next, all images and all classes: {_next_command(command, *flags)}",
    ]
    return "\n".join(lines)


def chance_spread(learning_rate: float, updates: int) -> float:
    """The spread that logits get from gradients that are pure noise: rate * sqrt(updates).

    An update of Adam has about the length of the rate, however small the gradient; n such updates,
    each up or down by chance, lead sqrt(n) of them away on average (a random walk).
    """
    return learning_rate * math.sqrt(updates)


def logit_spread(rows: Sequence[np.ndarray] | np.ndarray) -> float:
    """The root mean square distance of logits from the mean of their row.

    The logarithm of a probability is its logit minus a constant of the row, which drops out when
    the row's mean is subtracted.

    Args:
        rows: the softmax of each row of logits, 1-D arrays of any lengths.
    """
    logits = [np.log(np.maximum(row, 1e-30)) for row in rows]
    return math.sqrt(np.concatenate([(row - row.mean()) ** 2 for row in logits]).mean())


def _rows_of_beta(beta: np.ndarray) -> list[np.ndarray]:
    """For each node of the trellis, the probabilities of its outgoing edges, which sum to 1."""
    rows = [row[row > 0] for row in beta.reshape(-1, beta.shape[-1])]
    return [row for row in rows if len(row)]


def _describe_certainty(rows: Sequence[np.ndarray] | np.ndarray, of: str, what: str) -> str:
    """Says the mean entropy and the mean largest probability, each beside that of uniform rows."""
    entropy = np.mean([-(row * np.log(np.maximum(row, 1e-30))).sum() for row in rows])
    share = entropy / np.mean([math.log(len(row)) for row in rows])
    largest, uniform = np.mean([(row.max(), 1 / len(row)) for row in rows], axis=0)
    return (
        f"entropy {share:.1%} of uniform; {of}'s strongest {what} has a probability of "
        f"{largest:.3f} on average, uniform {uniform:.3f}"
    )


def _warn_of_chance(
    probabilities: Mapping[str, Sequence[np.ndarray] | np.ndarray],
    learning_rate: float,
    updates: int,
) -> list[str]:
    by_chance = chance_spread(learning_rate, updates)
    spreads = {name: logit_spread(rows) for name, rows in probabilities.items()}
    idle = [name for name, value in spreads.items() if value < CLEARLY * by_chance]
    if not idle:
        return []
    network = {"alpha": "cell", "beta": "path"}
    far = " and ".join(f"{spreads[name]:.2g}" for name in idle)
    return [
        f"warning: the {' and the '.join(network[name] for name in idle)} may be close to random "
        f"ones: the logits of {' and '.join(idle)} are spread by {far}, and {updates} updates of "
        f"--arch_learning_rate={learning_rate:g} by mere chance give {by_chance:.2g}: search "
        "longer, and see whether other seeds find the same (docs/search_your_own_data.md)"
    ]


def _describe_miou(rows: Sequence[Mapping[str, Any]], what: str) -> list[str]:
    reports = [(row["val_miou"], row["step"]) for row in rows if row.get("val_miou") is not None]
    if not reports:
        return []
    last, best = reports[-1], max(reports, key=lambda report: report[0])
    return [f"{what}: last {last[0]:.3f} at step {last[1]}, best {best[0]:.3f} at step {best[1]}"]


def _next_command(command: Sequence[str], *flags: str) -> str:
    """The command with other flags; to copy."""
    return shlex.join([*command, *flags])

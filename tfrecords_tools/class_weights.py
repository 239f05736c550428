"""Weights for train.py's --class_weights, from how often the classes of a split occur.

    python -m tfrecords_tools.class_weights --data_dir=DIR [--method=...] | tail -1 >> mine.cfg

stdout is one line for a flagfile, --class_weights=w0,w1,...; the table of shares and weights goes
to stderr. With s_c, the share of class c in the pixels of the split that are not void:

    inverse_sqrt      w_c = s_c^(-1/2) / (sum over k of s_k^(1/2))
    inverse           w_c = 1 / (s_c * number of classes that occur): all have an equal say
    median_frequency  w_c = (median over k of f_k) / f_c, where f_c is the share of class c in the
                      pixels, void left out, of those images in which it occurs (Eigen and Fergus,
                      ICCV 2015)

The first two are scaled so that the average pixel has weight 1: the loss keeps its size, and the
learning rate its meaning. The third is as it was published. A class that never occurs gets 1: no
pixel of this split is weighted by it, and if the weights are ever used on data in which it does
occur, 0 would silently switch it off.
"""

import sys

if __name__ == "__main__":
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
from absl import flags

from official.command_line import run_app
from official.errors import RunError
from official.records import Description
from tfrecords_tools import data_flags
from tfrecords_tools.findings import Findings, read_split

METHODS = ("inverse_sqrt", "inverse", "median_frequency")


def compute_class_weights(findings: Findings, description: Description, method: str) -> np.ndarray:
    """Computes one weight per class.

    Args:
        findings: of the split; at least one of its pixels has a class.
        description: of the dataset.
        method: one of METHODS; see above for what they compute.

    Returns:
        float64 [C], above 0; 1 for a class that never occurs.
    """
    shares = findings.shares(description)
    occurs = shares > 0
    share = shares[occurs]
    if method == "inverse_sqrt":
        found = share**-0.5 / np.sum(share**0.5)
    elif method == "inverse":
        found = 1 / (share * len(share))
    else:
        around = findings.around[: description.num_classes][occurs]
        frequency = findings.classes(description)[occurs] / around
        found = np.median(frequency) / frequency
    weights = np.ones(len(shares))
    weights[occurs] = found
    return weights


def report(weights: np.ndarray, findings: Findings, description: Description) -> str:
    """Writes a table of classes, shares and weights, with what their user should know."""
    names, shares = description.class_names, findings.shares(description)
    column = max(map(len, (*names, "class")))
    lines = [f"   id  {'class':<{column}}    share    weight"]
    for i, (name, share, weight) in enumerate(zip(names, shares, weights, strict=True)):
        lines.append(f"  {i:>3}  {name:<{column}}  {share:>7.2%}  {weight:>8.4g}")
    lines.append(f"  average weight of a pixel: {shares @ weights:.4g}")
    never = [name for name, share in zip(names, shares, strict=True) if not share]
    if never:
        lines.append(f"  never seen, so weight 1: {', '.join(never)}")
    return "\n".join(lines)


def format_flag(description: Description, split: str, method: str) -> str:
    """Reads the labels of a split, prints the table on stderr, and gives the line for a flagfile.

    Raises:
        RunError: the split is not there, cannot be read, or is all void.
    """
    data_dir = description.data_dir
    findings = read_split(split, description.split(split), description, labels_only=True)
    if findings.errors:
        more = f" (and {len(findings.errors) - 1} more)" if len(findings.errors) > 1 else ""
        raise RunError(
            f"{data_dir}: {findings.errors[0]}{more}: python -m tfrecords_tools.check names all"
        )
    if not findings.shares(description).any():
        raise RunError(f"split {split!r} of {data_dir} has no labels: every pixel is void")
    weights = compute_class_weights(findings, description, method)
    print(f"{data_dir}, {split}: {method}", file=sys.stderr)
    print(report(weights, findings, description), file=sys.stderr)
    return "--class_weights=" + ",".join(f"{weight:.4g}" for weight in weights)


def main() -> None:
    """Reads the flags and prints the line."""
    values = flags.FLAGS
    print(format_flag(data_flags.read(values), values.split, values.method))


if __name__ == "__main__":
    data_flags.define()
    flags.DEFINE_string("split", "train", "the split that will be trained on")
    flags.DEFINE_enum("method", METHODS[0], METHODS, "how weights follow from shares")
    run_app(main)

"""Looks through every record of a dataset.

    python -m tfrecords_tools.check --data_dir=DIR [--figure=DIR/classes.png]

Prints, per split, the image sizes and how often every class occurs, then images that are there more
than once, and one line per error; draws the shares of the classes. Exit code 1 if there is any
error.

An image is the same as another if their decoded pixels are (their SHA-256): whatever they are
called, and however they are compressed. It is an error if a split to train on holds an image of a
split to evaluate on: one whose name begins with val, test, dev or eval. Where a name says that it
is meant to be so (trainval and val), it is not.
"""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    from official.quiet import import_tensorflow

    import_tensorflow()

from absl import flags

from official.command_line import run_app
from official.errors import RunError
from official.files import check_output, make_directory
from official.paths import define_path
from official.records import Description
from tfrecords_tools import class_chart, data_flags
from tfrecords_tools.findings import Findings, read_split

EVALUATED = ("val", "test", "dev", "eval")


def report(name: str, findings: Findings, description: Description) -> str:
    """Writes the findings of one split: sizes, a table of classes, the classes never seen."""
    names, void = description.class_names, description.ignore_label
    sizes = findings.sizes.most_common()
    shown = ", ".join(f"{height} x {width} ({count})" for (height, width), count in sizes[:5])
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    column = max(map(len, (*names, "class")))
    lines = [
        f"{name}: {findings.records} records, sizes {shown or 'none'}{more}",
        f"   id  {'class':<{column}}  {'pixels':>15}    share   images",
    ]
    shares, every = findings.shares(description), max(findings.pixels.sum(), 1)
    rows = [(i, class_name, shares[i]) for i, class_name in enumerate(names) if i != void]
    for i, class_name, share in [*rows, (void, "void", findings.pixels[void] / every)]:
        pixels, images = findings.pixels[i], findings.images[i]
        lines.append(
            f"  {i:>3}  {class_name:<{column}}  {pixels:>15,}  {share:>7.2%}  {images:>7,}"
        )
    lines.append("  (a class' share is of the valid pixels, void's of all pixels)")
    never = [class_name for i, class_name, share in rows if not share]
    if len(never) == len(rows):
        lines.append("  every pixel is void")
    elif never:
        lines.append(f"  never seen: {', '.join(never)}")
    return "\n".join(lines)


def find_repeated(splits: Mapping[str, Findings]) -> tuple[list[str], list[str]]:
    """Finds images that occur more than once, in one split or in two.

    Returns:
        Lines that tell of what may be intended, and lines that tell of errors.
    """
    notes, errors = [], []
    for name, findings in splits.items():
        twice = [names for names in findings.contents.values() if len(names) > 1]
        if twice:
            notes.append(_list_names(f"{name} holds {len(twice)} image(s) more than once", twice))
    for pair in itertools.combinations(splits, 2):
        # The split to train on comes first, as it is named first in what is said.
        one, other = sorted(pair, key=_is_evaluated)
        ours, theirs = splits[one].contents, splits[other].contents
        shared = [[ours[content][0], theirs[content][0]] for content in ours if content in theirs]
        line = _list_names(f"{one} and {other} share {len(shared)} image(s)", shared)
        if not shared:
            continue
        if _is_evaluated(one) == _is_evaluated(other) or other in one:
            notes.append(line)
        else:
            errors.append(line)
    return notes, errors


def check(description: Description, figure: str = "") -> None:
    """Checks every split of a dataset and prints what was found.

    Args:
        description: of the dataset.
        figure: the PNG file for the shares of the classes; empty for none.

    Raises:
        RunError: something is wrong; every error has been printed.
    """
    if figure:
        check_output(figure, description.files(), "--figure")
        _check_writable(figure)  # reading a large dataset takes long
    print(
        f"{description.name}: {description.num_classes} classes, void {description.ignore_label}, "
        f"options {description.options}, fingerprint {description.fingerprint()}"
    )
    splits = {}
    errors = 0
    for name, split in description.splits.items():
        findings = splits[name] = read_split(name, split, description)
        described = {(height, width): count for height, width, count in split.sizes}
        if not findings.errors and described != findings.sizes:
            findings.errors.append(f"{name}: the image sizes are not those of the description")
        print(report(name, findings, description))
        for error in findings.errors:
            print(f"  ERROR {error}")
        errors += len(findings.errors)
    notes, wrong = find_repeated(splits)
    for line in (*(f"note: {note}" for note in notes), *(f"ERROR {error}" for error in wrong)):
        print(line)
    if figure:
        class_chart.draw(figure, splits, description)
        print(f"wrote {figure}")
    if errors + len(wrong):
        raise RunError(f"{description.data_dir}: {errors + len(wrong)} error(s), listed above")
    print("no errors")


def choose_figure(data_dir: str) -> str:
    """Chooses the picture's path without --figure: beside the data; "" where that is read-only."""
    if os.access(data_dir, os.W_OK):
        return os.path.join(data_dir, "classes.png")
    print(f"{data_dir} cannot be written, so there is no picture: --figure=PATH says where else")
    return ""


def main() -> None:
    """Reads the flags and checks."""
    values = flags.FLAGS
    description = data_flags.read(values)
    check(description, choose_figure(values.data_dir) if values.figure is None else values.figure)


def _is_evaluated(split: str) -> bool:
    return split.startswith(EVALUATED)


def _list_names(text: str, groups: list[list[str]]) -> str:
    shown = ", ".join(" = ".join(names) for names in groups[:3])
    more = f", and {len(groups) - 3} more" if len(groups) > 3 else ""
    return f"{text}: {shown}{more}"


def _check_writable(figure: str) -> None:
    directory = make_directory(Path(figure).parent)
    if not os.access(directory, os.W_OK):
        raise RunError(f"cannot write into {directory}: say with --figure where the picture goes")


if __name__ == "__main__":
    data_flags.define()
    define_path(
        "figure",
        None,
        "the PNG file for the shares of the classes; empty for none. Default: classes.png in the "
        "data's directory",
    )
    run_app(main)

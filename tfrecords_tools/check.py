"""Looks through every record of a dataset.

    python -m tfrecords_tools.check --data_dir=DIR

Prints, per split, the image sizes and how often every class occurs, and one line per error. Exit
code 1 if there is any error.
"""

import collections
import dataclasses
from collections.abc import Iterator

if __name__ == "__main__":
    from official.quiet import import_tensorflow

    import_tensorflow()

import numpy as np
import tensorflow as tf
from absl import flags

from official.errors import RunError, run_app
from official.input_pipeline import decode_image, decode_label
from official.progress import Progress
from official.records import Description, Split, explain, parse_example, read_description


@dataclasses.dataclass
class Findings:
    """What was found in one split.

    Attributes:
      records: number of records read.
      pixels: int64 [256], number of pixels per label value.
      images: int64 [256], number of images in which the label value occurs.
      sizes: number of images per (height, width).
      errors: one line per error.
    """

    records: int = 0
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    images: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, np.int64))
    sizes: collections.Counter[tuple[int, int]] = dataclasses.field(
        default_factory=collections.Counter
    )
    errors: list[str] = dataclasses.field(default_factory=list)


def check_split(name: str, split: Split, description: Description) -> Findings:
    """Reads and decodes every record of a split as training does."""
    findings = Findings()
    with Progress(f"check {name}", split.num_examples) as progress:
        for serialized in _records(split, findings):
            _check_record(serialized, findings, description)
            progress.advance()
    if findings.records != split.num_examples:
        findings.errors.append(
            f"{name}: {findings.records} records, but the description says {split.num_examples}"
        )
    described = {(height, width): count for height, width, count in split.sizes}
    if not findings.errors and described != findings.sizes:
        findings.errors.append(f"{name}: the image sizes are not those of the description")
    return findings


def report(name: str, findings: Findings, description: Description) -> str:
    """The findings of one split as text: sizes, a table of classes, the classes never seen."""
    names, void = description.class_names, description.ignore_label
    sizes = findings.sizes.most_common()
    shown = ", ".join(f"{height} x {width} ({count})" for (height, width), count in sizes[:5])
    more = f" and {len(sizes) - 5} more" if len(sizes) > 5 else ""
    column = max(map(len, (*names, "class")))
    lines = [
        f"{name}: {findings.records} records, sizes {shown or 'none'}{more}",
        f"   id  {'class':<{column}}  {'pixels':>15}    share   images",
    ]
    valid = findings.pixels[: len(names)].sum()
    rows = [(i, class_name, valid) for i, class_name in enumerate(names)]
    for i, class_name, whole in [*rows, (void, "void", findings.pixels.sum())]:
        pixels, images = findings.pixels[i], findings.images[i]
        share = pixels / max(whole, 1)
        lines.append(
            f"  {i:>3}  {class_name:<{column}}  {pixels:>15,}  {share:>7.2%}  {images:>7,}"
        )
    lines.append("  (a class' share is of the valid pixels, void's of all pixels)")
    never = [class_name for i, class_name in enumerate(names) if not findings.pixels[i]]
    if never:
        lines.append(f"  never seen: {', '.join(never)}")
    return "\n".join(lines)


def check(data_dir: str) -> None:
    """Checks every split of `data_dir` and prints what was found.

    Raises:
      RunError: something is wrong; every error has been printed.
    """
    description = read_description(data_dir)
    print(
        f"{description.name}: {description.num_classes} classes, void {description.ignore_label}, "
        f"options {description.options}, fingerprint {description.fingerprint()}"
    )
    errors = 0
    for name, split in description.splits.items():
        findings = check_split(name, split, description)
        print(report(name, findings, description))
        for error in findings.errors:
            print(f"  ERROR {error}")
        errors += len(findings.errors)
    if errors:
        raise RunError(f"{data_dir}: {errors} error(s), listed above")
    print("no errors")


def main() -> None:
    """Reads the flag and checks."""
    check(flags.FLAGS.data_dir)


def _check_record(serialized: tf.Tensor, findings: Findings, description: Description) -> None:
    classes, void = description.num_classes, description.ignore_label
    findings.records += 1
    filename = f"record {findings.records}"
    try:
        example = parse_example(serialized)
        filename = example["filename"].numpy().decode()
        image = decode_image(example["image"])
        label = decode_label(example["label"]).numpy()
    except tf.errors.InvalidArgumentError as error:
        findings.errors.append(f"{filename}: cannot be decoded: {explain(error)}")
        return
    height, width = image.shape[:2]
    findings.sizes[height, width] += 1
    if label.shape != (height, width):
        findings.errors.append(
            f"{filename}: the image is {height} x {width}, but its label map is "
            f"{label.shape[0]} x {label.shape[1]}"
        )
    counts = np.bincount(label.ravel(), minlength=256)
    findings.pixels += counts
    findings.images += counts > 0
    wrong = [v for v in np.flatnonzero(counts).tolist() if v >= classes and v != void]
    if wrong:
        values = ", ".join(map(str, wrong))
        findings.errors.append(f"{filename}: label {values} is neither 0..{classes - 1} nor {void}")


def _records(split: Split, findings: Findings) -> Iterator[tf.Tensor]:
    # One damaged file does not hide what the others hold.
    for file in split.files:
        try:
            yield from tf.data.TFRecordDataset(file)
        except tf.errors.DataLossError as error:
            findings.errors.append(f"{file}: {explain(error)}")


if __name__ == "__main__":
    flags.DEFINE_string(
        "data_dir", None, "the --output_dir that tfrecords_tools.convert was given", required=True
    )
    run_app(main)

"""Answers in the form that the benchmarks' servers take.

Cityscapes (cityscapesScripts, evaluation/evalPixelLevelSemanticLabeling.py): for each image one PNG
of one channel, as large as the image, whose values are label ids, not train ids. The server looks
for <city>_123456_123456*.png in all folders and refuses two answers to one image.

PASCAL VOC 2012 (development kit): results/VOC2012/Segmentation/comp5_<split>_cls/<image>.png, which
are palette PNGs like the ground truth: their values are the classes. Competition comp5 is for
networks that saw no labels but VOC's in training, comp6 for all others.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

from official import datasets
from official.errors import RunError, UsageError
from official.files import find_files

FORMS = {
    "cityscapes": datasets.CITYSCAPES_NAMES,
    "voc2012_comp5": datasets.VOC_NAMES,
    "voc2012_comp6": datasets.VOC_NAMES,
}
"""The forms, and the classes that a network must have for them."""

_CITYSCAPES_NAME, _CITYSCAPES_END = re.compile(r"([^_]+_\d{6}_\d{6})(?!\d).*"), "_pred_labelIds.png"


@dataclasses.dataclass(frozen=True)
class Submission:
    """The form of the answers for one server.

    Attributes:
        file_of: a picture's name (a path without suffix) -> the answer's path below the output
            directory; raises RunError for a name that the server would not know.
        values: the pixel values of class 0, 1, ...
        palette: 256 colours, for a palette image; None for a grey one.
        one_answer_each: whether the server searches the whole output directory, and so must not
            find other PNG files of the same image.
    """

    file_of: Callable[[str], str]
    values: Sequence[int]
    palette: Sequence[datasets.Colour] | None
    one_answer_each: bool


def make_submission(form: str, class_names: Sequence[str], split: str) -> Submission:
    """Makes the form of that name.

    Args:
        form: a key of FORMS.
        class_names: the network's.
        split: the split that the pictures are; VOC's folders are named after it.

    Raises:
        UsageError: the network has other classes than the dataset.
    """
    if tuple(class_names) != FORMS[form]:
        raise UsageError(
            f"--submission={form} needs a network of the {len(FORMS[form])} classes "
            f"{', '.join(FORMS[form])}; this one has {len(class_names)}: {', '.join(class_names)}"
        )
    if form == "cityscapes":
        return Submission(_name_cityscapes_file, datasets.CITYSCAPES_LABEL_IDS, None, True)
    folder = f"results/VOC2012/Segmentation/{form.removeprefix('voc2012_')}_{split}_cls"
    file_of = functools.partial(_name_voc_file, folder)
    return Submission(file_of, range(len(class_names)), datasets.make_voc_palette(256), False)


def check_alone(submission: Submission, output_dir: str, files: Iterable[str]) -> None:
    """Raises RunError if the server would find a second answer to an image in output_dir.

    Args:
        submission: the form.
        output_dir: need not exist.
        files: the answers to come, paths below output_dir.
    """
    if not submission.one_answer_each:
        return
    answers = set(files)
    for path in find_files(output_dir) if Path(output_dir).is_dir() else ():
        name = path.relative_to(output_dir).as_posix()
        known = _CITYSCAPES_NAME.fullmatch(path.stem) if path.suffix == ".png" else None
        if known and name not in answers and known[1] + _CITYSCAPES_END in answers:
            raise RunError(
                f"{path} is there already, and the server would take it for a second answer to "
                f"{known[1]}: choose an empty --output_dir"
            )


def _name_cityscapes_file(name: str) -> str:
    known = _CITYSCAPES_NAME.fullmatch(PurePosixPath(name).name)
    if known is None:
        raise RunError(
            f"--submission=cityscapes: the image {name} is not named as Cityscapes' are, "
            "<city>_123456_123456...: the server could not tell which one it is"
        )
    return known[1] + _CITYSCAPES_END


def _name_voc_file(folder: str, name: str) -> str:
    return f"{folder}/{PurePosixPath(name).name}.png"

"""--mode=draw: an architecture as a picture."""

import os
from pathlib import Path

from auto_deeplab.modes.data import PathLike
from auto_deeplab.modes.model_dir import load_genotype
from auto_deeplab.report import figures
from auto_deeplab.space.genotype import Genotype
from official.errors import UsageError
from official.files import check_output, make_directory
from official.progress import say

SUFFIXES = (".svg", ".png")


def draw(genotype: Genotype | PathLike, output: PathLike) -> None:
    """Draws path and cells, with alpha and beta where the genotype says by which it was decoded.

    Args:
        genotype: what to draw, a preset's name or a file.
        output: the file to write, SVG or PNG by its suffix.

    Raises:
        UsageError: there is no such genotype, or the suffix is another.
        RunError: the file cannot be written.
    """
    output = os.fspath(output)
    if not output.lower().endswith(SUFFIXES):
        raise UsageError(
            f"--output={output}: the name of a picture ends in {' or '.join(SUFFIXES)}"
        )
    architecture = load_genotype(genotype)
    if not isinstance(genotype, Genotype):
        check_output(output, [Path(genotype)], "--output")
    make_directory(os.path.dirname(os.path.abspath(output)))
    figures.draw_architecture(architecture, output)
    say(architecture.describe())
    say(f"drawn: {output}")

"""docs/tour.ipynb runs from the top, and what it shows in the repository is what it should be."""

import ast
import base64
import importlib.util
import io
import re

import nbformat
import pytest
from PIL import Image

from tests import citations
from tests.command import ROOT

SHORT = """
NUM_TRAIN, NUM_VAL = 8, 3
LAYERS, BLOCKS = 2, 1
EPOCHS, ALPHA_START_EPOCH = 2, 1
SEARCH_CROP, TRAIN_CROP = (33, 49), (49, 65)
TRAIN_STEPS = 2
"""
"""What stands in place of the sizes, so that the tour takes less than a minute."""


def load_runner():
    spec = importlib.util.spec_from_file_location("tour", ROOT / "docs" / "tour.py")
    runner = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(runner)
    return runner


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def words(notebook):
    """All text that the outputs hold."""
    found = [output.get("text", "") for output in outputs(notebook)]
    return "\n".join(
        [*found, *(output.get("data", {}).get("text/plain", "") for output in outputs(notebook))]
    )


def count_pictures(cell):
    return sum("image/png" in output.get("data", {}) for output in cell.outputs)


def pictures(notebook):
    coded = [output.get("data", {}).get("image/png") for output in outputs(notebook)]
    return [Image.open(io.BytesIO(base64.b64decode(png))) for png in coded if png]


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)


def names_set(source):
    return {
        node.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def test_it_runs_from_the_top(tmp_path, monkeypatch, kept):
    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
        (tmp_path / name).mkdir()
    (tmp_path / "cwd").mkdir()
    done = load_runner().run(tmp_path / "cwd", SHORT)  # raises where a cell does
    assert [output for output in outputs(done) if output.output_type == "error"] == []
    assert [cell.source for cell in code_cells(done) if "TRAIN_STEPS =" in cell.source] == [SHORT]
    # Every cell shows as many pictures as are kept of it.
    assert [*map(count_pictures, code_cells(done))] == [*map(count_pictures, code_cells(kept))]
    assert "1 found, 1 random: no difference can be told" in words(done)
    assert "dlopen" not in words(done) and "oneDNN" not in words(done)
    # What it made went with its kernel.
    assert list((tmp_path / "cwd").iterdir()) == []
    assert list((tmp_path / "TMPDIR").glob("tour_*")) == []


def test_the_short_form_sets_what_the_full_one_does(kept):
    (sizes,) = (c for c in code_cells(kept) if "parameters" in c.metadata.get("tags", ()))
    assert names_set(sizes.source) == names_set(SHORT)


def test_what_is_kept_was_run_in_order_and_without_an_error(kept):
    nbformat.validate(kept)
    cells = code_cells(kept)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert {output.output_type for output in outputs(kept)} <= {
        *("stream", "display_data", "execute_result")
    }
    # A cell without a word only imports, or sets sizes.
    assert len([cell for cell in cells if not cell.outputs]) == 3
    assert all(cell.metadata.keys() <= {"tags"} for cell in kept.cells)


def test_what_is_kept_says_nothing_of_the_machine(kept):
    text = words(kept)
    assert len(text) > 500
    machine = (r"(?<![\w.:])/\w+/\w", r"https?://", "localhost", r"\x1b", "[Ww]arning", "oneDNN")
    for pattern in machine:
        assert not re.search(pattern, text), re.search(f".*{pattern}.*", text)[0]


def test_what_is_kept_is_small_and_has_pictures(kept):
    assert (ROOT / "docs" / "tour.ipynb").stat().st_size < 600_000
    shown = pictures(kept)
    assert len(shown) == 8
    for picture in shown:
        assert max(picture.size) <= 900
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 20)) > 16  # not blank


def test_its_code_is_of_this_repository_and_short(kept):
    cells = code_cells(kept)
    assert citations.wrong_in_python("\n".join(cell.source for cell in cells)) == []
    for before, cell in zip(kept.cells, kept.cells[1:], strict=False):
        assert cell.cell_type == "markdown" or before.cell_type == "markdown", cell.source
    assert all(len(cell.source.splitlines()) <= 40 for cell in cells)
    for cell in kept.cells:
        if cell.cell_type == "markdown":
            for link in re.findall(r"\]\((\w[^):]*)\)", cell.source):
                assert (ROOT / "docs" / link).is_file(), link

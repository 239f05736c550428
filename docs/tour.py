"""Runs tour.ipynb from the top and keeps what its cells show: make tour.

python docs/tour.py    (in a few minutes on two CPU cores)
"""

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TOUR = Path(__file__).resolve().with_suffix(".ipynb")


def run(folder: str | os.PathLike[str], parameters: str | None = None) -> nbformat.NotebookNode:
    """The notebook with new outputs; the file stays as it is.

    Args:
        folder: where its kernel starts.
        parameters: what stands in place of the cell that is tagged so.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed, with its traceback.
    """
    notebook = nbformat.read(TOUR, as_version=4)
    for cell in notebook.cells:
        if parameters is not None and "parameters" in cell.metadata.get("tags", ()):
            cell.source = parameters
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=None,
        record_timing=False,  # else each run changes the file
        coalesce_streams=True,
        extra_arguments=["--log-level=ERROR"],
    )
    # The kernel finds this very repository, whether or not it is installed.
    client.execute(cwd=os.fspath(folder), env={**os.environ, "PYTHONPATH": str(TOUR.parents[1])})
    notebook.metadata.language_info = {"name": "python"}  # without the version of this machine's
    return notebook


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        nbformat.write(run(empty), TOUR)

"""Execute a notebook again, and keep nothing in it that changes with time or place.

pip install 'transformers_lladav[notebook]'
python docs/notebooks/execute_notebook.py [NOTEBOOK]

The kernel runs in an empty folder, on one thread and without the Hub: a notebook that needs
the repository fails here, and results do not depend on how many cores there are.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

TOUR = Path(__file__).resolve().parent / "tour.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
FOLDERS = ("IPYTHONDIR", "MPLCONFIGDIR")  # settings of people's own stay out of it
SECONDS_PER_CELL = 600


def execute(notebook: Any, folder: Path) -> Any:
    """Run all cells of a notebook in a kernel of its own.

    Args:
        notebook: as `nbformat.read` gives it; it gets the outputs.
        folder: where the kernel runs.

    Returns:
        The notebook.

    Raises:
        CellExecutionError: at the first cell that fails, with its traceback.
    """
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,  # how often a print was flushed is no part of a result
        record_timing=False,
    )
    with tempfile.TemporaryDirectory() as settings:
        private = {name: str(Path(settings) / name) for name in FOLDERS}
        client.execute(env=os.environ | ENVIRONMENT | private)
    return notebook


def normalise(notebook: Any) -> list[str]:
    """Take out of a notebook what would differ the next time, in place.

    What libraries write to standard error depends on the machine and on what else is
    installed; errors of cells are no part of it, because `execute` raises them.

    Args:
        notebook: with outputs.

    Returns:
        What was written to standard error.
    """
    notebook.metadata = NotebookNode(METADATA)
    notes = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(code, start=1):
        notes += [output.text for output in cell.outputs if _is_noise(output)]
        cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        for output in cell.outputs:
            if "execution_count" in output:
                output.execution_count = number
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # IPython stores pictures as both
        cell.execution_count = number
    for cell in notebook.cells:
        kept = {name: cell.metadata[name] for name in ("tags",) if name in cell.metadata}
        cell.metadata = NotebookNode(kept)
    return notes


def _is_noise(output: Any) -> bool:
    return output.output_type == "stream" and output.name == "stderr"


def main(arguments: list[str] | None = None) -> int:
    """Execute a notebook and write it where it was.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description="Execute a notebook again, in place.")
    parser.add_argument(
        "notebook", type=Path, nargs="?", default=TOUR, help="default: the tour"
    )
    path = parser.parse_args(arguments).notebook
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    sys.stderr.writelines(normalise(notebook))
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())

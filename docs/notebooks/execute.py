"""Execute a notebook of this folder again and keep nothing in it that changes with time or place.

python docs/notebooks/execute.py [NOTEBOOK]

The kernel runs in an empty folder, on one thread and without the network, so that a notebook that needs the repository
fails here, and what it computes does not depend on how many cores there are.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

TOUR = Path(__file__).resolve().parent / "tour.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLCONFIGDIR": "matplotlib", "IPYTHONDIR": "ipython"}
SECONDS_PER_CELL = 600
ADDRESS = re.compile(r"\bat 0x[0-9a-f]+")


def execute(notebook: Any, folder: Path) -> Any:
    """Run all cells of a notebook in a kernel of its own.

    Args:
        notebook: as `nbformat.read` gives it; it gets the outputs.
        folder: where the kernel runs; settings of its libraries are kept there too.

    Returns:
        The notebook.

    Raises:
        ImportError: if nbclient or ipykernel is not installed.
        CellExecutionError: at the first cell that fails, with its traceback.
    """
    try:
        from nbclient import NotebookClient
    except ImportError as error:
        raise ImportError("notebooks need nbclient: pip install 'transformers_lladav[notebook]'") from error
    private = {name: str(folder / value) if name.endswith("DIR") else value for name, value in ENVIRONMENT.items()}
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        coalesce_streams=True,  # how often a print was flushed is no part of a result
        record_timing=False,
    )
    client.execute(env=os.environ | private)
    return notebook


def normalise(notebook: Any) -> list[str]:
    """Take out of a notebook what would differ the next time, in place.

    What libraries write to standard error depends on the machine and on what else is installed; errors of cells are
    no part of it, because `execute` raises them.

    Args:
        notebook: with outputs.

    Returns:
        What was written to standard error.
    """
    notebook.metadata = type(notebook.metadata)(METADATA)
    notes = []
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.execution_count = number + 1
        notes += [output.text for output in cell.outputs if output.get("name") == "stderr"]
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # IPython stores pictures in both
            if "execution_count" in output:
                output.execution_count = number + 1
            if "text/plain" in output.get("data", {}):
                output.data["text/plain"] = ADDRESS.sub("", output.data["text/plain"])
    for cell in notebook.cells:
        cell.metadata = type(cell.metadata)({name: cell.metadata[name] for name in ("tags",) if name in cell.metadata})
    return notes


def main(arguments: list[str] | None = None) -> int:
    """Execute a notebook and write it where it was.

    Args:
        arguments: command line; that of the process by default.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebook", type=Path, nargs="?", default=TOUR, help="file (default: the tour)")
    path = parser.parse_args(arguments).notebook
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        execute(notebook, Path(folder))
    notes = normalise(notebook)
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    sys.stderr.writelines(notes)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The notebook "Where three systems look": its cells run."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "where-three-systems-look.ipynb"


@pytest.mark.parts
def test_the_notebook_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "store it without outputs"
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = [
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "stream"
    ]
    assert [line.split()[0] for line in printed[0].splitlines()] == ["sat", "flamingo", "blip2"]

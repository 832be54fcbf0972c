"""The notebooks run from start to end. Their cell of parameters is replaced by one that takes seconds."""

import os
import shutil

import pytest

from tests.tiny import ROOT, environment

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

SMALL = {
    "quickstart": "answer_tokens = 12\njudgement_tokens = 16\nepochs = 1",
    "sandbox": "seeds = 1\nrows = 600\nepochs = 2\ncount = 12\nheld_out = 6",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs_from_start_to_end(name, tmp_path, monkeypatch):
    for variable, value in (environment() | {"PYTHONPATH": str(ROOT)}).items():
        monkeypatch.setenv(variable, value)
    folder = tmp_path / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder)
    notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source = SMALL[name]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert pictures and os.environ["JAX_PLATFORMS"] == "cpu"


@pytest.mark.parametrize("name", SMALL)
def test_notebooks_are_kept_without_output(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)

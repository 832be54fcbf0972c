"""The notebooks run from start to end. Their cell of parameters is replaced by one that takes seconds."""

import importlib.util
import os
import shutil
from types import SimpleNamespace

import nbclient
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from tests.tiny import ROOT, environment

SMALL = {
    "quickstart": 'prompts = ["Write a short note."]\nanswer_tokens = 12\njudgement_tokens = 16\nepochs = 1',
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
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert pictures and os.environ["JAX_PLATFORMS"] == "cpu"


def asked_to_install(name: str, repository: str) -> list[str]:
    """What the cell of installation asks a shell for where nothing is installed."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    (source,) = [cell.source for cell in cells if "%pip" in cell.source]
    asked: list[str] = []
    values: dict = {}
    shell = SimpleNamespace(
        system=lambda words: asked.append(words.format(**values)),
        run_line_magic=lambda magic, words: asked.append(f"{magic} {words.format(**values)}"),
    )
    values["get_ipython"] = lambda: shell
    source = TransformerManager().transform_cell(source)
    exec(source.replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}"), values)
    return asked


@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_by_itself_clones_the_repository(name, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    with pytest.raises(RuntimeError, match="REPOSITORY above"):
        asked_to_install(name, "")
    assert asked_to_install(name, "there")[:2] == [
        "git clone -q --depth 1 there selfreward_jax-source",
        "pip install -q selfreward_jax-source",
    ]
    (tmp_path / "pyproject.toml").touch()
    assert asked_to_install(name, "")[0] == "pip install -q .."


@pytest.mark.parametrize("name", SMALL)
def test_notebooks_are_kept_without_output(name):
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)

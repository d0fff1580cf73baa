"""Notebooks run from top to bottom, check their claims with assertions, and are stored with the outputs of that run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.cli import IN_PROCESS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = {
    "score_and_epsilon",
    "parameterizations",
    "sde_and_ode",
    "ddpm",
    "score_matching",
    "energy_and_langevin",
    "solvers",
    "guidance_and_inverse_problems",
    "likelihood",
    "flow_maps",
    "weighted_particles",
}


def test_all_are_there_with_their_outputs():
    assert {path.stem for path in NOTEBOOKS} == NAMES
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert "pip install" in code[0].source  # the one cell that Colab needs
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), path.stem
        assert any("image/png" in output.get("data", {}) for cell in code for output in cell.outputs), path.stem
        assert any(re.search(r"\bassert|assert_allclose|assert_array_equal", cell.source) for cell in code)
        assert not any(output.output_type == "error" for cell in code for output in cell.outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", IN_PROCESS)
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()

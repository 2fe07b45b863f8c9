"""Runs the code cells of a notebook in one namespace: `python tests/docs/notebook_cells.py NOTEBOOK`.

A process of its own, because a notebook must run with the defaults of jax, where ranks are promoted, and not with the
suite's; only compilation is made quick. Cells tagged `install` are left out. Afterwards it asserts what the notebook
tells its reader.
"""

import json
import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["MPLBACKEND"] = "Agg"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
sys.path.insert(0, str(Path(__file__).parents[2]))


def main(path: str) -> None:
    namespace = {"__name__": "__main__"}
    for cell in json.loads(Path(path).read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code" and "install" not in cell["metadata"].get("tags", []):
            exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), namespace)

    namespace["figure"].canvas.draw()
    selection, seen = namespace["selection"], namespace["seen"]
    assert selection.shape == (1, 512, 1, 3)
    assert (seen > 0).sum(axis=1).max() == 5, "a sink, a local and three selected blocks"
    assert namespace["share"] > 0.6, "the selected blocks are those of the query's topic"
    assert float(abs(namespace["gradients"].router.kernel[...]).max()) > 0
    assert namespace["result"].step == 10
    print("every cell ran")


if __name__ == "__main__":
    main(sys.argv[1])

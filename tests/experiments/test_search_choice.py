"""The search for cheaper choosing, on a run of ten steps."""

import functools
import subprocess
import sys

import pytest
from programs import ROOT, program

from subq_jax.files import read_rows

search = functools.partial(program, "search_choice", ())


@pytest.mark.slow
def test_every_search_of_the_grids_is_judged(tmp_path):
    trained = program("train", ("--config=configs/recall.py:smoke", "--progress=false"), tmp_path)
    assert trained.returncode == 0, trained.stderr
    done = search(tmp_path, "--length=256", "--fanouts=2;4,2", "--beams=3,64", "--ranks=2", "--kept=8,32")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "search.jsonl")
    assert [row.get("beam_width") or row["kept"] for row in rows] == [3, 64, 3, 64, 8, 32]
    assert rows[1]["recall"] == rows[3]["recall"] == rows[5]["recall"] == 1 and 0 < rows[2]["recall"] < 1
    assert "certified" in done.stdout
    refused = search(tmp_path, "--fanouts=two")
    assert refused.returncode != 0 and "must be integers" in refused.stdout + refused.stderr


def test_a_folder_without_a_run_is_named(tmp_path):
    done = search(tmp_path)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"workdir {tmp_path} must hold a run, got no file config.json there" in done.stderr


def test_sketches_are_fitted_to_other_sequences_than_those_that_are_searched():
    """In a process of its own: two programs' flags of one name cannot be defined together."""
    script = """
import sys, types
import numpy as np
from absl import flags
from experiments import search_choice

def search_statistics(model, tokens, searches, fitted_to):
    print(tokens.tolist(), fitted_to.tolist())
    raise ValueError("seen enough")

search_choice.stored_config = lambda workdir: types.SimpleNamespace(data=None, seed=0)
search_choice.train = lambda config, workdir: types.SimpleNamespace(model=None)
search_choice.held_out_tokens = lambda *args, batch_size, **options: np.arange(batch_size).reshape(batch_size, 1)
search_choice.search_statistics = search_statistics
flags.FLAGS(["search_choice", "--workdir=none", "--batch_size=2"])
search_choice.main(sys.argv)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "seen enough" in done.stderr and done.stdout == "[[0], [1]] [[2], [3]]\n"

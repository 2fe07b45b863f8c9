"""The search for cheaper choosing, on a run of ten steps."""

import functools

import pytest
from programs import program

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
    assert done.returncode != 0 and "FileNotFoundError" in done.stderr and "config.json" in done.stderr

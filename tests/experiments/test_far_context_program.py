"""The losses by distance of a run of ten steps."""

import functools

import pytest
from programs import program

from subq_jax.files import read_rows

far = functools.partial(program, "far_context", ())


@pytest.mark.slow
def test_a_run_is_scored_in_parts(tmp_path):
    trained = program("train", ("--config=configs/code.py:smoke", "--progress=false"), tmp_path)
    assert trained.returncode == 0, trained.stderr
    done = far(tmp_path, "--length=1024", "--num_batches=2", "--batch_size=2", "--window=64")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "far_context.jsonl")
    assert [row["antecedent"] for row in rows if row["antecedent"]] == ["none", "near", "far"]
    assert "repeats beyond 64" in done.stdout
    assert [(row["first"], row["last"]) for row in rows if row["first"]][-2:] == [(512, 1024), (1024, 1025)]
    assert "read 1024 to 1024" in done.stdout
    counts = [sum(row["num_tokens"] for row in rows if (row["antecedent"] is None) == positions)
              for positions in (True, False)]
    assert counts[0] == counts[1] > 2000


def test_a_folder_without_a_run_is_named(tmp_path):
    done = far(tmp_path)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert f"workdir {tmp_path} must hold a run, got no file config.json there" in done.stderr

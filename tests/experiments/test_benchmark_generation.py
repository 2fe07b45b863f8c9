"""The benchmark of generation, on lengths that take seconds."""

import functools
import json
import re

import pytest
from programs import program, refusal

from subq_jax.files import read_rows

SMALL = ("--budget=32", "--block_size=8", "--num_heads=2", "--head_dim=8", "--router_dim=8", "--width=16",
         "--steps=3", "--repeats=1")
benchmark = functools.partial(program, "benchmark_generation", SMALL)


def test_steps_are_timed_and_add_up(tmp_path):
    done = benchmark(tmp_path, "--lengths=514,64")
    assert done.returncode == 0, done.stderr
    rows = {(row["mechanism"], row["length"]): row for row in read_rows(tmp_path / "results.jsonl")}
    assert len(rows) == 3 * 2
    for arm in ("dense_uncached", "dense", "selective"):
        short, long = rows[arm, 64], rows[arm, 514]
        assert 0 < short["cumulative_seconds"] == pytest.approx(64 * short["seconds"])
        added = (514 - 64) * (short["seconds"] + long["seconds"]) / 2
        assert long["cumulative_seconds"] - short["cumulative_seconds"] == pytest.approx(added)
        assert short["budget"] == (32 if arm == "selective" else None)
    grown = rows["selective", 514]["temp_bytes"] - rows["selective", 64]["temp_bytes"]
    assert grown < (514 - 64) * 8 * 4, "a step holds no copy of a cache, not of one head's keys"
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["slopes"]["selective 32 generation"].keys() == {"seconds", "cumulative_seconds", "temp_bytes"}
    assert {"jax", "flax", "python", "device"} <= report.keys() and report["flags"]["steps"] == 3
    assert (tmp_path / "generation_cumulative_seconds.png").read_bytes().startswith(b"\x89PNG")


def test_a_tree_is_walked_and_what_takes_too_long_is_left_out(tmp_path):
    done = benchmark(tmp_path, "--lengths=64,128", "--mechanisms=selective", "--fanouts=2,2", "--beam_width=2",
                     "--max_seconds=0")
    assert done.returncode == 0, done.stderr
    assert "selective generation at 128: left out" in done.stdout
    assert [row["length"] for row in read_rows(tmp_path / "results.jsonl")] == [64]


@pytest.mark.parametrize(("flag", "message"), [
    ("--lengths=3,64", "--lengths must be above --steps=3"),
    ("--mechanisms=lsh", "--mechanisms must be some of .*got 'lsh'"),
    ("--num_kv_heads=3", "num_heads must be a multiple of num_kv_heads=3"),
])
def test_wrong_flags_are_named(tmp_path, flag, message):
    assert re.search(message, refusal(benchmark(tmp_path, flag), tmp_path))

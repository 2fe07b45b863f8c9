"""The benchmark of attention, on lengths that take seconds."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import pytest
from programs import program, refusal

from experiments import selective_check
from subq_jax import SelectionConfig, selective_attention
from subq_jax.attention.mechanisms import MECHANISMS, SELECTING
from subq_jax.files import read_rows

SMALL = ("--budget=32", "--block_size=8", "--num_heads=2", "--head_dim=8", "--router_dim=8", "--repeats=1")
benchmark = functools.partial(program, "benchmark_attention", SMALL)


@pytest.mark.slow
def test_every_arm_is_timed(tmp_path):
    done = benchmark(tmp_path, "--lengths=64", f"--mechanisms={','.join(MECHANISMS)}")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "results.jsonl")
    assert len(rows) == 2 * len(MECHANISMS) + len(SELECTING) and all(row["seconds"] > 0 for row in rows)
    assert (tmp_path / "forward_seconds.png").read_bytes().startswith(b"\x89PNG")


def test_a_tree_is_timed_and_the_quadratic_arm_is_left_out_in_time(tmp_path):
    done = benchmark(tmp_path, "--lengths=64,128", "--mechanisms=selective", "--fanouts=2", "--beam_width=2")
    assert done.returncode == 0, done.stderr
    assert {row["length"] for row in read_rows(tmp_path / "results.jsonl")} == {64, 128}
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["flags"]["fanouts"] == ["2"]
    compared = report["selective_against_reference"]
    assert list(compared) == ["64", "128"]
    assert all(found["relative_error"] < 1e-5 and found["choice_recall"] == 1 for found in compared.values())
    assert set(report["slopes"]["selective 32 forward"]) == {"seconds", "temp_bytes"}
    assert "selective 32 choosing" in report["slopes"]

    done = benchmark(tmp_path, "--lengths=64,128", "--mechanisms=dense", "--max_seconds=0")
    assert done.returncode == 0 and "dense forward at 128: left out" in done.stdout
    assert [row["length"] for row in read_rows(tmp_path / "results.jsonl")] == [64, 64]


def test_decoding_steps_are_timed_and_what_is_not_installed_is_left_out(tmp_path):
    done = benchmark(tmp_path, "--lengths=128", "--mechanisms=dense,selective,flash_attention_2",
                     "--decode_batches=1,2", "--fanouts=2", "--beam_width=2")
    assert done.returncode == 0, done.stderr
    rows = [row for row in read_rows(tmp_path / "results.jsonl") if row["task"].startswith("decode")]
    assert [(row["task"], row["mechanism"], row["batch"]) for row in rows] == [
        ("decode_1", "dense", 1), ("decode_1", "selective", 1), ("decode_2", "dense", 2), ("decode_2", "selective", 2)]
    assert all(0 < row["seconds"] < 1 for row in rows)
    assert re.search("flash_attention_2 forward at 128: left out, PyTorch (is not installed|sees no GPU)", done.stdout)


@pytest.mark.parametrize(("flag", "message"), [
    ("--lengths=64,x", "--lengths must be positive integers"),
    ("--lengths=\u00b2", "--lengths must be positive integers"),
    ("--lengths=", "--lengths must not be empty"),
    ("--mechanisms=", "--mechanisms must not be empty"),
    ("--router_dim=1", "--router_dim must be at least [0-9]+, the heads of learned_router, got 1"),
    ("--implementation=gpu", "--implementation=gpu needs a GPU of compute capability 9.0, got"),
    ("--implementation=tpu", "--implementation=tpu needs a TPU or --estimate_for, got"),
    ("--mechanisms=lsh", "mechanism must be one of"),
    ("--decode_batches=1,x", "--decode_batches must be positive integers"),
    ("--fanouts=2,x", "--fanouts must be integers"),
    ("--fanouts=1", "fanouts must be an integer >= 2, got 1"),
    ("--parts", "--parts needs a GPU of compute capability 9.0"),
    ("--inputs=uniform", "--inputs=uniform is what attention is given with --parts"),
    ("--inputs=trained", "--inputs=trained and --trained_run go together"),
    ("--budget=20", "budget of .* must be a multiple of block_size=8"),
])
def test_wrong_flags_are_named(tmp_path, flag, message):
    assert re.search(message, refusal(benchmark(tmp_path, flag), tmp_path))


@pytest.mark.parametrize(("of_output", "of_choice", "error", "recall"), [(1, 0, 0, 1), (2, 0, 1, 1), (1, 1, 0, 0)])
def test_wrong_outputs_and_wrong_choices_show(monkeypatch, of_output, of_choice, error, recall):
    config = SelectionConfig(block_size=8, num_blocks=1, local_blocks=1, sink_blocks=1)
    shapes = [(1, 40, heads, 8) for heads in (2, 1, 1, 1, 1)]
    values = list(map(jax.random.normal, jax.random.split(jax.random.key(0), 5), shapes))

    def attend(*arguments, implementation, selection=None, **options):
        if implementation == "reference":
            return selective_attention(*arguments, selection=selection, implementation=implementation, **options)
        _, chosen = selective_attention(*arguments, **options)
        chosen = jnp.where(chosen < 0, chosen, chosen % 3 + 1 if of_choice else chosen)  # another candidate of 1, 2, 3
        out = selective_attention(*arguments, selection=chosen, **options | {"return_selection": False})
        return of_output * out, chosen

    monkeypatch.setattr(selective_check, "selective_attention", attend)
    monkeypatch.setattr(selective_check, "MAX_CHECKED", 8)  # those in block 4, who choose one of 1, 2, 3
    found = selective_check.compare_with_reference(values, config, "xla")
    assert found["relative_error"] == pytest.approx(error, abs=1e-5) and found["choice_recall"] == recall

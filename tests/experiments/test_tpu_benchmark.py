"""What the benchmark of attention does for TPUs: their dense kernel, and estimates where there is none."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import program, refusal

from experiments import dense_kernels
from experiments.tpu_estimates import Program, estimate
from experiments.tpu_programs import TOPOLOGIES, why_not
from subq_jax.attention import dense_attention
from subq_jax.files import read_rows
from subq_jax.kernels.tpu.roofline import CHIPS, dense_work

SHAPES = [(1, 1024, 4, 128), (1, 1024, 2, 128), (1, 1024, 2, 128)]
FLAGS = ("--budget=256", "--block_size=16", "--num_heads=4", "--num_kv_heads=2", "--head_dim=128", "--dtype=bfloat16")
benchmark = functools.partial(program, "benchmark_attention", FLAGS)
needs_libtpu = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def test_splash_attention_is_dense_attention(monkeypatch):
    monkeypatch.setattr(dense_kernels, "BLOCK", 128)
    q, k, v = (jax.random.normal(jax.random.key(n), (2, 256, heads, 128)) for n, heads in enumerate((4, 2, 2)))
    make = functools.partial(dense_kernels.splash.make_splash_mqa_single_device, interpret=True)
    with mock.patch.object(dense_kernels.splash, "make_splash_mqa_single_device", make):
        out = jax.jit(dense_kernels.splash_attention)(q, k, v)
    np.testing.assert_allclose(out, dense_attention(q, k, v), atol=1e-5)


@pytest.mark.parametrize(("platform", "head_dim", "name"), [
    ("tpu", 128, "jax splash attention"), ("tpu", 64, "subq_jax dense_attention"),
    ("cpu", 128, "subq_jax dense_attention")])
def test_the_dense_kernel_is_named(platform, head_dim, name):
    assert dense_kernels.dense_kernel(platform, head_dim)[0] == name


@pytest.mark.parametrize(("length", "message"), [(1000, "or fewer in multiples of 128, got 1000"),
                                                 (1 << 20, "at most 262144 tokens, .* got 1048576")])
def test_lengths_without_splash_attention_are_named(length, message):
    arrays = [jax.ShapeDtypeStruct((1, length, heads, 128), jnp.bfloat16) for heads in (4, 2, 2)]
    with pytest.raises(NotImplementedError, match=message):
        jax.eval_shape(dense_kernels.splash_attention, *arrays)


@needs_libtpu
@pytest.mark.tpu_compile
@pytest.mark.parametrize("chip", ["v5e", *(pytest.param(chip, marks=pytest.mark.slow) for chip in TOPOLOGIES
                                           if chip != "v5e")])
def test_the_dense_kernel_is_estimated(tmp_path, capsys, chip):
    gradients = jax.grad(lambda *x: dense_kernels.splash_attention(*x).astype(jnp.float32).sum(), argnums=range(3))
    work = {1.0: dense_work(1024, 4, 128)}
    rows = estimate(tmp_path / "estimates.jsonl", chip, [
        Program("dense", "forward_backward", 1024, gradients, SHAPES, work),
        Program("dense", "forward", 1000, dense_kernels.splash_attention, [(1, 1000, *s[2:]) for s in SHAPES], work),
    ], "bfloat16")
    assert read_rows(tmp_path / "estimates.jsonl") == rows
    assert rows[0]["argument"] == 2 * 1024 * 8 * 128
    flops, moved = 2 * 4 * 1024**2 * 128, 3 * 4 * 1024 * 128 * 2  # of so few tokens a v6e waits for the bytes
    assert rows[0]["roofline_seconds"]["1.0"]["dense forward"] == max(
        flops / CHIPS[chip].flops, moved / CHIPS[chip].bandwidth)
    assert "multiples of 128" in rows[1]["error"]
    shown = capsys.readouterr().out
    assert f"estimates for one {chip}, nothing runs" in shown and "dense backward" in shown


@needs_libtpu
@pytest.mark.slow
def test_the_program_estimates_every_kernel(tmp_path):
    done = benchmark(tmp_path, "--estimate_for=v6e", "--lengths=1024")
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "estimates.jsonl")
    assert [(row["mechanism"], row["stage"]) for row in rows] == [
        (name, stage) for name in ("dense", "selective") for stage in ("forward", "forward_backward")]
    assert set(rows[-1]["roofline_seconds"]["3.0"]) == {"choose", "attend", "backward queries", "backward keys"}
    assert len(rows[-1]["vmem"]) == 4


@needs_libtpu
@pytest.mark.parametrize("group", [12, 256])
def test_what_runs_without_kernels_has_no_estimate(tmp_path, group):
    """Such groups of heads run as `xla`: its sizes are not the kernels', nor does a roofline of theirs hold."""
    done = benchmark(tmp_path, "--estimate_for=v5e", "--mechanisms=selective", "--lengths=1024",
                     f"--num_heads={2 * group}")
    assert done.returncode == 0, done.stderr
    for row in read_rows(tmp_path / "estimates.jsonl"):
        assert f"query heads of a KV head must divide 128, got {group}" in row["error"]
        assert "roofline_seconds" not in row
    assert "must divide 128" in done.stdout and "backward keys" not in done.stdout


@needs_libtpu
def test_what_has_no_estimate_is_named(tmp_path):
    message = refusal(benchmark(tmp_path, "--estimate_for=v5e", "--num_heads=1"), tmp_path)
    assert "--num_heads must be a multiple of --num_kv_heads=2, got 1" in message
    message = refusal(benchmark(tmp_path, "--estimate_for=v5e", "--implementation=xla"), tmp_path)
    assert "--estimate_for compiles --implementation=tpu, got --implementation=xla" in message
    message = refusal(benchmark(tmp_path, "--estimate_for=v5e", "--mechanisms=sliding_window"), tmp_path)
    assert "--estimate_for knows ('dense', 'selective') without --fanouts" in message
    message = refusal(benchmark(tmp_path, "--estimate_for=v5e", "--head_dim=64"), tmp_path)
    assert "--estimate_for needs --head_dim that is a multiple of 128" in message

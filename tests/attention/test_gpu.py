"""The GPU's kernels: equal to the reference in a simulation, and lowered for CUDA at production shapes."""

import functools
import os
import subprocess
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import arrays

from subq_jax import SelectionConfig, selective_attention
from subq_jax.kernels.gpu import inverse as gpu_inverse
from subq_jax.kernels.gpu.inverse import inverse_lists
from subq_jax.kernels.gpu.limits import unsupported
from subq_jax.kernels.gpu.lists import TokenLists
from subq_jax.kernels.gpu.selective import zero_sum
from subq_jax.kernels.gpu.warps import COMPUTING_WARPS, WARPS_AT_ONCE, WarpTile, enough, group_rows
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.tree import SummaryTree

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("problem", ["packed_documents", "a_few_queries", "lists_of_tiles", *(
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("one_head_for_all", "large_blocks", "middle_blocks", "many_queries", "shared_tokens", "few_blocks",
                 "one_query", "early_queries", "first_of_documents", "dense_decoding", "closed_gates",
                 "overflowing_gates", "parts", "long_streams"))])
def test_the_kernels_equal_the_reference(problem):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NPROC": "16"}
    command = [sys.executable, str(Path(__file__).with_name("simulated_gpu.py")), problem]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "equal\n"


PRODUCTION = {"heads": 16, "kv_heads": 1, "head_dim": 128, "router_dim": 64, "dtype": jnp.bfloat16}


def production_shapes(length=1 << 20, **changes):
    sizes = PRODUCTION | changes
    shape = lambda heads, width: jax.ShapeDtypeStruct((1, length, heads, width), sizes["dtype"])
    key, router = (shape(sizes["kv_heads"], sizes[width]) for width in ("head_dim", "router_dim"))
    return shape(sizes["heads"], sizes["head_dim"]), key, key, router, router


@pytest.mark.parametrize(("changes", "block_size", "num_blocks"), [
    ({}, 64, 29),
    pytest.param({}, 64, 125, marks=pytest.mark.slow),
    pytest.param({"length": 12 << 20}, 64, 29, marks=pytest.mark.slow),
    ({"heads": 32, "kv_heads": 4, "length": 1 << 17, "router_dim": 256}, 128, 13),
    pytest.param({"heads": 6, "head_dim": 64, "length": 1 << 17, "dtype": jnp.float16}, 32, 29, marks=pytest.mark.slow),
])
def test_forward_and_backward_lower_for_cuda(changes, block_size, num_blocks):
    config = SelectionConfig(block_size=block_size, num_blocks=num_blocks)

    def loss(*values):
        return selective_attention(*values, config, implementation="gpu").astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, argnums=range(5))).trace(*production_shapes(**changes))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    kernels = 7  # choose, lists, attend; lists again, queries, keys, the sums of their pieces
    assert text.count("custom_call @mosaic_gpu") == kernels


@pytest.mark.parametrize(("changes", "block_size", "num_blocks"), [
    ({}, 64, 29),
    pytest.param({"heads": 6, "head_dim": 64, "dtype": jnp.float16}, 32, 29, marks=pytest.mark.slow),
    pytest.param({"heads": 32, "kv_heads": 4, "router_dim": 256}, 128, 13, marks=pytest.mark.slow),
])
def test_decoding_lowers_for_cuda(changes, block_size, num_blocks):
    config = SelectionConfig(block_size=block_size, num_blocks=num_blocks)
    attend = functools.partial(selective_attention, config=config, implementation="gpu")
    (_, k, v, _, router_k), (q, _, _, router_q, _) = (production_shapes(n, **changes) for n in (1 << 20, 2))
    traced = jax.jit(attend).trace(q, k, v, router_q, router_k)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("custom_call @mosaic_gpu") == 1


@pytest.mark.parametrize(("changes", "block_size", "num_blocks", "reason"), [
    ({}, 64, 29, None),
    ({"dtype": jnp.float16, "heads": 5, "head_dim": 64}, 32, 128, None),
    ({"dtype": jnp.float32}, 64, 29, "dtypes must be bfloat16 or float16, got float32"),
    ({"head_dim": 96}, 64, 29, "head_dim must be one of (64, 128), got 96"),
    ({}, 16, 29, "block_size must be one of (32, 64, 128), got 16"),
    ({"heads": 64}, 64, 29, "query heads of a KV head must be at most 32, got 64"),
    ({}, 64, 300, "num_blocks must be at most 128, got 300"),
    ({"router_dim": 96}, 64, 29, "router_dim must be a multiple of 64 up to 256, got 96"),
])
def test_what_the_kernels_do_not_take_is_named(changes, block_size, num_blocks, reason):
    q, k, v, router_q, _ = production_shapes(128, **changes)
    found = unsupported(SelectiveInputs(q, k, v, router_q, SummaryTree(()), *[None] * 3),
                        SelectionConfig(block_size=block_size, num_blocks=num_blocks))
    assert (found is None) if reason is None else found.startswith(reason)


@pytest.mark.parametrize(("capability", "reason"), [
    ("9.0", None), ("8.0", "the GPU must have compute capability 9.0, got 8.0"),
    ("10.0", "the GPU must have compute capability 9.0, got 10.0")])
def test_gpus_that_are_no_hopper_run_xla(monkeypatch, capability, reason):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    q, k, v, router_q, _ = production_shapes(128)
    assert unsupported(SelectiveInputs(q, k, v, router_q, SummaryTree(()), *[None] * 3), SelectionConfig()) == reason


def test_more_blocks_than_int32_names_are_not_taken():
    q, k, v, router_q, _ = production_shapes(1 << 24)
    reason = lambda size: unsupported(SelectiveInputs(q, k, v, router_q, SummaryTree(()), *[None] * 3),
                                      SelectionConfig(block_size=size, num_blocks=1))
    assert reason(32) is None
    q, k, v, router_q, _ = production_shapes((1 << 24) + 1)
    assert reason(32) == "blocks of a sequence must be at most 524288, got 524289"


def test_more_pairs_than_int32_numbers_are_not_taken():
    q, k, v, router_q, _ = production_shapes(1 << 20)
    reason = lambda local: unsupported(SelectiveInputs(q, k, v, router_q, SummaryTree(()), *[None] * 3),
                                       SelectionConfig(block_size=64, num_blocks=29, local_blocks=local))
    assert reason(2000) is None
    assert reason(2048) == "queries times the blocks that each sees must be at most 2146435072, got 2178940928"


def test_pieces_behind_the_last_one_are_empty_however_large_pieces_are(monkeypatch):
    monkeypatch.setattr(gpu_inverse, "MIN_PIECE", 1 << 30)
    monkeypatch.setattr(gpu_inverse, "MAX_PIECE", 1 << 30)
    ids = jnp.array([[[2, 0], [2, 1], [0, -1], [2, -1]]])
    inverse = inverse_lists(TokenLists(ids, jnp.zeros(ids.shape)), jnp.zeros(ids.shape), 3, 32, 132)
    np.testing.assert_array_equal(inverse.pieces[0], [[0, 0, 2, 2], [1, 2, 3, 3], [2, 3, 6, 6]])
    few = inverse_lists(TokenLists(ids[:, 2:3], jnp.zeros((1, 1, 2))), jnp.zeros((1, 1, 2)), 5, 32, 132)
    np.testing.assert_array_equal(few.pieces[0, 0], [0, 0, 1, 1])
    np.testing.assert_array_equal(few.pieces[0, 1:, 1:], np.ones((4, 3)))


@pytest.mark.parametrize(("length", "largest"), [(512, 512), (1 << 13, 512), (1 << 16, 2048), (1 << 20, 4096)])
def test_short_contexts_are_cut_into_smaller_pieces(length, largest):
    ids = jax.ShapeDtypeStruct((1, length, 32), jnp.int32)
    gates = jax.ShapeDtypeStruct(ids.shape, jnp.float32)
    invert = lambda ids, gates: inverse_lists(TokenLists(ids, gates), gates, 1, 64, 132).pieces
    assert jax.eval_shape(invert, ids, gates).shape == (1, 1 + length * 32 // largest, 4)


def test_gradients_of_a_tokens_gates_add_up_to_zero():
    d_gates = jnp.array([[[1.0, 3.0, -2.0, jnp.nan], [1.0, 2.0, 3.0, 4.0]]])
    ids = jnp.array([[[9, 4, 1, -1], [-1] * 4]])
    np.testing.assert_allclose(zero_sum(d_gates, ids), [[[2 / 3, 2, -8 / 3, 0], [0, 0, 0, 0]]], rtol=1e-6)


def test_other_sizes_run_as_xla_and_say_why():
    values = arrays(0, 1, 40, 40, 1, 2)
    config = SelectionConfig(block_size=8, num_blocks=2)
    run = lambda implementation: jax.jit(functools.partial(
        selective_attention, config=config, implementation=implementation))(*values)
    with pytest.warns(UserWarning, match='implementation="gpu" falls back to "xla": dtypes must be .* got float32'):
        out = run("gpu")
    np.testing.assert_array_equal(out, run("xla"))


@pytest.mark.parametrize(("heads", "tokens", "tokens_per_warp", "warps_per_token"), [
    (1, 24, 2, 1), (7, 24, 2, 1), (8, 24, 2, 1), (9, 12, 1, 1), (16, 12, 1, 1), (32, 6, 1, 2)])
def test_tiles_hold_whole_tokens(heads, tokens, tokens_per_warp, warps_per_token):
    tile = WarpTile(group_rows(heads), 64)
    assert (tile.tokens, tile.tokens_per_warp, tile.warps_per_token) == (tokens, tokens_per_warp, warps_per_token)


@pytest.mark.parametrize("min_warps", [1, 2, 3, 4])
@pytest.mark.parametrize("warpgroup", [0, 1, 2])
def test_enough_counts_the_warps_of_a_warpgroup(warpgroup, min_warps):
    warps = np.arange(1 << COMPUTING_WARPS, dtype=np.int32)
    mine = (warps[:, None] >> np.arange(COMPUTING_WARPS) & 1)[:, WARPS_AT_ONCE * warpgroup :][:, :WARPS_AT_ONCE]
    found = enough(jnp.array(warps), jnp.full(warps.shape, warpgroup), min_warps)
    np.testing.assert_array_equal(found, mine.sum(axis=1) >= min_warps)


def test_the_last_tile_repeats_tokens_in_place_of_reaching_beyond_the_end():
    tile = WarpTile(16, 64)
    assert [int(tile.start(i, 30)) for i in range(3)] == [0, 12, 18]

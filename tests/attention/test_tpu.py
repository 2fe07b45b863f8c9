"""The TPU's kernels, interpreted: the contract's choice and attention, without races or reads of unwritten memory."""

import functools
import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from interpreted import interpreted_kernels
from problems import NAMES, arrays, assert_close, assert_equals_reference, problems, value_and_grads

from subq_jax import SelectionConfig, selective_attention
from subq_jax.attention import api
from subq_jax.kernels.tpu import selective
from subq_jax.kernels.tpu.attend import attend_forward
from subq_jax.kernels.tpu.choose import ChoiceSizes, best_blocks
from subq_jax.kernels.tpu.limits import unsupported
from subq_jax.kernels.tpu.lists import tile_lists
from subq_jax.kernels.tpu.roofline import kernel_work
from subq_jax.kernels.tpu.tile import AttendSizes, Slots
from subq_jax.kernels.xla.selective import few_queries
from subq_jax.parallel import activation_mesh, parse_mesh
from subq_jax.selection.choose import block_scores, choose_blocks
from subq_jax.selection.inputs import SelectiveInputs
from subq_jax.selection.tree import SummaryTree
from subq_jax.selection.visibility import place_queries


@pytest.mark.parametrize("copies", ["on_wait", pytest.param("eager", marks=pytest.mark.slow)])
def test_the_kernels_equal_the_reference(copies):
    """Documents with padding, queries that start inside a block, several chunks, steps, lists and runs of tiles."""
    config = SelectionConfig(block_size=4, num_blocks=3, local_blocks=2, sink_blocks=1)
    documents = jnp.array([[0] * 30 + [-1] * 2 + [1] * 28])
    where = {"segment_ids": documents, "q_offset": jnp.array([17])}
    assert_the_kernels_equal_the_reference((arrays(1, 1, 40, 60, 2, 4), config, True, where), copies)


@pytest.mark.parametrize(("queries", "kv_heads", "copies"), [
    (1, 2, "eager"), (3, 1, "on_wait"), pytest.param(6, 3, "eager", marks=pytest.mark.slow)])
def test_decoding_equals_the_reference_and_reads_nothing_absent(queries, kv_heads, copies):
    """A few queries of caches filled to different lengths, with NaN behind; one document ends in the last tokens."""
    config = SelectionConfig(block_size=4, num_blocks=2, local_blocks=2, sink_blocks=1)
    values = list(arrays(3, 3, queries, 120, kv_heads, 2))
    length = jnp.array([120, 77, queries])
    where = {"kv_length": length}
    if queries == 3:
        documents = jnp.where(jnp.arange(120)[None] < 118, 0, -1).repeat(3, axis=0)
        where = {"segment_ids": documents.at[2, 100:].set(-1), "q_offset": jnp.array([116, 80, 98])}
        length = jnp.array([118, 118, 100])
    absent = (jnp.arange(120)[None] >= length[:, None])[..., None, None]
    values[1:3] = (jnp.where(absent, jnp.nan, x) for x in values[1:3])
    spy = mock.patch.object(selective, "attend_cache", wraps=selective.attend_cache)
    with spy as attend_cache, interpreted_kernels(copies):
        out, selection, grads = jax.block_until_ready(value_and_grads(values, config, "tpu", True, **where))
    attend_cache.assert_called_once()
    finite = [jnp.nan_to_num(x) for x in values]
    expected, _, expected_grads = value_and_grads(finite, config, "reference", True, selection=selection, **where)
    assert_close(out, expected, "out")
    for name, grad, wanted in zip(NAMES, grads, expected_grads, strict=True):
        assert_close(grad, wanted, f"gradient of {name}", 1e-4)


@pytest.mark.slow
@given(problems())
@settings(max_examples=25)
def test_the_kernels_equal_the_reference_on_drawn_problems(problem):
    (q, k, *_), config, *_ = problem
    few = few_queries(q.shape[1], k.shape[1], config)
    assume(not few or k.shape[1] % config.block_size == 0)  # the others run as xla
    assert_the_kernels_equal_the_reference(problem)


def assert_the_kernels_equal_the_reference(problem, copies="on_wait"):
    values, config, gate, where = problem
    with interpreted_kernels(copies):
        found = jax.block_until_ready(value_and_grads(values, config, "tpu", gate, **where))
    assert_equals_reference(found, values, config, gate, **where)


@pytest.mark.parametrize("count", [3, pytest.param(1, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)])
def test_the_choice_is_exact_over_many_tiles_with_ties(count):
    """Scores of few values, so that most of them tie; 5 tiles of blocks in 2 spans, candidates from any block on."""
    config = SelectionConfig(block_size=2, num_blocks=count, local_blocks=2, sink_blocks=1)
    keys = jax.random.split(jax.random.key(count), 2)
    router_q = jnp.round(jax.random.normal(keys[0], (1, 30, 2, 3)))
    summaries = jnp.round(jax.random.normal(keys[1], (1, 2, 40, 3)))
    documents = jnp.array([[0] * 44 + [1] * 15 + [-1] + [2] * 20])
    place = place_queries(jnp.array([50]), 30, documents, config.block_size)
    with interpreted_kernels():
        choose = jax.jit(lambda *x: best_blocks(*x, place, config, ChoiceSizes(16, 8, 24 * 512)))
        ids, scores = jax.block_until_ready(choose(router_q, summaries))
    exact = block_scores(router_q, summaries)
    expected = choose_blocks(exact, place, config)[0]
    np.testing.assert_array_equal(ids.swapaxes(1, 2), expected)
    picked = jnp.take_along_axis(exact[0], jnp.maximum(expected, 0), axis=-1)
    np.testing.assert_allclose(scores.swapaxes(1, 2), jnp.where(expected < 0, 0, picked), atol=1e-6)


def test_neighbours_choices_change_no_bit():
    """A row's arithmetic is that of its own blocks, whatever else its tile reads."""
    rng = np.random.default_rng(0)
    sizes = AttendSizes(rows=16, keys=8, depth=3)
    q = jnp.asarray(rng.normal(size=(1, 8, 2, 8)), jnp.float32)
    blocks = jnp.asarray(rng.normal(size=(1, 9, 2, 4, 8)), jnp.float32)
    gates = rng.normal(size=(1, 8, 3))

    @jax.jit
    def attend(ids):
        seen = jnp.pad(jnp.concatenate([ids, gates], axis=-1), ((0, 0), (0, 0), (0, 122)))
        lists = tile_lists(ids, sizes.tokens(2), sizes.step(4))
        return attend_forward(q, blocks, seen, lists, jnp.array([35]), Slots(3, 0, 0), sizes)

    alone = jnp.full((1, 8, 3), -1).at[0, 0].set(jnp.array([1, 4, 7]))
    crowd = jnp.asarray(rng.permuted(np.tile(np.arange(9), (8, 1)), axis=1)[None, :, :3], jnp.int32)
    crowd = crowd.at[0, 0].set(alone[0, 0])
    with interpreted_kernels():
        (out, lse), (again, lse_again) = jax.block_until_ready((attend(alone), attend(crowd)))
    np.testing.assert_array_equal(out[0, 0], again[0, 0])
    np.testing.assert_array_equal(lse[0, 0, 0, :2], lse_again[0, 0, 0, :2])
    assert not out[0, 1:].any() and again[0, 1:].all(), "rows that list nothing are zero"


@pytest.mark.slow
def test_bfloat16_stays_near_the_reference():
    values = arrays(9, 1, 96, 96, 2, 2, dtype=jnp.bfloat16)
    config = SelectionConfig(block_size=8, num_blocks=3, local_blocks=2, sink_blocks=1)
    with interpreted_kernels():
        out, selection, grads = jax.block_until_ready(value_and_grads(values, config, "tpu", True))
    exact = tuple(x.astype(jnp.float32) for x in values)
    expected, _, expected_grads = value_and_grads(exact, config, "reference", True, selection=selection)
    assert out.dtype == jnp.bfloat16
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        error = jnp.linalg.norm((actual.astype(jnp.float32) - wanted).ravel()) / jnp.linalg.norm(wanted.ravel())
        assert error < 2e-2


PRODUCTION = {"heads": 16, "kv_heads": 1, "head_dim": 128, "router_dim": 64, "dtype": jnp.bfloat16}


@pytest.mark.parametrize(("change", "block_size", "num_blocks", "reason"), [
    ({}, 64, 29, None),
    ({"heads": 32, "kv_heads": 4, "dtype": jnp.float32}, 8, 29, None),
    ({"dtype": jnp.float16}, 64, 29, "dtypes must be float32 or bfloat16, got float16"),
    ({"head_dim": 64}, 64, 29, "head_dim must be a multiple of 128, got 64"),
    ({}, 24, 29, "block_size must be a multiple of 16 in bfloat16, got 24"),
    ({"heads": 12}, 64, 29, "query heads of a KV head must divide 128, got 12"),
    ({}, 64, 300, "a query must see at most 256 blocks, got 303"),
    ({}, 8192, 4, "a kernel must fit 16 MiB of VMEM, got 53 MiB for head_dim=128, block_size=8192 and 16 query heads"),
    ({"head_dim": 1024, "heads": 64, "dtype": jnp.float32}, 64, 29, "a kernel must fit 16 MiB of VMEM, got "),
    ({"router_dim": 4096, "dtype": jnp.float32}, 64, 29, None),
    ({"router_dim": 6144, "dtype": jnp.float32}, 64, 29,
     "choosing must fit 16 MiB of VMEM, got 18 MiB for router_dim=6144 in float32"),
    ({"keys": 8192, "kv_heads": 64, "heads": 64}, 64, 29,
     "a kernel must fit 16 MiB of VMEM, got 30 MiB for head_dim=128, block_size=64 of 64 KV heads and 1 query heads"),
    ({"keys": 8001}, 64, 29, "a cache must hold a multiple of block_size=64 positions to be decoded from, got 8001"),
])
def test_what_the_kernels_do_not_take_is_named(change, block_size, num_blocks, reason):
    sizes = PRODUCTION | change
    shape = lambda *s: jax.ShapeDtypeStruct((1, *s), sizes["dtype"])
    queries, keys = (2, sizes["keys"]) if "keys" in sizes else (128, 128)
    key = shape(keys, sizes["kv_heads"], sizes["head_dim"])
    q, router_q = (shape(queries, *s) for s in (
        (sizes["heads"], sizes["head_dim"]), (sizes["kv_heads"], sizes["router_dim"])))
    inputs = SelectiveInputs(q, key, key, router_q, SummaryTree(()), *[None] * 3)
    found = unsupported(inputs, SelectionConfig(block_size=block_size, num_blocks=num_blocks))
    assert (found is None) if reason is None else found.startswith(reason)


@pytest.mark.parametrize(("num_blocks", "lanes"), [(29, 128), (125, 384)])
def test_the_roofline_counts_what_a_budget_lists(num_blocks, lanes):
    """Of 128 tiles of 8 tokens with 16 heads, which see 8 blocks on average; rows and blocks have 32 KiB."""
    work = kernel_work(SelectionConfig(block_size=64, num_blocks=num_blocks), 1024, 16, 1, 128, 64, overlap=1.0)
    line = 4 * 8 * lanes
    assert work["choose"].bytes == 1024 * (2 * 64 + 8 * (num_blocks + 3))
    assert work["attend"].bytes == 128 * (8 * 32768 + 2 * 32768 + line)
    assert work["backward keys"].bytes == 128 * 8 * (2 * 32768 + line + 8 * 128) + 2 * 16 * 32768


def test_other_sizes_run_as_xla_and_say_why():
    values = arrays(0, 1, 40, 40, 1, 2)
    config = SelectionConfig(block_size=8, num_blocks=2)
    run = lambda implementation: jax.jit(functools.partial(
        selective_attention, config=config, implementation=implementation))(*values)
    with pytest.warns(UserWarning, match='implementation="tpu" falls back to "xla": head_dim must be .* got 8'):
        out = run("tpu")
    np.testing.assert_array_equal(out, run("xla"))


@pytest.mark.parametrize(("backend", "devices", "name", "on_a_mesh"), [
    ("tpu", 1, "tpu", "tpu"), ("tpu", 4, "xla", "tpu"), ("gpu 9.0", 1, "gpu", "gpu"), ("gpu 9.0", 2, "xla", "gpu"),
    ("gpu 8.0", 1, "xla", "xla"), ("cpu", 1, "xla", "xla")])
def test_the_default_follows_backend_and_mesh(monkeypatch, backend, devices, name, on_a_mesh):
    mesh = parse_mesh("", jax.devices()[:1])
    backend, _, capability = backend.partition(" ")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)] * devices)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    assert api.default_implementation() == name
    with activation_mesh(mesh):
        assert api.default_implementation() == on_a_mesh

"""The xla implementation computes the function that the reference defines, and that function keeps its promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from problems import (
    NAMES,
    arrays,
    assert_close,
    assert_equals_reference,
    attention_by_definition,
    problems,
    value_and_grads,
)

from subq_jax import SelectionConfig, build_tree, selective_attention
from subq_jax.attention import dense_attention
from subq_jax.kernels.xla import few, gathered, grain
from subq_jax.kernels.xla.few import best_first
from subq_jax.selection.choose import best_of, choose_blocks, in_order
from subq_jax.selection.visibility import candidate_range, place_queries


@given(problems())
@settings(max_examples=4)
def test_the_reference_is_the_definition(problem):
    assert_the_reference_is_the_definition(problem)


@pytest.mark.slow
@given(problems())
@settings(max_examples=50)
def test_the_reference_is_the_definition_on_many_more_problems(problem):
    assert_the_reference_is_the_definition(problem)


def assert_the_reference_is_the_definition(problem):
    values, config, gate, where = problem
    out, selection = selective_attention(
        *values, config, gate=gate, implementation="reference", return_selection=True, **where)
    expected, chosen = attention_by_definition(values, config, gate, **where)
    assert_close(out, expected, "out")
    ids = np.asarray(selection)
    for b, t, head in np.ndindex(ids.shape[:3]):
        assert [i for i in ids[b, t, head] if i >= 0] == chosen.get((b, t, head), [])


@given(problems())
@settings(max_examples=4)
def test_xla_equals_reference(problem):
    assert_xla_equals_reference(problem)


@pytest.mark.slow
@given(problems())
@settings(max_examples=100)
def test_xla_equals_reference_on_many_more_problems(problem):
    assert_xla_equals_reference(problem)


def assert_xla_equals_reference(problem):
    values, config, gate, where = problem
    assert_equals_reference(value_and_grads(values, config, "xla", gate, **where), values, config, gate, **where)


@pytest.mark.parametrize(("queries", "gate", "sizes"), [
    (1, True, grain.GPU_GRAIN), (2, False, grain.GPU_GRAIN), (2, True, grain.CPU_GRAIN)])
def test_a_few_queries_of_a_long_cache_read_what_they_see_and_no_more(monkeypatch, queries, gate, sizes):
    monkeypatch.setattr(grain, "CPU_GRAIN", sizes)
    config = SelectionConfig(block_size=4, num_blocks=3, local_blocks=2, sink_blocks=1)
    values = arrays(3, 2, queries, 90, 2, 2)
    where = {"kv_length": jnp.array([79, 90], jnp.int32)}
    monkeypatch.setattr("subq_jax.kernels.xla.selective.gathered_forward", None)  # the way of many queries
    out, selection, grads = value_and_grads(values, config, "xla", gate, **where)
    expected, wanted, expected_grads = value_and_grads(values, config, "reference", gate, **where)
    np.testing.assert_array_equal(selection, wanted)
    assert_close(out, expected, "out")
    for name, grad, wanted in zip(NAMES, grads, expected_grads, strict=True):
        assert_close(grad, wanted, f"gradient of {name}", 1e-4)
    absent = (jnp.arange(90)[None] >= where["kv_length"][:, None])[..., None, None]
    q, k, v, router_q, router_k = values
    poisoned = (q, *(jnp.where(absent, jnp.nan, x) for x in (k, v)), router_q, jnp.where(absent, jnp.nan, router_k))
    again, _, poisoned_grads = value_and_grads(poisoned, config, "xla", gate, **where)
    np.testing.assert_array_equal(out, again)
    for a, b in zip(grads, poisoned_grads, strict=True):
        np.testing.assert_array_equal(a, b)
    tree = build_tree(poisoned[4], config)
    again, _, poisoned_grads = value_and_grads(poisoned, config, "xla", gate, tree=tree, **where)
    np.testing.assert_array_equal(out, again)
    for a, b in zip(grads[:4], poisoned_grads[:4], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_last_block_that_is_not_whole_does_not_make_queries_few(monkeypatch):
    monkeypatch.setattr(grain, "CPU_GRAIN", grain.GPU_GRAIN)
    config = SelectionConfig(block_size=4, num_blocks=3, local_blocks=1, sink_blocks=0)  # 16 positions of 14
    for seed in range(3):
        values = arrays(seed, 1, 1, 14, 1, 1)
        run = lambda name, values=values: selective_attention(
            *values, config, implementation=name, return_selection=True)[1]
        np.testing.assert_array_equal(run("xla"), run("reference"))


def test_everything_selected_without_gate_is_dense_attention(implementation):
    values = arrays(0, 2, 70, 70, 2, 2)
    config = SelectionConfig(block_size=8, num_blocks=9, local_blocks=1, sink_blocks=1)
    out = selective_attention(*values, config, gate=False, implementation=implementation)
    np.testing.assert_allclose(out, dense_attention(*values[:3]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", [0, pytest.param(7, marks=pytest.mark.slow), 8, 21,
                                      pytest.param(38, marks=pytest.mark.slow)])
def test_the_future_changes_nothing(implementation, position):
    values = arrays(1, 1, 40, 40, 1, 2)
    config = SelectionConfig(block_size=8, num_blocks=2, local_blocks=1, sink_blocks=1)
    run = jax.jit(lambda *values: selective_attention(
        *values, config, implementation=implementation, return_selection=True))
    later = jnp.arange(40).reshape(1, 40, 1, 1) > position
    noise = arrays(2, 1, 40, 40, 1, 2)
    out, selection = run(*values)
    changed, changed_selection = run(*(jnp.where(later, 50 * n, x) for x, n in zip(values, noise, strict=True)))
    np.testing.assert_array_equal(out[:, : position + 1], changed[:, : position + 1])
    np.testing.assert_array_equal(selection[:, : position + 1], changed_selection[:, : position + 1])

    grads = jax.grad(lambda *values: run(*values)[0][:, position].sum(), argnums=range(5))(*values)
    for name, grad in zip(NAMES, grads, strict=True):
        assert not grad[:, position + 1 :].any(), f"gradient of {name} reaches the future"
    assert grads[2][:, : position + 1].any()


def test_ties_go_to_the_lower_index(implementation):
    q, k, v, router_q, router_k = arrays(3, 1, 48, 48, 1, 1)
    equal = jnp.ones_like(router_k)
    config = SelectionConfig(block_size=4, num_blocks=3, local_blocks=1, sink_blocks=1)
    _, selection = selective_attention(
        q, k, v, router_q, equal, config, implementation=implementation, return_selection=True)
    np.testing.assert_array_equal(selection[0, 47, 0], [1, 2, 3])
    np.testing.assert_array_equal(selection[0, 11, 0], [1, -1, -1])
    better = equal.at[:, 20].set(2.0)
    _, selection = selective_attention(
        q, k, v, router_q, better, config, implementation=implementation, return_selection=True)
    np.testing.assert_array_equal(selection[0, 47, 0], [1, 2, 5])


def test_max_pooling_credits_the_first_maximal_token(implementation):
    q, k, v, router_q, router_k = arrays(4, 1, 12, 12, 1, 1)
    router_k = jnp.round(router_k)  # many ties inside a block
    config = SelectionConfig(block_size=4, num_blocks=1, local_blocks=1, sink_blocks=0)
    grad = value_and_grads((q, k, v, router_q, router_k), config, implementation, True)[2][4][0, :, 0]
    block = np.asarray(router_k)[0, :4, 0]
    first = block.argmax(axis=0)
    for channel in range(block.shape[1]):
        others = np.delete(np.asarray(grad)[:4, channel], first[channel])
        assert not others.any()
        assert grad[first[channel], channel] != 0


def test_results_are_the_same_bits_every_time_whatever_the_layout():
    values = arrays(5, 2, 200, 200, 2, 2)
    config = SelectionConfig(block_size=4, num_blocks=6, local_blocks=2, sink_blocks=1)
    first, second = (value_and_grads(values, config, "xla", True) for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


ONE_TILE_A_STEP = grain.Grain(*[1] * len(grain.Grain._fields))
SMALL_TILES = grain.ACCELERATOR_GRAIN._replace(chunk=1 << 14, share=8)  # many tiles a step, so runs span their groups


@pytest.mark.parametrize("sizes", [ONE_TILE_A_STEP, SMALL_TILES, grain.ACCELERATOR_GRAIN])
def test_many_chunks_and_steps_give_the_same_result(monkeypatch, sizes):
    values = arrays(6, 1, 300, 300, 2, 2)
    config = SelectionConfig(block_size=4, num_blocks=5, local_blocks=2, sink_blocks=1)
    whole = value_and_grads(values, config, "xla", True)
    monkeypatch.setattr(grain, "CPU_GRAIN", sizes)
    pieces = value_and_grads(values, config, "xla", True)
    np.testing.assert_array_equal(whole[1], pieces[1])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1, float(jnp.abs(jnp.asarray(a)).max())), rtol=0)


@pytest.mark.parametrize(("width", "count"), [(40, 3), (500, 5), (1024, 13), (1030, 1)])
@pytest.mark.parametrize("levels", [2, 60, 10_000])
def test_the_best_are_found_by_groups_with_ties_to_the_lower_index(width, count, levels):
    rng = np.random.default_rng(width)
    ranks = jnp.asarray(rng.integers(0, levels, (2, 16, width)), jnp.float32)
    first = jnp.arange(width) >= width - count - 1  # hardly more than wanted, at the end, where the last group is short
    for values in (ranks, jnp.where(first, ranks, -jnp.inf)):
        np.testing.assert_array_equal(best_of(values, count), jax.lax.top_k(values, count)[1])


def best_one_by_one(scores, place, config):
    """What `best_first` returns, by numpy: ids and scores, 0 at -1."""
    scores, first, last = (np.asarray(x) for x in (scores, *candidate_range(place, config)))
    ids = np.full((*scores.shape[:-1], config.num_blocks), -1)
    found = np.zeros(ids.shape, np.float32)
    for row in np.ndindex(scores.shape[:-1]):
        candidates = np.arange(first[row[0], row[2], 0], last[row[0], row[2], 0] + 1)
        ranks = np.nan_to_num(scores[row][candidates], nan=np.inf, posinf=np.inf)
        best = np.lexsort((candidates, -ranks))[: config.num_blocks]
        ids[row][: len(best)], found[row][: len(best)] = candidates[best], ranks[best]
    return ids, found


@pytest.mark.parametrize("at_once", [0, few.PAIRS_AT_ONCE])
@pytest.mark.parametrize(("blocks", "count", "sinks"), [
    (9, 13, 0), (300, 5, 1), (1030, 1, 0), (5000, 3, 1), (70, 29, 0), (1037, 29, 2)])
@pytest.mark.parametrize("levels", [2, 60, 10_000])
def test_a_few_queries_choose_what_many_do(monkeypatch, blocks, count, sinks, levels, at_once):
    monkeypatch.setattr(few, "PAIRS_AT_ONCE", at_once)  # by groups, or every two at once
    config = SelectionConfig(block_size=4, num_blocks=count, sink_blocks=sinks)
    scores = jax.random.randint(jax.random.key(blocks), (2, 3, 2, blocks), 0, levels).astype(jnp.float32)
    scores = scores.at[0, 1, 1, 2 : blocks // 3].set(-jnp.inf).at[0, 2, :, 3 : blocks // 2 : 2].set(jnp.inf)
    place = place_queries(jnp.array([blocks * 4 - 3, blocks * 2]), 2, None, 4)
    ids, found = best_first(scores, place, config)
    np.testing.assert_array_equal(in_order(ids), choose_blocks(scores, place, config))
    wanted_ids, wanted = best_one_by_one(scores, place, config)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(jnp.where(ids < 0, 0, found), wanted)


@pytest.mark.parametrize(("blocks", "count"), [(2048, 29), (16_384, 29), (200_003, 29), (131_072, 125)])
@pytest.mark.parametrize("kind", ["numbers", "equals", "few", "none"])
def test_a_query_chooses_of_as_many_blocks_as_long_contexts_have(blocks, count, kind):
    config = SelectionConfig(block_size=4, num_blocks=count, sink_blocks=1)
    rng = np.random.default_rng(blocks)
    scores = rng.normal(size=(1, 1, 1, blocks)) if kind == "numbers" else rng.integers(0, 3, (1, 1, 1, blocks))
    scores = jnp.asarray(scores, jnp.float32)
    if kind == "numbers":  # what is no number comes first, as the largest
        scores = scores.at[..., 1 : blocks : blocks // 5].set(jnp.nan).at[..., 2 : blocks : blocks // 7].set(-jnp.inf)
        scores = scores.at[..., blocks // 2].set(jnp.inf)
    seen = {"few": count // 2, "none": 1}.get(kind, blocks)
    place = place_queries(jnp.array([seen * 4 - 1]), 1, None, 4)
    ids, found = jax.jit(best_first, static_argnums=2)(scores, place, config)
    wanted_ids, wanted = best_one_by_one(scores, place, config)
    np.testing.assert_array_equal(ids, wanted_ids)
    np.testing.assert_array_equal(jnp.where(ids < 0, 0, found), wanted)


def test_zeros_of_both_signs_are_equal_to_every_choice():
    config = SelectionConfig(block_size=1, num_blocks=2, sink_blocks=0)
    scores = jnp.full((1, 1, 1, 600), -0.0).at[..., jnp.array([5, 99])].set(0.0)
    place = place_queries(jnp.array([599]), 1, None, 1)
    np.testing.assert_array_equal(choose_blocks(scores, place, config)[0, 0, 0], [0, 1])
    np.testing.assert_array_equal(best_first(scores, place, config)[0][0, 0, 0], [0, 1])


@pytest.mark.parametrize("hub", [0.0, 0.5, 1.0])
def test_runs_of_equal_blocks_are_summed_across_groups(hub):
    rng = np.random.default_rng(0)
    block = np.where(rng.random((2, 4 * gathered.RUN_GROUP)) < hub, 3, rng.integers(0, 9, (2, 4 * gathered.RUN_GROUP)))
    block = np.sort(block, axis=1).astype(np.int32)
    parts, sums = rng.normal(size=(*block.shape, 5)).astype(np.float32), rng.normal(size=(2, 9, 5)).astype(np.float32)
    wanted = sums.astype(np.float64)
    for row in range(2):
        np.add.at(wanted[row], block[row], parts[row])
    np.testing.assert_allclose(gathered._add_runs(sums, parts, jnp.asarray(block)), wanted, atol=1e-4)


def test_absent_keys_are_never_read(implementation):
    values = arrays(7, 2, 5, 40, 1, 2)
    config = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=1)
    present = jnp.array([20, 33], jnp.int32)
    absent = jnp.arange(40).reshape(1, 40, 1, 1) >= present.reshape(2, 1, 1, 1)
    poisoned = [x if x.shape[1] == 5 else jnp.where(absent, jnp.nan, x) for x in values]
    clean = value_and_grads(values, config, implementation, True, kv_length=present)
    dirty = value_and_grads(poisoned, config, implementation, True, kv_length=present)
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)


def test_padding_may_hold_anything(implementation):
    values = arrays(10, 1, 24, 24, 1, 2)
    config = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=1)
    segment_ids = jnp.array([[0] * 6 + [-1] * 2 + [1] * 14 + [-1] * 2], jnp.int32)
    padding = (segment_ids < 0)[..., None, None]
    poisoned = [jnp.where(padding, jnp.nan, x) for x in values]
    clean, dirty = (value_and_grads(x, config, implementation, True, segment_ids=segment_ids)
                    for x in (values, poisoned))
    for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not jnp.where(padding, clean[0], 0).any()


def test_every_product_is_taken_at_full_precision():
    """What a CPU cannot show: an accelerator rounds the inputs of default-precision products to bf16 or tf32."""
    values = arrays(11, 1, 24, 24, 1, 2)
    config = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=1)
    jaxpr = str(jax.make_jaxpr(jax.grad(lambda *x: selective_attention(*x, config).sum(), argnums=range(5)))(*values))
    products, full = jaxpr.count("dot_general["), jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
    assert products > 10 and full == products, f"{products - full} of {products} products are rounded"
    assert "scatter-add" not in jaxpr, "its order of summation is not fixed on GPUs"


@pytest.mark.parametrize("array", [
    np.array([2**33 + 3, -(2**40) + 4, 2**63 - 1], np.int64), np.array([2**33 + 3, 2**32 + 1, 2**64 - 1], np.uint64),
    np.array([2**32 - 1, 2**31 + 3, 2**31], np.uint32)])
def test_foreign_ids_do_not_wrap_around_to_blocks_that_there_are(implementation, array):
    config = SelectionConfig(block_size=4, num_blocks=3, local_blocks=1, sink_blocks=1)
    values = arrays(0, 1, 40, 40, 1, 1)
    for ids, wanted in ((array, [-1, -1, -1]), (np.array([array[0], 2, array[1]], array.dtype), [2, -1, -1])):
        attend = jax.jit(functools.partial(
            selective_attention, config=config, selection=np.broadcast_to(ids, (1, 40, 1, 3)),
            implementation=implementation, return_selection=True))
        np.testing.assert_array_equal(attend(*values)[1][0, -1, 0], wanted)


@pytest.mark.parametrize("dtype", [jnp.int4, jnp.uint32])
def test_a_foreign_selection_may_have_any_integer_type(implementation, dtype):
    config = SelectionConfig(block_size=8, num_blocks=2, local_blocks=1, sink_blocks=1)
    values, ids = arrays(0, 1, 40, 40, 1, 1), jnp.broadcast_to(jnp.array([3, 2], dtype), (1, 40, 1, 2))
    attend = jax.jit(lambda ids, *x: selective_attention(
        *x, config, selection=ids, implementation=implementation, return_selection=True)[1])
    with jax.numpy_dtype_promotion("strict"):
        np.testing.assert_array_equal(attend(ids, *values)[0, -1, 0], [2, 3])


def test_outputs_of_huge_logits_are_means_of_values(implementation):
    config = SelectionConfig(block_size=4, num_blocks=3, local_blocks=1, sink_blocks=1)
    values = list(arrays(0, 1, 80, 80, 1, 2))
    attend = jax.jit(functools.partial(selective_attention, config=config, implementation=implementation))
    for part, scale in ((0, 1e4), (0, 1e8), (3, 1e6), (3, 1e8)):  # logits, gates
        out = attend(*(x * (scale if i == part else 1) for i, x in enumerate(values)))
        assert float(jnp.abs(out).max()) <= float(jnp.abs(values[2]).max()) * (1 + 1e-5)


def test_a_foreign_selection_cannot_leak_or_count_twice(implementation):
    values = arrays(8, 1, 32, 32, 1, 2)
    config = SelectionConfig(block_size=4, num_blocks=4, local_blocks=1, sink_blocks=1)
    ids = jnp.broadcast_to(jnp.array([7, 2, 2, 0], jnp.int32), (1, 32, 1, 4))
    _, selection = selective_attention(
        *values, config, selection=ids, implementation=implementation, return_selection=True)
    np.testing.assert_array_equal(selection[0, 31, 0], [2, -1, -1, -1])
    np.testing.assert_array_equal(selection[0, 11, 0], [-1, -1, -1, -1])


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_a_selection_of_a_narrow_type_cannot_leak(implementation, dtype):
    values = arrays(8, 1, 600, 600, 1, 1)  # 300 blocks, more than 8 bits count
    config = SelectionConfig(block_size=2, num_blocks=2, local_blocks=1, sink_blocks=1)
    ids = np.full((1, 600, 1, 2), 3)
    run = lambda ids: selective_attention(
        *values, config, selection=ids, implementation=implementation, return_selection=True)
    for narrow, wide in zip(run(ids.astype(dtype)), run(ids.astype(np.int32)), strict=True):
        np.testing.assert_array_equal(narrow, wide)


def test_gates_that_overflow_hide_their_blocks(implementation):
    q, k, v, router_q, router_k = arrays(12, 1, 32, 32, 1, 1)
    values = (q, k, v, 1e25 * router_q, -1e25 * router_k)
    config = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=0)
    out, _, grads = value_and_grads(values, config, implementation, True)
    none = jnp.full((1, 32, 1, 2), -1, jnp.int32)
    expected, _, expected_grads = value_and_grads(values, config, implementation, True, selection=none)
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        np.testing.assert_allclose(actual, wanted, atol=1e-5)


def test_float16_holds_the_mean_of_values_whose_sum_it_cannot_hold():
    q, k, v, router_q, router_k = arrays(13, 1, 256, 256, 1, 1, dtype=jnp.float16)
    values = (q, k, jnp.full_like(v, 6e4), router_q, router_k)
    config = SelectionConfig(block_size=32, num_blocks=2, local_blocks=1, sink_blocks=1)
    np.testing.assert_allclose(selective_attention(*values, config), values[2], rtol=2e-3)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_near_the_reference(dtype):
    values = arrays(9, 1, 96, 96, 2, 2, dtype=dtype)
    config = SelectionConfig(block_size=8, num_blocks=3, local_blocks=2, sink_blocks=1)
    out, selection, grads = value_and_grads(values, config, "xla", True)
    exact = tuple(x.astype(jnp.float32) for x in values)
    expected, _, expected_grads = value_and_grads(exact, config, "reference", True, selection=selection)
    assert out.dtype == dtype
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        error = jnp.linalg.norm((actual.astype(jnp.float32) - wanted).ravel()) / jnp.linalg.norm(wanted.ravel())
        assert error < 2e-2

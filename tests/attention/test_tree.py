"""The tree finds what flat selection finds where it says so, leaks nothing, and is rebuilt, never continued."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import arrays, value_and_grads

from subq_jax import SelectionConfig, build_tree, selective_attention, update_tree
from subq_jax.attention.reference import blocks_reached
from subq_jax.selection.choose import block_scores, choose_blocks
from subq_jax.selection.tree import search_tree
from subq_jax.selection.visibility import place_queries


def whole_numbers(x):
    """Rounded, so that scores are exact in any order of summation and ties are common."""
    return jnp.round(2 * x)


def packed_documents(rng, length, block_size):
    """Segment ids [1, length] of documents of random numbers of blocks, the last one padding."""
    blocks = np.cumsum(rng.random(-(-length // block_size)) < 0.15)
    blocks = np.where(blocks == blocks[-1], -1, blocks)
    return jnp.array(np.repeat(blocks, block_size)[None, :length], jnp.int32)


def flat_choice(router_q, tree, place, config):
    return choose_blocks(block_scores(router_q, tree.levels[0]), place, config)


@functools.partial(jax.jit, static_argnums=3)
def every_choice(router_q, router_k, place, config):
    """By the search, by looking at every node, flat, and by a search with a beam as wide as the tree."""
    tree = build_tree(router_k, config)
    scores = block_scores(router_q, tree.levels[0])
    expected = choose_blocks(scores, place, config, blocks_reached(router_q, tree, place, config))
    wanted = jnp.where(expected >= 0, jnp.take_along_axis(scores, jnp.maximum(expected, 0), axis=-1), 0)
    wide = search_tree(router_q, tree, place, dataclasses.replace(config, beam_width=60))
    return (search_tree(router_q, tree, place, config), (expected, wanted), flat_choice(router_q, tree, place, config),
            wide)


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize(("fanouts", "beam_width", "num_blocks", "block_size", "sink_blocks"), [
    ((2,), 1, 1, 2, 0), ((2, 2, 2), 1, 2, 1, 1), ((3, 2), 2, 4, 1, 2), ((4, 4), 1, 3, 2, 1), ((64,), 2, 3, 1, 1),
])
def test_the_search_finds_what_looking_at_every_node_finds(
        pooling, fanouts, beam_width, num_blocks, block_size, sink_blocks):
    config = SelectionConfig(block_size=block_size, num_blocks=num_blocks, local_blocks=1, sink_blocks=sink_blocks,
                             pooling=pooling, fanouts=fanouts, beam_width=beam_width)
    rng = np.random.default_rng(0)
    for trial in range(6):
        segments = packed_documents(rng, 61, block_size) if trial % 2 else jnp.zeros((1, 61), jnp.int32)
        place = place_queries(jnp.zeros((1,), jnp.int32), 61, segments, block_size)
        router_q, router_k = (jnp.array(rng.integers(0, 4, (1, 61, 2, 3)), jnp.float32) for _ in range(2))
        router_k *= 3  # the means of 3 and of 2 are exact, and so are ties
        found, (expected, scores), flat, everything = every_choice(router_q, router_k, place, config)
        np.testing.assert_array_equal(found.chosen, expected)
        np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
        same = (found.chosen == flat).all(axis=-1)
        assert (same | ~found.certified).all(), "certified means flat"
        np.testing.assert_array_equal(everything.chosen, flat)
        assert everything.certified.all()


def test_choices_are_certified_where_two_blocks_stand_out_and_not_where_all_are_alike():
    *_, router_q, router_k = arrays(0, 1, 256, 256, 1, 1)
    config = SelectionConfig(block_size=2, num_blocks=2, local_blocks=1, fanouts=(4, 4), beam_width=2)
    place = place_queries(jnp.zeros((1,), jnp.int32), 256, None, 2)
    late = np.arange(256) >= 128  # by then there is more to prune than the beam holds

    alike = build_tree(router_k, config)
    found = search_tree(router_q, alike, place, config)
    same = (found.chosen == flat_choice(router_q, alike, place, config)).all(axis=-1)
    assert found.certified[..., ~late].any() and not found.certified[..., late].all()
    assert not same.all(), "too easy a problem to show anything"
    assert bool((same | ~found.certified).all())

    standing_out = build_tree(router_k.at[:, jnp.array([40, 70])].multiply(20), config)
    found = search_tree(router_q, standing_out, place, config)
    assert found.certified[..., late].all()
    np.testing.assert_array_equal(found.chosen[0, 0, 128:], np.broadcast_to([20, 35], (128, 2)))
    mean = dataclasses.replace(config, pooling="mean")
    assert not search_tree(router_q, build_tree(router_k, mean), place, mean).certified[..., late].any()


@pytest.mark.parametrize(("pruned", "ahead", "certified"), [
    (1.0, 5e-6, False), (1.0, 2e-5, True), (1e-3, 5e-6, False), (1e-3, 2e-5, True), (64.0, 3e-4, False),
    (64.0, 2e-3, True), (-64.0, 3e-4, False), (-64.0, 2e-3, True)])
def test_certain_is_what_rounding_could_not_turn(pruned, ahead, certified):
    """The best block beats the pruned node by more or less than 1e-5 of its score, and of 1 where that is less."""
    config = SelectionConfig(block_size=1, num_blocks=1, sink_blocks=0, local_blocks=1, fanouts=(2,), beam_width=1)
    keys = jnp.array([pruned, -99, -99, pruned + ahead, -99, -99], jnp.float32).reshape(1, 6, 1, 1)
    place = place_queries(jnp.array([5], jnp.int32), 1, None, 1)
    found = search_tree(jnp.ones((1, 1, 1, 1)), build_tree(keys, config), place, config)
    assert found.chosen.item() == 3 and found.certified.item() == certified


@pytest.mark.parametrize("fanouts", [(), (2,)])
def test_zeros_of_both_signs_are_equal(implementation, fanouts):
    config = SelectionConfig(block_size=1, num_blocks=2, sink_blocks=0, local_blocks=1, fanouts=fanouts, beam_width=2)
    zeros = jnp.zeros((1, 1, 1, 1))
    keys = jnp.full((1, 10, 1, 1), -1.0).at[0, 5].set(1.0)  # block 5 scores 0, all others -0
    q, k, v, *_ = arrays(0, 1, 1, 10, 1, 1)
    attend = jax.jit(lambda *x: selective_attention(
        *x, config, implementation=implementation, return_selection=True))
    np.testing.assert_array_equal(attend(q, k, v, zeros, keys)[1].ravel(), [0, 1])


def test_a_node_scores_at_least_as_high_as_every_block_below_it():
    *_, router_q, router_k = arrays(1, 1, 96, 96, 1, 1)
    config = SelectionConfig(block_size=2, num_blocks=2, fanouts=(4, 3), beam_width=2)
    levels = [block_scores(router_q, summaries) for summaries in build_tree(router_k, config).levels]
    for below, above, fanout in zip(levels, levels[1:], config.fanouts, strict=False):
        above = jnp.repeat(above, fanout, axis=-1)[..., : below.shape[-1]]
        assert bool((above + 1e-6 * jnp.abs(above) >= below).all())  # products of two widths may add up in two orders


def test_a_partly_past_node_leaks_nothing(implementation):
    config = SelectionConfig(block_size=2, num_blocks=2, local_blocks=1, sink_blocks=1, fanouts=(4, 2), beam_width=1)
    values, noise = arrays(2, 1, 64, 64, 1, 2), arrays(3, 1, 64, 64, 1, 2)
    run = jax.jit(lambda *values: selective_attention(
        *values, config, implementation=implementation, return_selection=True))
    out, selection = run(*values)
    for position in (21, 37, 46):  # inside a node of 8 blocks, of which some are past
        later = jnp.arange(64).reshape(1, 64, 1, 1) > position
        changed = run(*(jnp.where(later, 50 * n, x) for x, n in zip(values, noise, strict=True)))
        np.testing.assert_array_equal(out[:, : position + 1], changed[0][:, : position + 1])
        np.testing.assert_array_equal(selection[:, : position + 1], changed[1][:, : position + 1])
        grads = jax.grad(lambda *values, p=position: run(*values)[0][:, p].sum(), argnums=range(5))(*values)
        assert not any(grad[:, position + 1 :].any() for grad in grads)


@pytest.mark.parametrize("packed", [False, True])
def test_xla_equals_reference_with_a_tree(packed):
    config = SelectionConfig(block_size=4, num_blocks=3, local_blocks=1, sink_blocks=1, fanouts=(3, 2), beam_width=2)
    q, k, v, *router = arrays(4, 2, 90, 90, 2, 2)
    values, where = (q, k, v, *map(whole_numbers, router)), {}
    if packed:  # nodes of 24 tokens of two documents, and padding
        where = {"segment_ids": jnp.array([[0] * 16 + [1] * 74, [0] * 60 + [1] * 24 + [-1] * 6], jnp.int32)}
    out, selection, grads = value_and_grads(values, config, "xla", True, **where)
    expected, expected_selection, expected_grads = value_and_grads(values, config, "reference", True, **where)
    np.testing.assert_array_equal(selection, expected_selection)
    flat = value_and_grads(values, dataclasses.replace(config, fanouts=()), "reference", True, **where)[1]
    assert (selection != flat).any(), "the beam prunes something here"
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-4 * max(1, float(jnp.abs(wanted).max())))


@pytest.mark.parametrize("pooling", ["max", "mean"])
@pytest.mark.parametrize(("start", "count"), [(0, 5), (13, 1), (15, 1), (39, 6), (17, 9), (40, 23), ((3, 30), 20)])
def test_an_updated_tree_is_the_tree_built_anew(pooling, start, count):
    """Whatever stood in the cache before, higher values of rolled-back tokens included."""
    config = SelectionConfig(block_size=4, num_blocks=1, fanouts=(3, 2), beam_width=1, pooling=pooling)
    *_, old = arrays(5, 2, 63, 63, 2, 1)
    *_, new = arrays(6, 2, 63, 63, 2, 1)
    starts = jnp.broadcast_to(jnp.array(start), (2,))
    written = (jnp.arange(63)[None] >= starts[:, None]) & (jnp.arange(63)[None] < starts[:, None] + count)
    cache = jnp.where(written[..., None, None], new, old + 5 * written[..., None, None])
    before = build_tree(jnp.where(written[..., None, None], old + 5, old), config)
    updated = jax.jit(update_tree, static_argnums=(2, 4))(before, cache, config, jnp.array(start), count)
    for found, expected in zip(updated.levels, build_tree(cache, config).levels, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_prebuilt_tree_gives_the_same_result(implementation):
    config = SelectionConfig(block_size=4, num_blocks=2, fanouts=(3,), beam_width=2)
    q, k, v, router_q, router_k = arrays(7, 2, 10, 60, 1, 2)
    present = jnp.array([50, 60], jnp.int32)

    def loss(router_q, router_k, poison):
        tree = build_tree(router_k, config)
        if poison:  # what a partial node holds must not matter
            tree = tree._replace(levels=(tree.levels[0].at[0, :, 12:].set(jnp.nan),
                                         tree.levels[1].at[0, :, 4:].set(jnp.nan)))
        out = selective_attention(q, k, v, router_q, router_k, config, kv_length=present, tree=tree,
                                  implementation=implementation)
        return (out**2).sum()

    def own(router_q, router_k):
        out = selective_attention(q, k, v, router_q, router_k, config, kv_length=present,
                                  implementation=implementation)
        return (out**2).sum()

    expected = jax.value_and_grad(own, argnums=(0, 1))(router_q, router_k)
    for poison in (False, True):
        given_tree = jax.value_and_grad(loss, argnums=(0, 1))(router_q, router_k, poison)
        for actual, wanted in zip(jax.tree.leaves(given_tree), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("fanouts", [(), (4,)])
def test_a_score_that_overflowed_still_beats_no_candidate(fanouts):
    config = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=1, fanouts=fanouts, beam_width=8)
    *_, router_q, router_k = arrays(0, 1, 20, 20, 1, 1)
    place = place_queries(jnp.zeros((1,), jnp.int32), 20, None, 4)
    tree = build_tree(jnp.full_like(router_k, -3e38), config)
    chosen = search_tree(router_q + 10, tree, place, config).chosen
    np.testing.assert_array_equal(chosen[0, 0, -1], [1, 2])
    np.testing.assert_array_equal(flat_choice(router_q + 10, tree, place, config)[0, 0, -1], [1, 2])

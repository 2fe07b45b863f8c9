"""Sketches: exact at full rank, best among maps of their rank, causal, and isolated like flat choosing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subq_jax import SelectionConfig
from subq_jax.selection.choose import block_scores, choose_blocks
from subq_jax.selection.sketch import fit_sketch, search_sketch
from subq_jax.selection.visibility import QueryPlace

CONFIG = SelectionConfig(block_size=4, num_blocks=3, local_blocks=1, sink_blocks=1)
QUERIES, BLOCKS, WIDTH = 24, 40, 6


def inputs(seed=0, directions=WIDTH):
    keys = jax.random.split(jax.random.key(seed), 3)
    basis = jax.random.normal(keys[2], (directions, WIDTH))
    router_q = jax.random.normal(keys[0], (2, QUERIES, 2, directions)) @ basis
    return router_q, jax.random.normal(keys[1], (2, 2, BLOCKS, WIDTH))


def place(last=BLOCKS * 4):
    position = jnp.broadcast_to(last - QUERIES + jnp.arange(QUERIES, dtype=jnp.int32), (2, QUERIES))
    first = jnp.zeros_like(position).at[1].set(40)  # the second sequence's document starts at block 10
    return QueryPlace(position, position // 4, first, first // 4, jnp.ones_like(position, dtype=bool))


@pytest.mark.parametrize(("rank", "kept", "directions"), [(WIDTH, 3, WIDTH), (2, 6, 2), (1, BLOCKS, WIDTH)])
def test_flats_choice_is_found_when_nothing_is_lost(rank, kept, directions):
    router_q, summaries = inputs(directions=directions)
    sketch = fit_sketch(router_q, summaries, rank)
    found = search_sketch(router_q, summaries, sketch, place(), CONFIG, kept)
    np.testing.assert_array_equal(found, choose_blocks(block_scores(router_q, summaries), place(), CONFIG))


def test_no_other_map_of_its_rank_loses_less():
    router_q, summaries = inputs()
    centred = np.asarray(summaries - summaries.mean(axis=(0, 2), keepdims=True), np.float64)
    exact = np.einsum("btkr,cknr->kbtcn", np.asarray(router_q, np.float64), centred)
    sketch = fit_sketch(router_q, summaries, 2)
    rough = np.einsum("btkd,cknd->kbtcn",
                      np.einsum("btkr,krd->btkd", router_q, sketch.query),
                      np.einsum("cknr,krd->cknd", centred, sketch.summary))
    for head in range(2):
        matrix = exact[head].reshape(2 * QUERIES, -1)
        values = np.linalg.svd(matrix, compute_uv=False)
        lost = np.sum((matrix - rough[head].reshape(matrix.shape)) ** 2)
        assert lost == pytest.approx(np.sum(values[2:] ** 2), rel=0.02)


def test_what_all_blocks_share_changes_nothing():
    """It does not change a query's order, and a sketch that kept it would lose what does."""
    router_q, summaries = inputs()
    shared = 20 * jnp.arange(WIDTH)[None, None, None] + jnp.array([1.0, -1.0])[None, :, None, None]
    products = lambda sketch: jnp.einsum("krd,ksd->krs", *sketch)
    expected = products(fit_sketch(router_q, summaries, 2))
    np.testing.assert_allclose(products(fit_sketch(router_q, summaries + shared, 2)), expected, atol=1e-3)


def test_queries_of_zeros_leave_a_sketch_of_numbers():
    router_q, summaries = inputs()
    sketch = fit_sketch(router_q * 0, summaries, 2)
    assert all(jnp.isfinite(x).all() for x in sketch)
    found = search_sketch(router_q * 0, summaries, sketch, place(), CONFIG, BLOCKS)
    np.testing.assert_array_equal(found, choose_blocks(block_scores(router_q * 0, summaries), place(), CONFIG))


def test_blocks_that_are_no_candidates_change_nothing():
    router_q, summaries = inputs()
    sketch = fit_sketch(*inputs(1), 2)
    early = place(last=100)
    found = search_sketch(router_q, summaries, sketch, early, CONFIG, 6)
    moved = summaries.at[:, :, 24:].set(1e3)  # from the newest query's own block on
    np.testing.assert_array_equal(found, search_sketch(router_q, moved, sketch, early, CONFIG, 6))
    real = np.asarray(found)
    assert real.max() < 24 and (real[1][real[1] >= 0] > 10).all() and (real[0][real[0] >= 0] > 0).all()


def test_fewer_candidates_than_blocks_leave_places_empty():
    router_q, summaries = inputs()
    found = search_sketch(router_q, summaries, fit_sketch(router_q, summaries, 1), place(last=24), CONFIG, 8)
    for t, row in enumerate(np.asarray(found[0, 0])):
        wanted = min(3, max(0, t // 4 - 1))
        assert (row[:wanted] >= 1).all() and (row[wanted:] == -1).all()


def test_a_rank_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"rank must be in \[1, 6\], got 7"):
        fit_sketch(*inputs(), 7)

"""Long streams of blocks to choose from, and what the contract chooses: for kernels that see only parts at a time.

Most numbers are small integers, so that every order of adding up gives the same scores, and many of them are equal.
"""

import jax
import jax.numpy as jnp
import numpy as np

from subq_jax.selection.summaries import score_scale

QUERIES = 256
STREAMS = ("ties", "many", "all equal", "rising", "many rising", "no numbers", "zeros of both signs", "wide", "widest")


def stream(name: str, blocks: int):
    """router_q [1, 256, R], summaries [1, NB, R], first and last candidates int32 [1, 256], M.

    Args:
      name: one of `STREAMS`.
      blocks: NB, at least 1152.
    """
    key, queries, low = jax.random.key(7), (1, QUERIES, 64), jnp.ones((1, QUERIES), jnp.int32)
    integers = lambda key, shape, limit: jax.random.randint(key, shape, -limit, limit + 1).astype(jnp.bfloat16)
    router_q = integers(key, queries, 8)
    high = blocks - 252 + jax.random.randint(jax.random.fold_in(key, 2), (1, QUERIES), 0, 250)
    high = high.at[0, 128:130].set(jnp.array([0, 3]))  # the second 128 have too few in common to read twice
    drawn = integers(jax.random.fold_in(key, 1), (1, blocks, 64), 8)
    drawn = drawn.at[:, 1::8].set(drawn[:, ::8])  # every fourth block equals another
    rising = jnp.broadcast_to(jnp.arange(blocks)[:, None] * 384 // blocks, drawn.shape).astype(jnp.bfloat16)
    signs = jnp.zeros_like(drawn).at[:, :, 0].set(-2e-38).at[:, jnp.array([7, 9, 300])].set(0)
    wider = lambda x, times: jnp.concatenate([x, x[:, ::-1]] * times, axis=2)
    router_q, summaries, count = {
        "ties": (router_q, drawn, 9),
        "many": (router_q, drawn, 70),
        "all equal": (router_q, drawn * 0, 33),
        "rising": (jnp.abs(router_q), rising, 29),
        "many rising": (jnp.abs(router_q), rising, 128),
        "no numbers": (router_q, drawn.at[:, 40].set(jnp.nan), 9),
        "zeros of both signs": (jnp.ones_like(router_q), signs, 9),
        "wide": (wider(router_q, 1), wider(drawn, 1), 29),  # 128 channels, of which the scale is no power of 2
        "widest": (wider(router_q, 2), wider(drawn, 2), 64),
    }[name]
    return router_q, summaries, low, high, count


def assert_chosen(chosen, router_q, summaries, low, high, count: int):
    """Asserts that ids and scores are the contract's: the best, of equals the first, ids descending and then -1."""
    ids, scores = map(np.asarray, chosen)
    score = jnp.einsum("xtr,xbr->xtb", *(x.astype(jnp.float32) for x in (router_q, summaries)), precision="highest")
    score = score * score_scale(router_q.shape[-1])
    block = jnp.arange(summaries.shape[1])[None, None]
    candidate = (block >= low[..., None]) & (block <= high[..., None])
    score = jnp.where(candidate, jnp.where(jnp.isnan(score), jnp.finfo(jnp.float32).min, score), -jnp.inf)
    best, expected = jax.lax.top_k(jnp.where(score == 0, 0.0, score), count)  # to which -0 is less than 0
    expected = -jnp.sort(-jnp.where(best > -jnp.inf, expected, -1), axis=-1)
    np.testing.assert_array_equal(ids, expected)
    wanted = jnp.where(expected < 0, 0, jnp.take_along_axis(score, expected, -1))
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)

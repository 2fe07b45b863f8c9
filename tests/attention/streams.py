"""Long streams of blocks to choose from, and what the contract chooses: for kernels that see only parts at a time.

Most numbers are small integers, so that every order of adding up gives the same scores, and many of them are equal.
"""

import jax
import jax.numpy as jnp
import numpy as np

from subq_jax.selection.summaries import score_scale

QUERIES = 256
STREAMS = ("ties", "one", "many", "all equal", "rising", "many rising", "no numbers", "zeros of both signs", "wide",
           "widest", "rounded to the bound")


def stream(name: str, blocks: int):
    """router_q [1, 256, R], summaries [1, NB, R], first and last candidates int32 [1, 256], M.

    Args:
      name: one of `STREAMS`.
      blocks: NB, at least 1152.
    """
    key, queries, low = jax.random.key(7), (1, QUERIES, 64), 1 + jnp.arange(QUERIES, dtype=jnp.int32)[None] % 5
    integers = lambda key, shape, limit: jax.random.randint(key, shape, -limit, limit + 1).astype(jnp.bfloat16)
    router_q = integers(key, queries, 8)
    high = blocks - 252 + jax.random.randint(jax.random.fold_in(key, 2), (1, QUERIES), 0, 250)
    high = high.at[0, jnp.array([128, 130])].set(jnp.array([0, 3]))  # the second 128 share too few to read twice
    if name == "rounded to the bound":
        return *_rounded_to_the_bound(blocks), low, high, 3
    drawn = integers(jax.random.fold_in(key, 1), (1, blocks, 64), 8)
    drawn = drawn.at[:, 1::8].set(drawn[:, ::8])  # a quarter of the blocks have a twin
    rising = jnp.broadcast_to(jnp.arange(blocks)[:, None] * 384 // blocks, drawn.shape).astype(jnp.bfloat16)
    signs = jnp.zeros_like(drawn).at[:, :, 0].set(-2e-38).at[:, jnp.array([7, 9, 300])].set(0)
    wider = lambda x, times: jnp.concatenate([x, x[:, ::-1]] * times, axis=2)
    router_q, summaries, count = {
        "ties": (router_q, drawn, 9),
        "one": (router_q, drawn, 1),
        "many": (router_q, drawn, 65),
        "all equal": (router_q, drawn * 0, 33),
        "rising": (jnp.abs(router_q), rising, 29),
        "many rising": (jnp.abs(router_q), rising, 128),
        "no numbers": (router_q, drawn.at[:, jnp.array([2, 40])].set(jnp.nan), 9),  # one query must take block 2
        "zeros of both signs": (jnp.ones_like(router_q), signs, 9),
        "wide": (wider(router_q, 1), wider(drawn, 1), 29),  # 128 channels, of which the scale is no power of 2
        "widest": (wider(router_q, 2), wider(drawn, 2), 64),
    }[name]
    return router_q, summaries, low, high, count


def _rounded_to_the_bound(blocks: int):
    """router_q, summaries of 128 channels: one product is above its query's first bound, and rounds down to it.

    All other queries score 0 everywhere, so that their lists must be cut down while this one's is short.
    """
    scale = np.float32(score_scale(128))
    bound = np.float32(2.875) * scale  # by bisection between the lowest maximum, 2.5, and the highest, 4
    bound -= np.abs(bound) * np.float32(2.0**-22)
    near = np.float32(bound / scale)
    near += np.arange(-20, 21, dtype=np.float32) * np.spacing(near)
    number = near[(near * scale == bound) & (near.astype(np.float64) * float(scale) > float(bound))][0]
    parts, left = [], number  # numbers of bfloat16 that add up to it
    for _ in range(3):
        parts.append((left.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32))
        left = np.float32(left - parts[-1])
    summaries = jnp.zeros((1, blocks, 128), jnp.bfloat16).at[:, :, 1].set(2.5)
    summaries = summaries.at[:, 5, 1:4].set(jnp.array(parts, jnp.bfloat16))
    summaries = summaries.at[:, jnp.array([133, 263, 393]), 1].set(jnp.array([4, 3, 3.5], jnp.bfloat16))
    router_q = jnp.zeros((1, QUERIES, 128), jnp.bfloat16).at[:, :, 0].set(1)
    return router_q.at[:, 3, 0].set(0).at[:, 3, 1:4].set(1), summaries


def assert_chosen(chosen, router_q, summaries, low, high, count: int):
    """Asserts that ids and scores are the contract's: the best, of equals the first, ids descending and then -1."""
    ids, scores = map(np.asarray, chosen)
    score = jnp.einsum("xtr,xbr->xtb", *(x.astype(jnp.float32) for x in (router_q, summaries)), precision="highest")
    score = jnp.where(jnp.isnan(score), jnp.finfo(jnp.float32).min, score) * score_scale(router_q.shape[-1])
    block = jnp.arange(summaries.shape[1])[None, None]
    candidate = (block >= low[..., None]) & (block <= high[..., None])
    score = jnp.where(candidate, score, -jnp.inf)
    best, expected = jax.lax.top_k(jnp.where(score == 0, 0.0, score), count)  # to which -0 is less than 0
    expected = -jnp.sort(-jnp.where(best > -jnp.inf, expected, -1), axis=-1)
    np.testing.assert_array_equal(ids, expected)
    wanted = jnp.where(expected < 0, 0, jnp.take_along_axis(score, expected, -1))
    np.testing.assert_allclose(scores, wanted, rtol=1e-5, atol=1e-5)

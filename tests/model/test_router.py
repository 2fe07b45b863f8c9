"""The router's features are what its docstring promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from subq_jax.model.router import Router
from subq_jax.selection.choose import block_scores
from subq_jax.selection.config import SelectionConfig
from subq_jax.selection.summaries import block_summaries


def test_features_are_nonnegative_and_centred_on_the_key_side():
    router = Router(2, 8, 6, SelectionConfig(block_size=4), param_dtype="float32", rngs=nnx.Rngs(0))
    q, k = (np.asarray(jax.random.normal(jax.random.key(i), (1, 5, n, 8))) for i, n in ((0, 4), (1, 2)))
    router_q, router_k = (np.asarray(x) for x in router(q, k))
    kernel, center = (np.asarray(x[...]) for x in (router.kernel, router.center))
    features = lambda x, head: np.log1p(np.exp(x @ kernel[head]))
    for head in range(2):
        mean = (features(q[:, :, 2 * head], head) + features(q[:, :, 2 * head + 1], head)) / 2
        np.testing.assert_allclose(router_q[:, :, head], mean, rtol=1e-5)
        np.testing.assert_allclose(router_k[:, :, head], features(k[:, :, head], head) - center[head], atol=1e-5)
    assert (router_q >= 0).all()


def test_an_untied_router_starts_tied_and_gives_each_query_head_its_own_matrix():
    q, k = (jax.random.normal(jax.random.key(i), (1, 5, n, 8)) for i, n in ((0, 4), (1, 2)))
    tied, untied = (Router(2, 8, 6, SelectionConfig(block_size=4), heads, param_dtype="float32", rngs=nnx.Rngs(0))
                    for heads in (0, 2))
    for of_tied, of_untied in zip(tied(q, k), untied(q, k), strict=True):
        np.testing.assert_allclose(of_untied, of_tied, rtol=1e-5)
    moved = np.asarray(untied.query_kernel[...]).copy()
    moved[1, 1] *= 2  # the last of 4 query heads
    before, untied.query_kernel[...] = untied(q, k), moved
    after = untied(q, k)
    np.testing.assert_array_equal(after[0][:, :, 0], before[0][:, :, 0])
    assert not np.allclose(after[0][:, :, 1], before[0][:, :, 1])
    np.testing.assert_array_equal(after[1], before[1])


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_an_untrained_gate_is_moderate_and_survives_half_precision(pooling):
    """What the center is for, at the size of a real head: blocks of 64 unrelated tokens."""
    q, k = (jax.random.normal(jax.random.key(i), (1, 64 * 20, 1, 64)) for i in range(2))
    router = Router(1, 64, 64, SelectionConfig(pooling=pooling), param_dtype="float32", rngs=nnx.Rngs(0))

    def gates(dtype):
        router_q, router_k = router(q.astype(dtype), k.astype(dtype))
        return np.asarray(block_scores(router_q, block_summaries(router_k, 64, pooling)))

    exact, half = gates(jnp.float32), gates(jnp.bfloat16)
    assert abs(exact.mean()) < 10 and exact.std() < 10
    assert np.abs((half - exact).mean(axis=-1)).max() < 0.15, "a bias common to all of a query's blocks"

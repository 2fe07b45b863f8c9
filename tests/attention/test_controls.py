"""The learned router's tokens, and the controls' blocks: which they are, and what attention makes of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subq_jax import SelectionConfig
from subq_jax.attention import checks
from subq_jax.attention.learned_router import Index, choose_tokens, index_divergence, learned_router_attention
from subq_jax.attention.oracle_topk import oracle_topk_attention
from subq_jax.attention.random_blocks import random_blocks_attention, random_selection
from subq_jax.kernels.xla import grain

BATCH, LENGTH, KV_HEADS, GROUP, HEAD_DIM = 2, 37, 2, 3, 8
BLOCKS = SelectionConfig(block_size=4, num_blocks=2, local_blocks=1, sink_blocks=1)
TOKENS = SelectionConfig(block_size=1, num_blocks=5, local_blocks=3, sink_blocks=2)


def arrays(seed=0):
    shapes = [(BATCH, LENGTH, KV_HEADS * GROUP, HEAD_DIM), *[(BATCH, LENGTH, KV_HEADS, HEAD_DIM)] * 2]
    return [jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(seed), 3), shapes,
                                                                strict=True)]


def index(seed=1):
    shapes = [(BATCH, LENGTH, KV_HEADS, 2, 4), (BATCH, LENGTH, KV_HEADS, 2), (BATCH, LENGTH, KV_HEADS, 4)]
    return Index(*(jax.random.normal(key, shape) for key, shape in
                   zip(jax.random.split(jax.random.key(seed), 3), shapes, strict=True)))


def attend(q, k, v, visible):
    """One query's group of heads over the `visible` positions, and the weights [G, len(visible)], in float64."""
    weights = np.exp(q @ k[visible].T / HEAD_DIM**0.5)
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights @ v[visible], weights


def group(q, head):
    return np.asarray(q, np.float64)[head * GROUP : (head + 1) * GROUP]


def by_hand(choose, q, k, v, config):
    """Attention where `choose(row, t, head, candidates)` says which candidate blocks of `config` are selected."""
    out = np.zeros(q.shape)
    k, v, size = np.asarray(k, np.float64), np.asarray(v, np.float64), config.block_size
    for row in range(BATCH):
        for t in range(LENGTH):
            for head in range(KV_HEADS):
                own = t // size
                candidates = list(range(config.sink_blocks, own - config.local_blocks + 1))
                blocks = {*range(config.sink_blocks), *range(own - config.local_blocks + 1, own + 1)}
                blocks |= set(choose(row, t, head, candidates))
                visible = [j for j in range(t + 1) if j // size in blocks]
                out[row, t, head * GROUP : (head + 1) * GROUP], _ = attend(
                    group(q[row, t], head), k[row, :, head], v[row, :, head], visible)
    return out


def best(scores, count):
    return sorted(scores, key=lambda b: (-scores[b], b))[:count]


def test_learned_router_attends_to_the_tokens_of_highest_score():
    (q, k, v), features = arrays(), index()
    query, weight, key = (np.asarray(x, np.float64) for x in features)

    def choose(row, t, head, candidates):
        scores = {j: (weight[row, t, head] * np.maximum(query[row, t, head] @ key[row, j, head] / 2, 0)).sum()
                  for j in candidates}
        return best(scores, TOKENS.num_blocks)

    actual = jax.jit(lambda *x: learned_router_attention(*x, TOKENS))(q, k, v, features)
    np.testing.assert_allclose(actual, by_hand(choose, q, k, v, TOKENS), atol=1e-5)


@pytest.mark.parametrize("chunks", ["one", "many"])
def test_learned_router_gradients_are_those_of_a_mask(monkeypatch, chunks):
    if chunks == "many":
        monkeypatch.setattr(grain, "CPU_GRAIN", grain.CPU_GRAIN._replace(whole=1))
    (q, k, v), features = arrays(), index()
    place, _ = checks.locate(q, k, None, None, None, 1)
    chosen = choose_tokens(features, place, TOKENS)
    j, t = jnp.arange(LENGTH)[None], jnp.arange(LENGTH)[:, None]
    forced = ((j < 2) | (j > t - 3)) & (j <= t)
    visible = forced[None, :, None] | (chosen[..., None] == jnp.arange(LENGTH)[None, None, None, None]).any(axis=3)

    def masked(q, k, v):
        grouped = q.reshape(BATCH, LENGTH, KV_HEADS, GROUP, HEAD_DIM)
        logits = jnp.einsum("btkgh,bskh->btkgs", grouped, k) / HEAD_DIM**0.5
        weights = jax.nn.softmax(jnp.where(visible[:, :, :, None], logits, -jnp.inf), axis=-1)
        return jnp.einsum("btkgs,bskh->btkgh", weights, v).reshape(q.shape)

    gradients = lambda attention: jax.jit(jax.grad(lambda *x: jnp.sin(attention(*x)).sum(), argnums=(0, 1, 2)))(q, k, v)
    ours = gradients(lambda *x: learned_router_attention(*x, features, TOKENS))
    for a, b in zip(ours, gradients(masked), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_index_learns_from_its_divergence_alone():
    (q, k, v), features = arrays(), index()
    silent = jax.jit(jax.grad(lambda x: learned_router_attention(q, k, v, x, TOKENS).sum()))(features)
    assert not any(x.any() for x in silent)
    run = jax.jit(jax.value_and_grad(lambda q, k, x: index_divergence(q, k, x, TOKENS), argnums=(0, 1, 2)))
    before, (dq, dk, d_index) = run(q, k, features)
    assert not dq.any() and not dk.any() and all(x.any() for x in d_index)
    after, _ = run(q, k, jax.tree.map(lambda x, dx: x - 10 * dx, features, d_index))
    assert 0 < after < before


def test_oracle_attends_to_the_blocks_of_most_dense_weight():
    q, k, v = arrays()
    k64, v64 = np.asarray(k, np.float64), np.asarray(v, np.float64)

    def choose(row, t, head, candidates):
        _, weights = attend(group(q[row, t], head), k64[row, :, head], v64[row, :, head], range(t + 1))
        mass = np.bincount(np.arange(t + 1) // 4, weights.mean(axis=0), minlength=10)
        return best({b: mass[b] for b in candidates}, BLOCKS.num_blocks)

    actual = jax.jit(lambda *x: oracle_topk_attention(*x, BLOCKS))(q, k, v)
    np.testing.assert_allclose(actual, by_hand(choose, q, k, v, BLOCKS), atol=1e-5)


def test_random_blocks_attend_to_the_blocks_that_the_hash_chose():
    q, k, v = arrays()
    place, _ = checks.locate(q, k, None, None, None, BLOCKS.block_size)
    chosen = np.asarray(random_selection(place, BLOCKS, KV_HEADS))
    choose = lambda row, t, head, candidates: [b for b in chosen[row, t, head] if b >= 0]
    actual = jax.jit(lambda *x: random_blocks_attention(*x, BLOCKS))(q, k, v)
    np.testing.assert_allclose(actual, by_hand(choose, q, k, v, BLOCKS), atol=1e-5)


@pytest.mark.parametrize("num_blocks", [1, 3, 7])
def test_random_blocks_are_distinct_candidates_and_every_one_has_its_turn(num_blocks):
    config = SelectionConfig(block_size=4, num_blocks=num_blocks, local_blocks=2, sink_blocks=1)
    length = 4096
    shapes = [jax.ShapeDtypeStruct((1, length, 1, 4), jnp.float32)] * 2
    place, _ = checks.locate(*shapes, None, None, None, 4)
    chosen = np.asarray(jax.jit(lambda: random_selection(place, config, 2))())[0]
    for t in (3, 8, 12, 13, 40, 4095):
        count = max(0, t // 4 - 2)
        for ids in chosen[t]:
            ids = ids[ids >= 0]
            assert len(set(ids.tolist())) == len(ids) == min(count, num_blocks)
            assert all(1 <= b <= t // 4 - 2 for b in ids)
    late = chosen[2048:, 0]
    assert (chosen[:, 0] != chosen[:, 1]).any()
    share = np.bincount(late.ravel(), minlength=1024)[1:501] / len(late)  # candidates of all of them
    wanted = np.mean([num_blocks / (t // 4 - 2) for t in range(2048, length)])
    np.testing.assert_allclose(share.reshape(20, 25).mean(axis=1), wanted, rtol=0.5)


def test_a_selection_in_blocks_is_refused_by_the_learned_router():
    with pytest.raises(ValueError, match="config.block_size must be 1: tokens are chosen, got 4"):
        learned_router_attention(*arrays(), index(), BLOCKS)
    with pytest.raises(ValueError, match=r"index.weight must have shape \[B, T, K, I\]"):
        learned_router_attention(*arrays(), index()._replace(weight=jnp.zeros((1, 2))), TOKENS)
